"""The three actors: Draft and Target write steps, Verifier and Target judge them. See `EngineActor` for their lives."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from actors.batching import VerdictBatcher
from actors.engine_actor import PHASES, SWAP, EngineActor
from actors.swap import DraftWeights
from dreamr.config import ActorConfig
from dreamr.engines.base import Assisted, BranchWriting, Phases, Swappable, TokenSpeculation
from dreamr.types import (
    Checked,
    Criterion,
    Priority,
    Prompt,
    Proposal,
    Role,
    Sampling,
    Step,
    Verdict,
)

_BRANCHES, _TOKENS = "several steps in one batch", "token-level speculation"


class _Writes(EngineActor):
    """Writes steps; a reference to a step chains the next call to it."""

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        super().__init__(config, ids_of)
        self._open_chains: set[str] = set()

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        if sampling.grammar:
            self._able(Phases, PHASES)
        sampling = sampling.within_budget(len(after.end))
        step = await self._alive(self._engine.next_step(call_id, prompt, after, sampling, priority))
        is_sure = sampling.sure_above is not None and step.confidence > sampling.sure_above
        return replace(step, is_sure=True) if is_sure else step

    async def next_chain(
        self, call_id: str, prompt: Prompt, after: Step | tuple[Step, ...], sampling: tuple[Sampling, ...]
    ) -> tuple[Step, ...]:
        """Write a chain of steps; those after the end of the answer, or after `stop`, are empty."""
        last = after[-1] if isinstance(after, tuple) else after
        chain: list[Step] = []
        self._open_chains.add(call_id)
        try:
            for one in sampling:
                is_open = call_id in self._open_chains and last.finish != "stopped"
                stopped = Step(last.end, finish="stopped", started=last.ended, ended=last.ended)
                last = await self.next_step(call_id, prompt, last, one) if is_open else stopped
                chain.append(last)
        finally:
            self._open_chains.discard(call_id)
        return tuple(chain)

    def stop_now(self, call_id: str) -> None:
        super().stop_now(call_id)
        self._open_chains.discard(call_id)

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: tuple[Step, ...], sampling: tuple[Sampling, ...]
    ) -> tuple[Step, ...]:
        within = tuple(one.within_budget(len(step.end)) for one, step in zip(sampling, chain, strict=True))
        return await self._alive(self._able(BranchWriting, _BRANCHES).next_steps(call_id, prompt, chain, within))

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        engine = self._able(TokenSpeculation, _TOKENS)
        return await self._alive(engine.propose_tokens(call_id, prompt, after, num_tokens, sampling))

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        engine = self._able(TokenSpeculation, _TOKENS)
        return await self._alive(engine.check_tokens(call_id, prompt, after, proposal, sampling))


class _Judges(EngineActor):
    """Judges drafted steps; those that wait at the same time are judged together."""

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        super().__init__(config, ids_of)
        self._batcher: VerdictBatcher | None = None

    async def score(
        self, call_id: str, prompt: Prompt, step: Step, criterion: Criterion = "rho", reference: Step | None = None
    ) -> Verdict:
        """Judge one step on its own prefix; `NO_VERDICT` for a blank step, and after `stop`."""
        return await self._alive(self._verdicts.score(call_id, prompt, step, criterion, reference))

    async def score_chain(
        self, call_id: str, prompt: Prompt, chain: tuple[Step, ...], criterion: Criterion = "rho"
    ) -> tuple[Verdict, ...]:
        """Judge steps that follow each other in one forward; from the first blank one on they get `NO_VERDICT`."""
        return await self._alive(self._verdicts.score_chain(call_id, prompt, chain, criterion))

    @property
    def _verdicts(self) -> VerdictBatcher:
        engine = self._engine  # raises NotLoaded
        if self._batcher is None:
            self._batcher = VerdictBatcher(engine)
        return self._batcher

    def stop_now(self, call_id: str) -> None:
        super().stop_now(call_id)
        if self._batcher is not None:
            self._batcher.stop(call_id)


class DraftActor(_Writes):
    """The small model: writes steps ahead of the frontier."""

    role: ClassVar[Role] = "draft"


class VerifierActor(_Judges):
    """The target model in its own actor, giving verdicts while the target writes."""

    role: ClassVar[Role] = "verifier"


class TargetActor(_Writes, _Judges):
    """The large model: writes the step at the frontier and, where the verifier is shared, gives the verdicts too."""

    role: ClassVar[Role] = "target"

    async def _swap_draft(self, weights: DraftWeights) -> None:
        assistant = self._able(Assisted, SWAP)
        await self._swap.load(weights, self._able(Swappable, SWAP), assistant.update_assistant)
