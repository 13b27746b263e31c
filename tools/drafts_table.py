"""Compares drafts by their reports: `python -m tools.drafts_table DOCUMENT REPORT REPORT...`, one report per draft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from dreamr.bench.markdown import conditions, speedup_cell, time_cell
from dreamr.bench.schema import MethodReport, Report
from dreamr.documents import fill, markdown_table, percent
from pipelines import BASELINE

NAME = "drafts"
METHOD = "fpsr"
_Cell = Callable[[Report, MethodReport], str]


def _step_tokens(report: Report, one: MethodReport) -> float:
    return one.tokens.drafted / sum(row.num_drafted for row in report.problems if row.method == one.name)


def _of_the_draft(cell: _Cell) -> _Cell:
    """Empty for the target alone."""
    return lambda report, one: "" if one.name == BASELINE else cell(report, one)


_COLUMNS: dict[str, _Cell] = {
    "draft": _of_the_draft(lambda report, _: f"`{report.models['draft'].model}`"),
    "method": lambda _, one: f"`{one.name}`",
    "right": lambda _, one: percent(one.accuracy, 1),
    "unparsed": lambda _, one: percent(one.unparsed_rate, 1),
    "acceptance": lambda _, one: percent(one.acceptance_rate, 1),
    "coverage": _of_the_draft(lambda _, one: percent(one.coverage, 1)),
    "tokens per drafted step": _of_the_draft(lambda report, one: f"{_step_tokens(report, one):.1f}"),
    "tokens wasted": _of_the_draft(lambda _, one: str(one.tokens.wasted_draft + one.tokens.wasted_target)),
    "time per problem": lambda _, one: time_cell(one),
    "speedup (95 % interval)": lambda _, one: speedup_cell(one),
}


def table(reports: list[Report]) -> str:
    """Per draft the target alone and FPSR, run in turns; below, how each report was made.

    Raises ValueError for a report without one of the two.
    """
    measured = [(report, _method(report, name)) for report in reports for name in (BASELINE, METHOD)]
    rows = [list(_COLUMNS), *([cell(report, one) for cell in _COLUMNS.values()] for report, one in measured)]
    return "\n\n".join([markdown_table(rows), *map(conditions, reports)])


def _method(report: Report, name: str) -> MethodReport:
    one = report.method(name)
    if one is None:
        raise ValueError(f"`{report.command}` did not measure {name}: give --methods {BASELINE},{METHOD}.")
    return one


def main(document: Path, reports: list[Path]) -> None:
    """Write the table into the document, between the marks `drafts`."""
    fill(document, NAME, table([Report.read(path) for path in reports]))


if __name__ == "__main__":
    typer.run(main)
