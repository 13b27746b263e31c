"""The training command: `python rl/train.py --config configs/smoke-sapo.yaml`, here or by `ray job submit`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `python rl/train.py` puts rl/ first: a checkout needs its root there

from dreamr.errors import BadInput, reported
from rl import checkpoints
from rl.checks import check, run_folder
from rl.config import SapoConfig, load_sapo_config

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SHOWN = {
    "reward": "reward",
    "rewards/outcome/mean": "outcome",
    "rewards/draft/mean": "draft",
    "rewards/length/mean": "length",
    "acceptance/rate": "accepted",
    "rollout/step_tokens": "tokens/step",
    "eval/accuracy": "eval right",
    "eval/acceptance_rate": "eval accepted",
    "eval/drafted_step_tokens": "eval tokens/step",
    "eval/fpsr_speedup": "eval speedup",
}


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML file; configs/*-sapo.yaml are ready to use.")],
    run: Annotated[Path | None, typer.Option(help="The run's folder, instead of the file's `run`.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest whole checkpoint of the run.")] = False,
) -> None:
    """Train a draft by SAPO: steps that the target accepts, right answers, few tokens."""
    with reported():
        settings = load_sapo_config(config)
        if run is not None:
            settings = settings.model_copy(update={"run": run})
        folder = start(settings.model_copy(update={"run": run_folder(settings.run)}), resume=resume)
    typer.echo(f"trained draft: {folder}")


def start(config: SapoConfig, *, resume: bool) -> Path:
    """Check everything that can be checked without loading anything heavy, then train."""
    check(config, resume=resume)
    checkpoint = _begin(config, resume=resume)
    from actors.cluster import connected
    from dreamr.errors import NotEnoughResources
    from rl.launch import launch

    with connected(config.cluster):
        try:
            return asyncio.run(launch(config, checkpoint, _print))
        except NotEnoughResources as error:
            raise BadInput(str(error)) from error


def _begin(config: SapoConfig, *, resume: bool) -> Path | None:
    """Make the run's folder ready; the checkpoint to go on from, if there is one."""
    checkpoint = checkpoints.newest(config.run) if resume else None
    if checkpoint:
        typer.echo(f"resuming behind step {checkpoints.step_of(checkpoint)}: {checkpoint}")
    else:
        if resume:
            log.warning("no whole checkpoint in %s, starting over; what is there keeps another name", config.run)
        checkpoints.set_aside(config.run)
    config.run.mkdir(parents=True, exist_ok=True)
    checkpoints.write_at_once(config.run / checkpoints.CONFIG, json.dumps(config.public(), indent=2) + "\n")
    return checkpoint


def _print(line: dict[str, float]) -> None:
    values = [f"{label} {line[name]:.3g}" for name, label in SHOWN.items() if name in line]
    if values:  # a second update on the same rollouts has nothing new to tell
        typer.echo(f"step {int(line['step']):>4}  " + "  ".join(values))


def main() -> None:
    app()


if __name__ == "__main__":
    main()
