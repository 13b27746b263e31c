"""FPSR's decisions one after the other: draft a step, judge it, and only when it is rejected ask the target.

    draft ──▶ verdict ──accepted──▶ commit ──▶ next step
                 └────rejected──▶ target's step ──▶ commit ──▶ next step

FPSR commits exactly the same tokens, only sooner: this is what it is checked against. With a digit from 0 to 9 as the
verdict it is SpecReason (arXiv 2504.07891). Where the verdict compares, the target's own step is written first.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.base import OnCommit
from pipelines.handles import Actors
from pipelines.request import Request
from pipelines.session import Session
from pipelines.trace import Trace


class Sequential:
    """See `Pipeline`."""

    def __init__(self, actors: Actors, clock: Callable[[], float] = time.time) -> None:
        self._actors, self._clock = actors, clock

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        async with Session(self._actors, request, on_commit, self._clock) as session:
            while not session.ended:
                await self._commit_next(session)
        return session.trace()

    async def _commit_next(self, session: Session) -> None:
        if not session.can_speculate:
            await session.commit_written(session.write())
            return
        own = session.write() if session.rule.compares else None
        drafted = session.draft(session.next_index, session.frontier, own)
        verdict = await session.verdict(drafted)
        if verdict and session.commit_if_accepted(drafted, verdict):
            if own:
                own.stop()
        else:
            await session.commit_written(own or session.write(), drafted, verdict)
