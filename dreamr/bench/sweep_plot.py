"""The picture of a sweep: speedup, accuracy and acceptance over the values of one setting."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamr.bench.schema import Report
from dreamr.bench.sweeps import Points, sweeps


def draw_sweeps(report: Report, folder: Path) -> None:
    """Write sweep-<setting>.png for every setting that was swept."""
    by_setting: dict[str, dict[str, Points]] = defaultdict(dict)
    for (name, setting), points in sweeps(report.methods).items():
        by_setting[setting][name] = points
    for setting, lines in by_setting.items():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        speed, right, accepted = figure.subplots(1, 3)
        for name, points in lines.items():
            _speedup_line(speed, name, points)
            values = [value for value, _ in points]
            right.plot(values, [100 * one.accuracy for _, one in points], "o-", label=name)
            judged = [(value, 100 * one.acceptance_rate) for value, one in points if one.acceptance_rate is not None]
            accepted.plot([value for value, _ in judged], [rate for _, rate in judged], "o-", label=name)
        for axes, label in ((speed, "speedup"), (right, "right answers, %"), (accepted, "acceptance, %")):
            axes.set_xlabel(setting)
            axes.set_ylabel(label)
            axes.spines[["top", "right"]].set_visible(False)
        speed.legend(frameon=False, fontsize=8)
        figure.savefig(folder / f"sweep-{setting}.png", dpi=120)


def _speedup_line(axes: Axes, name: str, points: Points) -> None:
    measured = [(value, one.speedup) for value, one in points if one.speedup]
    below = [speedup.geomean - (speedup.low or speedup.geomean) for _, speedup in measured]
    above = [(speedup.high or speedup.geomean) - speedup.geomean for _, speedup in measured]
    means = [speedup.geomean for _, speedup in measured]
    axes.errorbar([value for value, _ in measured], means, yerr=[below, above], fmt="o-", capsize=3, label=name)
