"""Fully Parallel Speculative Reasoning: drafting, verdicts and the target's own step run at once (paper, FPSR).

    draft     d1 ─▶ d2 ─▶ d3 ─▶ d4        chain, `window` steps ahead of the frontier; references passed on
               │     │     │     │
    verifier   ▼ v1  ▼ v2  ▼ v3  ▼ v4     one verdict per drafted step, as soon as it is written
    target    [ step at the frontier ]

    v1 accepted: commit d1, stop the target's step, begin a new one after d1      (early stop)
    v1 rejected: drop the chain, wait for the target's step, commit it, restart   (rollback)

The schedule waits for the first verdict and, when that rejects, for the target's step; for nothing else. What is
committed depends on the verdicts and never on timing.
"""

from __future__ import annotations

from collections import deque

from pipelines.calls import Drafted
from pipelines.session import Session


async def fpsr(session: Session) -> None:
    """Commit drafted steps while verdicts accept them, and the target's step, already under way, when one does not."""
    chain: deque[Drafted] = deque()
    if session.can_speculate:
        session.prefill_verifier()
    while not session.ended:
        _extend(session, chain)
        target = session.target_step(priority="speculative" if chain else "needed")
        first = chain.popleft() if chain else None
        verdict = await session.verdict(first) if first else None
        if first and verdict and session.commit_if_accepted(first.draft, verdict, first.calls):
            target.stop()
        else:
            _drop(chain)
            await session.commit_target(target, first, verdict)


def _extend(session: Session, chain: deque[Drafted]) -> None:
    """Draft ahead, as long as both draft and verifier are up."""
    while len(chain) < session.window and session.can_speculate:
        after = chain[-1].draft if chain else session.frontier
        chain.append(session.draft_and_judge(session.next_index + len(chain), after))


def _drop(chain: deque[Drafted]) -> None:
    """Roll back: steps after a rejected one have a wrong prefix."""
    for drafted in chain:
        drafted.stop()
    chain.clear()
