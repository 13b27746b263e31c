"""Fully Parallel Speculative Reasoning: drafting, verdicts and the target's own step run at once.

    draft     d1 ─▶ d2 ─▶ d3 ─▶ d4        chain, `window` steps ahead of the frontier; references passed on
               │     │     │     │
    verifier   ▼ v1  ▼ v2  ▼ v3  ▼ v4     one verdict per drafted step, as soon as it is there
    target    [ own step at the frontier ]

    v1 accepted: commit d1, stop the target's step, begin a new one behind d1     (early stop)
    v1 rejected: drop the chain, wait for the target's step, commit it, restart   (rollback)

The only waiting is for the first verdict and, when it says no, for the target's step. What is committed depends on
rho and never on timing (paper, section on FPSR).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from pipelines.base import OnCommit
from pipelines.handles import Actors
from pipelines.request import Request
from pipelines.session import Drafted, Session
from pipelines.trace import Trace


class FPSR:
    """See `Pipeline`."""

    def __init__(self, actors: Actors, clock: Callable[[], float] = time.time) -> None:
        self._actors, self._clock = actors, clock

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        async with Session(self._actors, request, on_commit, self._clock) as session:
            await _speculate(session, request.settings.window)
        return session.trace()


async def _speculate(session: Session, window: int) -> None:
    chain: deque[Drafted] = deque()
    if session.can_speculate:
        session.prepare_verifier()
    while not session.ended:
        _extend(session, chain, window)
        own = session.write(speculative=bool(chain))
        first = chain.popleft() if chain else None
        verdict = await session.verdict(first) if first else None
        if first and verdict and session.commit_if_accepted(first, verdict):
            own.stop()
        else:
            _drop(chain)
            await session.commit_written(own, first, verdict)


def _extend(session: Session, chain: deque[Drafted], window: int) -> None:
    """Draft ahead, as long as both draft and verifier are there to do it."""
    while len(chain) < window and session.can_speculate:
        after = chain[-1].draft if chain else session.frontier
        chain.append(session.draft(session.next_index + len(chain), after))


def _drop(chain: deque[Drafted]) -> None:
    """Roll back: nothing behind a rejected step is worth going on with."""
    for drafted in chain:
        drafted.stop()
    chain.clear()
