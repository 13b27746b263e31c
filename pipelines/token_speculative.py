"""Token-level speculative decoding: the draft proposes a few tokens, the target checks them in one forward.

    draft     [ t1 t2 t3 t4 t5 ]          [ t4 t5 ... ]
    target                      [ check ] ▶ t1 t2 accepted, its own token in place of t3

Exact: greedy output is what the target alone writes, and sampled output is distributed as the target's. Steps exist
only for the stop rules and the trace; tokens are committed when the step that they belong to is complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dreamr.errors import ActorLost, Unable
from dreamr.types import Checked, Proposal, Role, Sampling, Step
from pipelines.base import OnCommit
from pipelines.call import Call
from pipelines.handles import Actors, Ref
from pipelines.request import Request
from pipelines.session import Session
from pipelines.trace import Trace


class TokenSpeculative:
    """See `Pipeline`."""

    def __init__(self, actors: Actors, clock: Callable[[], float] = time.time) -> None:
        self._actors, self._clock = actors, clock

    async def run(self, request: Request, on_commit: OnCommit | None = None) -> Trace:
        async with TokenSession(self._actors, request, on_commit, self._clock) as session:
            while not session.ended:
                await session.round()
        return session.trace()


class TokenSession(Session):
    """A session whose unit of work is a round of proposed and checked tokens."""

    def __init__(
        self, actors: Actors, request: Request, on_commit: OnCommit | None, clock: Callable[[], float]
    ) -> None:
        super().__init__(actors, request, on_commit, clock)
        self._open = Step()
        """What is written of the step behind the frontier."""
        self._rounds: list[Call[Any]] = []
        """Calls since the last commit."""

    async def round(self) -> None:
        """Propose, check, and commit the steps that come to their end. Without a draft the target adds one token."""
        proposing = self._propose() if self._actors.draft.up else None
        checking = self._check(proposing.ref if proposing else Proposal())
        proposal = (await self.unless_lost(proposing) if proposing else None) or Proposal()
        try:
            checked, checking = await self.written(checking, lambda: self._check(proposal))
        except (ActorLost, Unable):
            raise
        except Exception:
            if not proposing or proposing.value:  # the target's own refusal
                raise
            # The check that waited for the proposal fails with it; the target can do without.
            checked, checking = await self.written(self._check(proposal), lambda: self._check(proposal))
        self._rounds += [call for call in (proposing, checking) if call]
        num_kept = self._commit(checked)
        from_draft = min(num_kept, checked.num_accepted)
        if proposing:
            proposing.num_kept, proposing.outcome = from_draft, "committed" if from_draft else "rejected"
        checking.num_kept, checking.outcome = num_kept - from_draft, "committed"

    def _propose(self) -> Call[Proposal]:
        request, call_id = self._request, self._next_id("draft")
        sampling, most = self._sampling("draft"), request.settings.proposed_tokens
        ref = self._actors.draft.propose_tokens(call_id, request.prompt, self._open, most, sampling)
        return self._begin(call_id, "draft", self.next_index, self._actors.draft, ref)

    def _check(self, proposal: Proposal | Ref[Proposal]) -> Call[Checked]:
        request, call_id = self._request, self._next_id("target")
        sampling = self._sampling("target")
        ref = self._actors.target.check_tokens(call_id, request.prompt, self._open, proposal, sampling)
        return self._begin(call_id, "target", self.next_index, self._actors.target, ref)

    def _sampling(self, role: Role) -> Sampling:
        """Every round has a seed of its own, made from its place in the answer."""
        return self._request.sampling(len(self._open.end), role)

    def _commit(self, checked: Checked) -> int:
        """Commit what is complete and keep what is open; the number of tokens of the round that were of use."""
        num_kept = -len(self._open.tokens)
        for step in checked.steps:
            if self.ended:
                break
            num_kept += len(step.tokens)
            if step.finish == "stopped":
                self._open = step
            else:
                self._recorder.commit(step, "target", None, self._rounds)
                self._open, self._rounds = Step(prefix=step.end), []
        return num_kept
