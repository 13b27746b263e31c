"""`Recorder`: what a request did, as it happens; makes its `Trace` in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dreamr.types import ROOT, Checked, Prefill, Proposal, Role, Step, Verdict
from pipelines.base import OnCommit
from pipelines.call import Call
from pipelines.coin import Coin
from pipelines.request import Request
from pipelines.trace import CommittedStep, End, Outcome, Span, Trace

Interval = tuple[float, float]
Value = Step | Verdict | tuple[Verdict, ...] | tuple[Step, ...] | Proposal | Checked

MARKERS = ("boxed", "Answer:", "ANSWER:")
"""What the published SpecReason takes for the end of an answer (`stop_at_marker`)."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """In steps, or in tokens where speculation goes by tokens."""

    drafted: int
    judged: int
    accepted: int
    from_draft: int
    committed: int


class Recorder:
    """Committed steps, the end they lead to, and counts; times are seconds since it was made."""

    def __init__(self, request: Request, clock: Callable[[], float], on_commit: OnCommit | None) -> None:
        self._request, self._clock, self._on_commit = request, clock, on_commit
        self._began = clock()
        self._steps: list[CommittedStep] = []
        self._waits: list[list[Call[Any]]] = []
        """For each committed step, the calls that its commit had to wait for."""
        self.frontier: Step = ROOT
        """The last committed step: what follows is written from `frontier.end`."""
        self.end: End | None = None
        self.num_losses = 0
        self.prefill: Prefill | None = None
        """When the verifier read the prompt, if it did so ahead of the first step."""

    @property
    def num_committed(self) -> int:
        return len(self._steps)

    def now(self) -> float:
        return self._clock() - self._began

    def commit(
        self, step: Step, source: Literal["draft", "target"], rho: float | None, waited_for: list[Call[Any]]
    ) -> None:
        """Append a step to the answer."""
        committed = CommittedStep(self.num_committed, source, step.tokens, step.text, rho, self.now())
        self._steps.append(committed)
        self._waits.append(waited_for)
        self.end = self._end_after(step)
        self.frontier = step
        if self._on_commit and self._on_commit(committed):
            self.end = self.end or "enough"

    def _end_after(self, step: Step) -> End | None:
        """The stop rules, the same for every schedule: they look at nothing but what is committed."""
        if step.closed:
            return "answered"
        if len(step.end) >= self._request.settings.max_tokens:
            return "budget"
        if not step.tokens or step.tokens == self.frontier.tokens:
            return "loop"
        if self._request.settings.stop_at_marker and any(marker in step.text for marker in MARKERS):
            return "answered"
        return None

    def trace(self, calls: Sequence[Call[Any]]) -> Trace:
        """The finished request; `calls` are all that it made, every one of them ended."""
        assert self.end is not None, "a trace is made of a request that has ended"
        counts = _token_counts(calls) if _by_token(calls) else self._step_counts(calls)
        wall = self._steps[-1].at
        return Trace(
            request_id=self._request.id,
            method=self._request.settings.method,
            steps=tuple(self._steps),
            end=self.end,
            wall_s=wall,
            orchestration_s=self._orchestration_s(),
            spans=tuple(sorted(self._spans(calls), key=lambda span: span.start)),
            num_drafted=counts.drafted,
            num_judged=counts.judged,
            num_accepted=counts.accepted,
            coverage=counts.from_draft / counts.committed,
            drafted_tokens=sum(call.num_tokens for call in calls if call.role == "draft"),
            wasted_draft_tokens=_wasted(calls, "draft"),
            wasted_target_tokens=_wasted(calls, "target"),
            num_losses=self.num_losses,
        )

    def _spans(self, calls: Sequence[Call[Any]]) -> Iterator[Span]:
        if self.prefill:
            yield Span("verifier", *self._interval(self.prefill), "prefill", 0, 0)
        for call in calls:
            if span := self._span(call):
                yield span

    def _step_counts(self, calls: Sequence[Call[Any]]) -> _Counts:
        decided = [step for step in self._steps if step.rho is not None]
        return _Counts(
            drafted=sum(call.role == "draft" and call.num_tokens > 0 for call in calls),
            judged=len(decided),
            accepted=sum(step.source == "draft" for step in decided),
            from_draft=sum(step.source == "draft" for step in self._steps),
            committed=len(self._steps),
        )

    def _span(self, call: Call[Any]) -> Span | None:
        """None for a call that never reached a model."""
        value = call.value
        if isinstance(call.handle, Coin):
            return None
        if value is None:
            return Span(call.role, call.submitted, self.now(), "lost", call.step, 0)
        start, end = self._interval(value)
        match value:
            case Verdict():
                return Span(call.role, start, end, "verdict", call.step, 0, value.rho) if value.judged else None
            case (Verdict(), *_):
                return Span(call.role, start, end, "verdict", call.step, 0)
            case Proposal() | Checked() | tuple():
                return Span(call.role, start, end, call.outcome, call.step, call.num_tokens)
        outcome: Outcome = "stopped" if value.finish == "stopped" else call.outcome
        return Span(call.role, start, end, outcome, call.step, len(value.tokens)) if value.tokens else None

    def _interval(self, value: Value | Prefill) -> Interval:
        first, last = (value[0], value[-1]) if isinstance(value, tuple) else (value, value)
        return first.started - self._began, last.ended - self._began

    def _orchestration_s(self) -> float:
        """Between two commits, the time in which none of the calls that the second one waited for was computing.

        A first verdict waits for the prompt to be read as well.
        """
        previous, idle = 0.0, 0.0
        for step, waits in zip(self._steps, self._waits, strict=True):
            busy = [self._interval(call.value) for call in waits if call.value is not None]
            if self.prefill and any(call.role == "verifier" for call in waits):
                busy.append(self._interval(self.prefill))
            idle += (step.at - previous) - _covered(busy, previous, step.at)
            previous = step.at
        return idle


def _wasted(calls: Iterable[Call[Any]], role: Role) -> int:
    return sum(call.num_wasted for call in calls if call.role == role)


def _by_token(calls: Iterable[Call[Any]]) -> bool:
    return any(isinstance(call.value, Checked) for call in calls)


def _token_counts(calls: Sequence[Call[Any]]) -> _Counts:
    proposed = sum(call.num_tokens for call in calls if call.role == "draft")
    kept = {role: sum(call.num_kept or 0 for call in calls if call.role == role) for role in ("draft", "target")}
    return _Counts(proposed, proposed, kept["draft"], kept["draft"], kept["draft"] + kept["target"])


def _covered(intervals: list[Interval], low: float, high: float) -> float:
    """Length of the part of low..high that the intervals cover together."""
    covered, reached = 0.0, low
    for start, end in sorted(intervals):
        new = min(end, high) - max(start, reached)
        if new > 0:
            covered, reached = covered + new, min(end, high)
    return covered
