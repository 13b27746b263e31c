"""The generator of the documents' tables: what it writes, refuses, and reports as out of date."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from dreamr.bench.rendering import table
from dreamr.bench.report import Report, Speedup
from tools import doc_tables

REPORT = Path(doc_tables.BENCH / "embedded/report.json")


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(doc_tables.main)
    return CliRunner().invoke(app, arguments)


def test_tables_are_written_once_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one: begin -->\nold\n<!-- one: end -->\nafter\n")
    monkeypatch.setattr(doc_tables, "ROOT", tmp_path)
    monkeypatch.setattr(doc_tables, "BENCH", tmp_path / "bench")
    monkeypatch.setattr(doc_tables, "TABLES", {("page.md", "one"): lambda: "| new |"})
    stale = run("--check")
    assert (stale.exit_code, "old" in page.read_text()) == (1, True)
    assert "page.md: out of date: run python -m tools.doc_tables" in stale.stdout
    assert run().exit_code == 0
    assert page.read_text() == "before\n<!-- one: begin -->\n| new |\n<!-- one: end -->\nafter\n"
    assert (run("--check").exit_code, run().stdout) == (0, "")


def test_a_document_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no place for the table 'one'"):
        doc_tables.filled("nothing", "one", "| new |")


def test_a_report_without_one_of_the_two_methods_is_refused() -> None:
    report = Report.read(REPORT)
    with pytest.raises(ValueError, match="did not measure fpsr"):
        doc_tables.drafts_table([report.model_copy(update={"methods": report.methods[:1]})])


def test_a_report_of_one_problem_has_no_interval() -> None:
    report = Report.read(REPORT)
    fast = report.methods[-1].model_copy(update={"speedup": Speedup(geomean=2.0, low=None, high=None)})
    assert "| **2.00** |" in table(report.model_copy(update={"methods": [fast]}))


def test_computed_rows_are_marked() -> None:
    report = Report.read(REPORT)
    oracle = report.methods[-1].model_copy(update={"name": "oracle", "computed_from": "sequential"})
    shown = table(report.model_copy(update={"methods": [oracle]}))
    assert "| `oracle`* |" in shown
    assert "computed from the recorded times of `sequential`" in shown
