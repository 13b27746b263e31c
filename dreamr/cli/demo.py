"""`dreamr demo`: fresh ledger problems answered by several methods, and one table that compares them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dreamr.cli.failures import BadInput
from dreamr.cli.inputs import check_timeline, check_writable, read_config, with_draft
from dreamr.cli.lines import print_step
from dreamr.cli.picture import draw_timeline
from dreamr.cli.running import run_with_actors
from dreamr.cli.table import print_report
from dreamr.config import Method
from dreamr.demo.duel import Duel, Run
from dreamr.demo.machine import Machine
from dreamr.demo.report import Report, pictured
from dreamr.demo.runner import Runner
from dreamr.pipelines.base import OnCommit
from dreamr.pipelines.registry import METHODS
from dreamr.tasks.ledger import Problem

if TYPE_CHECKING:
    from dreamr.actors.group import ActorGroup


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
    if problems < 1:
        raise BadInput(f"--problems {problems}: at least one is needed.")
    chosen, settled = _methods(methods), with_draft(read_config(config, {}), draft)
    check_timeline(timeline)
    check_writable("--out", out)
    machine, screen = Machine.this(), Console(stderr=as_json)

    async def measure(group: ActorGroup) -> Report:
        duel = Duel(Runner(group.actors, settled.pipeline), chosen, seed)
        runs = await _runs(duel, problems, screen)
        return Report(_command(), seed, settled, machine, group.infos, tuple(runs))

    report = run_with_actors(settled, Console(stderr=True), measure)
    document = json.dumps(report.document(), indent=2, ensure_ascii=False)
    if as_json:
        typer.echo(document)
    else:
        print_report(Console(), report)
    if out:
        out.write_text(document + "\n", encoding="utf-8")
    if timeline:
        draw_timeline(pictured(report.runs).trace, timeline)


def _methods(names: str) -> tuple[Method, ...]:
    known: dict[str, Method] = {method: method for method in METHODS}
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise BadInput(f"--methods {names}: there is no method '{name}'; choose out of {', '.join(METHODS)}.")
    return tuple(known[name] for name in dict.fromkeys(chosen))


async def _runs(duel: Duel, num_problems: int, screen: Console) -> list[Run]:
    notices = Console(stderr=True)
    with notices.status("Warming up ..."):
        await duel.warm_up()
    runs = await _first(duel, screen)
    with _progress(notices) as progress:
        bar = progress.add_task("problems", total=num_problems, completed=1)
        for index in range(1, num_problems):
            runs += await duel.run(index)
            progress.update(bar, advance=1, refresh=True)
    return runs


async def _first(duel: Duel, screen: Console) -> list[Run]:
    """The first problem, shown while it is answered."""
    problem = duel.problem(0)
    _print_problem(screen, problem)

    def announce(method: Method) -> OnCommit:
        screen.print(Text(f"\n{method}", "bold"))
        return lambda step: print_step(screen, step)

    runs = await duel.run(0, announce)
    for run in runs:
        verdict = Text("right", "bold green") if run.right else Text(f"wrong, it is {run.expected}", "bold red")
        screen.print(Text.assemble("\n" if run is runs[0] else "", f"{run.method}: {run.answer}, ", verdict))
    screen.print()
    return runs


def _print_problem(screen: Console, problem: Problem) -> None:
    shapes = ", ".join(f"{cell.name} {cell.number}" for cell in problem.cells)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("image", "dim"), f"a drawing of: {shapes}")
    grid.add_row(Text("question", "dim"), problem.question)
    screen.print(grid)


def _progress(notices: Console) -> Progress:
    """Drawn only between two problems: a live bar would compete with the models for the cores."""
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


def _command() -> str:
    return shlex.join(["dreamr", *sys.argv[1:]])
