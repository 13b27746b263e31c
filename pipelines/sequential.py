"""The target alone, and FPSR's decisions without parallelism.

    autoregressive:  target's step ──▶ commit ──▶ next step

    sequential:      draft ──▶ verdict ──accepted──▶ commit ──▶ next step
                                  └────rejected──▶ target's step ──▶ commit ──▶ next step

`sequential` commits the same tokens as FPSR, only slower: FPSR is tested against it. With a digit as the verdict it is
SpecReason (arXiv 2504.07891). A verdict that compares needs the target's step first.
"""

from __future__ import annotations

from pipelines.session import Session


async def autoregressive(session: Session) -> None:
    """Plain decoding by the target: the baseline of every speedup."""
    while not session.ended:
        await session.commit_target(session.target_step())


async def sequential(session: Session) -> None:
    """Draft a step, judge it, and ask the target when it is rejected."""
    while not session.ended:
        if session.can_speculate:
            await _commit_next(session)
        else:
            await session.commit_target(session.target_step())


async def _commit_next(session: Session) -> None:
    target = session.target_step() if session.rule.compares else None
    drafted = session.draft_and_judge(session.next_index, session.frontier, target)
    verdict = await session.verdict(drafted)
    if verdict and session.commit_if_accepted(drafted.draft, verdict, drafted.awaited):
        if target:
            target.stop()
    else:
        await session.commit_target(target or session.target_step(hint=drafted.tokens), drafted, verdict)
