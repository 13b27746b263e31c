"""Writer and judge in this process, without Ray: for tests, simulation and notebooks.

pipeline ── next_step ──▶ LocalWriter ── task: await the argument, then the engine ──▶ LocalRef
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Generic, TypeVar

from actors.batching import VerdictBatcher
from dreamr.engines.base import BranchWriting, Engine, TokenSpeculation
from dreamr.errors import ActorLost
from dreamr.types import Checked, Criterion, Prefill, Prompt, Proposal, Role, Sampling, Step, Verdict
from pipelines.handles import Ref

T = TypeVar("T")
Argument = TypeVar("Argument", Step, Proposal)


class LocalRef(Generic[T]):
    """The future result of one call; giving up waiting for it does not end it."""

    def __init__(self, task: asyncio.Task[T], role: Role) -> None:
        self.task = task
        self._role = role

    def __await__(self) -> Generator[Any, None, T]:
        try:
            return (yield from asyncio.shield(self.task).__await__())
        except asyncio.CancelledError:
            if self.task.cancelled():
                raise ActorLost(f"the {self._role} was lost during a call") from None
            raise


class LocalHandle:
    """One engine. `lose` makes it behave as an actor whose process died."""

    def __init__(self, engine: Engine, role: Role) -> None:
        self.engine = engine
        self.role = role
        self.tasks: set[asyncio.Task[Any]] = set()
        self._up = asyncio.Event()
        self._up.set()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def report_lost(self) -> None:
        """A local engine cannot be restarted: whatever is in flight ends, and it goes on."""
        if self.up:
            self.lose()
            self.restore()

    async def recovered(self) -> None:
        await self._up.wait()

    async def prefill(self, prompt: Prompt) -> Prefill:
        return await self.engine.prefill(prompt)

    def stop(self, call_id: str) -> None:
        self.engine.stop(call_id)

    def lose(self) -> None:
        """All open calls end with ActorLost, and new ones do too, until `restore`."""
        self._up.clear()
        for task in self.tasks:
            task.cancel()

    def restore(self) -> None:
        self._up.set()

    def _begin(self, work: Callable[[], Coroutine[Any, Any, T]]) -> LocalRef[T]:
        task = asyncio.create_task(self._if_up(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return LocalRef(task, self.role)

    async def _if_up(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if not self.up:
            raise ActorLost(f"the {self.role} is down")
        return await work()


class LocalWriter(LocalHandle):
    """Draft or target."""

    def next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> LocalRef[Step]:
        return self._begin(lambda: self._next_step(call_id, prompt, after, sampling))

    async def _next_step(self, call_id: str, prompt: Prompt, after: Step | Ref[Step], sampling: Sampling) -> Step:
        return await self.engine.next_step(call_id, prompt, await _value(after), sampling)

    def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> LocalRef[Proposal]:
        assert isinstance(self.engine, TokenSpeculation)
        engine = self.engine
        return self._begin(lambda: engine.propose_tokens(call_id, prompt, after, num_tokens, sampling))

    def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal | Ref[Proposal], sampling: Sampling
    ) -> LocalRef[Checked]:
        return self._begin(lambda: self._check_tokens(call_id, prompt, after, proposal, sampling))

    async def _check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal | Ref[Proposal], sampling: Sampling
    ) -> Checked:
        assert isinstance(self.engine, TokenSpeculation)
        return await self.engine.check_tokens(call_id, prompt, after, await _value(proposal), sampling)

    def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> LocalRef[tuple[Step, ...]]:
        assert isinstance(self.engine, BranchWriting)
        engine = self.engine
        return self._begin(lambda: engine.next_steps(call_id, prompt, chain, sampling))


class LocalJudge(LocalHandle):
    """The verifier."""

    def __init__(self, engine: Engine, role: Role = "verifier") -> None:
        super().__init__(engine, role)
        self._batcher = VerdictBatcher(engine)

    def score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion = "rho",
        reference: Step | Ref[Step] | None = None,
    ) -> LocalRef[Verdict]:
        return self._begin(lambda: self._score(call_id, prompt, step, criterion, reference))

    def score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step | Ref[Step]], criterion: Criterion = "rho"
    ) -> LocalRef[tuple[Verdict, ...]]:
        return self._begin(lambda: self._score_chain(call_id, prompt, chain, criterion))

    def stop(self, call_id: str) -> None:
        self._batcher.stop(call_id)

    def lose(self) -> None:
        super().lose()
        self._batcher.abandon()
        self._batcher = VerdictBatcher(self.engine)

    async def _score(
        self,
        call_id: str,
        prompt: Prompt,
        step: Step | Ref[Step],
        criterion: Criterion,
        reference: Step | Ref[Step] | None,
    ) -> Verdict:
        compared = None if reference is None else await _value(reference)
        return await self._batcher.score(call_id, prompt, await _value(step), criterion, compared)

    async def _score_chain(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step | Ref[Step]], criterion: Criterion
    ) -> tuple[Verdict, ...]:
        steps = [await _value(step) for step in chain]
        return tuple(await self.engine.score(call_id, prompt, steps, criterion))


async def _value(argument: Argument | Ref[Argument]) -> Argument:
    return argument if isinstance(argument, Step | Proposal) else await argument
