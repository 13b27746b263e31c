"""What can be found out about a run before anything heavy is loaded. One clear sentence each."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from dreamr.config import ActorConfig, ConfigError, HFEngineConfig
from dreamr.engines.factory import model_location
from dreamr.rl import checkpoints
from dreamr.rl.config import SapoConfig
from dreamr.rl.data import load_data

PACKAGES = ("trl", "deepspeed", "accelerate", "datasets", "wandb")


def check(config: SapoConfig, *, resume: bool) -> None:
    """Raises ConfigError for the first thing that would stop the run."""
    _check_packages(config)
    for role, actor in (("draft", config.draft), ("target", config.target)):
        _check_model(role, actor)
    _check_folder(config.run, resume)
    for purpose in ("train", "eval"):
        data = load_data(config.data, "train" if purpose == "train" else "eval", config.rollout.prompts_per_step)
        if purpose == "train" and len(data) < config.rollout.prompts_per_step:
            raise ConfigError(
                f"data: {len(data)} training problems are too few for rollout.prompts_per_step = "
                f"{config.rollout.prompts_per_step}; lower it or give more data."
            )


def _check_packages(config: SapoConfig) -> None:
    needed = [name for name in PACKAGES if name != "wandb" or config.log.wandb != "off"]
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"training needs {', '.join(absent)}: pip install 'dreamr[train]'.")


def _check_model(role: str, actor: ActorConfig) -> None:
    assert isinstance(actor.engine, HFEngineConfig)
    location = model_location(actor.engine.model)
    is_path = Path(location).is_absolute() or location.startswith((".", "~")) or location.count("/") != 1
    if is_path and not (Path(location) / "config.json").is_file():
        raise ConfigError(
            f"{role}.engine.model = '{actor.engine.model}': there is no checkpoint in that folder; give a folder with "
            "a config.json, a hub id, or a built-in model."
        )


def _check_folder(run: Path, resume: bool) -> None:
    started = (run / "config.json").exists()
    if resume and not started:
        raise ConfigError(f"--resume: there is no run in {run}; leave --resume out to begin one.")
    if started and not resume and checkpoints.folder(run).exists():
        raise ConfigError(f"run = {run}: there is a run in this folder; add --resume to go on, or choose another.")
    above = next(folder for folder in (run, *run.parents) if folder.exists())
    if not os.access(above, os.W_OK):
        raise ConfigError(f"run = {run}: may not be written; choose another folder.")
