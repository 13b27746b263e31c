"""Writer and judge in this process, without Ray: for tests, simulation and notebooks.

pipeline ── next_step ──▶ LocalWriter ── task: await the argument, then the engine ──▶ LocalRef
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from dreamr.actors.batching import VerdictBatcher
from dreamr.actors.types import ActorLost, Prefill, Prompt, Role, Sampling, Step, Verdict
from dreamr.engines.base import Engine
from dreamr.pipelines.handles import Ref

T = TypeVar("T")


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


class LocalJudge(LocalHandle):
    """The verifier."""

    def __init__(self, engine: Engine, role: Role = "verifier") -> None:
        super().__init__(engine, role)
        self._batcher = VerdictBatcher(engine)

    def score(self, call_id: str, prompt: Prompt, step: Step | Ref[Step]) -> LocalRef[Verdict]:
        return self._begin(lambda: self._score(call_id, prompt, step))

    def stop(self, call_id: str) -> None:
        self._batcher.stop(call_id)

    def lose(self) -> None:
        super().lose()
        self._batcher.abandon()
        self._batcher = VerdictBatcher(self.engine)

    async def _score(self, call_id: str, prompt: Prompt, step: Step | Ref[Step]) -> Verdict:
        return await self._batcher.score(call_id, prompt, await _value(step))


async def _value(step: Step | Ref[Step]) -> Step:
    return step if isinstance(step, Step) else await step
