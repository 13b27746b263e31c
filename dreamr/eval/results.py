"""`Results`: what an evaluation found, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dreamr.documents import markdown_table, percent
from dreamr.eval.outcome import Outcome
from dreamr.eval.score import Score, by_category, score


@dataclass(frozen=True, slots=True)
class Results:
    """All outcomes, and the conditions under which they hold."""

    run: dict[str, Any]
    """What the rows depend on, see `Journal`."""
    command: str
    outcomes: Sequence[Outcome]

    @property
    def total(self) -> Score:
        return score(self.outcomes)

    def document(self) -> dict[str, Any]:
        """As JSON takes it; the rows themselves stay in the journal."""
        return {
            "command": self.command,
            "run": self.run,
            "total": _row(self.total),
            "categories": {name: _row(one) for name, one in by_category(self.outcomes).items()},
        }

    def markdown(self) -> str:
        """One table, a line per category and one for all."""
        categories = by_category(self.outcomes)
        head = ["category", "rows", "right", "accuracy", "unparsed", "truncated"]
        if self.total.num_circles:
            head.insert(3, "circles all right")
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
    cells = [name, str(one.num_rows), str(one.right), percent(one.accuracy, 1)]
    if one.num_circles:
        cells.insert(3, f"{one.right_circles} of {one.num_circles}")
    rates = (one.unparsed / one.num_rows, one.truncated / one.num_rows)
    return [*cells, *(percent(rate, 1) for rate in rates)]
