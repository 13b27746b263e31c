"""The content of a timeline: lanes of spans, the look of each outcome, and the texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dreamr.types import Role
from pipelines import Trace
from pipelines.trace import CommittedStep, Outcome, Span

ORDER: tuple[Role, ...] = ("draft", "verifier", "target")


@dataclass(frozen=True, slots=True)
class Lane:
    """The spans of one actor, in as many rows as it takes for none to cover another."""

    role: Role
    rows: tuple[tuple[Span, ...], ...]
    """Verdicts of one forward run at the same time, and so may calls that an engine serves in one batch."""


def lanes(trace: Trace) -> list[Lane]:
    """The actors that worked, in the order in which a step passes through them."""
    by_role = {role: [span for span in trace.spans if span.lane == role] for role in ORDER}
    return [Lane(role, _rows(spans)) for role, spans in by_role.items() if spans]


def _rows(spans: list[Span]) -> tuple[tuple[Span, ...], ...]:
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.start, span.step)):
        free = next((row for row in rows if row[-1].end <= span.start), None)
        if free is None:
            rows.append(free := [])
        free.append(span)
    return tuple(map(tuple, rows))


def time_range(trace: Trace) -> tuple[float, float]:
    """First and last second of the picture: stopped work may end after the answer is complete."""
    return (
        min([0.0, *(span.start for span in trace.spans)]),
        max([trace.wall_s, *(span.end for span in trace.spans)]),
    )


def numbered_commits(steps: Iterable[CommittedStep], distance_s: float) -> set[int]:
    """Indices of the commits whose numbers are written: none nearer than `distance_s` to the one before."""
    indices, reached = set(), float("-inf")
    for step in steps:
        if step.at >= reached + distance_s:
            indices.add(step.index)
            reached = step.at
    return indices


@dataclass(frozen=True, slots=True)
class Look:
    """How an outcome is drawn."""

    fill: str
    ink: str
    """Colour of the number in the bar."""
    label: str
    hatch: str | None = None
    """Colour of the hatching, for work that was cut off."""


# The palette of Okabe and Ito, which people with any kind of colour vision can tell apart.
LOOKS: dict[Outcome, Look] = {
    "committed": Look("#009E73", "#FFFFFF", "committed"),
    "rejected": Look("#D55E00", "#FFFFFF", "rejected by its verdict"),
    "stopped": Look("#D3D7DC", "#33383E", "stopped early", hatch="#A3AAB3"),
    "unused": Look("#F0E442", "#33383E", "finished, not used"),
    "lost": Look("#2B2B2B", "#FFFFFF", "lost with its actor", hatch="#8A8A8A"),
    "verdict": Look("#56B4E9", "#102A43", "verdict"),
    "prefill": Look("#CC79A7", "#FFFFFF", "reads the prompt"),
}
GRID, TEXT, FAINT, LANE = "#D9DEE4", "#1F2933", "#66707C", "#F5F7F9"


def outcomes(trace: Trace) -> list[Outcome]:
    """The outcomes that occur, in the order of the legend."""
    present = {span.outcome for span in trace.spans}
    return [outcome for outcome in LOOKS if outcome in present]


def headline(trace: Trace) -> str:
    """Steps, time, acceptance and waste in one line."""
    drafted = sum(step.source == "draft" for step in trace.steps)
    parts = [f"{len(trace.steps)} steps in {trace.wall_s:.3f} s"]
    if trace.acceptance_rate is not None:
        parts.append(f"{trace.num_accepted} of {trace.num_judged} drafted steps accepted")
        parts.append(f"{drafted} steps from the draft")
    parts.append(f"wasted tokens: draft {trace.wasted_draft_tokens}, target {trace.wasted_target_tokens}")
    return "  ·  ".join(parts)


def span_text(span: Span) -> str:
    """The text shown when hovering over a bar."""
    what = "prompt" if span.outcome == "prefill" else f"step {span.number}"
    if span.outcome == "verdict":
        what = f"verdict on {what}"
    facts = [f"{span.lane}: {what}", LOOKS[span.outcome].label if span.score is None else f"score {span.score:.3f}"]
    if span.num_tokens:
        facts.append(f"{span.num_tokens} tokens")
    facts.append(f"{span.start:.3f} to {span.end:.3f} s ({1000 * (span.end - span.start):.1f} ms)")
    return "\n".join(facts)


def commit_text(step: CommittedStep) -> str:
    """The text shown when hovering over the mark of a commit."""
    score = "" if step.score is None else f"\nscore of the drafted step {step.score:.3f}"
    return f"step {step.index + 1}, written by the {step.source}\ncommitted at {step.at:.3f} s{score}"
