"""The draft: writes steps ahead of the frontier."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dreamr.actors.base import EngineActor
from dreamr.actors.types import Checked, Prompt, Proposal, Role, Sampling, Step
from dreamr.engines.base import TokenSpeculation


class DraftActor(EngineActor):
    """Writes the next step; a reference to a drafted step chains the next call to it."""

    role: ClassVar[Role] = "draft"

    async def next_step(self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling) -> Step:
        if sampling.background and not self._config.background:
            sampling = replace(sampling, background=False)
        return await self._alive(self._engine.next_step(call_id, prompt, after, sampling))

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        return await self._speculation.propose_tokens(call_id, prompt, after, num_tokens, sampling)

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        return await self._speculation.check_tokens(call_id, prompt, after, proposal, sampling)

    @property
    def _speculation(self) -> TokenSpeculation:
        """Raises ValueError when the engine cannot speculate token by token."""
        engine = self._engine
        if not isinstance(engine, TokenSpeculation):
            raise ValueError(
                f"the {self.role}'s engine {self._config.engine.kind!r} has no token-level speculation: "
                "use another method, or an engine that has it, such as 'hf'"
            )
        return engine
