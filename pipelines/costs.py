"""`Costs`: what the calls of one group of actors took, and the plan that is expected to be fastest with that.

    finished calls ─▶ Costs: seconds of a drafted step, a verdict on n steps, a target step, and a call without work
    verdicts       ─▶ acceptance: a Beta posterior, of the group and of the request
                        │
    plans ──────────────┴▶ expected seconds for the rest of the answer, per plan ─▶ the plan with the fewest

Costs are kept per kind of plan and level of load, since work that shares cores or devices slows other work down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dreamr.types import Step, Verdict
from pipelines.plans import MAX_HORIZON, PLAIN, SPECULATIVE, Estimate, Plan, expected_time, plans

if TYPE_CHECKING:
    from pipelines.calls import Call

FORGETTING = 0.95
"""Weight of older measurements at each new one."""
PRIOR_STRENGTH = 6.0
"""Weight, in judged steps, of the group's acceptance rate at the beginning of a request."""
EXPLORE_EVERY = 25
"""Decisions after which the kind of plan that was unused for longest is chosen once, unless it is expected to be much
slower: this renews old measurements."""
WORTH_RENEWING = 1.2
"""Most expected time of such a plan, relative to the best one."""


@dataclass(slots=True)
class Mean:
    """An exponentially weighted mean."""

    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        self.weight = self.weight * FORGETTING + 1
        self.value += (value - self.value) / self.weight


@dataclass(slots=True)
class LinearMean:
    """Seconds as a line over a size, by weighted least squares."""

    size: Mean = field(default_factory=Mean)
    seconds: Mean = field(default_factory=Mean)
    square: Mean = field(default_factory=Mean)
    product: Mean = field(default_factory=Mean)

    def add(self, size: float, seconds: float) -> None:
        self.size.add(size)
        self.seconds.add(seconds)
        self.square.add(size * size)
        self.product.add(size * seconds)

    def at(self, size: float) -> float:
        spread = self.square.value - self.size.value**2
        slope = (self.product.value - self.size.value * self.seconds.value) / spread if spread > 1e-9 else 0.0
        low = self.seconds.value / 2  # a forward over fewer steps costs most of one over many
        return max(low, self.seconds.value + max(0.0, slope) * (size - self.size.value))


@dataclass(slots=True)
class _Measured:
    """Costs under one kind of plan and one level of load."""

    draft_s: Mean = field(default_factory=Mean)
    verdict_s: LinearMean = field(default_factory=LinearMean)
    last_used: int = -1


@dataclass(frozen=True, slots=True)
class Decision:
    """A chosen plan, its first step, and the reason."""

    step: int
    plan: Plan
    expected_s: float
    """Seconds expected for the next `horizon` steps under the plan; 0 while its kind is measured for the first time."""
    plain_s: float
    """The same without speculation."""
    acceptance: float
    reason: str


class Costs:
    """Costs of one group of actors, shared by all requests of a process. Use it from one event loop."""

    def __init__(self) -> None:
        self.num_running = 0
        """Requests that use the actors now; `running` counts."""
        self._measured: dict[tuple[str, int], _Measured] = {}
        self._target_s: dict[int, Mean] = {}
        self._call_s = Mean()
        self._answer_steps = Mean()
        self._accepted, self._judged = 0.0, 0.0
        self._num_decisions = 0

    # -- measurements ----------------------------------------------------------------------------------------------

    def account(self, plan: Plan, calls: Sequence[Call[Any]]) -> None:
        """Add the costs of finished calls, which were made under `plan`."""
        for call in calls:
            match call.value:
                case Step(finish="stopped") | None:
                    continue
                case Step() as step if call.role == "draft":
                    self._of(plan).draft_s.add(step.ended - step.started)
                case Step() as step if call.received is not None:
                    self._target_s.setdefault(self._load, Mean()).add(step.ended - step.started)
                    if call.priority == "needed":
                        self._call_s.add(max(0.0, call.received - call.submitted - (step.ended - step.started)))
                case (Verdict() as first, *rest) if first.judged:
                    judged = sum(verdict.judged for verdict in (first, *rest))
                    self._of(plan).verdict_s.add(judged, first.ended - first.started)

    def decided(self, accepted: bool) -> None:
        """Add a verdict at the frontier to the acceptance rate."""
        self._accepted = self._accepted * FORGETTING + accepted
        self._judged = self._judged * FORGETTING + 1

    def answered(self, num_steps: int) -> None:
        self._answer_steps.add(num_steps)

    # -- decisions -------------------------------------------------------------------------------------------------

    def choose_start(self, most: int) -> Decision:
        """Whether a request speculates: its answer is then that of `sequential`, else that of `autoregressive`."""
        acceptance, horizon = self._acceptance(0, 0), self._horizon(0)
        if not self._target_s:
            return Decision(0, PLAIN, 0.0, 0.0, acceptance, "the target's own steps are not measured yet")
        plain_s = self._plain_s(horizon)
        plan, expected_s = self._best(acceptance, horizon, most)
        if self._is_untried(most) is not None or expected_s < plain_s:
            return self._used(Decision(0, plan, expected_s, plain_s, acceptance, _reason(expected_s, plain_s, horizon)))
        return self._used(Decision(0, PLAIN, plain_s, plain_s, acceptance, _reason(expected_s, plain_s, horizon)))

    def choose(self, step: int, accepted: int, judged: int, most: int) -> Decision:
        """The plan for the steps from number `step` on, of a request that speculates.

        `accepted` of `judged` drafted steps of this request were accepted; at most `most` may be drafted ahead.
        """
        self._num_decisions += 1
        acceptance, horizon = self._acceptance(accepted, judged), self._horizon(step)
        plain_s = self._plain_s(horizon)
        if untried := self._is_untried(most):
            return self._used(Decision(step, untried, 0.0, plain_s, acceptance, "not measured yet"))
        plan, expected_s = self._best(acceptance, horizon, most)
        if self._num_decisions % EXPLORE_EVERY == 0:
            stale = min(SPECULATIVE, key=self._last_used)
            stale_s = expected_time(stale, self._estimate(stale), acceptance, horizon)
            if stale.judged_together <= most and stale_s < WORTH_RENEWING * expected_s:
                return self._used(Decision(step, stale, stale_s, plain_s, acceptance, "measured again"))
        return self._used(Decision(step, plan, expected_s, plain_s, acceptance, _reason(expected_s, plain_s, horizon)))

    def _best(self, acceptance: float, horizon: int, most: int) -> tuple[Plan, float]:
        """The speculative plan with the fewest expected seconds for `horizon` steps."""
        expected = {plan: expected_time(plan, self._estimate(plan), acceptance, horizon) for plan in plans(most)}
        best = min(expected, key=lambda plan: expected[plan])
        return best, expected[best]

    def _is_untried(self, most: int) -> Plan | None:
        """A kind of plan that was never chosen. Under load, costs without load are used until there are others."""
        tried = {kind for kind, _ in self._measured}
        return next((plan for plan in SPECULATIVE if plan.kind not in tried and plan.judged_together <= most), None)

    def _plain_s(self, horizon: int) -> float:
        return horizon * (self._estimate(PLAIN).target_s + self._call_s.value)

    def _used(self, decision: Decision) -> Decision:
        self._of(decision.plan).last_used = self._num_decisions
        return decision

    @property
    def _load(self) -> int:
        """0 for one running request, 1 for two, 2 for up to four, ..."""
        return max(0, self.num_running - 1).bit_length()

    def _last_used(self, plan: Plan) -> int:
        measured = self._measured.get((plan.kind, self._load))
        return measured.last_used if measured else -1

    def _of(self, plan: Plan) -> _Measured:
        return self._measured.setdefault((plan.kind, self._load), _Measured())

    def _acceptance(self, accepted: int, judged: int) -> float:
        """Mean of the Beta posterior: the group's rate as the prior, updated by the request's own verdicts."""
        group = (self._accepted + 1) / (self._judged + 2)
        return (group * PRIOR_STRENGTH + accepted) / (PRIOR_STRENGTH + judged)

    def _horizon(self, step: int) -> int:
        """Expected number of remaining steps of the answer."""
        expected = self._answer_steps.value or MAX_HORIZON
        return int(min(MAX_HORIZON, max(2, round(expected) - step)))

    def _estimate(self, plan: Plan) -> Estimate:
        """Costs at the present load, else at the nearest lower one that was measured: an optimistic
        estimate, so that plans which are unmeasured at this load get tried."""
        loads = range(self._load, -1, -1)
        measured = [self._measured[plan.kind, load] for load in loads if (plan.kind, load) in self._measured]
        known = next((one for one in measured if one.verdict_s.seconds.weight), _Measured())
        target = next((self._target_s[load] for load in loads if load in self._target_s), Mean())
        return Estimate(
            draft_s=known.draft_s.value,
            verdict_s=tuple(known.verdict_s.at(count) for count in range(1, MAX_HORIZON + 1)),
            target_s=target.value,
            call_s=self._call_s.value,
        )


def _reason(expected_s: float, plain_s: float, horizon: int) -> str:
    return f"{expected_s:.3g} s expected for {horizon} steps, {plain_s:.3g} s without speculation"
