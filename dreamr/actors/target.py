"""The target: writes the step at the frontier and, where no verifier has an actor of its own, gives the verdicts."""

from __future__ import annotations

from typing import ClassVar

from dreamr.actors.draft import DraftActor
from dreamr.actors.types import Role
from dreamr.actors.verifier import VerifierActor


class TargetActor(DraftActor, VerifierActor):
    """Writes steps and judges them with one model."""

    role: ClassVar[Role] = "target"
