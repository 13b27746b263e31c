"""The one table of `dreamr demo`, and below it what a reader needs to judge and repeat it."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr.cli.lines import percent
from dreamr.demo.report import Report
from dreamr.demo.speedup import Speedup
from dreamr.demo.summary import Summary

_ROWS: dict[str, Callable[[Summary], str]] = {
    "right": lambda one: f"{one.right} of {one.num_problems}",
    "unparsed": lambda one: str(one.unparsed),
    "mean wall time": lambda one: f"{one.mean_wall_s:.3f} s",
    "speedup": lambda one: _speedup(one.speedup),
    "  95 % interval": lambda one: _interval(one.speedup),
    "acceptance rate": lambda one: percent(one.acceptance_rate),
    "coverage by the draft": lambda one: percent(one.coverage),
    "tokens committed": lambda one: str(one.committed_tokens),
    "wasted by the draft": lambda one: str(one.wasted_draft_tokens),
    "wasted by the target": lambda one: str(one.wasted_target_tokens),
    "orchestration share": lambda one: percent(one.orchestration_share),
    "actors": lambda one: str(len(one.actors)),
}


def print_report(console: Console, report: Report) -> None:
    """One column per method."""
    summaries = report.summaries
    table = Table(header_style="bold")
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.method, justify="right")
    for name, cell in _ROWS.items():
        table.add_row(name, *map(cell, summaries), style="bold green" if name == "speedup" else None)
    table.add_row("cores in use, at most", *(str(min(one.threads, report.machine.cores)) for one in summaries))
    if any(one.gpus for one in summaries):
        table.add_row("GPUs", *(f"{one.gpus:g}" for one in summaries))
    if any(one.num_losses for one in summaries):
        table.add_row("actors lost", *(str(one.num_losses) for one in summaries))
    console.print(table)
    _print_conditions(console, report)


def _speedup(one: Speedup | None) -> str:
    return f"{one.mean:.2f} x" if one else "–"


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
