"""`Costs`: what the calls of one group of actors took, and the plan that is expected to be fastest with that.

    finished calls ─▶ Costs: seconds of a drafted step, a verdict on n steps, a target step, and a call without work
    verdicts       ─▶ acceptance: a Beta posterior, of the group and of the request
                        │
    plans ──────────────┴▶ expected seconds for the rest of the answer, per plan ─▶ the plan with the fewest

Seconds are kept per level of load and shared by all plans, as if one actor of the request worked at a time. Actors that
work at the same time slow each other down: factors per kind of plan, which are 1 until they are measured. So a kind of
plan is tried as soon as it would be the fastest if nothing slowed it down.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from dreamr.types import Step, Verdict
from pipelines.means import LinearMean, Mean
from pipelines.plans import CALLS_PER_ROUND, KINDS, MAX_HORIZON, PLAIN, Estimate, Plan, expected_times, plans, round_s

FIRST_CHAIN = 4
"""Most drafted steps of the first plan, which measures drafting and verdicts."""
FIRST_VERDICTS = 10
"""Verdicts at the frontier before which every request speculates, since the acceptance rate says too little."""
STEADY = 0.98
"""Weight of older values at each new one where they change more slowly than the load of a machine: the acceptance rate
and the factors of a kind of plan."""
LARGEST = 4.0
"""A measured factor of a kind of plan counts as at most this, and as at least its inverse."""
PRIOR_STRENGTH = 6.0
"""Weight, in judged steps, of the group's acceptance rate at the beginning of a request."""
EXPLORE_EVERY = 25
"""Decisions after which the kind of plan that was unused for longest is chosen once, unless it is expected to be much
slower: this renews old measurements."""
RECENT_ANSWERS = 50
"""Answers from whose lengths the number of remaining steps is expected."""
WORTH_RENEWING = 1.2
"""Most expected time of such a plan, relative to the best one."""


@dataclass(slots=True)
class _Alone:
    """Seconds at one level of load, as if one actor of the request worked at a time."""

    draft_s: Mean = field(default_factory=Mean)
    """A drafted step."""
    verdict_s: LinearMean = field(default_factory=LinearMean)
    """A verdict forward, by the number of steps that it judges."""


def _factor() -> Mean:
    return Mean(1.0, weight=0.5, forgetting=STEADY)


@dataclass(slots=True)
class _Slowdown:
    """How many times as long something takes under one kind of plan and level of load."""

    draft: Mean = field(default_factory=_factor)
    """A drafted step."""
    verdict: Mean = field(default_factory=_factor)
    """A verdict forward."""
    round: Mean = field(default_factory=_factor)
    """The wait for verdicts, compared with what follows from the two above and the time of calls."""
    ahead: Mean = field(default_factory=_factor)
    """Not a slowdown: see `Estimate.ahead`."""
    last_used: int = -1


@dataclass(frozen=True, slots=True)
class Decision:
    """A chosen plan, its first step, and the reason."""

    step: int
    plan: Plan
    expected_s: float
    """Seconds expected for the next steps under the plan; 0 while something is measured for the first time."""
    plain_s: float
    """The same without speculation."""
    acceptance: float
    reason: str


class Costs:
    """Costs of one group of actors, shared by all requests of a process. Use it from one event loop."""

    def __init__(self) -> None:
        self.num_running = 0
        """Requests that use the actors now; `running` counts."""
        self._alone: dict[int, _Alone] = {}
        self._slowdown: defaultdict[tuple[str, int], _Slowdown] = defaultdict(_Slowdown)
        self._target_s: dict[int, Mean] = {}
        self._token_s = Mean()
        """Of a target's step, by its tokens."""
        self._call_s = Mean()
        self._answers: deque[int] = deque(maxlen=RECENT_ANSWERS)
        """Numbers of steps."""
        self._accepted, self._judged = Mean(forgetting=STEADY), 0
        self._num_decisions = 0

    # -- measurements ----------------------------------------------------------------------------------------------

    def add_target_step(self, step: Step, waited_s: float) -> None:
        """Add a step that the target wrote because it was needed, `waited_s` after it was asked for."""
        seconds = step.ended - step.started
        self._target_s.setdefault(self._load, Mean()).add(seconds)
        self._token_s.add(seconds / max(1, len(step.tokens)))
        self._call_s.add(max(0.0, waited_s - seconds))

    def add_step_ahead(self, plan: Plan, step: Step, ahead_s: float, waited_s: float) -> None:
        """Add a step that the target wrote for `ahead_s` before it was known to be needed, and `waited_s` after."""
        written_s = len(step.tokens) * self._token_s.value - max(0.0, waited_s - self._call_s.value)
        self._slowdown_of(plan.kind).ahead.add(min(1.0, max(0.0, written_s / ahead_s)) if ahead_s > 0 else 1.0)

    def add_round(
        self, plan: Plan, chain: Sequence[Step], verdicts: Sequence[Verdict], waited_s: float, *, drafted_ahead: bool
    ) -> None:
        """Add a drafted chain and its verdicts; `waited_s` and `drafted_ahead` as in `round_s`."""
        written = [step for step in chain if step.tokens and step.finish != "stopped"]
        judged = sum(verdict.judged for verdict in verdicts)
        if not written or not judged:
            return
        # The draft reads the prompt before the first step of a request. So does the verifier, at the same time, which
        # takes longer than one step.
        begins = not written[0].prefix
        later = written[1:] if begins and len(written) > 1 else written
        step_s = (later[-1].ended - later[0].started) / len(later)
        judging_s = verdicts[0].ended - verdicts[0].started
        if plan.takes_turns and not (begins and len(written) == 1):
            working_s = written[-1].ended - written[0].started + judging_s
            self._call_s.add(max(0.0, waited_s - working_s) / CALLS_PER_ROUND)
        alone, slowdown = self._alone.setdefault(self._load, _Alone()), self._slowdown_of(plan.kind)
        if alone.draft_s.weight:
            if not plan.takes_turns:
                slowdown.draft.add(_ratio(step_s, alone.draft_s.value))
                slowdown.verdict.add(_ratio(judging_s, alone.verdict_s.at(judged)))
            expected_s = round_s(self._working(plan.kind), min(len(written), MAX_HORIZON), drafted_ahead=drafted_ahead)
            slowdown.round.add(_ratio(waited_s, expected_s))
        alone.draft_s.add(step_s / slowdown.draft.value)
        alone.verdict_s.add(judged, judging_s / slowdown.verdict.value)

    def decided(self, accepted: bool) -> None:
        """Add a verdict at the frontier to the acceptance rate."""
        self._accepted.add(accepted)
        self._judged += 1

    def answered(self, num_steps: int) -> None:
        self._answers.append(num_steps)

    # -- decisions -------------------------------------------------------------------------------------------------

    def choose_start(self, most: int) -> Decision:
        """Whether a request speculates: its answer is then that of `sequential`, else that of `autoregressive`."""
        if not self._target_s:
            return Decision(0, PLAIN, 0.0, 0.0, self._acceptance(0, 0), "the target's own steps are not measured yet")
        decision = self.choose(0, 0, 0, most)
        plain_s = decision.plain_s
        renews = self._num_decisions % EXPLORE_EVERY == 0 and decision.expected_s < WORTH_RENEWING * plain_s
        if decision.expected_s < plain_s or self._judged < FIRST_VERDICTS or renews:
            return decision
        return replace(decision, plan=PLAIN, expected_s=plain_s)

    def choose(self, step: int, accepted: int, judged: int, most: int) -> Decision:
        """The plan for the steps from number `step` on, of a request that speculates.

        `accepted` of `judged` drafted steps of this request were accepted; at most `most` may be drafted ahead.
        """
        self._num_decisions += 1
        acceptance, left = self._acceptance(accepted, judged), self._left(step)
        plain_s = fmean(left) * (self._estimate(PLAIN.kind).target_s + self._call_s.value)
        if not self._alone:
            first = Plan(max(plan.judged_together for plan in plans(most) if plan.judged_together <= FIRST_CHAIN))
            return self._used(Decision(step, first, 0.0, plain_s, acceptance, "drafting is not measured yet"))
        estimates, longest = {kind: self._estimate(kind) for kind in KINDS}, max(left)
        expected = {}
        for plan in plans(most):
            times = expected_times(plan, estimates[plan.kind], acceptance, longest)
            expected[plan] = fmean(times[steps] for steps in left)
        best = min(expected, key=expected.__getitem__)
        reason = f"{expected[best]:.3g} s expected for {fmean(left):.1f} steps, {plain_s:.3g} s without speculation"
        if self._num_decisions % EXPLORE_EVERY == 0:
            stale = min(KINDS, key=lambda kind: self._slowdown_of(kind).last_used)
            renewed = min((plan for plan in expected if plan.kind == stale), key=expected.__getitem__)
            if expected[renewed] < WORTH_RENEWING * expected[best]:
                best, reason = renewed, "measured again"
        return self._used(Decision(step, best, expected[best], plain_s, acceptance, reason))

    def _used(self, decision: Decision) -> Decision:
        self._slowdown_of(decision.plan.kind).last_used = self._num_decisions
        return decision

    def _slowdown_of(self, kind: str) -> _Slowdown:
        return self._slowdown[kind, self._load]

    @property
    def _load(self) -> int:
        """0 for one running request, 1 for two, 2 for up to four, ..."""
        return max(0, self.num_running - 1).bit_length()

    def _acceptance(self, accepted: int, judged: int) -> float:
        """Mean of the Beta posterior: the group's rate as the prior, updated by the request's own verdicts."""
        group = (self._accepted.value * self._accepted.weight + 1) / (self._accepted.weight + 2)
        return (group * PRIOR_STRENGTH + accepted) / (PRIOR_STRENGTH + judged)

    def _left(self, step: int) -> list[int]:
        """Possible numbers of remaining steps, equally likely: those of recent answers."""
        left = [min(MAX_HORIZON, answer - step) for answer in self._answers if answer > step]
        return left or [2 if self._answers else MAX_HORIZON]

    def _estimate(self, kind: str) -> Estimate:
        """Expected costs under a kind of plan."""
        cost, factor = self._working(kind), self._slowdown_of(kind).round.value
        return replace(
            cost,
            draft_s=cost.draft_s * factor,
            verdict_s=tuple(seconds * factor for seconds in cost.verdict_s),
            call_s=cost.call_s * factor,
        )

    def _working(self, kind: str) -> Estimate:
        """Costs under a kind of plan as far as they follow from the time of its calls. At the present load, else at the
        nearest lower one that was measured: an optimistic estimate, so that plans which are unmeasured at this load get
        tried.
        """
        loads = range(self._load, -1, -1)
        alone = next((self._alone[load] for load in loads if load in self._alone), _Alone())
        target_s = next((self._target_s[load] for load in loads if load in self._target_s), Mean())
        slowdown, sizes = self._slowdown_of(kind), range(1, MAX_HORIZON + 1)
        return Estimate(
            draft_s=alone.draft_s.value * slowdown.draft.value,
            verdict_s=tuple(alone.verdict_s.at(size) * slowdown.verdict.value for size in sizes),
            target_s=target_s.value,
            call_s=self._call_s.value,
            ahead=slowdown.ahead.value,
        )


def _ratio(seconds: float, expected_s: float) -> float:
    """Within bounds, so that a pause of the machine counts as one; 1 where nothing is expected."""
    return min(LARGEST, max(1 / LARGEST, seconds / expected_s)) if expected_s > 0 else 1.0
