"""Lookahead Reasoning (arXiv 2506.19830): the target writes its own step behind every drafted one, all at once.

    draft     d1 ─────▶ d2 ─────▶ d3 ─────▶ d4           `window` steps ahead of the frontier
    target    [ t1 ]    └[ t2 ]   └[ t3 ]   └[ t4 ] └[ t5 ]   each begins as soon as the step before it is drafted
    verifier      └ t1 means d1?  └ t2 means d2? ...

t1 means the same as d1: commit d1, go on with t2 against d2. It does not, or d1 is not there when t1 is (the target
never waits for the draft): commit t1, drop the rest. As published, the first step is the target's, and so is one
behind a step that was cut off by its length.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dreamr.types import Step, Verdict
from pipelines.base import OnCommit
from pipelines.call import Call
from pipelines.handles import Actors
from pipelines.request import Request
from pipelines.session import Drafted, Session
from pipelines.trace import Trace


class Lookahead:
    """See `Pipeline`."""

    def __init__(self, actors: Actors, clock: Callable[[], float] = time.time) -> None:
        self._actors, self._clock = actors, clock

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        async with Session(self._actors, request, on_commit, self._clock) as session:
            await _look_ahead(session, request.settings.window)
        return session.trace()


@dataclass(frozen=True, slots=True, eq=False)
class _Ahead:
    """A drafted step, and the target's own step behind it."""

    drafted: Drafted
    own: Call[Step]

    def stop(self) -> None:
        self.drafted.stop()
        self.own.stop()


async def _look_ahead(session: Session, window: int) -> None:
    chain: deque[_Ahead] = deque()
    own = session.write()
    while True:
        if session.frontier.finish == "delimiter":
            _extend(session, chain, own, window)
        else:
            _drop(chain)
        first = chain.popleft() if chain else None
        verdict = await _verdict_in_time(session, own, first.drafted) if first else None
        if first and verdict and session.commit_if_accepted(first.drafted, verdict):
            own.stop()
            own = first.own
        else:
            if first:
                first.stop()
            _drop(chain)
            await session.commit_written(own, first.drafted if first else None, verdict)
            own = own if session.ended else session.write()
        if session.ended:
            return


def _extend(session: Session, chain: deque[_Ahead], own: Call[Step], window: int) -> None:
    while len(chain) < window and session.can_speculate:
        index = session.next_index + len(chain)
        after, beside = (chain[-1].drafted.draft, chain[-1].own) if chain else (session.frontier, own)
        drafted = session.draft(index, after, beside)
        chain.append(_Ahead(drafted, session.write_after(index + 1, drafted.draft)))


async def _verdict_in_time(session: Session, own: Call[Step], drafted: Drafted) -> Verdict | None:
    """The verdict at the frontier; None also when the target's own step is there before the drafted one."""
    waits = [asyncio.create_task(session.settled(call)) for call in (drafted.draft, own)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        in_time = waits[0].done()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    return await session.verdict(drafted) if in_time else None


def _drop(chain: deque[_Ahead]) -> None:
    for ahead in chain:
        ahead.stop()
    chain.clear()
