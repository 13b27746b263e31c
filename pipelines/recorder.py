"""`Recorder`: what a request has committed, when it ends, and the `Trace` made of all its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

from dreamr.errors import Unable
from dreamr.types import NO_VERDICT, ROOT, Role, Step, ThoughtEnd, Tokens, Verdict
from pipelines.accounting import (
    Counts,
    by_token,
    checks_of,
    covered_s,
    outcome_of,
    steps_of,
    token_counts,
    verdicts_of,
    wasted_tokens,
)
from pipelines.calls import Call
from pipelines.costs import Decision
from pipelines.phases import Reasoning
from pipelines.trace import CommittedStep, End, OnCommit, Phase, Request, Span, Trace

MARKERS = ("boxed", "Answer:", "ANSWER:")
"""Texts that end an answer in the published SpecReason (`stop_at_marker`)."""

LOOPS = 3
"""An answer ends when it repeats several steps so many times in a row; one step may not even be repeated once."""
LONGEST_LOOP = 2048
"""In tokens."""


def end_after(step: Step, before: Step, max_tokens: int) -> Literal["answered", "budget", "loop"] | None:
    """Why an answer ends with `step`, committed after `before`; None when it continues.

    Requests and rollouts share these rules.
    """
    if step.closed:
        return "answered"
    if len(step.end) >= max_tokens:
        return "budget"
    if not step.tokens or step.tokens == before.tokens or _repeats(step.end, len(step.tokens)):
        return "loop"
    return None


def _repeats(tokens: Tokens, longer_than: int) -> bool:
    """Whether `tokens` end with the same sequence `LOOPS` times, one of more than `longer_than` tokens."""
    longest = min(len(tokens) // LOOPS, LONGEST_LOOP)
    for length in range(longer_than + 1, longest + 1):
        if tokens[-1] == tokens[-1 - length]:  # rarely: the comparison below costs more
            end = len(tokens)
            last = tokens[end - length :]
            if all(tokens[end - (turn + 1) * length : end - turn * length] == last for turn in range(1, LOOPS)):
                return True
    return False


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
        self.phase: Phase | None = None
        self.reasoning: Reasoning | None = None
        """In the phase of reasoning: its rules."""

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

    @property
    def num_skipped(self) -> int:
        return sum(step.source == "draft" and step.score is None for step in self._steps)

    def now(self) -> float:
        return self._clock() - self._began

    def commit(
        self,
        step: Step,
        source: Literal["draft", "target"],
        score: float | None,
        waited_for: list[Call[Any]],
        *,
        is_inserted: bool = False,
    ) -> Step:
        """Append a step to the answer; the step as it was committed, which the phase of reasoning may shorten.

        `is_inserted`: no model wrote it. Raises Unable when it should have log-probabilities and has none.
        """
        if self.reasoning:
            step = self.reasoning.part_of(step)
        logprobs = self._logprobs_of(step, source) if self._request.logprobs and not is_inserted else ()
        committed = CommittedStep(
            self.num_committed, source, step.tokens, step.text, score, self.now(), step.finish, self.phase, logprobs
        )
        self._steps.append(committed)
        self._waits.append(waited_for)
        end = self._end_after(step)
        self.end = self.reasoning.end_after(step, end) if self.reasoning else end
        self.frontier = step
        if self._on_commit and self._on_commit(committed):
            self.end = self.end or "enough"
        return step

    def _logprobs_of(self, step: Step, source: Role) -> tuple[tuple[str, float], ...]:
        if not len(step.tokens) == len(step.logprobs) == len(step.token_texts):
            method = self._request.settings.method
            raise Unable(
                f"the {source} gives no log-probabilities, by its engine or by method {method!r}: leave logprobs out"
            )
        return tuple(zip(step.token_texts, step.logprobs, strict=True))

    def restore(self) -> None:
        """Take over what an earlier run has committed; its time counts as this run's."""
        restored = self._request.committed
        if restored:
            self._began -= restored[-1].at
        for committed in restored:
            step = Step(self.frontier.end, committed.tokens, committed.text, committed.finish)
            self._steps.append(committed)
            self._waits.append([])
            end = self._end_after(step)
            self.end = end if committed.phase != "reasoning" or end == "budget" else None
            self.frontier = step
            if self._on_commit and self._on_commit(committed):
                self.end = self.end or "enough"

    def begin_reasoning(self, thought: ThoughtEnd) -> Reasoning:
        """Enter the phase of reasoning."""
        request = self._request
        answers_always = request.schema is not None
        self.phase = "reasoning"
        self.reasoning = Reasoning(thought, request.settings.thinking_budget, answers_always=answers_always)
        self.reasoning.resume(self.frontier.end)
        return self.reasoning

    def begin_answer(self) -> None:
        """Leave the phase of reasoning; a chain of thought that its budget has ended is closed."""
        assert self.reasoning is not None
        reasoning, self.reasoning = self.reasoning, None
        if self.end is None and not reasoning.is_closed:
            closing = replace(reasoning.thought.closing, prefix=self.frontier.end)
            if len(closing.end) >= self._request.settings.max_tokens:
                self.end = "budget"  # there is no space for an answer
                return
            self.commit(closing, "target", None, [], is_inserted=True)
        self.phase = "answer"

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
        counts = token_counts(calls) if by_token(calls) else self._step_counts()
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
            wasted_draft_tokens=wasted_tokens(calls, "draft"),
            wasted_target_tokens=wasted_tokens(calls, "target"),
            num_losses=self.num_losses,
            num_skipped=self.num_skipped,
            checks=tuple(checks_of(calls)),
            salvaged_tokens=sum(step.num_salvaged for call in calls for step in steps_of(call)),
            verdict_masses=tuple(
                verdict.mass for call in calls for verdict in verdicts_of(call) if verdict.mass is not None
            ),
            decisions=tuple(self.decisions),
        )

    def _step_counts(self) -> Counts:
        return Counts(
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
                num_kept = call.num_tokens - call.num_wasted
                yield Span(call.role, start, end, outcome_of(call), call.step, call.num_tokens, score, num_kept)

    def _interval(self, call: Call[Any]) -> tuple[float, float]:
        """When a model was at work for the call; blank steps of a chain were not judged."""
        parts = call.value if isinstance(call.value, tuple) else (call.value,)
        worked = [part for part in parts if part != NO_VERDICT]
        if not worked:
            return 0.0, 0.0
        return min(part.started for part in worked) - self._began, max(part.ended for part in worked) - self._began

    def _orchestration_s(self) -> float:
        """Between two commits, the time in which none of the calls that the second one waited for was computing."""
        previous, idle = 0.0, 0.0
        num_restored = len(self._request.committed)
        if num_restored:
            previous = self._steps[num_restored - 1].at
        for step, waits in zip(self._steps[num_restored:], self._waits[num_restored:], strict=True):
            busy = [self._interval(call) for call in waits if call.value is not None]
            idle += (step.at - previous) - covered_s(busy, previous, step.at)
            previous = step.at
        return idle
