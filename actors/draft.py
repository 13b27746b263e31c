"""The draft: writes steps ahead of the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

from actors.base import EngineActor
from dreamr.engines.base import BranchWriting, TokenSpeculation
from dreamr.errors import Unable
from dreamr.types import Checked, Prompt, Proposal, Role, Sampling, Step

T = TypeVar("T")


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
        return await self._alive(
            self._able(TokenSpeculation).propose_tokens(call_id, prompt, after, num_tokens, sampling)
        )

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        return await self._alive(self._able(TokenSpeculation).check_tokens(call_id, prompt, after, proposal, sampling))

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        return await self._alive(self._able(BranchWriting).next_steps(call_id, prompt, chain, sampling))

    def _able(self, protocol: type[T]) -> T:
        """The engine. Raises Unable when it cannot do what the protocol asks for."""
        engine = self._engine
        if not isinstance(engine, protocol):
            raise Unable(
                f"the {self.role}'s engine {self._config.engine.kind!r} offers no {protocol.__name__}: "
                "use another method, or an engine that offers it, such as 'hf'"
            )
        return engine
