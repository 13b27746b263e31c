"""`Cores`: a machine's cores on a virtual clock, where parallel work slows down as on a real machine.

2 cores, 3 pieces of work          each gets 2/3 of a core
2 cores, 2 normal, 1 background    the normal ones get a core each, the background one waits
2 cores, 1 normal, 1 background    each gets a core
two at once on cores that share    each is slower by a factor, for caches and memory that they share too
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from dreamr.types import Role

TICK_S = 1e-6
"""Work with less than this left counts as done: a virtual clock does not advance by less."""


@dataclass(slots=True, eq=False)
class _Work:
    left: float
    """Seconds that it would take alone."""
    background: bool
    actor: Role | None
    done: asyncio.Future[None]
    rate: float = 0.0


class Cores:
    """Divides its cores again whenever a piece of work begins or ends. Use it from one event loop."""

    def __init__(
        self, num_cores: int, together: float = 1.0, slowdown: Mapping[Role, Mapping[Role, float]] | None = None
    ) -> None:
        """`slowdown[one][other]`: how many times as long actor `one` takes beside `other`; `together` where it is not
        given."""
        self._num_cores, self._together, self._slowdown = num_cores, together, slowdown or {}
        self._work: list[_Work] = []
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def work(self, seconds: float, *, background: bool = False, actor: Role | None = None) -> None:
        """Return when so many seconds of an actor's work are done; a cancelled piece is removed at once."""
        if seconds <= 0:
            return
        piece = _Work(seconds, background, actor, asyncio.get_running_loop().create_future())
        self._advance()
        self._work.append(piece)
        self._share()
        try:
            await piece.done
        finally:
            if piece in self._work:
                self._advance()
                self._work.remove(piece)
                self._share()

    def _advance(self) -> None:
        """Account for the work done since the last change."""
        now = asyncio.get_running_loop().time()
        for piece in self._work:
            piece.left -= piece.rate * (now - self._at)
        self._at = now

    def _share(self) -> None:
        normal = [piece for piece in self._work if not piece.background]
        background = [piece for piece in self._work if piece.background]
        free = float(self._num_cores)
        for pieces in (normal, background):
            share = min(1.0, free / len(pieces)) if pieces else 0.0
            free -= share * len(pieces)
            for piece in pieces:
                piece.rate = share
        running = [piece for piece in self._work if piece.rate > 0] if self._num_cores > 1 else []
        for piece in running:
            piece.rate /= max((self._beside(piece, other) for other in running if other is not piece), default=1.0)
        self._wait_for_the_next_end()

    def _beside(self, one: _Work, other: _Work) -> float:
        if one.actor is None or other.actor is None:
            return self._together
        return self._slowdown.get(one.actor, {}).get(other.actor, self._together)

    def _wait_for_the_next_end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moving = [piece.left / piece.rate for piece in self._work if piece.rate > 0]
        if moving:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, min(moving)), self._end)

    def _end(self) -> None:
        self._advance()
        for piece in [piece for piece in self._work if piece.left <= TICK_S]:
            self._work.remove(piece)
            if not piece.done.done():
                piece.done.set_result(None)
        self._share()
