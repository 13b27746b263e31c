"""`Call` and `Recorder`: every call of a request and its outcome, and the `Trace` made of them.

start ──▶ in flight ──▶ done      its result was used, or is not needed
             │  └─────▶ lost      the actor died, hangs past the deadline, or the engine failed
             └─ stop ─▶ stopped   between two tokens; still awaited before the request ends
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from dreamr.errors import ActorLost
from dreamr.types import ROOT, Checked, Prefill, Priority, Proposal, Role, Step, Tokens, Verdict
from pipelines.costs import Decision
from pipelines.handles import Ref, Transport
from pipelines.trace import CommittedStep, End, OnCommit, Outcome, Request, Span, Trace

Verdicts = tuple[Verdict, ...]
Steps = tuple[Step, ...]
T = TypeVar("T", Step, Verdict, Verdicts, Steps, Proposal, Checked, Prefill)

MARKERS = ("boxed", "Answer:", "ANSWER:")
"""Texts that end an answer in the published SpecReason (`stop_at_marker`)."""


@dataclass(slots=True, eq=False)
class Call(Generic[T]):
    """One call of an actor, for step number `step`."""

    id: str
    role: Role
    step: int
    transport: Transport
    ref: Ref[T]
    submitted: float
    priority: Priority = "needed"
    received: float | None = None
    """When its result arrived, if it was awaited."""
    outcome: Outcome = "unused"
    """Its outcome so far."""
    value: T | None = None
    is_stopped: bool = False
    num_kept: int | None = None
    """Written tokens that became part of the answer; None: all of them when `outcome` is committed, else none."""

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        match self.value:
            case Step() | Proposal():
                return len(self.value.tokens)
            case Checked():
                return 1
            case tuple() as several:
                return sum(len(one.tokens) for one in several if isinstance(one, Step))
            case _:
                return 0

    @property
    def num_wasted(self) -> int:
        """Tokens written and not committed."""
        if self.num_kept is not None:
            return self.num_tokens - self.num_kept
        return 0 if self.outcome == "committed" else self.num_tokens

    async def result(self, deadline_s: float) -> T:
        """Wait for the value.

        Raises ActorLost when the actor dies, or makes no progress for `deadline_s`.
        """
        patience = deadline_s
        while self.value is None:
            try:
                async with asyncio.timeout(patience):
                    self.value = await self.ref
            except TimeoutError:
                patience = await self.transport.grace_s(self.ref, deadline_s)
                if patience > 0:
                    continue
                self.outcome = "lost"
                raise ActorLost(f"the {self.role} made no progress for {deadline_s:g} s") from None
            except Exception:
                self.outcome = "lost"
                raise
        return self.value

    def promote(self, hint: Tokens = ()) -> None:
        """A speculative step is needed now; `hint` are tokens that it may begin with."""
        if self.priority == "speculative" and self.value is None and not self.is_stopped:
            self.transport.promote(self.id, hint)

    def stop(self) -> None:
        """Stop the call, whose result is not needed. May be called again, and after its end."""
        if self.value is None and not self.is_stopped:
            self.is_stopped = True
            self.transport.stop(self.id)


def end_after(step: Step, before: Step, max_tokens: int) -> Literal["answered", "budget", "loop"] | None:
    """Why an answer ends with `step`, committed after `before`; None when it continues.

    Requests and rollouts share these rules. A step that reaches `max_tokens` is kept whole.
    """
    if step.closed:
        return "answered"
    if len(step.end) >= max_tokens:
        return "budget"
    if not step.tokens or step.tokens == before.tokens:
        return "loop"
    return None


@dataclass(frozen=True, slots=True)
class _Counts:
    """In steps, or in tokens where speculation goes by tokens."""

    drafted: int
    judged: int
    accepted: int
    from_draft: int
    committed: int


class Recorder:
    """Committed steps, calls, and the end of a request; times are seconds since it was made."""

    def __init__(self, request: Request, clock: Callable[[], float], on_commit: OnCommit | None) -> None:
        self._request, self._clock, self._on_commit = request, clock, on_commit
        self._began = clock()
        self._steps: list[CommittedStep] = []
        self._waits: list[list[Call[Any]]] = []
        """For each committed step, the calls that its commit waited for."""
        self.calls: list[Call[Any]] = []
        self.frontier: Step = ROOT
        """The last committed step: the next one is written from `frontier.end`."""
        self.end: End | None = None
        self.decisions: list[Decision] = []
        self.num_losses = 0

    @property
    def num_committed(self) -> int:
        return len(self._steps)

    @property
    def num_judged(self) -> int:
        """Committed steps at which a verdict decided something."""
        return sum(step.score is not None for step in self._steps)

    @property
    def num_accepted(self) -> int:
        return sum(step.source == "draft" and step.score is not None for step in self._steps)

    def now(self) -> float:
        return self._clock() - self._began

    def commit(
        self, step: Step, source: Literal["draft", "target"], score: float | None, waited_for: list[Call[Any]]
    ) -> None:
        """Append a step to the answer."""
        committed = CommittedStep(self.num_committed, source, step.tokens, step.text, score, self.now())
        self._steps.append(committed)
        self._waits.append(waited_for)
        self.end = self._end_after(step)
        self.frontier = step
        if self._on_commit and self._on_commit(committed):
            self.end = self.end or "enough"

    def _end_after(self, step: Step) -> End | None:
        """The stop rules, the same for every schedule: they depend on committed steps alone."""
        if end := end_after(step, self.frontier, self._request.settings.max_tokens):
            return end
        if self._request.settings.stop_at_marker and any(marker in step.text for marker in MARKERS):
            return "answered"
        return None

    def trace(self) -> Trace:
        """The finished request, all of whose calls have ended."""
        assert self.end is not None, "a trace is made of a request that has ended"
        calls = self.calls
        counts = _token_counts(calls) if _by_token(calls) else self._step_counts()
        return Trace(
            request_id=self._request.id,
            method=self._request.settings.method,
            steps=tuple(self._steps),
            end=self.end,
            wall_s=self._steps[-1].at,
            orchestration_s=self._orchestration_s(),
            spans=tuple(sorted(self._spans(), key=lambda span: span.start)),
            num_drafted=counts.drafted,
            num_judged=counts.judged,
            num_accepted=counts.accepted,
            coverage=counts.from_draft / counts.committed,
            drafted_tokens=sum(call.num_tokens for call in calls if call.role == "draft"),
            wasted_draft_tokens=_wasted(calls, "draft"),
            wasted_target_tokens=_wasted(calls, "target"),
            num_losses=self.num_losses,
            checks=tuple(_checks(calls)),
            salvaged_tokens=sum(step.num_salvaged for call in calls for step in _written(call)),
            verdict_masses=tuple(
                verdict.mass for call in calls for verdict in _verdicts(call) if verdict.mass is not None
            ),
            decisions=tuple(self.decisions),
        )

    def _step_counts(self) -> _Counts:
        return _Counts(
            drafted=sum(call.role == "draft" and call.num_tokens > 0 for call in self.calls),
            judged=self.num_judged,
            accepted=self.num_accepted,
            from_draft=sum(step.source == "draft" for step in self._steps),
            committed=len(self._steps),
        )

    def _spans(self) -> Iterator[Span]:
        for call in self.calls:
            if call.value is None:
                yield Span(call.role, call.submitted, self.now(), "lost", call.step, 0)
                continue
            start, end = self._interval(call)
            wrote_nothing = isinstance(call.value, Step) and not call.value.tokens
            if call.num_tokens or (end > start and not wrote_nothing):  # else no model was at work
                score = call.value.score if isinstance(call.value, Verdict) else None
                yield Span(call.role, start, end, _outcome(call), call.step, call.num_tokens, score)

    def _interval(self, call: Call[Any]) -> tuple[float, float]:
        parts = call.value if isinstance(call.value, tuple) else (call.value,)
        if not parts:
            return 0.0, 0.0
        return parts[0].started - self._began, parts[-1].ended - self._began

    def _orchestration_s(self) -> float:
        """Between two commits, the time in which none of the calls that the second one waited for was computing."""
        previous, idle = 0.0, 0.0
        for step, waits in zip(self._steps, self._waits, strict=True):
            busy = [self._interval(call) for call in waits if call.value is not None]
            idle += (step.at - previous) - _covered(busy, previous, step.at)
            previous = step.at
        return idle


def _outcome(call: Call[Any]) -> Outcome:
    match call.value:
        case Prefill():
            return "prefill"
        case Verdict() | (Verdict(), *_):
            return "verdict"
        case Step(finish="stopped"):
            return "stopped"
        case _:
            return call.outcome


def _wasted(calls: Iterable[Call[Any]], role: Role) -> int:
    return sum(call.num_wasted for call in calls if call.role == role)


def _by_token(calls: Iterable[Call[Any]]) -> bool:
    return any(isinstance(call.value, Checked) for call in calls)


def _token_counts(calls: Sequence[Call[Any]]) -> _Counts:
    proposed = sum(call.num_tokens for call in calls if call.role == "draft")
    kept = {role: sum(call.num_kept or 0 for call in calls if call.role == role) for role in ("draft", "target")}
    return _Counts(proposed, proposed, kept["draft"], kept["draft"], kept["draft"] + kept["target"])


def _checks(calls: Iterable[Call[Any]]) -> Iterator[tuple[int, int]]:
    num_proposed = 0
    for call in calls:
        match call.value:
            case Proposal(tokens=tokens):
                num_proposed = len(tokens)
            case Checked(num_accepted=num_accepted) if num_proposed:
                yield num_proposed, num_accepted
                num_proposed = 0
            case _:
                for step in _written(call):
                    yield from step.rounds


def _written(call: Call[Any]) -> list[Step]:
    """The steps that a call of the draft or the target gave."""
    several = call.value if isinstance(call.value, tuple) else (call.value,)
    return [one for one in several if isinstance(one, Step)]


def _verdicts(call: Call[Any]) -> list[Verdict]:
    several = call.value if isinstance(call.value, tuple) else (call.value,)
    return [one for one in several if isinstance(one, Verdict)]


def _covered(intervals: list[tuple[float, float]], low: float, high: float) -> float:
    """Length of the part of low..high that the intervals cover together."""
    covered, reached = 0.0, low
    for start, end in sorted(intervals):
        new = min(end, high) - max(start, reached)
        if new > 0:
            covered, reached = covered + new, min(end, high)
    return covered
