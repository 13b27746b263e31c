"""Events of a request as OpenAI's objects: chunks of a stream, or one completion."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence

from dreamr.serve.counts import finish_reason, metrics_of, run_info, step_info, usage_of
from dreamr.serve.questions import Question
from dreamr.serve.replies import (
    Answer,
    Choice,
    ChoiceLogprobs,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    RequestMetrics,
    TokenLogprob,
    Usage,
)
from dreamr.serve.service import ActorWorked, Answered, Event, StepCommitted
from dreamr.serve.text import Piece
from pipelines import rule_of
from pipelines.trace import CommittedStep

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""A part of a character decodes to this."""


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
        """Convert an event. At least one chunk per committed step; the last one of each choice has its `RunInfo`."""
        if event.choice not in self._introduced:
            self._introduced.add(event.choice)
            yield self._chunk(ChunkChoice(index=event.choice, delta=Delta(role="assistant", content="")))
        for choice in self._choices(event):
            yield self._chunk(choice)

    def last_chunks(self) -> Iterator[Chunk]:
        """The chunks after the last event."""
        if self._include_usage:
            yield self._chunk(usage=self._usage, metrics=metrics_of(self._answered))

    def _choices(self, event: Event) -> Iterator[ChunkChoice]:
        match event:
            case ActorWorked():
                yield ChunkChoice(index=event.choice, delta=Delta(), dreamr=event.call)
            case StepCommitted():
                yield ChunkChoice(
                    index=event.choice,
                    delta=_delta(event.piece),
                    logprobs=self._logprobs([event.step]),
                    dreamr=step_info(event.step, self._rule),
                )
            case Answered():
                self._answered.append(event)
                if event.piece != Piece():
                    yield ChunkChoice(index=event.choice, delta=_delta(event.piece))
                info = run_info(event, self._question)
                yield ChunkChoice(index=event.choice, delta=Delta(), finish_reason=finish_reason(event), dreamr=info)

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
            logprobs=self._logprobs(answered.trace.steps),
            finish_reason=finish_reason(answered),
            dreamr=run_info(answered, self._question),
        )

    def _logprobs(self, steps: Sequence[CommittedStep]) -> ChoiceLogprobs | None:
        if not self._question.logprobs:
            return None
        return ChoiceLogprobs(content=[_token_logprob(*token) for step in steps for token in step.logprobs])


def _token_logprob(text: str, logprob: float) -> TokenLogprob:
    whole = None if REPLACEMENT in text else list(text.encode())
    return TokenLogprob(token=text, bytes=whole, logprob=logprob)


def _delta(piece: Piece) -> Delta:
    return Delta(
        content=piece.content or None, reasoning=piece.reasoning or None, reasoning_content=piece.reasoning or None
    )
