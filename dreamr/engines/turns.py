"""Turns: threads share one model token by token, first come, first served.

    thread A   take ▶ token ▶ pass_on ······(waits behind B and C)······ token ▶ pass_on ▶ ...
    thread B   take ··(waits for A)·· ▶ token ▶ pass_on ·······
    thread C   take ··(waits for A, then B)·· ▶ one forward ▶ give

Whoever waits is woken by exactly one other thread, the one whose turn ends; nobody can overtake. A thread that asks
for its turn therefore waits for at most one token (or one prefill) of each thread that waits already.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A fair FIFO lock that can be passed on. `with turns:` takes a turn and gives it back."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()
        """One locked lock per waiting thread, released by the thread that hands the turn over."""

    def take(self) -> None:
        """Wait for a turn."""
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            mine = self._line_up()
        mine.acquire()

    def give(self) -> None:
        """End this turn; the first in line goes on."""
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False

    def pass_on(self) -> None:
        """Let everybody who waits now have one turn, then go on. Costs nothing when nobody waits."""
        if not self._waiting:
            return
        with self._mutex:
            if not self._waiting:
                return
            mine = self._line_up()
            self._waiting.popleft().release()
        mine.acquire()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def _line_up(self) -> threading.Lock:
        mine = threading.Lock()
        mine.acquire()
        self._waiting.append(mine)
        return mine

    def __enter__(self) -> None:
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give()
