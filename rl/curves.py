"""Draws the curves of a run: `dreamr curves RUN`."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.history import read_history
from rl.rewards import REWARD_PARTS

Rows = Sequence[dict[str, Any]]

_BESIDE = {"outcome": ("eval/accuracy",), "draft": ("rewards/draft_plain/mean",)}
"""Curves in the same panel as a part of the reward."""
PANELS: dict[str, tuple[str, ...]] = {
    "reward, weighted": ("reward",),
    **{f"R_{part.name}": (f"rewards/{part.name}/mean", *_BESIDE.get(part.name, ())) for part in REWARD_PARTS},
    "acceptance": ("acceptance/rate", "eval/acceptance_rate"),
    "tokens of a drafted step": ("rollout/step_tokens", "eval/drafted_step_tokens"),
    "FPSR speedup": ("eval/fpsr_speedup",),
    "answers not found, cut off": ("eval/unparsed_rate", "eval/truncated_rate"),
    "spread of the reward": ("reward_std",),
    "KL to the first draft": ("kl",),
    "entropy": ("entropy",),
    "gradient norm": ("grad_norm",),
}
"""Titles and the curves of each panel; curves without a value in the history are left out."""
_SMOOTH = 0.85


def draw_curves(runs: dict[str, Rows], path: Path) -> None:
    """Draw the histories of one or several runs over optimizer steps, as PNG or HTML by the suffix of `path`.

    Raises ValueError when no run has anything to draw.
    """
    picture = _draw(runs, "svg" if path.suffix.lower() == ".html" else "png")
    if path.suffix.lower() == ".html":
        title = html.escape(", ".join(runs))
        page = f"<!doctype html>\n<meta charset='utf-8'>\n<title>{title}</title>\n{picture.decode()}"
        path.write_text(page, encoding="utf-8")
    else:
        path.write_bytes(picture)


def load_runs(folders: Sequence[Path]) -> dict[str, Rows]:
    """Histories by the names of their folders. Raises ValueError for a folder without one."""
    runs: dict[str, Rows] = {}
    for folder in folders:
        rows = read_history(folder)
        if not rows:
            raise ValueError(
                f"{folder} holds no history of a training run: give a folder that rl/train.py has written."
            )
        runs[folder.name] = rows
    return runs


def _draw(runs: dict[str, Rows], kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        title: names
        for title, names in PANELS.items()
        if any(_points(rows, n) for rows in runs.values() for n in names)
    }
    if not panels:
        raise ValueError("there is nothing to draw yet: no optimizer step has been logged.")
    columns = min(4, len(panels))
    rows_of_panels = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * rows_of_panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows_of_panels, columns, squeeze=False).flat)
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _panel(axis, title, names, runs)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def _panel(axis: Any, title: str, names: Sequence[str], runs: dict[str, Rows]) -> None:
    for number, (run, rows) in enumerate(runs.items()):
        for place, name in enumerate(names):
            points = _points(rows, name)
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            color = f"C{number if len(runs) > 1 else place}"
            label = name if len(runs) == 1 else run if place == 0 else None
            if name.startswith("eval/"):
                axis.plot(steps, values, "o--", color=color, label=label, markersize=3)
            else:
                axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axis.plot(steps, _smoothed(values), color=color, label=label)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("optimizer step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _points(rows: Rows, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start as in Adam."""
    total = weight = 0.0
    smooth = []
    for value in values:
        total, weight = _SMOOTH * total + value, _SMOOTH * weight + 1
        smooth.append(total / weight)
    return smooth
