"""The target: writes the step at the frontier and, where no verifier has an actor of its own, gives the verdicts."""

from __future__ import annotations

from typing import ClassVar

from actors.draft import DraftActor
from actors.verifier import VerifierActor
from dreamr.types import Role


class TargetActor(DraftActor, VerifierActor):
    """Writes steps and judges them with one model."""

    role: ClassVar[Role] = "target"
