"""`SharedForwards`: calls that wait for a forward at the same time share one, as in a real engine's batched loop.

a ─▶ [ a ]
b ───▶ waits ┐
c ────▶ waits ┴▶ [ a b c ]      a goes on with its next token
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    seconds: float
    """Of a forward with this call alone."""
    extra_s: float
    """Time that it adds to every forward."""
    background: bool
    began: asyncio.Future[float]


class SharedForwards:
    """Forwards one after the other. Use it from one event loop."""

    def __init__(self, run: Callable[[float, int, bool], Awaitable[float]], max_rows: int) -> None:
        """`run(seconds, num_rows, background)` runs one forward and returns when it began."""
        self._run, self._max_rows = run, max_rows
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def join(self, seconds: float, extra_s: float = 0.0, *, background: bool = False) -> float:
        """Take part in the next forward with a free row; when that has ended, return when it began.

        Calls in the background get one only when no other call waits.
        """
        one = _Waiting(seconds, extra_s, background, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name="shared forwards")
        return await one.began

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await self._serve_next()
                await asyncio.sleep(0)  # calls that go on with their next token join the next forward
        finally:
            self._task = None

    async def _serve_next(self) -> None:
        self._waiting = [one for one in self._waiting if not one.began.done()]  # without those that were cancelled
        needed = [one for one in self._waiting if not one.background]
        batch = (needed or self._waiting)[: self._max_rows]
        if not batch:
            return
        self._waiting = [one for one in self._waiting if one not in batch]
        seconds = max(one.seconds for one in batch) + sum(one.extra_s for one in batch)
        began = await self._run(seconds, len(batch), not needed)
        for one in batch:
            if not one.began.done():
                one.began.set_result(began)
