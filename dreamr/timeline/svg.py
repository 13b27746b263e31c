"""The lanes as an SVG element; hovering over a bar tells what it was."""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element, SubElement

from dreamr.timeline.lanes import Lane, lanes, time_range
from dreamr.timeline.look import FAINT, GRID, HATCH, LANE, LOOKS, TEXT, outcomes, with_room
from pipelines import Trace
from pipelines.trace import CommittedStep, Span

LEFT, TOP, RIGHT, BOTTOM = 76, 34, 18, 46
ROW, BAR, GAP = 30, 24, 16
MIN_WIDTH, PIXELS_PER_SPAN, MAX_WIDTH = 1180, 26, 20_000
PIXELS_PER_TICK = 110
NUMBER = 18
"""Pixels that the number of a commit takes."""
MIN_BAR = 2.0
"""Pixels: even the shortest verdict can be seen and hovered over."""


def svg(trace: Trace) -> Element:
    """One lane per actor over seconds, with the commits on top."""
    return _Drawing(trace).root


class _Drawing:
    def __init__(self, trace: Trace) -> None:
        drawn = lanes(trace)
        self._start, self._end = time_range(trace)
        self._width = min(MAX_WIDTH, max(MIN_WIDTH, PIXELS_PER_SPAN * len(trace.spans)))
        self._bottom = TOP + sum(len(lane.rows) * ROW + GAP for lane in drawn)
        self.root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
        _set(self.root, width=self._width, height=self._bottom + BOTTOM, font_family="system-ui, sans-serif")
        self._hatches(trace)
        tops = []
        top = TOP + GAP / 2
        for lane in drawn:
            tops.append(top)
            self._background(lane, top)
            top += len(lane.rows) * ROW + GAP
        self._axis()
        numbered = with_room(trace.steps, NUMBER / (self._x(1.0) - self._x(0.0)))
        for step in trace.steps:
            self._commit(step, numbered=step.index in numbered)
        for lane, lane_top in zip(drawn, tops, strict=True):
            for number, row in enumerate(lane.rows):
                for span in row:
                    self._bar(span, lane_top + number * ROW + (ROW - BAR) / 2)

    def _x(self, seconds: float) -> float:
        share = (seconds - self._start) / ((self._end - self._start) or 1.0)
        return LEFT + share * (self._width - LEFT - RIGHT)

    def _hatches(self, trace: Trace) -> None:
        definitions = _add(self.root, "defs")
        for outcome in outcomes(trace):
            if LOOKS[outcome].hatched:
                pattern = _add(definitions, "pattern", id=outcome, width=7, height=7)
                pattern.set("patternUnits", "userSpaceOnUse")
                pattern.set("patternTransform", "rotate(45)")
                _add(pattern, "rect", width=7, height=7, fill=LOOKS[outcome].fill)
                _add(pattern, "rect", width=1.6, height=7, fill=HATCH[outcome])

    def _background(self, lane: Lane, top: float) -> None:
        width, height = self._width - LEFT - RIGHT, len(lane.rows) * ROW
        _add(self.root, "rect", x=LEFT, y=top, width=width, height=height, rx=4, fill=LANE)
        self._text(lane.role, LEFT - 12, top + height / 2, 13, TEXT, anchor="end")

    def _axis(self) -> None:
        distance = _tick((self._end - self._start) * PIXELS_PER_TICK / self._width)
        digits = max(0, -math.floor(math.log10(distance)))
        for number in range(math.ceil(self._start / distance), math.floor(self._end / distance) + 1):
            x = self._x(number * distance)
            self._line(x, TOP, GRID)
            self._text(f"{number * distance:.{digits}f}", x, self._bottom + 14, 11, FAINT)
        self._text("seconds since the request began", LEFT, self._bottom + 35, 12, FAINT, anchor="start")

    def _commit(self, step: CommittedStep, *, numbered: bool) -> None:
        x, y = self._x(step.at), TOP - 10
        self._line(x, y, FAINT, stroke_dasharray="3 3")
        corners = [(-5.0, -4.0), (5.0, -4.0), (0.0, 5.0)]
        if step.source == "target":
            corners = [(-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)]
        outline = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
        mark = _add(self.root, "polygon", points=outline, fill=LOOKS["committed"].fill)
        verdict = "" if step.score is None else f"\nrho of the drafted step {step.score:.3f}"
        told = f"step {step.index + 1}, written by the {step.source}\ncommitted at {step.at:.3f} s{verdict}"
        _add(mark, "title").text = told
        if numbered:
            self._text(str(step.index + 1), x, y - 13, 11, TEXT)

    def _bar(self, span: Span, top: float) -> None:
        look = LOOKS[span.outcome]
        x, width = self._x(span.start), max(MIN_BAR, self._x(span.end) - self._x(span.start))
        fill = f"url(#{span.outcome})" if look.hatched else look.fill
        bar = _add(self.root, "rect", x=x, y=top, width=width, height=BAR, rx=2.5, fill=fill, stroke="#FFFFFF")
        _add(bar, "title").text = _told(span)
        if width > 8 * len(span.number) + 4:
            self._text(span.number, x + width / 2, top + BAR / 2, 12, look.ink, weight=600)

    def _line(self, x: float, top: float, color: str, **look: str) -> None:
        _add(self.root, "line", x1=x, x2=x, y1=top, y2=self._bottom, stroke=color, **look)

    def _text(
        self, text: str, x: float, y: float, size: int, color: str, *, anchor: str = "middle", weight: int = 400
    ) -> None:
        # Without pointer events, so that hovering over a number shows the text of the bar below it.
        element = _add(self.root, "text", x=x, y=y, fill=color, text_anchor=anchor, pointer_events="none")
        _set(element, font_size=size, font_weight=weight, dominant_baseline="central")
        element.text = text


def _add(parent: Element, tag: str, **attributes: float | str) -> Element:
    element = SubElement(parent, tag)
    _set(element, **attributes)
    return element


def _set(element: Element, **attributes: float | str) -> None:
    """SVG's names have hyphens where Python's have underscores."""
    for name, value in attributes.items():
        element.set(name.replace("_", "-"), value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip("."))


def _told(span: Span) -> str:
    what = "prompt" if span.outcome == "prefill" else f"step {span.number}"
    if span.outcome == "verdict":
        what = f"verdict on {what}"
    facts = [f"{span.lane}: {what}", LOOKS[span.outcome].label if span.score is None else f"rho {span.score:.3f}"]
    if span.num_tokens:
        facts.append(f"{span.num_tokens} tokens")
    facts.append(f"{span.start:.3f} to {span.end:.3f} s ({1000 * (span.end - span.start):.1f} ms)")
    return "\n".join(facts)


def _tick(at_least: float) -> float:
    """Distance of two ticks in seconds: 1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(max(at_least, 1e-6)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least)
