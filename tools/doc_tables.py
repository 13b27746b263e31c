"""The tables in the documents, made from reports: `python -m tools.doc_tables` writes them, `--check` compares them.

A table stands between two comments with its name in a Markdown file. No number in it is ever written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamr.bench import rendering
from dreamr.bench.rendering import conditions, speedup_cell, time_cell
from dreamr.bench.report import MethodReport, Report
from dreamr.markdown import markdown_table, percent
from pipelines import BASELINE
from tools import ablation, cells, chaos_report, clients, flips, groups, load_report, sizing, structured
from tools.make_pair import markdown as pair

ROOT = Path(__file__).parents[1]
BENCH, RESULTS = ROOT / "bench/results", ROOT / "docs/results"


def _report(name: str) -> Report:
    return Report.read(BENCH / name / "report.json")


def _result(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _measured(path: Path, table: Callable[[dict[str, Any]], str]) -> str:
    """The table of a result, or a sentence until it has been measured."""
    return table(_result(path)) if path.exists() else "Not measured yet."


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "bench results"): lambda: overview_table(_report("embedded-untrained"), _report("embedded")),
    ("docs/bench.md", "bench results"): lambda: rendering.table(_report("embedded")),
    ("docs/bench.md", "clients"): lambda: _measured(RESULTS / "clients.json", clients.table),
    ("docs/bench.md", "auto"): lambda: _measured(RESULTS / "auto.json", cells.table),
    ("docs/embedded-pair.md", "pair results"): lambda: pair.tables(
        *map(_result, sorted(RESULTS.glob("embedded_pair*.json")))
    ),
    ("docs/training.md", "drafts"): lambda: drafts_table(
        [_report("embedded-draft-untrained"), _report("embedded-draft")]
    ),
    ("docs/training.md", "ablation"): lambda: ablation.section(_result(RESULTS / "ablation.json")),
    ("docs/serving.md", "load"): lambda: load_report.table(_result(RESULTS / "load.json")),
    ("docs/serving.md", "chaos"): lambda: _measured(RESULTS / "chaos.json", chaos_report.table),
    ("docs/serving.md", "groups"): lambda: _measured(RESULTS / "groups.json", groups.table),
    ("docs/serving.md", "structured"): lambda: _measured(RESULTS / "structured.json", structured.table),
    ("docs/models.md", "flips"): lambda: _measured(RESULTS / "flips.json", flips.table),
    ("docs/models.md", "public models"): sizing.models_table,
    ("docs/models.md", "ready configurations"): lambda: sizing.configurations_table(
        list((ROOT / "configs").glob("qwen3-vl-[0-9]*.yaml"))
    ),
}
"""Each table by its document and its name in it."""


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; list outdated tables and fail.")] = False,
) -> None:
    """Write all tables into the documents, and `report.md` next to each report."""
    stale = []
    for path, new in _documents().items():
        if path.read_text(encoding="utf-8") != new:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    for name in stale:
        typer.echo(f"{name}: {'out of date: run python -m tools.doc_tables' if check else 'written'}")
    raise typer.Exit(bool(stale) and check)


def _documents() -> dict[Path, str]:
    """The text that each document should have."""
    texts: dict[Path, str] = {}
    for (document, name), make in TABLES.items():
        path = ROOT / document
        texts[path] = filled(texts.get(path) or path.read_text(encoding="utf-8"), name, make())
    for path in BENCH.glob("*/report.json"):
        texts[path.with_name("report.md")] = rendering.page(Report.read(path))
    return texts


def filled(text: str, name: str, table: str) -> str:
    """The text with the table between its marks. Raises ValueError when these are missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"there is no place for the table '{name}': put {begin} and {end} into the document.")
    return f"{before}{begin}\n{table}\n{end}{after}"


# -- the table of README.md --------------------------------------------------------------------------------------------

_SHOWN = {
    "autoregressive": "target alone",
    "draft_alone": "draft alone",
    "transformers_assisted": "transformers' assisted generation",
    "autoregressive+assistant": "target with the draft as its assistant, token by token",
    "specreason": "SpecReason",
    "lookahead": "Lookahead Reasoning",
    "fpsr": "FPSR: drafting, verifying and the target's own step at once",
    "fpsr+assistant": "both levels: steps by FPSR, the target's own steps with an assistant",
    "auto+assistant": "both levels, the schedule chosen at every step by measured costs",
}


def overview_table(*reports: Report) -> str:
    """The main methods with each report's draft: how many answers are correct, and the speedup; empty where a report
    did not measure a method."""
    drafts = [report.models["draft"].model.removeprefix("embedded:") for report in reports]
    heads = [f"`{draft}`: {what}" for draft in drafts for what in ("correct", "speedup")]
    rows = [["method", "", "cores", *heads]]
    for name, meaning in _SHOWN.items():
        measured = [report.method(name) for report in reports]
        cells = [cell for one in measured for cell in ((percent(one.accuracy), speedup_cell(one)) if one else ("", ""))]
        cores = next((str(one.cores) for one in measured if one), "")
        rows.append([f"`{name}`", meaning, cores, *cells])
    return "\n\n".join([markdown_table(rows), *map(conditions, reports)])


# -- drafts compared by their reports ----------------------------------------------------------------------------------

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
    "correct": lambda _, one: percent(one.accuracy, 1),
    "unparsed": lambda _, one: percent(one.unparsed_rate, 1),
    "acceptance": lambda _, one: percent(one.acceptance_rate, 1),
    "coverage": _of_the_draft(lambda _, one: percent(one.coverage, 1)),
    "tokens per drafted step": _of_the_draft(lambda report, one: f"{_step_tokens(report, one):.1f}"),
    "tokens wasted": _of_the_draft(lambda _, one: str(one.tokens.wasted_draft + one.tokens.wasted_target)),
    "time per answer": lambda _, one: time_cell(one),
    "speedup (95 % interval)": lambda _, one: speedup_cell(one),
}


def drafts_table(reports: list[Report]) -> str:
    """For each draft, the target alone and FPSR, interleaved; below, how each report was made.

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


if __name__ == "__main__":
    typer.run(main)
