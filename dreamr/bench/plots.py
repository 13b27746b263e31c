"""The pictures of a report: speedups with intervals, accuracy against speedup, model time by role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamr.bench.schema import MethodReport, Report

ROLES = {"draft": "#3b82c4", "verifier": "#e0a030", "target": "#8a4fa3"}


def draw(report: Report, folder: Path) -> None:
    """Write speedup.png, accuracy.png and roles.png."""
    methods = report.methods
    height = 1.2 + 0.32 * len(methods)
    _save(folder / "speedup.png", height, lambda axes: _speedups(axes, methods))
    _save(folder / "accuracy.png", 4.0, lambda axes: _accuracies(axes, methods))
    _save(folder / "roles.png", height, lambda axes: _roles(axes, methods))


def _save(path: Path, height: float, draw_on: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    draw_on(axes)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _speedups(axes: Axes, methods: Sequence[MethodReport]) -> None:
    shown = [(place, one.name, one.speedup) for place, one in enumerate(methods) if one.speedup]
    for place, _, speedup in shown:
        below = speedup.geomean - (speedup.low or speedup.geomean)
        above = (speedup.high or speedup.geomean) - speedup.geomean
        axes.barh(place, speedup.geomean, xerr=[[below], [above]], color="#3b82c4", capsize=3)
        axes.annotate(f" {speedup.geomean:.2f}", (speedup.geomean + above, place), va="center")
    axes.axvline(1.0, color="grey", linewidth=1)
    _name_rows(axes, methods)
    axes.set_xlabel("speedup against the target alone (geometric mean, 95 % interval)")


def _accuracies(axes: Axes, methods: Sequence[MethodReport]) -> None:
    for one in methods:
        if one.speedup:
            axes.plot(one.speedup.geomean, 100 * one.accuracy, "o", color="#3b82c4")
            axes.annotate(f" {one.name}", (one.speedup.geomean, 100 * one.accuracy), fontsize=8, va="bottom")
    axes.set_xlabel("speedup")
    axes.set_ylabel("right answers, %")
    axes.margins(x=0.25, y=0.2)


def _roles(axes: Axes, methods: Sequence[MethodReport]) -> None:
    left = [0.0] * len(methods)
    for role, color in ROLES.items():
        seconds = [one.busy_s.get(role, 0.0) / one.num_problems for one in methods]
        axes.barh(range(len(methods)), seconds, left=left, color=color, label=role)
        left = [before + own for before, own in zip(left, seconds, strict=True)]
    for place, one in enumerate(methods):
        axes.plot([one.wall_s / one.num_problems] * 2, [place - 0.4, place + 0.4], color="black")
    _name_rows(axes, methods)
    axes.set_xlabel("seconds of model work per problem; black: wall time")
    axes.legend(frameon=False)


def _name_rows(axes: Axes, methods: Sequence[MethodReport]) -> None:
    axes.set_yticks(range(len(methods)), [one.name for one in methods])
    axes.invert_yaxis()
