"""What both kinds of picture share: colours, words and sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines import Trace
from pipelines.trace import CommittedStep, Outcome


@dataclass(frozen=True, slots=True)
class Look:
    """How an outcome is drawn."""

    fill: str
    ink: str
    """Colour of the number in the bar."""
    label: str
    hatched: bool = False


# The palette of Okabe and Ito, which people with any kind of colour vision can tell apart; what was cut off is also
# hatched, and lost work is the only dark one.
LOOKS: dict[Outcome, Look] = {
    "committed": Look("#009E73", "#FFFFFF", "committed"),
    "rejected": Look("#D55E00", "#FFFFFF", "rejected by its verdict"),
    "stopped": Look("#D3D7DC", "#33383E", "stopped early", hatched=True),
    "unused": Look("#F0E442", "#33383E", "finished, not needed"),
    "lost": Look("#2B2B2B", "#FFFFFF", "lost with its actor", hatched=True),
    "verdict": Look("#56B4E9", "#102A43", "verdict"),
    "prefill": Look("#CC79A7", "#FFFFFF", "reads the prompt"),
}
HATCH = {"stopped": "#A3AAB3", "lost": "#8A8A8A"}
GRID, TEXT, FAINT, LANE = "#D9DEE4", "#1F2933", "#66707C", "#F5F7F9"


def outcomes(trace: Trace) -> list[Outcome]:
    """The outcomes that occur, in the order of the legend."""
    present = {span.outcome for span in trace.spans}
    return [outcome for outcome in LOOKS if outcome in present]


def headline(trace: Trace) -> str:
    """One line: the method and what came of it."""
    drafted = sum(step.source == "draft" for step in trace.steps)
    parts = [f"{len(trace.steps)} steps in {trace.wall_s:.3f} s"]
    if trace.acceptance_rate is not None:
        parts.append(f"{trace.num_accepted} of {trace.num_judged} drafts accepted")
        parts.append(f"{drafted} steps from the draft")
    parts.append(f"wasted tokens: draft {trace.wasted_draft_tokens}, target {trace.wasted_target_tokens}")
    return "  ·  ".join(parts)


def with_room(steps: Iterable[CommittedStep], distance_s: float) -> set[int]:
    """Indices of the commits whose number can be written without running into the one before."""
    indices, reached = set(), float("-inf")
    for step in steps:
        if step.at >= reached + distance_s:
            indices.add(step.index)
            reached = step.at
    return indices
