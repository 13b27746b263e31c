"""`dreamr bench`: methods compared over many questions; a folder with report.json, report.md and pictures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dreamr.bench.interleaved import InterleavedRun, LedgerQuestions, Measurement
from dreamr.bench.methods import MethodSpec, parse_methods, with_assistant
from dreamr.bench.rendering import write_folder
from dreamr.bench.report import Machine, Report
from dreamr.bench.summary import make_report, with_oracle
from dreamr.cli.inputs import check_at_least_one, make_folder, read_config
from dreamr.cli.running import run_with_actors
from dreamr.cli.terminal import print_report, progress_bar
from dreamr.config import PipelineSettings, with_draft
from dreamr.errors import BadInput

if TYPE_CHECKING:
    from actors.group import ActorGroup


def bench(
    problems: int, seed: int, methods: str, config: Path | None, *, sweep: str | None, out: Path, draft: str | None
) -> None:
    """Run the command. Raises BadInput, ConfigError, and what `run_with_actors` and the pipelines raise."""
    settled = with_draft(read_config(config, {}), draft)
    check_at_least_one("--problems", problems)
    specs = read_methods(methods, sweep, settled.pipeline)
    settled = with_assistant(settled, specs)
    make_folder("--out", out, "report.json")
    machine, notices = Machine.this(), Console(stderr=True)

    async def measure(group: ActorGroup) -> Report:
        from dreamr.bench.actors import BenchActors
        from dreamr.bench.controls import measured, self_acceptance, slowdown_together

        async with BenchActors(group, settled.group, specs, machine.cores) as actors:
            run = InterleavedRun(actors.methods, LedgerQuestions(seed))
            measurements = await answer_all(run, problems, notices, actors.failed)
        failed = actors.failed | run.failed
        report = make_report(settled, seed, machine, group.infos, run.methods, measurements, failed=failed)
        report = with_oracle(report, measurements)
        # Written before the controls as well: an error in these must not lose the measurements.
        write_folder(report, out)
        with notices.status("Measuring the controls ..."):
            alone = [one for one in measurements if one.method == "autoregressive"]
            accepted = await self_acceptance(group.handles, settled.pipeline, alone)
            together = await slowdown_together(group.handles, settled.pipeline, run.questions[0].prompt)
        found = measured(measurements, together) if together else None
        return report.model_copy(update={"self_acceptance": accepted, "measured": found})

    report = run_with_actors(settled, notices, measure)
    write_folder(report, out)
    print_report(Console(), report)
    typer.echo(f"report: {out}", err=True)


def read_methods(methods: str, sweep: str | None, settings: PipelineSettings) -> list[MethodSpec]:
    """What is to be measured. Raises BadInput."""
    try:
        specs = parse_methods(methods, sweep, settings)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if not specs:
        raise BadInput(f"--methods '{methods}': name at least one.")
    return specs


async def answer_all(
    run: InterleavedRun,
    num_questions: int,
    notices: Console,
    failed: Mapping[str, str],
    first: Callable[[], Awaitable[list[Measurement]]] | None = None,
) -> list[Measurement]:
    """Warm up, then answer every question by every method; `first` answers the first one, where it is to be shown.

    `failed` are the methods that cannot take part, and why. Raises BadInput when these are all.
    """
    if not run.methods:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise BadInput(f"--methods: none of them can be measured with this configuration; name another. {reasons}.")
    with notices.status("Warming up ..."):
        await run.warm_up()
    measurements = await first() if first else []
    done = int(first is not None)
    with progress_bar(notices) as progress:
        bar = progress.add_task("questions", total=num_questions, completed=done)
        for index in range(done, num_questions):
            measurements += await run.answer(index)
            progress.update(bar, advance=1, refresh=True)
    return measurements
