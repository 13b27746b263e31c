"""Compares drafts by their reports: `python -m dreamr.bench.drafts DOCUMENT REPORT REPORT...`, one report per draft."""

from __future__ import annotations

from pathlib import Path

import typer

from dreamr.bench.contender import BASELINE
from dreamr.bench.markdown import conditions, speedup_cell
from dreamr.bench.schema import MethodReport, Report
from dreamr.documents import fill, markdown_table, percent

NAME = "drafts"
METHOD = "fpsr"
_HEAD = ["draft", "method", "right", "unparsed", "acceptance", "coverage", "tokens per drafted step", "tokens wasted"]
_HEAD += ["time per problem", "speedup (95 % interval)"]


def table(reports: list[Report]) -> str:
    """Per draft the target alone and FPSR, run in turns; below, how each report was made.

    Raises ValueError for a report without one of the two.
    """
    rows = [_row(report, name) for report in reports for name in (BASELINE, METHOD)]
    return "\n\n".join([markdown_table([_HEAD, *rows]), *map(conditions, reports)])


def _row(report: Report, name: str) -> list[str]:
    one = report.method(name)
    if one is None:
        raise ValueError(f"`{report.command}` did not measure {name}: give --methods {BASELINE},{METHOD}.")
    alone = name == BASELINE
    return [
        "" if alone else f"`{report.models['draft'].model}`",
        f"`{name}`",
        percent(one.accuracy, 1),
        percent(one.unparsed_rate, 1),
        percent(one.acceptance_rate, 1),
        "" if alone else percent(one.coverage, 1),
        "" if alone else f"{_step_tokens(report, one):.1f}",
        "" if alone else str(one.tokens.wasted_draft + one.tokens.wasted_target),
        f"{one.wall_s / one.num_problems:.3f} s",
        speedup_cell(one),
    ]


def _step_tokens(report: Report, one: MethodReport) -> float:
    return one.tokens.drafted / sum(row.num_drafted for row in report.problems if row.method == one.name)


def main(document: Path, reports: list[Path]) -> None:
    """Write the table into the document, between the marks `drafts`."""
    fill(document, NAME, table([Report.read(path) for path in reports]))


if __name__ == "__main__":
    typer.run(main)
