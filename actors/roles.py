"""The three actors, Draft, Target and Verifier: each is one engine, loaded on `start`, on one event loop.

    driver ── start ─────▶ load in a thread ─▶ engine         health calls are answered while it loads
           ── lifeline ──▶ never returns                      its failure shows the driver that this process died
           ── stop ──────▶ engine.stop                        never waits: all calls share one loop, and the
           ── next_step ─▶ engine ── its own threads          engine computes outside of it

Ray runs `__init__` again when it restarts the process, with an engine still to be loaded: until the next `start`,
every call is refused with `NotLoaded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable
from dataclasses import replace
from typing import ClassVar, Self, TypeVar

import ray

from actors.batching import VerdictBatcher
from actors.swap import DraftWeights, Swap
from dreamr.config import ActorConfig, ScriptedEngineConfig
from dreamr.engines.base import Assisted, BranchWriting, Engine, EngineDied, Phases, Swappable, TokenSpeculation
from dreamr.engines.factory import LoadedEngine, build_engine
from dreamr.errors import ActorLost, Unable
from dreamr.types import (
    Checked,
    Criterion,
    EngineInfo,
    Prefill,
    Priority,
    Prompt,
    Proposal,
    Role,
    Sampling,
    Step,
    ThoughtEnd,
    Tokens,
    Verdict,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

_BRANCHES, _TOKENS = "several steps in one batch", "token-level speculation"
_PHASES = "bounded reasoning and answers by a schema"
_SWAP = "another draft while it runs"

MAX_CONCURRENCY = 1000
"""Calls in one actor at a time: so many that `stop` and health calls never wait for steps."""


class NotLoaded(ActorLost):
    """A call reached a process that has not loaded its model (yet, or again after a restart)."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.role = role

    def __str__(self) -> str:
        return f"the {self.role} actor has not loaded its model yet"


class EngineActor:
    """The calls that all three answer. Plain Python: the group makes Ray actors of the subclasses."""

    role: ClassVar[Role]

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        """`ids_of`: the model whose token ids steps carry, where it is not the one that this actor runs."""
        self._config = config
        self._ids_of = ids_of
        self._loaded: LoadedEngine | None = None
        self._loading = asyncio.Lock()
        self._swap = Swap()
        # OpenMP reads this once, when torch is imported; more threads than cores cost more than they bring.
        os.environ["OMP_NUM_THREADS"] = str(config.num_threads)

    @classmethod
    def around(cls, engine: Engine) -> Self:
        """An actor in this process, around an engine that is loaded already."""
        actor = cls(ActorConfig(engine=ScriptedEngineConfig(kind="scripted")))
        actor._loaded = LoadedEngine(engine, model="", device="", num_parameters=0)
        return actor

    # Retried by Ray, so that a call made while the process dies is answered by the next one.
    @ray.method(max_task_retries=-1)
    async def start(self, weights: DraftWeights | None = None) -> EngineInfo:
        """Load the engine unless it is loaded, then the draft's `weights`, in place of the configured ones if they fit.

        Raises ValueError when the engine cannot be loaded.
        """
        async with self._loading:
            if self._loaded is None:
                loaded = await asyncio.to_thread(self._load)
                if loaded.warm_up is not None:
                    await loaded.warm_up()
                self._loaded = loaded
        if weights is not None:
            try:
                await self._swap_draft(weights)
            except ValueError as error:
                log.error("the %s actor continues with the configured draft: %s", self.role, error)
        return await self.info()

    async def swap_draft(self, weights: DraftWeights) -> EngineInfo:
        """Replace the draft's weights: this engine's, or a target's assistant's. Raises ValueError, Unable."""
        await self._swap_draft(weights)
        return await self.info()

    async def _swap_draft(self, weights: DraftWeights) -> None:
        engine = self._able(Swappable, _SWAP)
        served = await self._swap.load(weights, engine, engine.update_weights)
        self._loaded = replace(self._require(), model=served.model)

    async def info(self) -> EngineInfo:
        loaded = self._require()
        return EngineInfo(
            role=self.role,
            model=loaded.model,
            device=loaded.device,
            num_parameters=loaded.num_parameters,
            max_positions=loaded.max_positions,
            recommended=loaded.recommended,
            thought_end=await self._known_thought_end(),
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
        )

    async def _known_thought_end(self) -> ThoughtEnd | None:
        with contextlib.suppress(Unable):
            return await self._able(Phases, _PHASES).thought_end()
        return None

    async def check_health(self) -> None:
        """Answers when the event loop runs and the engine is loaded."""
        self._require()

    async def progress(self) -> float:
        """Seconds since the engine last finished a forward."""
        return self.idle_s()

    def idle_s(self) -> float:
        return self._engine.idle_s()

    async def lifeline(self) -> None:
        """Never returns; fails at the caller when this process dies; it does so when its engine's process has died."""
        if self._loaded is not None and self._loaded.died is not None:
            await self._or_end(self._loaded.died())
        await asyncio.Event().wait()

    async def prefill(self, call_id: str, prompt: Prompt) -> Prefill:
        return await self._alive(self._engine.prefill(prompt))

    async def count_tokens(self, call_id: str, prompt: Prompt) -> int:
        return await self._alive(self._engine.count_tokens(prompt))

    async def tokenize(self, call_id: str, prompt: Prompt, text: str | None = None) -> Tokens:
        return await self._alive(self._able(Phases, _PHASES).tokenize(prompt if text is None else text))

    async def thought_end(self, call_id: str, prompt: Prompt) -> ThoughtEnd:
        return await self._alive(self._able(Phases, _PHASES).thought_end())

    async def _alive(self, work: Awaitable[T]) -> T:
        """Await a call of the engine, between two swaps of the draft."""
        async with self._swap.call():
            return await self._or_end(work)

    async def _or_end(self, work: Awaitable[T]) -> T:
        """Await the engine; when the engine's own process has died, this one ends too, so that Ray restarts both."""
        try:
            return await work
        except EngineDied:
            log.exception("the %s actor ends", self.role)
            os._exit(1)

    @ray.method(num_returns=0)
    async def stop(self, call_id: str) -> None:
        self.stop_now(call_id)

    @ray.method(num_returns=0)
    async def promote(self, call_id: str, hint: Tokens) -> None:
        self.promote_now(call_id, hint)

    def promote_now(self, call_id: str, hint: Tokens) -> None:
        """A speculative step is needed now; `hint` are tokens that it may begin with."""
        if self._loaded is not None:
            self._loaded.engine.promote(call_id, hint)

    def stop_now(self, call_id: str) -> None:
        """End that call between two tokens; no error for one that is unknown or has ended."""
        if self._loaded is not None:  # before that there is no call to stop
            self._loaded.engine.stop(call_id)

    @property
    def _engine(self) -> Engine:
        return self._require().engine

    def _able(self, protocol: type[T], feature: str) -> T:
        """The engine. Raises Unable when it lacks the feature that the protocol stands for."""
        engine = self._engine
        if not isinstance(engine, protocol):
            raise Unable(
                f"the {self.role}'s engine, of kind {self._config.engine.kind!r}, does not support {feature}; "
                "engines of kind 'hf' do"
            )
        return engine

    def _require(self) -> LoadedEngine:
        if self._loaded is None:
            raise NotLoaded(self.role)
        return self._loaded

    def _load(self) -> LoadedEngine:
        if self._config.engine.kind == "hf":
            import torch

            torch.set_num_threads(self._config.num_threads)
        return build_engine(self._config.engine, self._ids_of)


class _Writes(EngineActor):
    """Writes steps; a reference to a step chains the next call to it."""

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        super().__init__(config, ids_of)
        self._open_chains: set[str] = set()

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        if sampling.grammar:
            self._able(Phases, _PHASES)
        sampling = sampling.within_budget(len(after.end))
        step = await self._alive(self._engine.next_step(call_id, prompt, after, sampling, priority))
        is_sure = sampling.sure_above is not None and step.confidence > sampling.sure_above
        return replace(step, is_sure=True) if is_sure else step

    async def next_chain(
        self, call_id: str, prompt: Prompt, after: Step | tuple[Step, ...], sampling: tuple[Sampling, ...]
    ) -> tuple[Step, ...]:
        """Write a chain of steps; those after the end of the answer, or after `stop`, are empty."""
        last = after[-1] if isinstance(after, tuple) else after
        self._open_chains.add(call_id)
        chain: list[Step] = []
        for one in sampling:
            is_open = call_id in self._open_chains and last.finish != "stopped"
            stopped = Step(last.end, finish="stopped", started=last.ended, ended=last.ended)
            last = await self.next_step(call_id, prompt, last, one) if is_open else stopped
            chain.append(last)
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
        assistant = self._able(Assisted, _SWAP)
        await self._swap.load(weights, self._able(Swappable, _SWAP), assistant.update_assistant)
