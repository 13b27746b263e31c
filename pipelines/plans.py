"""Plans of `auto`: how steps are drafted, judged and written, and the seconds that a plan is expected to take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

MAX_HORIZON = 10
"""Number of steps over which plans are compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How steps are drafted, judged and written up to the next rejection."""

    judged_together: int
    """Drafted steps that one verdict forward judges; 0: the target writes, without a draft."""
    overlaps: bool = False
    """The draft continues while a verdict is computed."""
    writes_ahead: bool = False
    """The target writes its step at the frontier before it is known to be needed."""

    @property
    def takes_turns(self) -> bool:
        """Whether draft and verifier never work at the same time, nor the target beside them."""
        return not self.overlaps and not self.writes_ahead

    @property
    def kind(self) -> str:
        """Plans of a kind load the actors alike."""
        if self.judged_together == 0:
            return "plain"
        return ("overlapped" if self.overlaps else "alternating") + (", target ahead" if self.writes_ahead else "")

    def __str__(self) -> str:
        return self.kind if self.judged_together == 0 else f"{self.judged_together} judged together, {self.kind}"


PLAIN = Plan(0)
KINDS = tuple(Plan(1, overlaps, ahead).kind for overlaps in (False, True) for ahead in (False, True))
"""The kinds of plans that speculate."""
CALLS_PER_ROUND = 2
"""One drafts a chain, one judges it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds of each part under one plan."""

    draft_s: float
    verdict_s: tuple[float, ...]
    """Expected seconds of a verdict on 1, 2, ... steps."""
    target_s: float
    call_s: float
    ahead: float = 1.0
    """Speed of the target while draft and verifier are at work, as a share of its speed alone."""


@cache
def plans(most: int) -> tuple[Plan, ...]:
    sizes = [size for size in (1, 2, 3, 4, 6, 8) if size <= most]
    return tuple(Plan(size, overlaps, ahead) for size in sizes for overlaps in (False, True) for ahead in (False, True))


def round_s(cost: Estimate, num_steps: int, *, drafted_ahead: bool) -> float:
    """Expected seconds until the verdicts on a chain are known: since it was begun, or, if its drafting overlapped the
    verdicts on the chain before, since those were known."""
    drafting, judging = num_steps * cost.draft_s + cost.call_s, cost.verdict_s[num_steps - 1] + cost.call_s
    return max(drafting, judging) if drafted_ahead else drafting + judging


def expected_times(plan: Plan, cost: Estimate, acceptance: float, most: int = MAX_HORIZON) -> list[float]:
    """Expected seconds to commit 0, 1, ..., `most` steps.

    Dynamic programming over the steps left, with an empty chain (`fresh`) and, where drafting overlaps verdicts, with a
    chain that was drafted while the previous verdict was computed (`ready`).
    """
    fresh, ready = [0.0], [0.0]
    for left in range(1, most + 1):
        size = min(plan.judged_together, left)
        first = round_s(cost, size, drafted_ahead=False)
        fresh.append(first + _after_verdicts(plan, cost, acceptance, size, left, first, fresh, ready))
        if plan.overlaps:
            waited = round_s(cost, size, drafted_ahead=True)
            ready.append(waited + _after_verdicts(plan, cost, acceptance, size, left, waited, fresh, ready))
    return fresh


def _after_verdicts(
    plan: Plan,
    cost: Estimate,
    acceptance: float,
    size: int,
    left: int,
    elapsed: float,
    fresh: list[float],
    ready: list[float],
) -> float:
    """Expected seconds once the verdicts on `size` steps are known."""
    target = cost.target_s + cost.call_s
    total = acceptance**size * (ready if plan.overlaps else fresh)[left - size]
    for accepted in range(size):
        rest = fresh[left - accepted - 1]
        # Only the step at the frontier was written ahead: the first one that was judged.
        is_ahead = plan.writes_ahead and accepted == 0
        waiting = max(0.0, target - cost.ahead * elapsed) if is_ahead else target
        # The forward over the next group, begun when this one ended, is not cut short: new steps wait for its end.
        occupied = max(0.0, cost.verdict_s[size - 1] - waiting - cost.draft_s) if plan.overlaps else 0.0
        total += acceptance**accepted * (1 - acceptance) * (waiting + occupied + rest)
    return total
