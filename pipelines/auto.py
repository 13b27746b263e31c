"""`auto`: chooses the plan that is expected to be fastest on these actors, by measured costs.

    plain         target   [ step ]                                      the draft is not worth its verdicts
    alternating   draft    d1 ▶ d2 ▶ d3                 d4 ▶ ...         steps judged together in one forward
                  verifier              [ v1 v2 v3 ]
    overlapped    draft    d1 ▶ d2 ▶ d3 ▶ d4 ▶ d5 ▶ d6                   the draft continues meanwhile
                  verifier              [ v1 v2 v3 ] [ v4 v5 v6 ]
    target ahead  target   [ step at the frontier ]                      begun before the verdict, as in fpsr

Whether to speculate at all is decided once per request: its greedy answer is token for token that of `sequential`, or
that of `autoregressive` where the draft is not worth its verdicts. The other choices are made again after each rejected
step, and change only when work is done. Every decision is in the trace, with its reason (`pipelines.costs`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from dreamr.types import Step, Verdict
from pipelines.calls import Call, ChainedCall, Drafted, Verdicts
from pipelines.plans import Plan
from pipelines.session import Session


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Drafted steps that one forward judges."""

    drafts: list[ChainedCall]
    verdicts: Call[Verdicts]

    def stop(self) -> None:
        for draft in self.drafts:
            draft.stop()
        self.verdicts.stop()


class _Planner:
    """Chooses the plans of one request, and records the costs of its calls."""

    def __init__(self, session: Session) -> None:
        self._session, self._costs, self._recorder = session, session.costs, session.recorder
        self._first: Plan | None = None
        """The plan with which the request was found to be worth speculating."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Count this request among those that share the actors."""
        self._costs.num_running += 1
        try:
            yield
            if self._recorder.end == "answered":
                self._costs.answered(self._session.next_index)
        finally:
            self._costs.num_running -= 1

    def speculates(self) -> bool:
        """Whether the request speculates: decided once, also for a later phase, or when it continues an earlier run."""
        if self._recorder.decisions:
            return self._recorder.decisions[0].plan.judged_together > 0
        if committed := self._session.request.committed:
            return any(step.score is not None or step.source == "draft" for step in committed)
        decision = self._costs.choose_start(self._session.window)
        self._recorder.decisions.append(decision)
        self._first = decision.plan
        return decision.plan.judged_together > 0

    def plan(self) -> Plan:
        """The plan for the steps from the frontier on; it is noted in the trace."""
        if self._first:
            first, self._first = self._first, None
            return first
        accepted, judged = self._recorder.num_accepted, self._recorder.num_judged
        decision = self._costs.choose(self._session.next_index, accepted, judged, self._session.window)
        self._recorder.decisions.append(decision)
        return decision.plan

    def add_round(self, plan: Plan, group: _Group, before: _Group | None) -> None:
        """Record what a group took whose verdicts are known; `before` is the group that was judged before it."""
        first, verdicts = group.drafts[0], group.verdicts
        if first.chain.steps and verdicts.value and verdicts.received is not None:
            begun = before.verdicts.received if before and plan.overlaps else first.submitted
            waited_s = verdicts.received - (first.submitted if begun is None else begun)
            self._costs.add_round(
                plan, first.chain.steps, verdicts.value, waited_s, drafted_ahead=plan.overlaps and before is not None
            )

    async def commit_needed(
        self, target: Call[Step], rejected: Drafted | None = None, verdict: Verdict | None = None
    ) -> None:
        """Commit a step that the target writes because it is needed, and record what it took."""
        await self._session.commit_target(target, rejected, verdict)
        if target.value and target.received is not None:
            self._costs.add_target_step(target.value, target.received - target.submitted)

    async def commit_ahead(self, plan: Plan, target: Call[Step], rejected: Drafted, verdict: Verdict | None) -> None:
        """Commit a step that the target began before it was needed, and record how far it had come."""
        needed = self._recorder.now()
        await self._session.commit_target(target, rejected, verdict)
        if target.value and target.received is not None:
            ahead_s, waited_s = needed - target.submitted, target.received - needed
            self._costs.add_step_ahead(plan, target.value, ahead_s, waited_s)


async def auto(session: Session) -> None:
    """Decide whether to speculate; then plan, commit up to the next rejection, and plan again."""
    planner = _Planner(session)
    with planner.in_use():
        speculates = session.can_speculate and planner.speculates()
        if speculates:
            session.prefill_verifier()
        while not session.ended:
            if speculates and session.can_speculate:
                await _commit_until_rejected(session, planner)
            else:
                await planner.commit_needed(session.target_step())


async def _commit_until_rejected(session: Session, planner: _Planner) -> None:
    plan = planner.plan()
    groups: deque[_Group] = deque()
    before: _Group | None = None
    while not session.ended:
        _extend(session, plan, groups)
        if not groups:  # draft or verifier were lost
            return
        group = groups.popleft()
        target = session.target_step(priority="speculative") if plan.writes_ahead else None
        for place, draft in enumerate(group.drafts):
            verdict = await _verdict(session, group, place)
            if place == 0:
                planner.add_round(plan, group, before)
            if verdict is None or not session.commit_if_accepted(draft, verdict, [*group.drafts, group.verdicts]):
                for dropped in (group, *groups):
                    dropped.stop()
                rejected = Drafted(draft, group.verdicts)
                if target is not None and place == 0:
                    await planner.commit_ahead(plan, target, rejected, verdict)
                else:  # the target's step, if any, is for another place
                    await planner.commit_needed(session.target_step(hint=rejected.tokens), rejected, verdict)
                return
            if target is not None and place == 0:
                target.stop()
            if session.ended:
                return
        before = group


def _extend(session: Session, plan: Plan, groups: deque[_Group]) -> None:
    """Keep one group in flight, and the next one where drafting overlaps verdicts."""
    depth = 2 if plan.overlaps else 1
    while len(groups) < depth and session.can_speculate:
        ahead = [draft for group in groups for draft in group.drafts]
        drafts = session.draft_chain(plan.judged_together, ahead)
        groups.append(_Group(drafts, session.judge_chain(drafts)))


async def _verdict(session: Session, group: _Group, place: int) -> Verdict | None:
    """The verdict on one step of a group; None when draft or verifier were lost."""
    if await session.unless_lost(group.drafts[place]) is None:
        return None
    verdicts = await session.unless_lost(group.verdicts)
    return verdicts[place] if verdicts else None
