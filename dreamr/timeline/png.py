"""The picture as a PNG file, by matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation

from dreamr.timeline.lanes import Lane, lanes, time_range
from dreamr.timeline.look import FAINT, GRID, HATCH, LANE, LOOKS, TEXT, headline, outcomes, with_room
from pipelines import Trace
from pipelines.trace import Span

DPI = 160
ROW_INCHES, GAP, BAR = 0.42, 0.55, 0.78
"""Height of a row; room between two lanes and height of a bar, in rows."""
MIN_LABEL_INCHES = 0.2
"""Nearer than this, two numbers of commits would run into each other."""
MAX_LEGEND_COLUMNS = 6
"""More do not fit into the width of a small picture."""
MARKERS = {"draft": "v", "target": "s"}


def draw_png(trace: Trace, path: Path) -> None:
    """Draw one lane per actor over seconds, with the commits on top."""
    drawn = lanes(trace)
    height = sum(len(lane.rows) + GAP for lane in drawn)
    width = min(40.0, max(11.0, 0.16 * len(trace.spans)))
    figure = Figure(figsize=(width, height * ROW_INCHES + 1.9), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    start, end = time_range(trace)
    margin = 0.01 * (end - start)
    axes.set_xlim(start - margin, end + margin)
    axes.set_ylim(height, -1.1)
    inches_per_s = (width - 1.2) / (end - start)
    top = 0.0
    centres = []
    for lane in drawn:
        _draw_lane(axes, lane, top, inches_per_s)
        centres.append(top + len(lane.rows) / 2)
        top += len(lane.rows) + GAP
    _draw_commits(axes, trace, height, MIN_LABEL_INCHES / inches_per_s)
    _dress(axes, trace, [lane.role for lane in drawn], centres)
    handles = _legend(trace)
    columns = len(handles) if len(handles) <= MAX_LEGEND_COLUMNS else (len(handles) + 1) // 2
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, labelcolor=TEXT
    )
    figure.savefig(path, format="png")


def _draw_lane(axes: Axes, lane: Lane, top: float, inches_per_s: float) -> None:
    left, right = axes.get_xlim()
    background = Rectangle((left, top - GAP / 4), right - left, len(lane.rows) + GAP / 2, color=LANE, zorder=0, lw=0)
    axes.add_patch(background)
    for number, row in enumerate(lane.rows):
        for span in row:
            _draw_bar(axes, span, top + number + (1 - BAR) / 2, inches_per_s)


def _draw_bar(axes: Axes, span: Span, top: float, inches_per_s: float) -> None:
    look = LOOKS[span.outcome]
    width = span.end - span.start
    axes.add_patch(
        Rectangle(
            (span.start, top),
            width,
            BAR,
            facecolor=look.fill,
            edgecolor=HATCH[span.outcome] if look.hatched else "white",
            hatch="////" if look.hatched else None,
            linewidth=0.6,
            zorder=3,
        )
    )
    if width * inches_per_s > 0.1 * len(span.number) + 0.04:
        axes.text(
            span.start + width / 2, top + BAR / 2 + 0.02, span.number, color=look.ink, fontsize=8,
            fontweight="bold", ha="center", va="center", zorder=4,
        )  # fmt: skip


def _draw_commits(axes: Axes, trace: Trace, height: float, label_s: float) -> None:
    numbered = with_room(trace.steps, label_s)
    for step in trace.steps:
        axes.vlines(step.at, -0.45, height, color=FAINT, linewidth=0.7, linestyle=(0, (2, 2)), zorder=2)
        axes.plot(step.at, -0.5, MARKERS[step.source], color=LOOKS["committed"].fill, markersize=6, zorder=5)
        if step.index in numbered:
            axes.text(step.at, -0.72, str(step.index + 1), color=TEXT, fontsize=8, ha="center", va="bottom")


def _dress(axes: Axes, trace: Trace, names: list[str], centres: list[float]) -> None:
    axes.set_yticks(centres, names, fontsize=10, color=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=FAINT, labelsize=8)
    axes.set_xlabel("seconds since the request began", fontsize=9, color=FAINT)
    axes.grid(axis="x", color=GRID, linewidth=0.6, zorder=1)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.set_title(trace.method, loc="left", fontsize=13, fontweight="bold", color=TEXT, pad=20)
    lifted = ScaledTranslation(0, 5 / 72, axes.figure.dpi_scale_trans)
    axes.text(0, 1, headline(trace), transform=axes.transAxes + lifted, fontsize=9, color=FAINT)


def _legend(trace: Trace) -> list[Patch | Line2D]:
    bars: list[Patch | Line2D] = [
        Patch(
            facecolor=LOOKS[outcome].fill,
            edgecolor=HATCH.get(outcome, "white"),
            hatch="////" if LOOKS[outcome].hatched else None,
            linewidth=0.6,
            label=LOOKS[outcome].label,
        )
        for outcome in outcomes(trace)
    ]
    green = LOOKS["committed"].fill
    sources = [source for source in MARKERS if any(step.source == source for step in trace.steps)]
    return bars + [
        Line2D([], [], color=green, marker=MARKERS[source], linestyle="", label=f"commit of the {source}'s step")
        for source in sources
    ]
