"""Token-level speculative decoding: the draft proposes a few tokens, the target checks them in one forward.

    draft     [ t1 t2 t3 t4 t5 ]          [ t4 t5 ... ]
    target                      [ check ] ▶ t1 t2 accepted, its own token in place of t3

Exact: greedy output is what the target alone writes, and sampled output is distributed as the target's. Steps exist
only for the stop rules and the trace; tokens are committed when the step that they belong to is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dreamr.errors import ActorLost, Unable
from dreamr.types import Checked, Proposal, Step
from pipelines.calls import Call
from pipelines.session import Session


@dataclass(slots=True)
class _Open:
    """The step after the frontier, as far as it has been written."""

    step: Step = field(default_factory=Step)
    rounds: list[Call[Any]] = field(default_factory=list)
    """Calls since the last commit."""


async def token_speculative(session: Session) -> None:
    """Propose, check, and commit each step when its last token is checked."""
    current = _Open(Step(prefix=session.frontier.end))
    while not session.ended:
        await _round(session, current)


async def _round(session: Session, current: _Open) -> None:
    """One proposal and its check. Without a draft the target adds one token."""
    step = current.step
    proposing = session.propose_tokens(step, session.settings.proposed_tokens) if session.has_draft else None
    checked, checking = await _checked(session, step, proposing)
    current.rounds += [call for call in (proposing, checking) if call]
    num_kept = _commit(session, current, checked)
    from_draft = min(num_kept, checked.num_accepted)
    if proposing:
        proposing.num_kept, proposing.outcome = from_draft, "committed" if from_draft else "rejected"
    checking.num_kept, checking.outcome = num_kept - from_draft, "committed"


async def _checked(session: Session, step: Step, proposing: Call[Proposal] | None) -> tuple[Checked, Call[Checked]]:
    checking = session.check_tokens(step, proposing or Proposal())
    proposal = (await session.unless_lost(proposing) if proposing else None) or Proposal()
    try:
        return await session.required(checking, lambda: session.check_tokens(step, proposal))
    except (ActorLost, Unable):
        raise
    except Exception:
        if not proposing or proposing.value:  # the target's own refusal
            raise
        # The check that waited for the proposal fails with it; check again without a proposal.
        return await session.required(
            session.check_tokens(step, proposal), lambda: session.check_tokens(step, proposal)
        )


def _commit(session: Session, current: _Open, checked: Checked) -> int:
    """Commit complete steps and keep the open one; the number of tokens of the round that were used."""
    num_kept = -len(current.step.tokens)
    for step in checked.steps:
        if session.ended:
            break
        if not session.is_complete(step):
            num_kept += len(step.tokens)
            current.step = step
        else:
            num_kept += session.commit_checked(step, current.rounds)
            current.step, current.rounds = Step(prefix=step.end), []
    return num_kept
