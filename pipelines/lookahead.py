"""Lookahead Reasoning (arXiv 2506.19830): the target writes its own step after every drafted one, all at once.

    draft     d1 ─────▶ d2 ─────▶ d3 ─────▶ d4           `window` steps ahead of the frontier
    target    [ t1 ]    └[ t2 ]   └[ t3 ]   └[ t4 ] └[ t5 ]   each begins as soon as the step before it is drafted
    verifier      └ t1 means d1?  └ t2 means d2? ...

t1 means the same as d1: commit d1, continue with t2 against d2. It does not, or t1 arrives before d1 (the target
never waits for the draft): commit t1, drop the rest. As published, the first step is the target's, and so is one
after a step that was cut off by its length.

`lookahead_batch` does the same in rounds, for engines that do not batch the calls that `lookahead` makes one by one:

    draft     d1 ─▶ d2 ─▶ d3 ─▶ d4
    target                        [ t1 t2 t3 t4 t5 ]        one batch: t1 after the frontier, t2 after d1, ...
    verifier                                         [ t1 means d1?  t2 means d2? ... ]

Committed: the drafted steps before the first that is rejected, and the target's step there; t5 when none is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from dreamr.types import Step, Verdict
from pipelines.calls import Call, Drafted
from pipelines.session import Session


@dataclass(frozen=True, slots=True, eq=False)
class _Ahead:
    """A drafted step, and the target's step after it."""

    drafted: Drafted
    target: Call[Step]

    def stop(self) -> None:
        self.drafted.stop()
        self.target.stop()


async def lookahead(session: Session) -> None:
    """Compare each drafted step with the target's, which are all under way at once."""
    chain: deque[_Ahead] = deque()
    target = session.target_step()
    while True:
        if session.frontier.finish == "delimiter":
            _extend(session, chain, target)
        else:
            _drop(chain)
        first = chain.popleft() if chain else None
        verdict = await _verdict_in_time(session, target, first.drafted) if first else None
        if first and verdict and session.commit_if_accepted(first.drafted.draft, verdict, first.drafted.awaited):
            target.stop()
            target = first.target
        else:
            if first:
                first.stop()
            _drop(chain)
            await session.commit_target(target, first.drafted if first else None, verdict)
            target = target if session.ended else session.target_step()
        if session.ended:
            return


def _extend(session: Session, chain: deque[_Ahead], target: Call[Step]) -> None:
    while len(chain) < session.window and session.can_speculate:
        index = session.next_index + len(chain)
        after, beside = (chain[-1].drafted.draft, chain[-1].target) if chain else (session.frontier, target)
        drafted = session.draft_and_judge(index, after, beside)
        chain.append(_Ahead(drafted, session.target_step(index + 1, drafted.draft)))


async def _verdict_in_time(session: Session, target: Call[Step], drafted: Drafted) -> Verdict | None:
    """The verdict at the frontier; None also when the target's step arrives before the drafted one."""
    waits = [asyncio.create_task(session.settled(call)) for call in (drafted.draft, target)]
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


async def lookahead_batch(session: Session) -> None:
    """Draft a chain, have the target write all of its steps in one batch, compare, commit."""
    while not session.ended:
        if session.can_speculate and session.frontier.finish == "delimiter":
            await _commit_round(session)
        else:
            await session.commit_target(session.target_step())


async def _commit_round(session: Session) -> None:
    drafts = session.draft_chain(session.window)
    # What follows a step that was cut off by its length is the target's, as published.
    chain = await session.drafted_steps(drafts, whole=True)
    if not chain:
        await session.commit_target(session.target_step())
        return
    index, prefixes = session.next_index, [session.frontier, *(step for step in chain if not step.closed)]
    targets, batch = await session.required(
        session.target_steps(index, prefixes), lambda: session.target_steps(index, prefixes)
    )
    judgings = [session.judge(index + place, *pair) for place, pair in enumerate(zip(chain, targets, strict=False))]
    for place, judging in enumerate(judgings):
        verdict = await session.unless_lost(judging)
        waited_for: list[Call[Any]] = [*drafts, batch, judging]
        if verdict is None or not session.commit_if_accepted(drafts[place], verdict, waited_for):
            for later in judgings[place:]:
                later.stop()
            session.commit_from_batch(batch, targets[place], verdict, waited_for)
            return
        if session.ended:
            return
    if len(targets) > len(chain):
        session.commit_from_batch(batch, targets[-1], None, [batch])
