"""`Score`: counts over outcomes, as a whole and per category."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dreamr.eval.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of one set of rows; rates are sums over sums."""

    num_rows: int
    right: int
    unparsed: int
    """Replies without an answer that can be found; they count as wrong."""
    truncated: int
    """Replies that the budget of tokens ended, and prompts that were too long."""
    refused: int
    """Prompts that the model could not take; they count as unparsed."""
    num_circles: int
    right_circles: int
    """Circles all of whose rows are right; both 0 where the benchmark has no circles."""
    mean_wall_s: float
    acceptance_rate: float | None
    coverage: float | None

    @property
    def accuracy(self) -> float:
        """Over circles where there are any, else over rows."""
        return self.right_circles / self.num_circles if self.num_circles else self.right / self.num_rows


def score(outcomes: Sequence[Outcome]) -> Score:
    """The score of one or more rows."""
    replies = [outcome.reply for outcome in outcomes]
    judged = sum(reply.num_judged for reply in replies)
    steps = sum(reply.num_steps for reply in replies)
    circles = _circles(outcomes)
    return Score(
        num_rows=len(outcomes),
        right=sum(outcome.right for outcome in outcomes),
        unparsed=sum(outcome.extracted is None for outcome in outcomes),
        truncated=sum(reply.truncated for reply in replies),
        refused=sum(bool(reply.refusal) for reply in replies),
        num_circles=len(circles),
        right_circles=sum(circles.values()),
        mean_wall_s=sum(reply.wall_s for reply in replies) / len(replies),
        acceptance_rate=sum(reply.num_accepted for reply in replies) / judged if judged else None,
        coverage=sum(reply.num_draft_steps for reply in replies) / steps if steps else None,
    )


def by_category(outcomes: Iterable[Outcome]) -> dict[str, Score]:
    """The scores per category, by name."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.category, []).append(outcome)
    return {name: score(groups[name]) for name in sorted(groups)}


def _circles(outcomes: Iterable[Outcome]) -> dict[str, bool]:
    circles: dict[str, bool] = {}
    for outcome in outcomes:
        if outcome.circle:
            circles[outcome.circle] = circles.get(outcome.circle, True) and outcome.right
    return circles
