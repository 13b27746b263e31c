"""The training command: `python rl/train.py`, here or by `ray job submit`; `dreamr train` is the same.

configuration ─▶ checks, without anything heavy ─▶ folder of the run ─▶ cluster ─▶ launch ─▶ trained draft
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # `python rl/train.py` puts rl/ first: a checkout needs its root there

from dreamr.config import ActorConfig, CheckpointConfig, names_a_path
from dreamr.engines.factory import model_location
from dreamr.errors import ActorLost, ConfigError, TrainingFailed, reported
from rl import checkpoints
from rl.config import CONFIG_VARIABLE, SapoConfig, default_config, load_sapo_config
from rl.curves import draw_curves, load_runs
from rl.data import load_data
from rl.rewards import REWARD_PARTS

log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CURVES = "curves.png"
"""In the folder of the run."""
PACKAGES = ("trl", "deepspeed", "accelerate", "datasets", "wandb")
SHOWN = {
    "reward": "reward",
    **{f"rewards/{part.name}/mean": part.name for part in REWARD_PARTS},
    "acceptance/rate": "accepted",
    "rollout/step_tokens": "tokens/step",
    "eval/accuracy": "eval correct",
    "eval/acceptance_rate": "eval accepted",
    "eval/drafted_step_tokens": "eval tokens/step",
    "eval/fpsr_speedup": "eval speedup",
}
"""Metrics in a line of progress, and their labels there."""


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option(help=f"YAML file; without it, {CONFIG_VARIABLE}, else the built-in draft's recipe.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run, in place of the file's `run`.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest complete checkpoint of the run.")] = False,
) -> None:
    """Train a draft by SAPO: steps that the target accepts, correct answers, few tokens."""
    with reported():
        train_draft(config, run, resume=resume)


def train_draft(file: Path | None, run: Path | None, *, resume: bool) -> None:
    """Run the command; prints the folder of the run first and last. Raises ConfigError and what `start` raises."""
    path = file or default_config()
    typer.echo(f"configuration: {path} (another one: --config FILE, or {CONFIG_VARIABLE}=FILE)")
    config = load_sapo_config(path)
    folder = checkpoints.run_folder(run or config.run, path.stem, resume=resume)
    typer.echo(f"run: {folder} (another folder: --run FOLDER, or {checkpoints.RUNS_VARIABLE}=FOLDER for all runs)")
    draft = start(config.model_copy(update={"run": folder}), resume=resume)
    typer.echo(f"run: {folder} (curves: {CURVES})\ntrained draft: {draft}")


def start(config: SapoConfig, *, resume: bool) -> Path:
    """Check all that can be checked without heavy imports, then train; returns the folder of the trained draft."""
    check(config, resume=resume)
    config.folder.mkdir(parents=True, exist_ok=True)
    with checkpoints.locked(config.folder), checkpoints.full_disk_named(config.folder):
        checkpoint = _begin(config, resume=resume)
        from actors.cluster import connected
        from rl.launch import cluster_of, launch

        with connected(cluster_of(config)):
            try:
                return asyncio.run(launch(config, checkpoint, partial(_report, config.folder)))
            except (ActorLost, TrainingFailed) as error:
                raise TrainingFailed(f"{str(error).rstrip('.')}; {_how_to_continue(config.folder)}") from error


def _how_to_continue(run: Path) -> str:
    checkpoint = checkpoints.newest(run)
    if checkpoint is None:
        return f"there is no checkpoint yet: --run {run} --resume starts over"
    return f"--run {run} --resume continues after step {checkpoints.step_of(checkpoint)}"


def check(config: SapoConfig, *, resume: bool) -> None:
    """Raises ConfigError in one sentence for the first thing that would end the run."""
    _check_packages(config)
    for role, actor in (("draft", config.draft), ("target", config.target)):
        _check_model(role, actor)
    checkpoints.check_folder(config, resume=resume)
    _check_data(config)


def _check_packages(config: SapoConfig) -> None:
    needed = [name for name in PACKAGES if name != "wandb" or config.log.wandb != "off"]
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"training needs {', '.join(absent)}: pip install -e '.[train]'")


def _check_model(role: str, actor: ActorConfig) -> None:
    assert isinstance(actor.engine, CheckpointConfig)
    location = model_location(actor.engine.model)
    if names_a_path(location) and not (Path(location) / "config.json").is_file():
        raise ConfigError(
            f"{role}.engine.model = '{actor.engine.model}': there is no checkpoint in that folder; give a folder with "
            "a config.json, a hub id, or a built-in model."
        )


def _check_data(config: SapoConfig) -> None:
    wanted = config.rollout.prompts_per_step
    load_data(config.data, "eval", wanted)
    if (found := len(load_data(config.data, "train", wanted))) < wanted:
        raise ConfigError(
            f"data: {found} training problems are too few for rollout.prompts_per_step = {wanted}; lower it or give "
            "more data."
        )


def _begin(config: SapoConfig, *, resume: bool) -> Path | None:
    """Prepare the folder; the checkpoint to continue from, if there is one."""
    run = config.folder
    checkpoint = checkpoints.newest(run) if resume else None
    if checkpoint:
        typer.echo(f"resuming after step {checkpoints.step_of(checkpoint)}: {checkpoint}")
    else:
        if resume:
            log.warning("no complete checkpoint in %s: the run starts over, and the old files are renamed", run)
        checkpoints.set_aside(run)
    checkpoints.write_at_once(run / checkpoints.CONFIG, json.dumps(config.public(), indent=2) + "\n")
    return checkpoint


def _report(run: Path, metrics: dict[str, float]) -> None:
    """Print a line of progress; after each evaluation also draw the curves."""
    values = [f"{label} {metrics[name]:.3g}" for name, label in SHOWN.items() if name in metrics]
    if values:  # a second update on the same rollouts has no such metrics
        typer.echo(f"step {int(metrics['step']):>4}  " + "  ".join(values))
    if "eval/accuracy" in metrics:
        draw_curves(load_runs([run]), run / CURVES)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
