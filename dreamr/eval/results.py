"""`Score` and `Results`: counts over outcomes, in total and per category, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dreamr.eval.journal import Outcome
from dreamr.markdown import markdown_table, percent


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of one set of rows; rates are sums over sums."""

    num_rows: int
    correct: int
    unparsed: int
    """Replies in which no answer was found; they count as wrong."""
    truncated: int
    """Replies that the budget of tokens or a loop ended, and prompts that were too long."""
    refused: int
    """Prompts that the model could not take; they count as unparsed."""
    num_circles: int
    correct_circles: int
    """Circles all of whose rows are correct; both 0 where the benchmark has no circles."""
    mean_wall_s: float
    acceptance_rate: float | None
    coverage: float | None

    @property
    def accuracy(self) -> float:
        """Over circles where there are any, else over rows."""
        return self.correct_circles / self.num_circles if self.num_circles else self.correct / self.num_rows


def score(outcomes: Sequence[Outcome]) -> Score:
    """The score of one or more rows."""
    replies = [outcome.reply for outcome in outcomes]
    judged = sum(reply.num_judged for reply in replies)
    steps = sum(reply.num_steps for reply in replies)
    circles = _circles(outcomes)
    return Score(
        num_rows=len(outcomes),
        correct=sum(outcome.correct for outcome in outcomes),
        unparsed=sum(outcome.given is None for outcome in outcomes),
        truncated=sum(reply.truncated for reply in replies),
        refused=sum(bool(reply.refusal) for reply in replies),
        num_circles=len(circles),
        correct_circles=sum(circles.values()),
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
            circles[outcome.circle] = circles.get(outcome.circle, True) and outcome.correct
    return circles


@dataclass(frozen=True, slots=True)
class Results:
    """All outcomes, and the conditions under which they hold."""

    run: dict[str, Any]
    """Everything that the rows depend on, see `Journal`."""
    command: str
    outcomes: Sequence[Outcome]

    @property
    def total(self) -> Score:
        return score(self.outcomes)

    def document(self) -> dict[str, Any]:
        """As JSON data; the rows are in the journal."""
        return {
            "command": self.command,
            "run": self.run,
            "total": _row(self.total),
            "categories": {name: _row(one) for name, one in by_category(self.outcomes).items()},
        }

    def markdown(self) -> str:
        """One table with a line per category and one for all."""
        categories = by_category(self.outcomes)
        head = ["category", "rows", "correct", "accuracy", "unparsed", "truncated"]
        if self.total.num_circles:
            head.insert(3, "circles all correct")
        rows = [head, *(_cells(name, one) for name, one in categories.items()), _cells("**all**", self.total)]
        speculation = ""
        if self.total.acceptance_rate is not None:
            accepted, covered = percent(self.total.acceptance_rate, 1), percent(self.total.coverage, 1)
            speculation = f" Acceptance rate {accepted}, coverage by the draft {covered}."
        refused = ""
        if refusals := [outcome for outcome in self.outcomes if outcome.reply.refusal]:
            first = refusals[0]
            refused = f" {len(refusals)} of the rows were refused, row {first.id} because {first.reply.refusal}."
        return (
            f"# {self.run['benchmark']}\n\n{markdown_table(rows)}\n\n"
            f"Mean wall time of a row {self.total.mean_wall_s:.2f} s.{speculation} Unparsed answers count as wrong."
            f"{refused}\n\n"
            f"`{self.command}`\n"
        )


def _row(one: Score) -> dict[str, Any]:
    rates = {"unparsed_rate": one.unparsed / one.num_rows, "truncated_rate": one.truncated / one.num_rows}
    return {"accuracy": one.accuracy, **rates, **asdict(one)}


def _cells(name: str, one: Score) -> list[str]:
    cells = [name, str(one.num_rows), str(one.correct), percent(one.accuracy, 1)]
    if one.num_circles:
        cells.insert(3, f"{one.correct_circles} of {one.num_circles}")
    rates = (one.unparsed / one.num_rows, one.truncated / one.num_rows)
    return [*cells, *(percent(rate, 1) for rate in rates)]
