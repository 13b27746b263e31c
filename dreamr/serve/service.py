"""`Service`: one replica's pipelines over a group of actors, without HTTP.

choice 0: queue slot ─▶ pipelines.run ─ on_commit ─▶┐
choice 1: queue slot ─▶ pipelines.run ─ on_commit ─▶┴▶ asyncio.Queue ─▶ Answering.events() ─▶ HTTP
                                                                      │ closed early (client gone, or an error):
tasks cancelled and awaited: no call is left at the actors ◀──────────┘
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import anyio

from dreamr.config import Config
from dreamr.config.serve import ServeSettings
from dreamr.serve.errors import ApiError, refused
from dreamr.serve.images import ImageFetcher, ImageReader
from dreamr.serve.load import Load, RequestQueue, with_back_off
from dreamr.serve.metrics import Metrics
from dreamr.serve.questions import Question, QuestionReader
from dreamr.serve.retries import AnswerKeeper, Answers, Finished, Kept
from dreamr.serve.schema import ChatRequest, TokenizeRequest
from dreamr.serve.text import AnswerSplitter, Piece
from dreamr.serve.timeline import CallReporter
from dreamr.types import EngineInfo, Prompt, Role, Tokens
from pipelines import OnCommit, Request, Trace, rule_of, run
from pipelines.handles import Handles
from pipelines.trace import CommittedStep

Status = Literal["ok", "degraded", "unavailable"]

SILENT_AFTER_S = 4.0
"""An actor that does not answer for this long counts as down; its group restarts it."""


@dataclass(frozen=True, slots=True)
class StepCommitted:
    choice: int
    step: CommittedStep
    piece: Piece


@dataclass(frozen=True, slots=True)
class ActorWorked:
    choice: int
    call: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of one choice."""

    choice: int
    trace: Trace
    piece: Piece
    """Text that was held back until the end."""
    queued_s: float
    reasoning_tokens: int


Event = StepCommitted | ActorWorked | Answered


class Group(Protocol):
    """The part of `ActorGroup` that the service uses."""

    @property
    def handles(self) -> Handles: ...

    @property
    def infos(self) -> dict[Role, EngineInfo]: ...

    async def check_one(self, role: Role) -> bool: ...


class Service:
    """Reads requests and answers them. Use it from one event loop."""

    def __init__(
        self, group: Group, config: Config, fetcher: ImageFetcher | None = None, answers: Answers | None = None
    ) -> None:
        """`answers`: the store of answers for retries; None: no store."""
        self.group, self.settings = group, config.serve.of_one_replica()
        self._answers = answers
        self.metrics = Metrics()
        self.queue = RequestQueue(
            self.settings.max_running, self.settings.max_queued, self.settings.queue_deadline_s, self.metrics.load
        )
        images = ImageReader(self.settings.images, fetcher or ImageFetcher(self.settings.images))
        self._reader = QuestionReader(config, self.settings, images)
        self._checks: dict[Role, asyncio.Task[bool]] = {}

    async def read(self, request: ChatRequest) -> Question:
        """Convert a request to a question.

        Raises:
            ApiError: something in it is refused, the queue is full, or the target was lost.
            TooLong: the prompt leaves no token for the answer.
        """
        self.queue.check(self._reader.num_choices(request))  # before images are fetched and decoded for nothing
        return await self._reader.read(request, self.group.handles.target, self.group.infos["target"])

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """The tokens of a conversation as the target reads it, or of a text as it is. Raises ApiError, Unable."""
        target, own_id = self.group.handles.target, f"tokenize-{uuid.uuid4().hex}"
        if (request.messages is None) == (request.prompt is None):
            raise refused("messages", "give either messages, a conversation, or prompt, a text.")
        if request.messages is None:
            return await target.tokenize(own_id, Prompt(""), request.prompt)
        return await target.tokenize(own_id, await self._reader.prompt(request.messages))

    async def answer(self, question: Question, key: str | None = None) -> Answering:
        """The answers to a question; work begins when their events are read.

        With a `key` (`retries.key_of`), a retry can find them. Raises ApiError (400) when the key was used for
        another question.
        """
        keeper = AnswerKeeper(self._answers, key)
        claim = await keeper.claim(question)
        kept = [Kept() for _ in range(question.num_choices)]
        if claim is not None:
            kept = claim.choices
            question = replace(
                question, id=claim.id, settings=question.settings.model_copy(update={"seed": claim.seed})
            )
        return Answering(question, self.group.handles, self.settings, self.queue, self.metrics, keeper, kept)

    async def check(self) -> tuple[Status, dict[Role, bool]]:
        """Whether the service can answer, and which actors are up; those that hang are restarted.

        Concurrent callers share one health call per actor. An actor that does not answer in time counts as down.
        """
        checks = {role: self._check_of(role) for role in self.group.infos}
        await asyncio.wait(checks.values(), timeout=SILENT_AFTER_S)
        up = {role: check.done() and check.result() for role, check in checks.items()}
        self.metrics.actors(up)
        if not up["target"]:
            return "unavailable", up
        return ("ok" if all(up.values()) else "degraded"), up

    def _check_of(self, role: Role) -> asyncio.Task[bool]:
        if role not in self._checks or self._checks[role].done():
            self._checks[role] = asyncio.create_task(self.group.check_one(role), name=f"check the {role}")
        return self._checks[role]


class Answering:
    """The answers to one question. `events` may be read once."""

    def __init__(
        self,
        question: Question,
        handles: Handles,
        settings: ServeSettings,
        queue: RequestQueue,
        metrics: Metrics,
        keeper: AnswerKeeper,
        kept: Sequence[Kept],
    ) -> None:
        self.question, self._handles, self._settings = question, handles, settings
        self._queue, self._metrics = queue, metrics
        self._keeper, self._kept = keeper, kept
        self._rule = rule_of(question.settings)
        self._load = Load(lambda: queue.num_running, settings.write_ahead_up_to, settings.draft_up_to)
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    async def events(self) -> AsyncGenerator[Event, None]:
        """All events until the last choice has ended.

        Raises:
            ApiError: the queue is full, an answer took too long, or a later request has taken over.
            ActorLost: the target was lost.
            TooLong: the answer exceeds the model's context.
            Unable: the models do not support the method.
        """
        self._queue.check(sum(kept.finished is None for kept in self._kept))
        names = [f"{self.question.id}/{choice}" for choice in range(self.question.num_choices)]
        tasks = [asyncio.create_task(self._answer(choice), name=name) for choice, name in enumerate(names)]
        try:
            open_choices = len(tasks)
            while open_choices:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                open_choices -= isinstance(event, Answered)
                yield event
        finally:
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, choice: int) -> None:
        text = AnswerSplitter(self._settings.thinks, self.question.stop)
        listener = _ChoiceListener(choice, text, self._events, self._keeper, len(self._kept[choice].steps))
        try:
            finished = self._kept[choice].finished
            if finished is None:
                finished = await self._run(choice, listener)
            else:
                for step in self._kept[choice].steps:
                    listener.commit(step)
        except asyncio.CancelledError:
            self._metrics.ended(self.question.settings.method, "cancelled")
            raise
        except Exception as error:
            self._metrics.ended(self.question.settings.method, "failed")
            self._events.put_nowait(error)
            return
        answered = Answered(choice, finished.trace, text.finish(), finished.queued_s, listener.reasoning_tokens)
        self._events.put_nowait(answered)

    async def _run(self, choice: int, listener: _ChoiceListener) -> Finished:
        arrived = time.monotonic()
        async with self._queue.slot(), self._deadline():
            queued_s = time.monotonic() - arrived
            trace = await self._trace(choice, listener.commit)
        finished = Finished(trace, queued_s)
        await self._keeper.finish(choice, finished)
        self._metrics.answered(trace, self._rule, queued_s)
        return finished

    async def _trace(self, choice: int, on_commit: OnCommit) -> Trace:
        question = self.question
        request = Request(
            question.prompt,
            question.settings.model_copy(update={"seed": question.settings.seed + choice}),
            f"{question.call_id}-{choice}",
            schema=question.schema,
            committed=tuple(self._kept[choice].steps),
            thinks=self._settings.thinks,
            logprobs=question.logprobs,
        )
        if not question.timeline:
            return await run(request, with_back_off(self._handles, self._load), on_commit)
        reporter = CallReporter(self._rule, lambda call: self._events.put_nowait(ActorWorked(choice, call)))
        try:
            return await run(request, with_back_off(reporter.wrap(self._handles), self._load), on_commit)
        finally:
            await reporter.settled()

    @asynccontextmanager
    async def _deadline(self) -> AsyncGenerator[None, None]:
        seconds = self._settings.request_deadline_s
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise ApiError(504, f"no answer within {seconds:g} s: ask for fewer tokens.", code="timeout") from None


class _ChoiceListener:
    """Turns the steps of one choice into events, and stores new steps for retries."""

    def __init__(
        self,
        choice: int,
        text: AnswerSplitter,
        events: asyncio.Queue[Event | Exception],
        keeper: AnswerKeeper,
        num_kept: int,
    ) -> None:
        self.text = text
        self.reasoning_tokens = 0
        self._choice, self._events, self._keeper, self._num_kept = choice, events, keeper, num_kept

    def commit(self, step: CommittedStep) -> bool:
        """See `OnCommit`: True when a stop string, or a later request for the same answer, ends this one."""
        piece = self.text.read(step.text, step.phase)
        if step.phase == "reasoning" or self.text.in_thought:
            self.reasoning_tokens += len(step.tokens)
        if step.index >= self._num_kept:
            self._keeper.append(self._choice, step)
        self._events.put_nowait(StepCommitted(self._choice, step, piece))
        return self.text.stopped or self._keeper.is_superseded
