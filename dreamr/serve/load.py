"""Behaviour under load: the queue of a replica, and back-off, which speculates less while many answers run.

    request ── slot() ──▶ fewer than max_running? ──yes──▶ run ── end ──▶ the first in the queue runs
                              │ no                                   ▲
                              ├─▶ queue full: 503 at once            │
                              └─▶ wait, first come first served ─────┘   deadline: 503;  cancelled: leaves the queue

    next_step, speculative ─▶ few answers run ─▶ the target begins at once, ahead of the verdict         (latency)
                           └▶ many ───────────▶ `PostponedStep`: begins when it is awaited, which FPSR   (throughput)
                                                does when the verdict rejects

A postponed step that is not needed never begins, so the target writes no wasted tokens. Back-off changes no
token: what is committed depends on verdicts, not on when the target's step began. Where even drafting does not pay,
the draft counts as down, and the target writes every step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from dreamr.serve.errors import busy
from dreamr.types import Prompt, Step
from pipelines.handles import Handles, Ref, Transport, WrappedTransport, Writer


class RequestQueue:
    """Bounds how many answers run and wait. `on_change` gets both numbers whenever they change.

    One event loop; an answer that ends wakes exactly one other.
    """

    def __init__(
        self, max_running: int, max_queued: int, queue_deadline_s: float, on_change: Callable[[int, int], None]
    ) -> None:
        self._max_running, self._max_queued, self._deadline_s = max_running, max_queued, queue_deadline_s
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._on_change = on_change
        self.num_running = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    def check(self, num_answers: int) -> None:
        """Raises ApiError (503) when so many more answers can neither run nor wait."""
        free = self._max_running - self.num_running + self._max_queued - self.num_waiting
        if num_answers > free:
            raise busy(
                f"{self.num_running} answers run and {self.num_waiting} wait, which is the limit: "
                "ask again in a moment."
            )

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Count as running for the duration of the block. Raises ApiError (503) when no slot becomes free in time."""
        self.check(1)
        await self._acquire()
        self._on_change(self.num_running, self.num_waiting)
        try:
            yield
        finally:
            self._release()
            self._on_change(self.num_running, self.num_waiting)

    async def _acquire(self) -> None:
        if self.num_running < self._max_running and not self._waiters:
            self.num_running += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._on_change(self.num_running, self.num_waiting)
        try:
            async with asyncio.timeout(self._deadline_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._release()  # the slot was given in the same moment: the next one gets it
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise busy(f"waited {self._deadline_s:g} s in the queue: ask again later.") from None
            raise

    def _release(self) -> None:
        """Give the slot to the first in the queue, or free it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.num_running -= 1


# -- back-off ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Number of running answers, and up to which number the target writes ahead and the draft drafts."""

    num_running: Callable[[], int]
    write_ahead_up_to: int
    draft_up_to: int

    @property
    def allows_writing_ahead(self) -> bool:
        return self.num_running() <= self.write_ahead_up_to

    @property
    def allows_drafting(self) -> bool:
        return self.num_running() <= self.draft_up_to


def with_back_off(handles: Handles, load: Load) -> Handles:
    """Wrap the actors for one of several answers, so that they speculate less under load."""
    return replace(
        handles,
        draft=Writer(DraftUnderLoad(handles.draft.transport, load)),
        target=Writer(TargetUnderLoad(handles.target.transport, load)),
    )


class PostponedStep:
    """A step that begins when it is awaited; stopped before that, it never begins."""

    def __init__(self, begin: Callable[[], Ref[Step]], after: Step) -> None:
        self._begin, self._after = begin, after
        self._ref: Ref[Step] | None = None
        self._is_stopped = False

    @property
    def has_begun(self) -> bool:
        return self._ref is not None

    def stop(self) -> None:
        self._is_stopped = True

    def __await__(self) -> Generator[Any, None, Step]:
        if self._ref is None:
            if self._is_stopped:
                return Step(prefix=self._after.end, finish="stopped")
            self._ref = self._begin()
        return (yield from self._ref.__await__())


class DraftUnderLoad(WrappedTransport):
    """A draft that counts as down while drafting does not pay."""

    def __init__(self, inner: Transport, load: Load) -> None:
        super().__init__(inner)
        self._load = load

    @property
    def up(self) -> bool:
        return super().up and self._load.allows_drafting


class TargetUnderLoad(WrappedTransport):
    """A target whose speculative steps wait for their verdict while other answers need it. For one request."""

    def __init__(self, inner: Transport, load: Load) -> None:
        super().__init__(inner)
        self._load = load
        self._postponed: dict[str, PostponedStep] = {}

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> Ref[Any]:
        match method, arguments:
            case "next_step", (Step() as after, sampling, "speculative") if not self._load.allows_writing_ahead:
                begin = super().submit
                # Needed once it begins: as a speculative one it would wait for other calls again.
                step = PostponedStep(lambda: begin(method, call_id, prompt, after, sampling, "needed"), after)
                self._postponed[call_id] = step
                return step
        return super().submit(method, call_id, prompt, *arguments)

    def stop(self, call_id: str) -> None:
        step = self._postponed.pop(call_id, None)
        if step is None or step.has_begun:
            super().stop(call_id)
        else:
            step.stop()
