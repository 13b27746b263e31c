"""`dreamr calibrate`: the confidence of the draft above which its steps need no verdict, at a given risk."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from rich.console import Console

from dreamr.cli.inputs import check_at_least_one, check_writable, read_config
from dreamr.cli.running import run_with_actors
from dreamr.cli.terminal import progress_bar
from dreamr.config import with_draft
from dreamr.errors import BadInput
from dreamr.eval.calibration import CERTAINTY, Calibration, Judged, Skipped, judged_steps
from dreamr.eval.calibration import calibrate as choose
from dreamr.markdown import percent
from dreamr.tasks.ledger import make_problem
from dreamr.types import Prompt

if TYPE_CHECKING:
    from actors.group import ActorGroup


def calibrate(config: Path | None, draft: str | None, *, problems: int, seed: int, risk: float, out: Path) -> None:
    """Run the command. Raises BadInput, ConfigError, and what `run_with_actors` and the pipelines raise."""
    settled = with_draft(read_config(config, {}), draft)
    check_at_least_one("--problems", problems)
    if not 0 < risk < 1:
        raise BadInput(f"--risk {risk:g}: give a share between 0 and 1, such as 0.02.")
    check_writable("--out", out)
    notices = Console(stderr=True)

    async def measure(group: ActorGroup) -> list[list[Judged]]:
        with progress_bar(notices) as progress:
            bar = progress.add_task("problems", total=problems)

            def prompts() -> Iterator[Prompt]:
                for number in range(problems):
                    yield make_problem("validation", seed, number).prompt
                    progress.update(bar, advance=1, refresh=True)

            return await judged_steps(group.handles, settled.pipeline, prompts())

    found = choose(run_with_actors(settled, notices, measure), risk)
    out.write_text(yaml.safe_dump(document(found), sort_keys=False), encoding="utf-8")
    typer.echo(sentence(found))
    typer.echo(f"calibration: {out}", err=True)


def document(found: Calibration) -> dict[str, Any]:
    """The calibration as plain data."""
    return {
        "command": shlex.join(["dreamr", *sys.argv[1:]]),
        "pipeline": {"skip_above": found.skip_above},
        "risk": found.risk,
        "chosen_on": _numbers(found.chosen),
        "measured_on": _numbers(found.measured),
    }


def _numbers(steps: Skipped) -> dict[str, float]:
    return {
        "steps": steps.num_steps,
        "skipped": steps.num_skipped,
        "errors": steps.num_errors,
        "share": steps.share,
        "error": steps.error,
        f"error_upper_{CERTAINTY * 100:.0f}": steps.error_bound,
    }


def sentence(found: Calibration) -> str:
    """The result in words."""
    if found.skip_above is None:
        return (
            f"No threshold keeps the error at {percent(found.risk)} with {CERTAINTY:.0%} certainty on "
            f"{found.chosen.num_steps} drafted steps: ask more --problems, or allow a higher --risk."
        )
    measured = found.measured
    return (
        f"pipeline.skip_above: {found.skip_above:.6g}\n"
        f"On {measured.num_steps} drafted steps of other problems, {percent(measured.share, 1)} need no verdict; the "
        f"target rejects {percent(measured.error, 1)} of these, at most {percent(measured.error_bound, 1)} with "
        f"{CERTAINTY:.0%} certainty."
    )
