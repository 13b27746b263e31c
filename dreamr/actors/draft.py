"""The draft: writes steps ahead of the frontier."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dreamr.actors.base import EngineActor
from dreamr.actors.types import Prompt, Role, Sampling, Step


class DraftActor(EngineActor):
    """Writes the next step; a reference to a drafted step chains the next call to it."""

    role: ClassVar[Role] = "draft"

    async def next_step(self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling) -> Step:
        if sampling.background and not self._config.background:
            sampling = replace(sampling, background=False)
        return await self._alive(self._engine.next_step(call_id, prompt, after, sampling))
