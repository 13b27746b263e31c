"""`dreamr simulate`: predicted speedups of all schedules, beside the paper's or a report's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from dreamr.bench.scenario import Scenario
from dreamr.bench.schema import Report
from dreamr.bench.simulation import Prediction, predict
from dreamr.cli.failures import BadInput
from dreamr.cli.lines import percent
from dreamr.config import PipelineSettings
from dreamr.pipelines.registry import METHODS


def simulate(scenario: str, calibrate: Path | None, problems: int, window: int, *, as_json: bool) -> None:
    """Run the command. Raises BadInput and ConfigError."""
    if problems < 1:
        raise BadInput(f"--problems {problems}: at least one is needed.")
    if window < 1:
        raise BadInput(f"--window {window}: at least one is needed.")
    report = _read_report(calibrate) if calibrate else None
    chosen = Scenario.calibrated(report) if report else Scenario.read(scenario)
    settings = PipelineSettings(window=window, max_tokens=10**9)
    predictions = predict(chosen, settings, METHODS, problems)
    references = _references(chosen, report)
    if as_json:
        typer.echo(json.dumps(_document(chosen, predictions, references), indent=2))
    else:
        _print(Console(), chosen, predictions, references, "measured" if report else "paper")


def _read_report(path: Path) -> Report:
    try:
        return Report.read(path)
    except ValueError as error:
        raise BadInput(f"--calibrate {error}") from error


def _references(scenario: Scenario, report: Report | None) -> dict[str, float]:
    """Speedups to compare with: measured ones, else the paper's."""
    if report is None:
        return {str(method): value for method, value in scenario.paper.items()}
    return {one.name: one.speedup.geomean for one in report.methods if one.speedup}


def _document(scenario: Scenario, predictions: list[Prediction], references: dict[str, float]) -> dict[str, Any]:
    rows = [
        {
            "method": one.method,
            "speedup": one.speedup.model_dump(),
            "ideal": one.ideal.model_dump(),
            "acceptance_rate": one.acceptance_rate,
            "coverage": one.coverage,
            "reference": references.get(one.method),
        }
        for one in predictions
    ]
    return {"scenario": scenario.model_dump(mode="json"), "methods": rows}


def _print(
    console: Console, scenario: Scenario, predictions: list[Prediction], references: dict[str, float], source: str
) -> None:
    table = Table("", "predicted", source, "difference", "without call costs", "acceptance", "coverage")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in predictions:
        reference = references.get(one.method)
        table.add_row(
            one.method,
            f"{one.speedup.geomean:.2f}",
            f"{reference:.2f}" if reference else "",
            f"{100 * (one.speedup.geomean / reference - 1):+.0f} %" if reference else "",
            f"{one.ideal.geomean:.2f}",
            percent(one.acceptance_rate),
            percent(one.coverage),
        )
    console.print(table)
    for assumption in scenario.assumptions:
        console.print(f"- {assumption}", style="dim", highlight=False)
