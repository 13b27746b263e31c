"""Puts a report's table into a text: `python -m dreamr.bench.markdown bench/results/embedded/report.json README.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from dreamr.bench.schema import MethodReport, Report
from dreamr.bench.sweeps import swept_settings
from dreamr.documents import fill, markdown_table, percent

NAME = "bench results"


def speedup_cell(one: MethodReport) -> str:
    """The speedup with its interval; 1 for the baseline itself."""
    if one.speedup is None:
        return ""
    if one.name == "autoregressive":
        return "1"
    low, high = one.speedup.low, one.speedup.high
    interval = f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else ""
    return f"**{one.speedup.geomean:.2f}**{interval}"


def time_cell(one: MethodReport) -> str:
    """Mean wall time of a problem."""
    return f"{one.wall_s / one.num_problems:.3f} s"


_COLUMNS: dict[str, Callable[[MethodReport], str]] = {
    "method": lambda one: f"`{one.name}`",
    "right": lambda one: percent(one.accuracy),
    "unparsed": lambda one: percent(one.unparsed_rate),
    "time per problem": time_cell,
    "speedup (95 % interval)": speedup_cell,
    "acceptance": lambda one: percent(one.acceptance_rate),
    "coverage": lambda one: percent(one.coverage),
    "tokens": lambda one: str(one.tokens.committed),
    "wasted by draft, target": lambda one: f"{one.tokens.wasted_draft}, {one.tokens.wasted_target}",
    "orchestration": lambda one: percent(one.orchestration_share),
    "cores": lambda one: str(one.cores),
    "GPUs": lambda one: f"{one.gpus:g}",
}


def table(report: Report) -> str:
    """A row per method, and below what is needed to judge and repeat it."""
    rows = [list(_COLUMNS), *([cell(one) for cell in _COLUMNS.values()] for one in report.methods)]
    if not any(one.gpus for one in report.methods):
        rows = [row[:-1] for row in rows]
    return f"{markdown_table(rows)}\n\n{conditions(report)}"


def conditions(report: Report) -> str:
    """One sentence: the command, the machine, the models."""
    machine, count = report.machine, report.methods[0].num_problems
    sizes = ", ".join(f"{role} {model.num_parameters / 1e6:.1f} M" for role, model in report.models.items())
    hardware = f"{machine.cpu}, {machine.cores} cores"
    return f"`{report.command}` on {hardware}; {count} problems, batch size 1; parameters: {sizes}."


def page(report: Report) -> str:
    """The whole `report.md`."""
    parts = ["# Benchmark", table(report)]
    if report.self_acceptance:
        kinds = ", ".join(f"{percent(share, 1)} by {kind}" for kind, share in report.self_acceptance.items())
        parts.append(f"Of its own steps, the target accepts {kinds}.")
    parts += [f"`{name}` could not be measured: {reason}." for name, reason in report.failed.items()]
    parts.append("![Speedup with 95 % intervals](speedup.png)\n\n![Accuracy against speedup](accuracy.png)")
    parts.append("![Model time by role](roles.png)")
    parts += [f"![Over the values of {setting}](sweep-{setting}.png)" for setting in swept_settings(report)]
    return "\n\n".join(parts) + "\n"


def main(report: Path, document: Path, name: str = NAME) -> None:
    """Write the report's table into the document, between the marks of that name."""
    fill(document, name, table(Report.read(report)))


if __name__ == "__main__":
    typer.run(main)
