"""Commands on the ledger task: `dreamr demo` compares methods on fresh problems, `dreamr example` makes one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr.bench.interleaved import InterleavedRun, LedgerQuestions, Measurement
from dreamr.bench.methods import with_assistant
from dreamr.bench.report import Machine, Report
from dreamr.bench.summary import make_report
from dreamr.cli.bench import answer_all, read_methods
from dreamr.cli.inputs import check_at_least_one, check_timeline, check_writable, read_config
from dreamr.cli.running import run_with_actors
from dreamr.cli.terminal import print_report, print_step
from dreamr.config import with_draft
from dreamr.errors import BadInput
from dreamr.tasks.ledger import Problem, make_problem
from dreamr.timeline import draw
from pipelines import OnCommit

if TYPE_CHECKING:
    from actors.group import ActorGroup


def example(image: Path, seed: int) -> None:
    """Draw a problem that the built-in models were not trained on; print its question and answer. Raises BadInput."""
    if image.suffix.lower() != ".png":
        raise BadInput(f"{image}: the drawing is a PNG file; give it a name that ends in .png.")
    check_writable("image", image)
    problem = make_problem("test", seed, 0)
    problem.image.save(image, format="PNG")
    typer.echo(f'dreamr ask --image {image} "{problem.question}"')
    typer.echo(f"answer: {problem.answer}")


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
    check_at_least_one("--problems", problems)
    specs = read_methods(methods, None, settled.pipeline)
    settled = with_assistant(settled, specs)
    check_timeline(timeline)
    check_writable("--out", out)
    machine, screen, notices = Machine.this(), Console(stderr=as_json), Console(stderr=True)

    async def measure(group: ActorGroup) -> tuple[Report, Measurement]:
        from dreamr.bench.actors import BenchActors

        questions = LedgerQuestions(seed)
        async with BenchActors(group, settled.group, specs, machine.cores) as actors:
            run = InterleavedRun(actors.methods, questions)
            measurements = await answer_all(
                run, problems, notices, actors.failed, lambda: _first(run, questions.problem(0), screen)
            )
        failed = actors.failed | run.failed
        report = make_report(settled, seed, machine, group.infos, run.methods, measurements, failed=failed)
        return report, pictured(measurements)

    report, shown = run_with_actors(settled, notices, measure)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_report(Console(), report)
    if out:
        report.write(out)
    if timeline:
        draw(shown.trace, timeline)
        typer.echo(f"timeline: {timeline}", err=True)


def pictured(measurements: list[Measurement]) -> Measurement:
    """The measurement whose timeline is drawn: of the first problem, by a method that drafts if there is one."""
    first = [one for one in measurements if one.index == measurements[0].index]
    return max(first, key=lambda one: one.trace.num_drafted)


async def _first(run: InterleavedRun, problem: Problem, screen: Console) -> list[Measurement]:
    """The first problem, printed while it is answered."""
    _print_problem(screen, problem)

    def announce(name: str) -> OnCommit:
        screen.print(Text(f"\n{name}", "bold"))
        return lambda step: print_step(screen, step)

    measurements = await run.answer(0, announce)
    for one in measurements:
        wrong = f"wrong, it is {problem.answer}"
        verdict = Text("correct", "bold green") if one.correct else Text(wrong, "bold red")
        screen.print(Text.assemble("\n" if one is measurements[0] else "", f"{one.method}: {one.answer}, ", verdict))
    screen.print()
    return measurements


def _print_problem(screen: Console, problem: Problem) -> None:
    shapes = ", ".join(f"{cell.name} {cell.number}" for cell in problem.cells)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("image", "dim"), f"a drawing of: {shapes}")
    grid.add_row(Text("question", "dim"), problem.question)
    screen.print(grid)
