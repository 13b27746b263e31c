"""What can be found out about a run before anything heavy is loaded. One clear sentence each."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dreamr.config import ActorConfig, HFEngineConfig, names_a_path
from dreamr.engines.factory import model_location
from dreamr.errors import ConfigError
from rl import checkpoints
from rl.config import SapoConfig
from rl.data import load_data

PACKAGES = ("trl", "deepspeed", "accelerate", "datasets", "wandb")
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a submitted job."""

MAY_DIFFER = (
    *("run", "log", "cluster", "wait_for_resources_s", "checkpoints"),
    *("draft.num_", "draft.memory_mb", "draft.accelerator_type", "draft.custom_resources", "draft.background"),
    *("target.num_", "target.memory_mb", "target.accelerator_type", "target.custom_resources", "target.background"),
    *("draft.max_restarts", "target.max_restarts"),
    *("rollout.workers", "rollout.verifiers", "rollout.groups_per_call", "rollout.deadline_s"),
    *("learner.steps", "learner.num_", "learner.micro_batch"),
)
"""What a resumed run may have otherwise, by how the keys begin: how far it goes, where it computes, what it keeps."""


def check(config: SapoConfig, *, resume: bool) -> None:
    """Raises ConfigError for the first thing that would stop the run."""
    _check_packages(config)
    for role, actor in (("draft", config.draft), ("target", config.target)):
        _check_model(role, actor)
    _check_folder(config.run, resume)
    if resume:
        _check_same(config)
    _check_data(config)


def run_folder(run: Path) -> Path:
    """The run's folder, absolute. Raises ConfigError for one that would be gone with the job that makes it."""
    if JOB_VARIABLE in os.environ and not run.is_absolute():
        raise ConfigError(
            f"run = {run}: in a submitted job this is a folder of the job's temporary copy, which is deleted; give one "
            f"that lasts, and that all nodes share: --run /shared/{run}"
        )
    return run.absolute()


def _check_packages(config: SapoConfig) -> None:
    needed = [name for name in PACKAGES if name != "wandb" or config.log.wandb != "off"]
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"training needs {', '.join(absent)}: pip install -e '.[train]'")


def _check_model(role: str, actor: ActorConfig) -> None:
    assert isinstance(actor.engine, HFEngineConfig)
    location = model_location(actor.engine.model)
    if names_a_path(location) and not (Path(location) / "config.json").is_file():
        raise ConfigError(
            f"{role}.engine.model = '{actor.engine.model}': there is no checkpoint in that folder; give a folder with "
            "a config.json, a hub id, or a built-in model."
        )


def _check_folder(run: Path, resume: bool) -> None:
    started = (run / checkpoints.CONFIG).exists()
    if resume and not started:
        raise ConfigError(f"--resume: there is no run in {run}; leave --resume out to begin one.")
    if started and not resume and checkpoints.folder(run).exists():
        raise ConfigError(f"run = {run}: there is a run in this folder; add --resume to go on, or choose another.")
    above = next(folder for folder in (run, *run.parents) if folder.exists())
    if not os.access(above, os.W_OK):
        raise ConfigError(f"run = {run}: may not be written; choose another folder.")


def _check_same(config: SapoConfig) -> None:
    """A run that goes on by other settings would be neither of the two."""
    path = config.run / checkpoints.CONFIG
    try:
        saved = SapoConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: is not the configuration of a run; choose another folder.") from error
    begun, now = _flat(saved.public()), _flat(config.public())
    for key in sorted(begun.keys() | now.keys()):
        if begun.get(key) != now.get(key) and not key.startswith(MAY_DIFFER):
            raise ConfigError(
                f"--resume: {key} = {now.get(key)!r}, but the run in {config.run} was begun with {begun.get(key)!r}; "
                "set it back, or choose another --run."
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _check_data(config: SapoConfig) -> None:
    wanted = config.rollout.prompts_per_step
    load_data(config.data, "eval", wanted)
    if (found := len(load_data(config.data, "train", wanted))) < wanted:
        raise ConfigError(
            f"data: {found} training problems are too few for rollout.prompts_per_step = {wanted}; lower it or give "
            "more data."
        )
