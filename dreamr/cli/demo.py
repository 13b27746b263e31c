"""`dreamr demo`: fresh ledger problems answered by several methods, and one table that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr.bench.duel import Duel, Run
from dreamr.bench.machine import Machine
from dreamr.bench.report import make_report
from dreamr.bench.schema import Report
from dreamr.bench.summary import pictured
from dreamr.cli.inputs import check_timeline, check_writable, read_config
from dreamr.cli.lines import print_step
from dreamr.cli.measuring import read_entries, run_problems
from dreamr.cli.picture import draw_timeline
from dreamr.cli.running import run_with_actors
from dreamr.cli.table import print_report
from dreamr.config import with_draft
from dreamr.tasks.ledger import Problem
from pipelines import OnCommit

if TYPE_CHECKING:
    from actors.group import ActorGroup


def demo(
    problems: int,
    seed: int,
    methods: str,
    config: Path | None,
    *,
    out: Path | None,
    timeline: Path | None,
    as_json: bool,
    draft: str | None = None,
) -> None:
    """Run the command. Raises BadInput, ConfigError, and what `run_with_actors` and the pipelines raise."""
    settled = with_draft(read_config(config, {}), draft)
    entries = read_entries(problems, methods, None, settled.pipeline)
    check_timeline(timeline)
    check_writable("--out", out)
    machine, screen, notices = Machine.this(), Console(stderr=as_json), Console(stderr=True)

    async def measure(group: ActorGroup) -> tuple[Report, Run]:
        from dreamr.bench.arena import Arena

        async with Arena(group, settled.group, entries, machine.cores) as arena:
            duel = Duel(arena.contenders, seed)
            runs = await run_problems(duel, problems, notices, arena.failed, lambda: _first(duel, screen))
        failed = arena.failed | duel.failed
        report = make_report(settled, seed, machine, group.infos, duel.contenders, runs, failed=failed)
        return report, pictured(runs)

    report, shown = run_with_actors(settled, notices, measure)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_report(Console(), report)
    if out:
        report.write(out)
    if timeline:
        draw_timeline(shown.trace, timeline)


async def _first(duel: Duel, screen: Console) -> list[Run]:
    """The first problem, shown while it is answered."""
    problem = duel.problem(0)
    _print_problem(screen, problem)

    def announce(name: str) -> OnCommit:
        screen.print(Text(f"\n{name}", "bold"))
        return lambda step: print_step(screen, step)

    runs = await duel.run(0, announce)
    for run in runs:
        verdict = Text("right", "bold green") if run.right else Text(f"wrong, it is {run.expected}", "bold red")
        screen.print(Text.assemble("\n" if run is runs[0] else "", f"{run.name}: {run.answer}, ", verdict))
    screen.print()
    return runs


def _print_problem(screen: Console, problem: Problem) -> None:
    shapes = ", ".join(f"{cell.name} {cell.number}" for cell in problem.cells)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("image", "dim"), f"a drawing of: {shapes}")
    grid.add_row(Text("question", "dim"), problem.question)
    screen.print(grid)
