"""A report for people: Markdown tables, `report.md`, and the pictures in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreamr.bench.report import MethodReport, Report
from dreamr.markdown import markdown_table, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, MethodReport]]
BLUE = "#3b82c4"
ROLES = {"draft": BLUE, "verifier": "#e0a030", "target": "#8a4fa3"}


def write_folder(report: Report, folder: Path) -> None:
    """report.json, report.md and the pictures that it shows."""
    report.write(folder / "report.json")
    (folder / "report.md").write_text(page(report), encoding="utf-8")
    draw(report, folder)
    draw_sweeps(report, folder)


# -- text --------------------------------------------------------------------------------------------------------------


def speedup_cell(one: MethodReport) -> str:
    """The speedup with its interval; 1 for the baseline itself."""
    if one.speedup is None:
        return ""
    if one.name == "autoregressive":
        return "1"
    low, high = one.speedup.low, one.speedup.high
    interval = f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else ""
    return f"**{one.speedup.geomean:.2f}**{interval}"


def time_cell(one: MethodReport) -> str:
    """Mean wall time of an answer."""
    return f"{one.wall_s / one.num_problems:.3f} s"


_COLUMNS: dict[str, Callable[[MethodReport], str]] = {
    "method": lambda one: f"`{one.name}`" + ("*" if one.computed_from else ""),
    "correct": lambda one: percent(one.accuracy),
    "unparsed": lambda one: percent(one.unparsed_rate),
    "truncated": lambda one: percent(one.truncated_rate),
    "time per answer": time_cell,
    "speedup (95 % interval)": speedup_cell,
    "acceptance": lambda one: percent(one.acceptance_rate),
    "coverage": lambda one: percent(one.coverage),
    "without verdict": lambda one: percent(one.skipped_share),
    "tokens": lambda one: str(one.tokens.committed),
    "wasted by draft, target": lambda one: f"{one.tokens.wasted_draft}, {one.tokens.wasted_target}",
    "salvaged": lambda one: str(one.tokens.salvaged),
    "tokens accepted at 1, 4, 8": lambda one: _positions(one.token_acceptance),
    "verdict mass": lambda one: percent(one.verdict_mass),
    "orchestration": lambda one: percent(one.orchestration_share),
    "cores": lambda one: str(one.cores),
    "GPUs": lambda one: f"{one.gpus:g}",
}
_RARE: dict[str, Callable[[MethodReport], float]] = {
    "truncated": lambda one: one.truncated_rate,
    "salvaged": lambda one: one.tokens.salvaged,
    "without verdict": lambda one: one.skipped_share,
    "tokens accepted at 1, 4, 8": lambda one: len(one.token_acceptance),
    "verdict mass": lambda one: one.verdict_mass or 0,
    "GPUs": lambda one: one.gpus,
}
"""Columns that are left out where they are 0 throughout."""


def _positions(rates: Sequence[float]) -> str:
    """Acceptance at the 1st, 4th and 8th proposed token, as far as so many were proposed."""
    return ", ".join(percent(rates[place - 1]) for place in (1, 4, 8) if place <= len(rates))


def table(report: Report) -> str:
    """A row per method, and below the table the conditions of the run."""
    columns = [name for name in _COLUMNS if name not in _RARE or any(_RARE[name](one) for one in report.methods)]
    rows = [columns, *([_COLUMNS[name](one) for name in columns] for one in report.methods)]
    notes = [
        f"\\* computed from the recorded times of `{one.computed_from}`: every verdict known beforehand."
        for one in report.methods
        if one.computed_from
    ]
    return "\n\n".join([markdown_table(rows), *notes, conditions(report)])


def conditions(report: Report) -> str:
    """One sentence: the command, the machine, the models."""
    machine, count = report.machine, report.methods[0].num_problems
    sizes = ", ".join(f"{role} {model.num_parameters / 1e6:.1f} M" for role, model in report.models.items())
    hardware = f"{machine.cpu}, {machine.cores} cores"
    questions = "problems" if report.benchmark == "ledger" else f"questions of {report.benchmark} ({report.data})"
    return f"`{report.command}` on {hardware}; {count} {questions}, batch size 1; parameters: {sizes}."


def page(report: Report) -> str:
    """The whole `report.md`."""
    parts = ["# Benchmark", table(report)]
    if report.self_acceptance:
        kinds = ", ".join(f"{percent(share, 1)} by {kind}" for kind, share in report.self_acceptance.items())
        parts.append(f"Of its own steps, the target accepts {kinds}.")
    parts += [f"`{name}` could not be measured: {reason}." for name, reason in report.failed.items()]
    parts.append("![Speedup with 95 % intervals](speedup.png)\n\n![Accuracy against speedup](accuracy.png)")
    parts.append("![Model time by role](roles.png)")
    swept = dict.fromkeys(setting for _, setting in sweeps(report.methods))
    parts += [f"![Over the values of {setting}](sweep-{setting}.png)" for setting in swept]
    return "\n\n".join(parts) + "\n"


def sweeps(methods: Sequence[MethodReport]) -> dict[tuple[str, str], Points]:
    """Methods that differ in their last setting alone, by (name without it, setting), where it has several values."""
    found: dict[tuple[str, str], Points] = defaultdict(list)
    for one in methods:
        name, colon, settings = one.name.partition(":")
        rest, _, last = settings.rpartition("+")
        key, _, value = last.partition("=")
        try:
            found[name + colon * bool(rest) + rest, key].append((float(value), one))
        except ValueError:
            continue  # a method without settings, or one whose setting is not a number
    return {where: sorted(points, key=lambda point: point[0]) for where, points in found.items() if len(points) > 1}


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw(report: Report, folder: Path) -> None:
    """Write speedup.png, accuracy.png and roles.png."""
    methods = report.methods
    height = 1.2 + 0.32 * len(methods)
    _save(folder / "speedup.png", height, lambda axes: _speedups(axes, methods))
    _save(folder / "accuracy.png", 4.0, lambda axes: _accuracies(axes, methods))
    _save(folder / "roles.png", height, lambda axes: _roles(axes, [one for one in methods if one.busy_s]))


def _save(path: Path, height: float, draw_on: Callable[[Axes], None]) -> None:
    from matplotlib.figure import Figure  # takes half a second to import

    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    draw_on(axes)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _speedups(axes: Axes, methods: Sequence[MethodReport]) -> None:
    for place, one in enumerate(methods):
        if one.speedup:
            below, above = _errors(one)
            mean = one.speedup.geomean
            axes.barh(
                place, mean, xerr=[[below], [above]], color=BLUE, capsize=3, alpha=0.5 if one.computed_from else 1
            )
            axes.annotate(f" {mean:.2f}", (mean + above, place), va="center")
    axes.axvline(1.0, color="grey", linewidth=1)
    _name_rows(axes, methods)
    axes.set_xlabel("speedup against the target alone (geometric mean, 95 % interval)")


def _accuracies(axes: Axes, methods: Sequence[MethodReport]) -> None:
    for one in methods:
        if one.speedup:
            axes.plot(one.speedup.geomean, 100 * one.accuracy, "o", color=BLUE)
            axes.annotate(f" {one.name}", (one.speedup.geomean, 100 * one.accuracy), fontsize=8, va="bottom")
    axes.set_xlabel("speedup")
    axes.set_ylabel("correct answers, %")
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
    axes.set_xlabel("seconds of model work per answer; black: wall time")
    axes.legend(frameon=False)


def _name_rows(axes: Axes, methods: Sequence[MethodReport]) -> None:
    axes.set_yticks(range(len(methods)), [one.name for one in methods])
    axes.invert_yaxis()


def draw_sweeps(report: Report, folder: Path) -> None:
    """Write sweep-<setting>.png for every setting that was swept."""
    from matplotlib.figure import Figure

    by_setting: dict[str, dict[str, Points]] = defaultdict(dict)
    for (name, setting), points in sweeps(report.methods).items():
        by_setting[setting][name] = points
    for setting, lines in by_setting.items():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        speed, correct, accepted = figure.subplots(1, 3)
        for name, points in lines.items():
            _speedup_line(speed, name, points)
            values = [value for value, _ in points]
            correct.plot(values, [100 * one.accuracy for _, one in points], "o-", label=name)
            judged = [(value, 100 * one.acceptance_rate) for value, one in points if one.acceptance_rate is not None]
            accepted.plot([value for value, _ in judged], [rate for _, rate in judged], "o-", label=name)
        for axes, label in ((speed, "speedup"), (correct, "correct answers, %"), (accepted, "acceptance, %")):
            axes.set_xlabel(setting)
            axes.set_ylabel(label)
            axes.spines[["top", "right"]].set_visible(False)
        speed.legend(frameon=False, fontsize=8)
        figure.savefig(folder / f"sweep-{setting}.png", dpi=120)


def _speedup_line(axes: Axes, name: str, points: Points) -> None:
    measured = [(value, one) for value, one in points if one.speedup]
    errors = [_errors(one) for _, one in measured]
    axes.errorbar(
        [value for value, _ in measured],
        [one.speedup.geomean for _, one in measured if one.speedup],
        yerr=[[below for below, _ in errors], [above for _, above in errors]],
        fmt="o-",
        capsize=3,
        label=name,
    )


def _errors(one: MethodReport) -> tuple[float, float]:
    """Lengths of the interval below and above the mean."""
    assert one.speedup is not None
    mean = one.speedup.geomean
    return mean - (one.speedup.low or mean), (one.speedup.high or mean) - mean
