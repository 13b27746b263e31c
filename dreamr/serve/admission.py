"""`Admission`: how many answers are worked on, how many may wait, and who is next.

    request ── enter ──▶ free place? ──yes──▶ work ── leave ──▶ the first in line gets the place
                              │ no                                   ▲
                              ├─▶ line full: 503 at once             │
                              └─▶ wait, first come first served ─────┘   deadline: 503;  cancelled: out of the line

One event loop; whoever leaves wakes exactly one other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dreamr.serve.errors import busy


class Admission:
    """Places for answers. `on_change` is told how many are worked on and how many wait."""

    def __init__(
        self, max_running: int, max_queued: int, queue_deadline_s: float, on_change: Callable[[int, int], None]
    ) -> None:
        self._max_running, self._max_queued, self._deadline_s = max_running, max_queued, queue_deadline_s
        self._line: deque[asyncio.Future[None]] = deque()
        self._on_change = on_change
        self.num_running = 0

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    def check(self, num_places: int) -> None:
        """Raises ApiError (503) when so many more would not fit, neither at work nor in line."""
        room = self._max_running - self.num_running + self._max_queued - self.num_waiting
        if num_places > room:
            raise busy(
                f"{self.num_running} answers are worked on and {self.num_waiting} wait, which is all that may: "
                "ask again in a moment."
            )

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for the duration of the block. Raises ApiError (503) when none becomes free in time."""
        self.check(1)
        await self._enter()
        self._on_change(self.num_running, self.num_waiting)
        try:
            yield
        finally:
            self._leave()
            self._on_change(self.num_running, self.num_waiting)

    async def _enter(self) -> None:
        if self.num_running < self._max_running and not self._line:
            self.num_running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._on_change(self.num_running, self.num_waiting)
        try:
            async with asyncio.timeout(self._deadline_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place came in the same moment: pass it on
            elif turn in self._line:
                self._line.remove(turn)
            if isinstance(error, TimeoutError):
                raise busy(f"no place became free within {self._deadline_s:g} s: ask again later.") from None
            raise

    def _leave(self) -> None:
        """The place goes to the first in line, or becomes free."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.num_running -= 1
