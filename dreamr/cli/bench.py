"""`dreamr bench`: methods compared over many questions; a folder with report.json, report.md and pictures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dreamr.bench.interleaved import InterleavedRun, LedgerQuestions, Measurement, Question, Questions
from dreamr.bench.methods import MethodSpec, parse_methods, with_assistant
from dreamr.bench.rendering import write_folder
from dreamr.bench.report import Machine, Report
from dreamr.bench.summary import make_report, with_oracle
from dreamr.cli.evaluate import find_benchmark, read_rows
from dreamr.cli.inputs import check_at_least_one, make_folder, read_config
from dreamr.cli.running import run_with_actors
from dreamr.cli.terminal import print_report, progress_bar
from dreamr.config import PipelineSettings, with_draft
from dreamr.errors import BadInput
from dreamr.types import Prompt

if TYPE_CHECKING:
    from actors.group import ActorGroup
    from dreamr.eval.rows import Rows


class BenchmarkQuestions:
    """The rows of a public benchmark, in their order."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @property
    def warm_up(self) -> Prompt:
        return self[0].prompt

    def __getitem__(self, index: int) -> Question:
        item = self._rows.item(index)
        return Question(item.prompt(ask_for_text=False), item.key, item.id)


def bench(
    problems: int,
    seed: int,
    methods: str,
    config: Path | None,
    *,
    sweep: str | None,
    out: Path,
    draft: str | None,
    benchmark: str | None,
    data: Path | None,
) -> None:
    """Run the command. Raises BadInput, ConfigError, and what `run_with_actors` and the pipelines raise."""
    settled = with_draft(read_config(config, {}), draft)
    check_at_least_one("--problems", problems)
    specs = read_methods(methods, sweep, settled.pipeline)
    settled = with_assistant(settled, specs)
    make_folder("--out", out, "report.json")
    questions: Questions = LedgerQuestions(seed)
    about = {}
    if benchmark is not None:
        rows = read_rows(find_benchmark(benchmark), data, problems)
        questions, problems = BenchmarkQuestions(rows), len(rows)
        about = {"benchmark": benchmark, "data": rows.source}
    elif data is not None:
        raise BadInput(f"--data {data}: name the --benchmark whose rows these are.")
    machine, notices = Machine.this(), Console(stderr=True)

    async def measure(group: ActorGroup) -> Report:
        from dreamr.bench.actors import BenchActors
        from dreamr.bench.controls import forward_times, measured, self_acceptance
        from dreamr.bench.side_by_side import slowdown

        async with BenchActors(group, settled.group, specs, machine.cores) as actors:
            run = InterleavedRun(actors.methods, questions)
            measurements = await answer_all(run, problems, notices, actors.failed)
        failed = actors.failed | run.failed
        report = make_report(settled, seed, machine, group.infos, run.methods, measurements, failed=failed, **about)
        report = with_oracle(report, measurements)
        # Written before the controls as well: an error in these must not lose the measurements.
        write_folder(report, out)
        with notices.status("Measuring the controls ..."):
            alone = [one for one in measurements if one.method == "autoregressive"]
            accepted = await self_acceptance(group.handles, settled.pipeline, alone)
            slower = await slowdown(group.handles, settled.pipeline, run.questions[0].prompt)
            drafted = [one for one in measurements if one.method == "sequential"]
            forwards = await forward_times(group.handles, settled.pipeline, drafted)
        found = measured(measurements, slower, forwards) if slower else None
        return report.model_copy(update={"self_acceptance": accepted, "measured": found})

    report = run_with_actors(settled, notices, measure)
    write_folder(report, out)
    print_report(Console(), report)
    typer.echo(f"report: {out}", err=True)


def read_methods(methods: str, sweep: str | None, settings: PipelineSettings) -> list[MethodSpec]:
    """The methods to measure. Raises BadInput."""
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
    """Warm up, then answer every question by every method; `first`, if given, answers the first one.

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
