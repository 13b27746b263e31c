"""`Request`: one question and how it is to be answered."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field

from dreamr.config import PipelineSettings
from dreamr.types import Prompt, Role, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, the settings of its pipeline, and an id that names its calls."""

    prompt: Prompt
    settings: PipelineSettings = field(default_factory=PipelineSettings)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def sampling(self, step: int, role: Role, *, background: bool = False) -> Sampling:
        """How step number `step` is sampled by `role`.

        Each has a seed of its own, so that what is written depends on neither timing nor what else was tried. Every
        step may have `max_step_tokens`: a drafted step cannot know how much of the budget the steps before it took.
        """
        settings = self.settings
        digest = hashlib.sha256(f"{settings.seed}/{step}/{role}".encode()).digest()
        return Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_step_tokens,
            seed=int.from_bytes(digest[:4], "big"),
            background=background,
        )
