"""The folder of a run: where it is, whether a run may begin or continue in it, and its checkpoints.

<run>/config.json, history.jsonl, wandb/            written from the first step on
<run>/checkpoints/checkpoint-<step>/manifest.json   last file of a checkpoint: without it, it is incomplete
<run>/draft/                                        the trained draft, at the end
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dreamr.errors import ConfigError, TrainingFailed
from rl.config import SapoConfig

log = logging.getLogger(__name__)

RUNS_VARIABLE = "DREAMR_RUNS"
"""Environment variable with the parent folder of runs without `--run`."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the command of a submitted job: its id, and its runtime environment."""

MANIFEST = "manifest.json"
CONFIG = "config.json"
HISTORY = "history.jsonl"
WANDB_ID = "wandb_id"
LOCK = "lock"
_FULL_DISK = ("No space left on device", "PytorchStreamWriter failed writing", "iostream error", "unexpected pos")
"""Messages of torch's and safetensors' writers for a full disk; their errors have no errno."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

MAY_DIFFER = (
    *("run", "log", "cluster", "wait_for_resources_s", "checkpoints"),
    *("draft.num_", "draft.memory_mb", "draft.accelerator_type", "draft.custom_resources", "draft.max_restarts"),
    *("target.num_", "target.memory_mb", "target.accelerator_type", "target.custom_resources", "target.max_restarts"),
    *("draft.engine.background", "target.engine.background"),
    *("rollout.workers", "rollout.verifiers", "rollout.groups_per_call", "rollout.deadline_s"),
    *("learner.steps", "learner.num_", "learner.micro_batch"),
)
"""Beginnings of the keys that may change when a run is resumed: its length, its resources, what it logs and keeps."""


# -- the folder ------------------------------------------------------------------------------------------------------


def run_folder(given: Path | None, name: str, *, resume: bool = False) -> Path:
    """The folder of a run, absolute: the `given` one, else one below DREAMR_RUNS or ~/dreamr-runs.

    That is `<name>-<id of the job>` for a submitted job, else `<name>-<time>`; to resume, the newest one of that name.
    Raises ConfigError for a folder that would be deleted with the job, and when there is no run to resume.
    """
    if given is not None:
        return _permanent(given)
    root = _permanent(Path(os.environ.get(RUNS_VARIABLE) or Path.home() / "dreamr-runs").expanduser())
    if not resume:
        return root / f"{name}-{_job().get('metadata', {}).get('job_submission_id') or time.strftime('%Y%m%d-%H%M%S')}"
    begun = sorted(root.glob(f"{name}-*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not begun:
        raise ConfigError(f"--resume: there is no run {name}-* in {root}; name its folder: --run FOLDER")
    return begun[-1].parent


def _permanent(folder: Path) -> Path:
    if not folder.is_absolute() and "working_dir" in _job().get("runtime_env", {}):
        raise ConfigError(
            f"run = {folder}: in a job with a working directory this is a folder of its temporary copy, which is "
            f"deleted; give a permanent one that all nodes share: --run /shared/{folder}"
        )
    return folder.absolute()


def _job() -> dict[str, Any]:
    """Ray's description of the submitted job that this process runs; empty outside of jobs."""
    job: dict[str, Any] = json.loads(os.environ.get(JOB_VARIABLE) or "{}")
    return job


def check_folder(config: SapoConfig, *, resume: bool) -> None:
    """Raises ConfigError when no run may begin in the folder, or when the one in it cannot continue with `config`."""
    run = config.folder
    started = (run / CONFIG).exists()
    if resume and not started:
        raise ConfigError(f"--resume: there is no run in {run}; leave out --resume to begin one.")
    if started and not resume and folder(run).exists():
        raise ConfigError(f"run = {run}: there is a run in this folder; add --resume to continue, or choose another.")
    above = next(folder for folder in (run, *run.parents) if folder.exists())
    if not os.access(above, os.W_OK):
        raise ConfigError(f"run = {run}: may not be written; choose another folder.")
    if resume:
        _check_same_settings(config)


def _check_same_settings(config: SapoConfig) -> None:
    """Raises ConfigError when a resumed run has other settings than before."""
    path = config.folder / CONFIG
    try:
        saved = SapoConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: is not the configuration of a run; choose another folder.") from error
    begun, now = _flat(saved.public()), _flat(config.public())
    for key in sorted(begun.keys() | now.keys()):
        if begun.get(key) != now.get(key) and not key.startswith(MAY_DIFFER):
            raise ConfigError(
                f"--resume: {key} = {now.get(key)!r}, but the run in {config.folder} was begun with "
                f"{begun.get(key)!r}; set it back, or choose another --run."
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training in the folder; the lock is released when this process ends, also when killed.

    Raises ConfigError when another one holds it.
    """
    with (run / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run = {run}: another process is training in this folder; wait for it, or choose another folder."
            ) from None
        except OSError as error:
            log.warning("run = %s: this file system has no locks (%s): start no second run in it", run, error)
        yield


@contextmanager
def full_disk_named(run: Path) -> Iterator[None]:
    """Raise TrainingFailed in one sentence, in place of the writer's error, when the disk of the run is full."""
    try:
        yield
    except TrainingFailed:
        raise
    except Exception as error:
        if not _is_full_disk(error):
            raise
        free = shutil.disk_usage(run).free // 2**20
        raise TrainingFailed(
            f"no space is left on the disk of {run}: free some ({free} MiB are free now), or keep fewer checkpoints "
            "(checkpoints.keep)"
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk is among the causes of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(error) for sign in _FULL_DISK):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_config(run: Path) -> str:
    """The configuration in the folder as text; empty when there is none."""
    path = run / CONFIG
    return path.read_text(encoding="utf-8") if path.exists() else ""


def set_aside(run: Path) -> None:
    """Rename the files of an earlier attempt, for a run that starts over in the same folder."""
    left = [path for path in (folder(run), run / HISTORY, run / WANDB_ID) if path.exists()]
    number = 1
    while any(_aside(path, number).exists() for path in left):
        number += 1
    for path in left:
        path.rename(_aside(path, number))


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-before-{number}{path.suffix}")


def write_at_once(path: Path, text: str) -> None:
    """Write a file atomically: a crash leaves either the old content or the new one."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def folder(run: Path) -> Path:
    return run / "checkpoints"


def seal(checkpoint: Path) -> None:
    """Write the manifest with size and digest of every file: without it a checkpoint is incomplete."""
    files = {str(path.relative_to(checkpoint)): _fingerprint(path) for path in _files(checkpoint)}
    write_at_once(checkpoint / MANIFEST, json.dumps(files, indent=1))


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint; damaged ones are skipped with a warning. None when there is none."""
    found = [path for path in folder(run).glob("*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        if (damage := _damage(checkpoint)) is None:
            return checkpoint
        log.warning("checkpoint %s is skipped: %s", checkpoint, damage)
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was made."""
    return int(checkpoint.name.rpartition("-")[2])


def _damage(checkpoint: Path) -> str | None:
    """How the checkpoint is damaged; None when it is complete."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it was not finished"
    if not (isinstance(files, dict) and files):
        return f"its {MANIFEST} names no files"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _fingerprint(path) != expected:
            return f"{name} has changed since it was written"
    return None


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
