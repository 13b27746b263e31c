"""`Lane`: the spans of one actor, in as many rows as it takes for none to cover another."""

from __future__ import annotations

from dataclasses import dataclass

from dreamr.types import Role
from pipelines import Trace
from pipelines.trace import Span

ORDER: tuple[Role, ...] = ("draft", "verifier", "target")


@dataclass(frozen=True, slots=True)
class Lane:
    """One actor."""

    role: Role
    rows: tuple[tuple[Span, ...], ...]
    """Verdicts of one forward run at the same time, and so may calls that an engine serves in turns."""


def lanes(trace: Trace) -> list[Lane]:
    """The actors that did something, in the order in which a step passes through them."""
    by_role = {role: [span for span in trace.spans if span.lane == role] for role in ORDER}
    return [Lane(role, _rows(spans)) for role, spans in by_role.items() if spans]


def time_range(trace: Trace) -> tuple[float, float]:
    """Seconds that a picture has to show: stopped work may end after the answer was there."""
    return (
        min([0.0, *(span.start for span in trace.spans)]),
        max([trace.wall_s, *(span.end for span in trace.spans)]),
    )


def _rows(spans: list[Span]) -> tuple[tuple[Span, ...], ...]:
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.start, span.step)):
        free = next((row for row in rows if row[-1].end <= span.start), None)
        if free is None:
            rows.append(free := [])
        free.append(span)
    return tuple(map(tuple, rows))
