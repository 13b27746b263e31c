"""Lookahead Reasoning in rounds: a chain is drafted, then the target expands all of it in one batch (arXiv 2506.19830).

    draft     d1 ─▶ d2 ─▶ d3 ─▶ d4
    target                        [ t1 t2 t3 t4 t5 ]        one batch: t1 behind the frontier, t2 behind d1, ...
    verifier                                         [ t1 means d1?  t2 means d2? ... ]

Committed are the drafted steps before the first that is not accepted, and the target's own step there; t5 when all are.
A drafted step that was cut off by its length is the last of its chain: what follows it is the target's, as published.
For engines that do not batch the calls that `lookahead` makes one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipelines.base import OnCommit
from pipelines.call import Call
from pipelines.chain import draft_chain, drafted_steps
from pipelines.handles import Actors
from pipelines.request import Request
from pipelines.session import Session
from pipelines.trace import Trace


class LookaheadBatch:
    """See `Pipeline`."""

    def __init__(self, actors: Actors, clock: Callable[[], float] = time.time) -> None:
        self._actors, self._clock = actors, clock

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        async with Session(self._actors, request, on_commit, self._clock) as session:
            while not session.ended:
                if session.can_speculate and session.frontier.finish == "delimiter":
                    await _commit_round(session, request.settings.window)
                else:
                    await session.commit_written(session.write())
        return session.trace()


async def _commit_round(session: Session, window: int) -> None:
    drafts = draft_chain(session, window)
    chain = await drafted_steps(session, drafts, whole=True)
    if not chain:
        await session.commit_written(session.write())
        return
    index, behind = session.next_index, [session.frontier, *(step for step in chain if not step.closed)]
    own, expanding = await session.written(session.expand(index, behind), lambda: session.expand(index, behind))
    judgings = [session.judge_pair(index + place, *pair) for place, pair in enumerate(zip(chain, own, strict=False))]
    for place, judging in enumerate(judgings):
        verdict = await session.unless_lost(judging)
        waited_for: list[Call[Any]] = [*drafts, expanding, judging]
        if verdict is None or not session.decide(drafts[place], chain[place], verdict, waited_for):
            for later in judgings[place:]:
                later.stop()
            session.commit_own(expanding, own[place], verdict, waited_for)
            return
        if session.ended:
            return
    if len(own) > len(chain):
        session.commit_own(expanding, own[-1], None, [expanding])
