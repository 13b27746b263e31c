"""The one table of `dreamr demo`, and below it what a reader needs to judge and repeat it."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr.bench.schema import MethodReport, Report, Speedup
from dreamr.cli.lines import percent

_ROWS: dict[str, Callable[[MethodReport], str]] = {
    "right": lambda one: f"{round(one.accuracy * one.num_problems)} of {one.num_problems}",
    "unparsed": lambda one: str(round(one.unparsed_rate * one.num_problems)),
    "mean wall time": lambda one: f"{one.wall_s / one.num_problems:.3f} s",
    "speedup": lambda one: _speedup(one.speedup),
    "  95 % interval": lambda one: _interval(one.speedup),
    "acceptance rate": lambda one: percent(one.acceptance_rate),
    "coverage by the draft": lambda one: percent(one.coverage),
    "tokens committed": lambda one: str(one.tokens.committed),
    "wasted by the draft": lambda one: str(one.tokens.wasted_draft),
    "wasted by the target": lambda one: str(one.tokens.wasted_target),
    "orchestration share": lambda one: percent(one.orchestration_share),
    "actors": lambda one: str(len(one.actors)),
    "cores in use, at most": lambda one: str(one.cores),
}

_RARE: dict[str, Callable[[MethodReport], str]] = {
    "GPUs": lambda one: f"{one.gpus:g}",
    "actors lost": lambda one: str(one.num_losses),
}
MAX_COLUMNS = 4
"""More methods than that are shown as rows."""


def print_report(console: Console, report: Report) -> None:
    """One column per method, or one row where there are many."""
    rows = _ROWS | {name: cell for name, cell in _RARE.items() if any(cell(one) != "0" for one in report.methods)}
    columns = [["", *rows]] + [[one.name, *(cell(one) for cell in rows.values())] for one in report.methods]
    lines = columns if len(report.methods) > MAX_COLUMNS else [list(line) for line in zip(*columns, strict=True)]
    table = Table(*lines[0], header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines[1:]:
        table.add_row(*line, style="bold green" if line[0] == "speedup" else None)
    console.print(table)
    for name, reason in report.failed.items():
        console.print(Text(f"{name} could not be measured: {reason}"))
    _print_conditions(console, report)


def _speedup(one: Speedup | None) -> str:
    return f"{one.geomean:.2f} x" if one else "–"


def _interval(one: Speedup | None) -> str:
    return f"{one.low:.2f} – {one.high:.2f}" if one and one.low is not None and one.high is not None else "–"


def _print_conditions(console: Console, report: Report) -> None:
    machine = report.machine
    conditions = Table.grid(padding=(0, 2))
    conditions.add_column(style="dim")
    conditions.add_column()
    conditions.add_row("machine", f"{machine.cpu}, {machine.cores} cores, load before the run {machine.load:.1f}")
    for role, info in report.models.items():
        size = f"{info.num_parameters / 1e6:.1f} M parameters, " if info.num_parameters else ""
        conditions.add_row(role, Text(f"{info.model}, {size}{info.device}"))
    conditions.add_row("command", Text(report.command))
    how = "geometric mean over problems of autoregressive wall time / the method's; methods take turns, each from "
    conditions.add_row("speedup", how + "cold prefix caches in warm actors")
    console.print(conditions)
