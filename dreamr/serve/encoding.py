"""Events of a request as OpenAI's objects: chunks of a stream, or one completion."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dreamr.serve.counts import metrics_of, usage_of
from dreamr.serve.questions import Question
from dreamr.serve.replies import (
    Answer,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    FinishReason,
    RequestMetrics,
    RunInfo,
    StepInfo,
    Usage,
)
from dreamr.serve.service import ActorWorked, Answered, Event, StepCommitted
from dreamr.serve.text import Piece
from dreamr.types import Verdict
from pipelines import Trace, rule_of
from pipelines.trace import CommittedStep, Span

_FINISH: dict[str, FinishReason] = {"answered": "stop", "enough": "stop", "budget": "length", "loop": "length"}
"""`loop`, an answer that repeats itself, is incomplete: to OpenAI's clients that is `length`."""


class Encoder:
    """The objects of one request."""

    def __init__(self, question: Question, model: str, *, include_usage: bool = False) -> None:
        self._question, self._model, self._include_usage = question, model, include_usage
        self._rule = rule_of(question.settings)
        self._created = int(time.time())
        self._introduced: set[int] = set()
        self._answered: list[Answered] = []

    @property
    def _usage(self) -> Usage:
        return usage_of(self._question.prompt_tokens, self._answered, self._rule)

    # -- as a stream -----------------------------------------------------------------------------------------------

    def chunks(self, event: Event) -> Iterator[Chunk]:
        """At least one per committed step; the last one of each choice has its `RunInfo`."""
        if event.choice not in self._introduced:
            self._introduced.add(event.choice)
            yield self._chunk(ChunkChoice(index=event.choice, delta=Delta(role="assistant", content="")))
        for choice in self._choices(event):
            yield self._chunk(choice)

    def last_chunks(self) -> Iterator[Chunk]:
        """What follows the last event."""
        if self._include_usage:
            yield self._chunk(usage=self._usage, metrics=metrics_of(self._answered))

    def _choices(self, event: Event) -> Iterator[ChunkChoice]:
        match event:
            case ActorWorked():
                yield ChunkChoice(index=event.choice, delta=Delta(), dreamr=event.call)
            case StepCommitted():
                yield ChunkChoice(index=event.choice, delta=_delta(event.piece), dreamr=self._step_info(event.step))
            case Answered():
                self._answered.append(event)
                if event.piece != Piece():
                    yield ChunkChoice(index=event.choice, delta=_delta(event.piece))
                info = self._run_info(event)
                yield ChunkChoice(index=event.choice, delta=Delta(), finish_reason=_finish(event), dreamr=info)

    def _chunk(
        self, choice: ChunkChoice | None = None, usage: Usage | None = None, metrics: RequestMetrics | None = None
    ) -> Chunk:
        return Chunk(
            id=f"chatcmpl-{self._question.id}",
            created=self._created,
            model=self._model,
            choices=[choice] if choice else [],
            usage=usage,
            metrics=metrics,
        )

    # -- as one answer ---------------------------------------------------------------------------------------------

    async def completion(self, events: AsyncIterator[Event]) -> Completion:
        texts = [[Piece()] for _ in range(self._question.num_choices)]
        async for event in events:
            match event:
                case StepCommitted():
                    texts[event.choice].append(event.piece)
                case Answered():
                    texts[event.choice].append(event.piece)
                    self._answered.append(event)
        self._answered.sort(key=lambda answered: answered.choice)
        return Completion(
            id=f"chatcmpl-{self._question.id}",
            created=self._created,
            model=self._model,
            choices=[self._choice(answered, texts[answered.choice]) for answered in self._answered],
            usage=self._usage,
            metrics=metrics_of(self._answered),
        )

    def _choice(self, answered: Answered, pieces: Sequence[Piece]) -> Choice:
        reasoning = "".join(piece.reasoning for piece in pieces) or None
        content = "".join(piece.content for piece in pieces) or None
        return Choice(
            index=answered.choice,
            message=Answer(content=content, reasoning=reasoning, reasoning_content=reasoning),
            finish_reason=_finish(answered),
            dreamr=self._run_info(answered),
        )

    # -- how an answer came about ----------------------------------------------------------------------------------

    def _run_info(self, answered: Answered) -> RunInfo:
        trace, settings = answered.trace, self._question.settings
        return RunInfo(
            method=trace.method,
            alpha=settings.alpha,
            window=settings.window,
            end=trace.end,
            wall_s=trace.wall_s,
            queued_s=answered.queued_s,
            orchestration_s=trace.orchestration_s,
            steps=[self._step_info(step) for step in trace.steps],
            timeline=[self._span_info(span, trace) for span in trace.spans] if self._question.timeline else None,
        )

    def _step_info(self, step: CommittedStep) -> StepInfo:
        return StepInfo(
            index=step.index,
            source=step.source,
            rho=self._rho(step.score),
            accepted=None if step.score is None else step.source == "draft",
            at=step.at,
            num_tokens=len(step.tokens),
        )

    def _span_info(self, span: Span, trace: Trace) -> dict[str, Any]:
        info = asdict(span) | {"rho": self._rho(span.score)}
        if span.outcome != "verdict":
            return info
        if span.score is not None:
            return info | {"accepted": self._rule.accepts(Verdict(span.score))}
        # The verdicts on a whole chain: whether the first of them, at the frontier, accepted.
        return info | {"accepted": trace.steps[span.step].source == "draft" if span.step < len(trace.steps) else None}

    def _rho(self, value: float | None) -> float | None:
        """The score where it is a rho, and not a digit or a similarity."""
        return value if self._rule.kind == "rho" else None


def _finish(answered: Answered) -> FinishReason:
    return _FINISH[answered.trace.end]


def _delta(piece: Piece) -> Delta:
    return Delta(
        content=piece.content or None, reasoning=piece.reasoning or None, reasoning_content=piece.reasoning or None
    )
