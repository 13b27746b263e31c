"""Sums over finished calls, for a trace: counts in steps or tokens, wasted tokens, and the time that models worked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dreamr.types import Checked, Prefill, Proposal, Role, Step, Verdict
from pipelines.calls import Call
from pipelines.trace import Outcome


@dataclass(frozen=True, slots=True)
class Counts:
    """In steps, or in tokens where speculation goes by tokens."""

    drafted: int
    judged: int
    accepted: int
    from_draft: int
    committed: int


def outcome_of(call: Call[Any]) -> Outcome:
    """What became of the work of a call."""
    match call.value:
        case Prefill():
            return "prefill"
        case Verdict() | (Verdict(), *_):
            return "verdict"
        case Step(finish="stopped"):
            return "stopped"
        case _:
            return call.outcome


def wasted_tokens(calls: Iterable[Call[Any]], role: Role) -> int:
    return sum(call.num_wasted for call in calls if call.role == role)


def by_token(calls: Iterable[Call[Any]]) -> bool:
    """Whether the request speculated by tokens."""
    return any(isinstance(call.value, Checked) for call in calls)


def token_counts(calls: Sequence[Call[Any]]) -> Counts:
    proposed = sum(call.num_tokens for call in calls if call.role == "draft")
    kept = {role: sum(call.num_kept or 0 for call in calls if call.role == role) for role in ("draft", "target")}
    return Counts(proposed, proposed, kept["draft"], kept["draft"], kept["draft"] + kept["target"])


def checks_of(calls: Iterable[Call[Any]]) -> Iterator[tuple[int, int]]:
    """Proposed and accepted tokens of each check."""
    num_proposed = 0
    for call in calls:
        match call.value:
            case Proposal(tokens=tokens):
                num_proposed = len(tokens)
            case Checked(num_accepted=num_accepted) if num_proposed:
                yield num_proposed, num_accepted
                num_proposed = 0
            case _:
                for step in steps_of(call):
                    yield from step.rounds


def steps_of(call: Call[Any]) -> list[Step]:
    """The steps that a call of the draft or the target gave."""
    several = call.value if isinstance(call.value, tuple) else (call.value,)
    return [one for one in several if isinstance(one, Step)]


def verdicts_of(call: Call[Any]) -> list[Verdict]:
    several = call.value if isinstance(call.value, tuple) else (call.value,)
    return [one for one in several if isinstance(one, Verdict)]


def covered_s(intervals: list[tuple[float, float]], low: float, high: float) -> float:
    """Length of the part of low..high that the intervals cover together."""
    total, reached = 0.0, low
    for start, end in sorted(intervals):
        new = min(end, high) - max(start, reached)
        if new > 0:
            total, reached = total + new, min(end, high)
    return total
