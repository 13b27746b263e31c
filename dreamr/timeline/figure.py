"""The timeline as a matplotlib figure, saved as PNG or as an SVG element with texts shown on hovering."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation

from dreamr.timeline.layout import (
    FAINT,
    GRID,
    LANE,
    LOOKS,
    TEXT,
    Lane,
    commit_text,
    headline,
    lanes,
    numbered_commits,
    outcomes,
    span_text,
    time_range,
)
from pipelines import Trace
from pipelines.trace import Outcome, Span

PNG_DPI, MAX_PNG_INCHES, MAX_SVG_INCHES = 160, 40.0, 200.0
ROW_INCHES, GAP, BAR = 0.42, 0.55, 0.78
"""Height of a row; gap between two lanes and height of a bar, in rows."""
MIN_LABEL_INCHES, MIN_BAR_INCHES = 0.2, 0.02
"""Least distance of two numbers of commits; least width of a bar, so that the shortest verdict is visible."""
MAX_LEGEND_COLUMNS = 6
MARKERS = {"draft": "v", "target": "s"}
SVG = "http://www.w3.org/2000/svg"


def draw_png(trace: Trace, path: Path) -> None:
    """Save the timeline as a PNG file."""
    _Drawing(trace, MAX_PNG_INCHES).figure.savefig(path, format="png", dpi=PNG_DPI)


def svg(trace: Trace) -> ElementTree.Element:
    """The timeline as an SVG element; each bar and each commit has a title, which browsers show on hovering."""
    drawing, file = _Drawing(trace, MAX_SVG_INCHES), io.BytesIO()
    # Text stays text, and equal traces give equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "timeline"}):
        drawing.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Type": None})
    root = ElementTree.fromstring(file.getvalue())
    for group in root.iter(f"{{{SVG}}}g"):
        if text := drawing.hover_texts.get(group.get("id", "")):
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = text
            group.insert(0, title)
    return root


class _Drawing:
    """One lane per actor over seconds, with the commits above."""

    def __init__(self, trace: Trace, max_inches: float) -> None:
        self._trace = trace
        self._lanes = lanes(trace)
        self._height = sum(len(lane.rows) + GAP for lane in self._lanes)
        width = min(max_inches, max(11.0, 0.16 * len(trace.spans)))
        start, end = time_range(trace)
        self._inches_per_s = (width - 1.2) / (end - start)
        self.hover_texts: dict[str, str] = {}
        """By the id of an SVG group."""
        self.figure = Figure(figsize=(width, self._height * ROW_INCHES + 1.9), layout="constrained")
        self._axes: Axes = self.figure.add_subplot()
        margin = 0.01 * (end - start)
        self._axes.set_xlim(start - margin, end + margin)
        self._axes.set_ylim(self._height, -1.1)
        self._draw_lanes()
        self._draw_commits()
        self._draw_frame()
        self._draw_legend()

    def _draw_lanes(self) -> None:
        left, right = self._axes.get_xlim()
        top, centres = 0.0, []
        for lane in self._lanes:
            height = len(lane.rows) + GAP / 2
            self._axes.add_patch(Rectangle((left, top - GAP / 4), right - left, height, color=LANE, zorder=0, lw=0))
            self._draw_rows(lane, top)
            centres.append(top + len(lane.rows) / 2)
            top += len(lane.rows) + GAP
        self._axes.set_yticks(centres, [lane.role for lane in self._lanes], fontsize=10, color=TEXT)

    def _draw_rows(self, lane: Lane, top: float) -> None:
        for number, row in enumerate(lane.rows):
            for span in row:
                self._draw_bar(span, top + number + (1 - BAR) / 2)

    def _draw_bar(self, span: Span, top: float) -> None:
        width = max(span.end - span.start, MIN_BAR_INCHES / self._inches_per_s)
        bar = Rectangle((span.start, top), width, BAR, zorder=3, **_style(span.outcome))
        self._axes.add_patch(bar)
        self._set_hover_text(bar, span_text(span))
        if width * self._inches_per_s > 0.1 * len(span.number) + 0.04:
            self._axes.text(
                span.start + width / 2, top + BAR / 2 + 0.02, span.number, color=LOOKS[span.outcome].ink, fontsize=8,
                fontweight="bold", ha="center", va="center", zorder=4,
            )  # fmt: skip

    def _draw_commits(self) -> None:
        numbered = numbered_commits(self._trace.steps, MIN_LABEL_INCHES / self._inches_per_s)
        for step in self._trace.steps:
            self._axes.vlines(step.at, -0.45, self._height, color=FAINT, linewidth=0.7, linestyle=(0, (2, 2)), zorder=2)
            color = LOOKS["committed"].fill
            [mark] = self._axes.plot(step.at, -0.5, MARKERS[step.source], color=color, markersize=6, zorder=5)
            self._set_hover_text(mark, commit_text(step))
            if step.index in numbered:
                self._axes.text(step.at, -0.72, str(step.index + 1), color=TEXT, fontsize=8, ha="center", va="bottom")

    def _draw_frame(self) -> None:
        axes = self._axes
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", colors=FAINT, labelsize=8)
        axes.set_xlabel("seconds since the request began", fontsize=9, color=FAINT)
        axes.grid(axis="x", color=GRID, linewidth=0.6, zorder=1)
        axes.set_axisbelow(True)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.set_title(self._trace.method, loc="left", fontsize=13, fontweight="bold", color=TEXT, pad=20)
        lifted = ScaledTranslation(0, 5 / 72, self.figure.dpi_scale_trans)
        axes.text(0, 1, headline(self._trace), transform=axes.transAxes + lifted, fontsize=9, color=FAINT)

    def _draw_legend(self) -> None:
        handles: list[Patch | Line2D] = [
            Patch(label=LOOKS[outcome].label, **_style(outcome)) for outcome in outcomes(self._trace)
        ]
        green = LOOKS["committed"].fill
        handles += [
            Line2D([], [], color=green, marker=marker, linestyle="", label=f"commit of the {source}'s step")
            for source, marker in MARKERS.items()
            if any(step.source == source for step in self._trace.steps)
        ]
        columns = len(handles) if len(handles) <= MAX_LEGEND_COLUMNS else (len(handles) + 1) // 2
        self.figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, labelcolor=TEXT
        )

    def _set_hover_text(self, artist: Artist, text: str) -> None:
        name = f"hover-{len(self.hover_texts)}"
        artist.set_gid(name)
        self.hover_texts[name] = text


def _style(outcome: Outcome) -> dict[str, Any]:
    look = LOOKS[outcome]
    return {
        "facecolor": look.fill,
        "edgecolor": look.hatch or "white",
        "hatch": "////" if look.hatch else None,
        "linewidth": 0.6,
    }
