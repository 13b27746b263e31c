"""Output of commands: committed steps, the table that compares methods, progress bars."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dreamr import markdown
from dreamr.bench.report import MethodReport, Report, Speedup
from pipelines.trace import CommittedStep

STYLES = {"draft": "cyan", "target": "magenta"}
MAX_COLUMNS = 4
"""Most methods in a table with a column per method; with more, each method is a row."""


def print_step(console: Console, step: CommittedStep) -> None:
    """One committed step: its number, its author, the score of the drafted step, seconds since the start, its text."""
    row = Table.grid(padding=(0, 2))
    row.add_column(justify="right", width=3)
    row.add_column(width=6)
    row.add_column(width=10)
    row.add_column(justify="right", width=8)
    row.add_column(ratio=1)
    score = "" if step.score is None else f"score {step.score:.2f}"
    style = STYLES[step.source]
    row.add_row(
        str(step.index + 1),
        Text(step.source, style),
        Text(score, "dim"),
        Text(f"{step.at:.3f} s", "dim"),
        Text(printable(step.text.strip()), style),
    )
    console.print(row)


def printable(text: str) -> str:
    """A model's text without control characters of terminals."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def percent(share: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return markdown.percent(share) or "–"


def progress_bar(notices: Console) -> Progress:
    """A bar that is drawn only when it advances: a live one would compete with the models for the cores."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=notices,
        transient=True,
        auto_refresh=False,
        disable=not notices.is_terminal,
    )


_ROWS: dict[str, Callable[[MethodReport], str]] = {
    "correct": lambda one: f"{round(one.accuracy * one.num_problems)} of {one.num_problems}",
    "unparsed": lambda one: str(round(one.unparsed_rate * one.num_problems)),
    "truncated": lambda one: str(round(one.truncated_rate * one.num_problems)),
    "mean wall time": lambda one: f"{one.wall_s / one.num_problems:.3f} s",
    "speedup": lambda one: f"{one.speedup.geomean:.2f} x" if one.speedup else "–",
    "  95 % interval": lambda one: _interval(one.speedup),
    "acceptance rate": lambda one: percent(one.acceptance_rate),
    "coverage by the draft": lambda one: percent(one.coverage),
    "tokens committed": lambda one: str(one.tokens.committed),
    "wasted by the draft": lambda one: str(one.tokens.wasted_draft),
    "wasted by the target": lambda one: str(one.tokens.wasted_target),
    "orchestration share": lambda one: percent(one.orchestration_share),
    "actors": lambda one: str(len(one.actors)),
    "cores in use, at most": lambda one: str(one.cores),
    "GPUs": lambda one: f"{one.gpus:g}",
    "actors lost": lambda one: str(one.num_losses),
}
_RARE = ("truncated", "GPUs", "actors lost")
"""Rows that are left out where they are 0 throughout."""
_MAIN = ("correct", "mean wall time", "speedup", "  95 % interval", "acceptance rate")
"""With a row per method, as many columns as a narrow terminal shows; report.md has all."""


def print_report(console: Console, report: Report) -> None:
    """One column per method, or one row where there are many; below, the conditions of the run."""
    rows = {
        name: cell
        for name, cell in _ROWS.items()
        if name not in _RARE or any(cell(one) != "0" for one in report.methods)
    }
    is_wide = len(report.methods) > MAX_COLUMNS
    if is_wide:
        rows = {name: rows[name] for name in _MAIN}
    columns = [["", *rows]] + [[one.name, *(cell(one) for cell in rows.values())] for one in report.methods]
    lines = columns if is_wide else [list(line) for line in zip(*columns, strict=True)]
    table = Table(*lines[0], header_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines[1:]:
        table.add_row(*line, style="bold green" if line[0] == "speedup" else None)
    console.print(table)
    for name, reason in report.failed.items():
        console.print(Text(f"{name} could not be measured: {reason}"))
    _print_conditions(console, report)


def _interval(one: Speedup | None) -> str:
    return f"{one.low:.2f}–{one.high:.2f}" if one and one.low is not None and one.high is not None else "–"


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
    how = "geometric mean over questions of autoregressive wall time / the method's; methods take turns, each from "
    conditions.add_row("speedup", how + "cold prefix caches in warm actors")
    for one in report.methods:
        if one.computed_from:
            conditions.add_row(
                one.name, f"computed from the times of {one.computed_from}: every verdict known beforehand"
            )
    console.print(conditions)
