"""`dreamr simulate`: predicted speedups of all schedules, next to the paper's or those of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from dreamr.bench.report import Report
from dreamr.bench.scenario import Scenario, settings_of
from dreamr.bench.simulation import Prediction, predict
from dreamr.cli.inputs import check_at_least_one, check_writable
from dreamr.cli.terminal import percent, progress_bar
from dreamr.config import PipelineSettings
from dreamr.errors import BadInput
from pipelines import SCHEDULES


def simulate(
    scenario: str, calibrate: Path | None, problems: int, window: int | None, *, out: Path | None, as_json: bool
) -> None:
    """Run the command. Raises BadInput and ConfigError."""
    check_at_least_one("--problems", problems)
    check_at_least_one("--window", window)
    check_writable("--out", out)
    report = _read_report(calibrate) if calibrate else None
    chosen = Scenario.calibrated(report) if report else Scenario.read(scenario)
    predictions = []
    with progress_bar(Console(stderr=True)) as progress:
        bar = progress.add_task("methods", total=len(SCHEDULES))
        for prediction in predict(chosen, _settings(report, window), list(SCHEDULES), problems):
            if prediction:
                predictions.append(prediction)
            progress.update(bar, advance=1, refresh=True)
    source, references = _references(chosen, report)
    document = json.dumps(_document(chosen, predictions, source, references), indent=2)
    if out:
        out.write_text(document + "\n", encoding="utf-8")
    if as_json:
        typer.echo(document)
    else:
        _print(Console(), chosen, predictions, source, references)


def _read_report(path: Path) -> Report:
    try:
        return Report.read(path)
    except ValueError as error:
        raise BadInput(f"--calibrate {error}") from error


def _settings(report: Report | None, window: int | None) -> PipelineSettings:
    """Pipeline settings of the report; simulated answers end by their number of steps, not by their length."""
    settings = settings_of(report) if report else PipelineSettings()
    changes = {"max_tokens": 10**9} | ({} if window is None else {"window": window})
    return settings.model_copy(update=changes)


def _references(scenario: Scenario, report: Report | None) -> tuple[str, dict[str, float]]:
    """Speedups to compare with, and their source: measured ones, else the paper's."""
    if report is None:
        return "paper", {str(method): value for method, value in scenario.paper.items()}
    return "measured", {one.name: one.speedup.geomean for one in report.methods if one.speedup}


def _document(
    scenario: Scenario, predictions: list[Prediction], source: str, references: dict[str, float]
) -> dict[str, Any]:
    rows = [
        {
            "method": one.method,
            "speedup": one.speedup.model_dump(),
            "ideal": one.ideal.model_dump(),
            "acceptance_rate": one.acceptance_rate,
            "coverage": one.coverage,
            "reference": reference,
            "predicted_over_reference": _ratio(one.speedup.geomean, reference),
            "reference_over_ideal": _ratio(reference, one.ideal.geomean),
        }
        for one in predictions
        for reference in [references.get(one.method)]
    ]
    return {"scenario": scenario.model_dump(mode="json"), "references": source, "methods": rows}


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _print(
    console: Console, scenario: Scenario, predictions: list[Prediction], source: str, references: dict[str, float]
) -> None:
    titles = ("predicted", source, "ratio", "ideal", "reached", "accepted", "coverage")
    table = Table("", *titles, header_style="bold", box=box.SIMPLE, padding=0)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for one in predictions:
        reference = references.get(one.method)
        table.add_row(
            one.method,
            _number(one.speedup.geomean),
            _number(reference),
            _number(_ratio(one.speedup.geomean, reference)),
            _number(one.ideal.geomean),
            _number(_ratio(reference, one.ideal.geomean)),
            percent(one.acceptance_rate),
            percent(one.coverage),
        )
    console.print(table)
    console.print(f"ratio: predicted / {source}; reached: {source} / ideal", style="dim", highlight=False)
    for assumption in scenario.assumptions:
        console.print(f"- {assumption}", style="dim", highlight=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
