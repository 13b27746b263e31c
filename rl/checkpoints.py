"""The folder of a run: its checkpoints, which of them are whole, and the newest of those; files written at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CONFIG = "config.json"
HISTORY = "history.jsonl"
WANDB_ID = "wandb_id"
_PREFIX = "checkpoint-"


def folder(run: Path) -> Path:
    return run / "checkpoints"


def seal(checkpoint: Path) -> None:
    """Write down size and digest of every file, last of all and at once: a checkpoint without it is not whole."""
    files = {str(path.relative_to(checkpoint)): _fingerprint(path) for path in _files(checkpoint)}
    write_at_once(checkpoint / MANIFEST, json.dumps(files, indent=1))


def write_at_once(path: Path, text: str) -> None:
    """Whoever is killed meanwhile leaves the old file or the new one."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def set_aside(run: Path) -> None:
    """Give what an earlier attempt has left other names, for a run that starts over in the same folder."""
    left = [path for path in (folder(run), run / HISTORY, run / WANDB_ID) if path.exists()]
    number = 1
    while any(_aside(path, number).exists() for path in left):
        number += 1
    for path in left:
        path.rename(_aside(path, number))


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-before-{number}{path.suffix}")


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint; damaged ones are passed over with a warning. None when there is none."""
    for checkpoint in sorted(folder(run).glob(f"{_PREFIX}*"), key=step_of, reverse=True):
        if (damage := _damage(checkpoint)) is None:
            return checkpoint
        log.warning("checkpoint %s is passed over: %s", checkpoint, damage)
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was made."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with it, or None."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it was not finished"
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
