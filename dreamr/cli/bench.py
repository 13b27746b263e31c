"""`dreamr bench`: methods compared over many problems; a folder with report.json, report.md and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dreamr.bench.duel import Duel, Run
from dreamr.bench.machine import Machine
from dreamr.bench.markdown import page
from dreamr.bench.report import make_report
from dreamr.bench.schema import Report
from dreamr.cli.inputs import check_writable, read_config
from dreamr.cli.measuring import read_entries, run_problems
from dreamr.cli.running import run_with_actors
from dreamr.cli.table import print_report
from dreamr.config import PipelineSettings, with_draft
from dreamr.errors import BadInput

if TYPE_CHECKING:
    from actors.group import ActorGroup


def bench(
    problems: int, seed: int, methods: str, config: Path | None, *, sweep: str | None, out: Path, draft: str | None
) -> None:
    """Run the command. Raises BadInput, ConfigError, and what `run_with_actors` and the pipelines raise."""
    settled = with_draft(read_config(config, {}), draft)
    entries = read_entries(problems, methods, sweep, settled.pipeline)
    _make_folder(out)
    machine, notices = Machine.this(), Console(stderr=True)

    async def measure(group: ActorGroup) -> Report:
        from dreamr.bench.arena import Arena
        from dreamr.bench.latencies import measured

        async with Arena(group, settled.group, entries, machine.cores) as arena:
            duel = Duel(arena.contenders, seed)
            runs = await run_problems(duel, problems, notices, arena.failed)
        failed = arena.failed | duel.failed
        report = make_report(settled, seed, machine, group.infos, duel.contenders, runs, failed=failed)
        # Whatever becomes of the controls, what took so long to measure is not lost.
        write_folder(report, out)
        with notices.status("Measuring the controls ..."):
            accepted, together = await _controls(group, settled.pipeline, duel, runs)
        found = measured(runs, together) if together else None
        return report.model_copy(update={"self_acceptance": accepted, "measured": found})

    report = run_with_actors(settled, notices, measure)
    write_folder(report, out)
    print_report(Console(), report)
    typer.echo(f"report: {out}", err=True)


def write_folder(report: Report, folder: Path) -> None:
    """report.json, report.md and the pictures that it shows."""
    from dreamr.bench.plots import draw  # matplotlib takes half a second to import
    from dreamr.bench.sweep_plot import draw_sweeps

    report.write(folder / "report.json")
    (folder / "report.md").write_text(page(report), encoding="utf-8")
    draw(report, folder)
    draw_sweeps(report, folder)


async def _controls(
    group: ActorGroup, settings: PipelineSettings, duel: Duel, runs: list[Run]
) -> tuple[dict[str, float], float | None]:
    from dreamr.bench.controls import self_acceptance, slowdown_together

    answers = [(duel.problem(run.problem).prompt, run) for run in runs if run.name == "autoregressive"]
    accepted = await self_acceptance(group.handles, settings, answers)
    return accepted, await slowdown_together(group.handles, settings, duel.problem(0).prompt)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: no such folder can be made ({error.strerror}); choose another.") from error
    check_writable("--out", folder / "report.json")
