"""PARSE (arXiv 2605.04263): the draft writes ahead, the target judges all prefixes of the chain in one forward.

    draft     d1 ─▶ d2 ─▶ d3 ─▶ d4
    verifier                     ▼ v1 v2 v3 v4       one forward under a tree mask
    target                                     [ its own step behind the longest valid prefix, if that ends early ]

One after the other: nothing runs at the same time but the verdicts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.base import OnCommit
from pipelines.chain import draft_chain, drafted_steps
from pipelines.handles import Actors
from pipelines.request import Request
from pipelines.session import Drafted, Session
from pipelines.trace import Trace


class ParallelPrefix:
    """See `Pipeline`."""

    def __init__(self, actors: Actors, clock: Callable[[], float] = time.time) -> None:
        self._actors, self._clock = actors, clock

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        async with Session(self._actors, request, on_commit, self._clock) as session:
            if session.can_speculate:
                session.prepare_verifier()
            while not session.ended:
                if session.can_speculate:
                    await _commit_round(session, request.settings.window)
                else:
                    await session.commit_written(session.write())
        return session.trace()


async def _commit_round(session: Session, window: int) -> None:
    """Commit the longest valid prefix of a chain, and behind it the target's step where the chain breaks."""
    calls = draft_chain(session, window)
    chain = await drafted_steps(session, calls)
    judged = session.judge_chain(session.next_index, chain) if chain else None
    verdicts = await session.unless_lost(judged) if judged else None
    if judged is None or verdicts is None:
        await session.commit_written(session.write())
        return
    for call, step, verdict in zip(calls, chain, verdicts, strict=False):
        if session.ended:
            return
        if not session.decide(call, step, verdict, [*calls, judged]):
            await session.commit_written(session.write(), Drafted(call, judged), verdict)
            return
