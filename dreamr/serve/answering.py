"""`Answering`: the choices of one request, each a run of the pipeline, as one stream of events.

choice 0: place in line ─▶ pipelines.run ─ on_commit ─▶┐
choice 1: place in line ─▶ pipelines.run ─ on_commit ─▶┴▶ queue ─▶ events() ─▶ HTTP
                                                                   │ closed early (client gone, a choice failed):
tasks cancelled and awaited: nothing is left at the actors ◀───────┘
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from dreamr.config.serve import ServeSettings
from dreamr.serve.admission import Admission
from dreamr.serve.answer import AnswerReader
from dreamr.serve.errors import ApiError
from dreamr.serve.events import ActorWorked, Answered, Event, Question, StepCommitted
from dreamr.serve.live import Watch
from dreamr.serve.meters import Meters
from dreamr.serve.sharing import Load, shared
from pipelines import OnCommit, Request, Trace, rule_of, run
from pipelines.handles import Handles
from pipelines.trace import CommittedStep


class Answering:
    """One request. `events` may be read once."""

    def __init__(
        self, question: Question, handles: Handles, settings: ServeSettings, admission: Admission, meters: Meters
    ) -> None:
        self._question, self._handles, self._settings = question, handles, settings
        self._admission, self._meters = admission, meters
        self._rule = rule_of(question.settings)
        self._load = Load(lambda: admission.num_running, settings.write_ahead_up_to, settings.draft_up_to)
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything until the last choice has ended.

        Raises:
            ApiError: no place in line, or not answered in time.
            ActorLost: the target is gone.
            TooLong: the answer has outgrown the model.
            Unable: the models cannot do the method.
        """
        self._admission.check(self._question.num_choices)
        names = [f"{self._question.id}/{choice}" for choice in range(self._question.num_choices)]
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
        text = AnswerReader(self._settings.thinks, self._question.stop)
        listener = _ChoiceListener(choice, text, self._events)
        arrived = time.monotonic()
        try:
            async with self._admission.place(), self._deadline():
                queued_s = time.monotonic() - arrived
                trace = await self._run(choice, listener.commit)
        except asyncio.CancelledError:
            self._meters.ended(self._question.settings.method, "cancelled")
            raise
        except Exception as error:
            self._meters.ended(self._question.settings.method, "failed")
            self._events.put_nowait(error)
            return
        self._meters.answered(trace, self._rule, queued_s)
        self._events.put_nowait(Answered(choice, trace, text.finish(), queued_s, listener.reasoning_tokens))

    async def _run(self, choice: int, on_commit: OnCommit) -> Trace:
        question = self._question
        settings = question.settings.model_copy(update={"seed": question.settings.seed + choice})
        request = Request(question.prompt, settings, f"{question.id}-{choice}")
        if not question.watched:
            return await run(request, shared(self._handles, self._load), on_commit)
        watch = Watch(self._rule, lambda what: self._events.put_nowait(ActorWorked(choice, what)))
        try:
            return await run(request, shared(watch.over(self._handles), self._load), on_commit)
        finally:
            await watch.settled()

    @asynccontextmanager
    async def _deadline(self) -> AsyncGenerator[None, None]:
        seconds = self._settings.request_deadline_s
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise ApiError(504, f"no answer within {seconds:g} s: ask for fewer tokens.", code="timeout") from None


class _ChoiceListener:
    """Makes events of the steps of one choice."""

    def __init__(self, choice: int, text: AnswerReader, events: asyncio.Queue[Event | Exception]) -> None:
        self.text = text
        self.reasoning_tokens = 0
        self._choice, self._events = choice, events

    def commit(self, step: CommittedStep) -> bool:
        """Listen to a step; True when the answer is complete."""
        piece = self.text.read(step.text)
        if self.text.in_thought:
            self.reasoning_tokens += len(step.tokens)
        self._events.put_nowait(StepCommitted(self._choice, step, piece))
        return self.text.stopped
