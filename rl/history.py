"""`History`: the curves of a run, as JSON lines in its folder and in W&B, under the same names and one x axis."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl.checkpoints import HISTORY, WANDB_ID, write_at_once
from rl.config import LogSettings


class History:
    """One line per optimizer step that has metrics: `{"step": 3, "reward": 1.2, ...}`.

    `start` is the step that the run continues from; lines of later steps, from before a crash, are dropped.
    """

    def __init__(self, run: Path, start: int, settings: LogSettings, config: Mapping[str, Any]) -> None:
        self._path = run / HISTORY
        kept = [row for row in read_history(run) if row["step"] <= start] if start else []
        write_at_once(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._wandb = _open_wandb(run, settings, config) if settings.wandb != "off" else None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line; it is on disk on return."""
        row = {"step": step, **{name: value for name, value in values.items() if _is_number(value)}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log({wandb_name(name): value for name, value in row.items()})

    def log_table(self, step: int, name: str, columns: list[str | int], rows: list[list[Any]]) -> None:
        """A table in W&B; PIL images become pictures."""
        if self._wandb is None:
            return
        import wandb
        from PIL import Image

        shown = [[wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row] for row in rows]
        self._wandb.log({"step": step, name: wandb.Table(columns=columns, data=shown)})

    def close(self) -> None:
        if self._wandb is not None:
            self._wandb.finish()


def read_history(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's history; a last line that was cut off by a crash is skipped."""
    path = run / HISTORY
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _open_wandb(run: Path, settings: LogSettings, config: Mapping[str, Any]) -> Any:
    import wandb

    os.environ["WANDB_DATA_DIR"] = str(run / "wandb")  # otherwise pictures are staged in the home folder
    offline = settings.wandb == "offline" or not (os.environ.get("WANDB_API_KEY") or _has_netrc())
    saved = run / WANDB_ID
    run_id = saved.read_text(encoding="utf-8") if saved.exists() else uuid.uuid4().hex[:8]
    saved.write_text(run_id, encoding="utf-8")
    opened = wandb.init(
        project=settings.project,
        entity=settings.entity,
        name=run.name,
        id=run_id,
        resume="allow" if not offline else None,
        dir=run,
        mode="offline" if offline else "online",
        config=dict(config),
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
    )
    opened.define_metric("*", step_metric="step")
    return opened


def wandb_name(name: str) -> str:
    """As TRL names it: `train/reward`, `train/rewards/draft/mean`; evaluations and the x axis keep their names."""
    return name if name == "step" or name.startswith("eval/") else f"train/{name}"


def _has_netrc() -> bool:
    netrc = Path.home() / ".netrc"
    return netrc.exists() and "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
