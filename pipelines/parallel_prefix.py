"""PARSE (arXiv 2605.04263): the draft writes ahead, the target judges all prefixes of the chain in one forward.

    draft     d1 ─▶ d2 ─▶ d3 ─▶ d4
    verifier                     ▼ v1 v2 v3 v4       one forward under a tree mask
    target                                     [ its step after the longest valid prefix, if that ends early ]

The three run one after the other; only the verdicts of a chain run together.
"""

from __future__ import annotations

from pipelines.calls import Drafted
from pipelines.session import Session


async def parallel_prefix(session: Session) -> None:
    """Commit the longest valid prefix of each drafted chain, and the target's step after it."""
    if session.can_speculate:
        session.prefill_verifier()
    while not session.ended:
        if session.can_speculate:
            await _commit_round(session)
        else:
            await session.commit_target(session.target_step())


async def _commit_round(session: Session) -> None:
    calls = session.draft_chain(session.window)
    judging = session.judge_chain(calls)
    chain = await session.drafted_steps(calls)
    verdicts = await session.unless_lost(judging) if chain else None
    if verdicts is None:
        judging.stop()
        await session.commit_target(session.target_step())
        return
    for call, verdict in zip(calls, verdicts[: len(chain)], strict=False):
        if session.ended:
            return
        if not session.commit_if_accepted(call, verdict, [*calls, judging]):
            rejected = Drafted(call, judging)
            await session.commit_target(session.target_step(hint=rejected.tokens), rejected, verdict)
            return
