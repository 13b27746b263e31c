"""`Service`: one replica's pipelines over a group of actors, without HTTP."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from typing import Literal, Protocol

from dreamr.config import Config, PipelineSettings
from dreamr.errors import ActorLost, ConfigError
from dreamr.serve.admission import Admission
from dreamr.serve.answering import Answering
from dreamr.serve.errors import ApiError, refused, unavailable
from dreamr.serve.events import Question
from dreamr.serve.fetch import ImageFetcher
from dreamr.serve.images import ImageReader
from dreamr.serve.meters import Meters
from dreamr.serve.prompts import read_prompt
from dreamr.serve.schema import ChatRequest
from dreamr.tasks.images import cold_copy
from dreamr.types import EngineInfo, Prompt, Role
from pipelines import check
from pipelines.handles import Handles

Status = Literal["ok", "degraded", "unavailable"]

SILENT_AFTER_S = 4.0
"""An actor that says nothing for so long counts as away; when it is restarted is its group's affair."""


class Group(Protocol):
    """What is needed of an `ActorGroup`."""

    @property
    def handles(self) -> Handles: ...

    @property
    def infos(self) -> dict[Role, EngineInfo]: ...

    async def check_one(self, role: Role) -> bool: ...


class Service:
    """Reads requests and answers them. Use it from one event loop."""

    def __init__(self, group: Group, config: Config, fetcher: ImageFetcher | None = None) -> None:
        self.group, self.config, self.settings = group, config, config.serve.of_one_replica()
        self.meters = Meters()
        self.admission = Admission(
            self.settings.max_running, self.settings.max_queued, self.settings.queue_deadline_s, self.meters.load
        )
        self._images = ImageReader(self.settings.images, fetcher or ImageFetcher(self.settings.images))
        self._readers = asyncio.Semaphore(self.settings.max_running)
        self._checks: dict[Role, asyncio.Task[bool]] = {}

    async def read(self, request: ChatRequest) -> Question:
        """A request in our own words, with its prompt read by the target's processor.

        Raises:
            ApiError: something in it is refused, or there is no room for it, or the target is gone.
        """
        self._check_model(request.model)
        settings = self._settings(request)
        num_choices = request.n or 1
        if num_choices > self.settings.max_choices:
            raise refused("n", f"n = {num_choices} is too many; at most {self.settings.max_choices} are given.")
        if request.stream_options is not None and not request.stream:
            raise refused("stream_options", "stream_options belong to a stream: set stream as well, or leave them out.")
        self.admission.check(num_choices)  # before images are fetched and decoded for nothing
        # Our own id: actors are told by it what to stop, so two requests must never share one, whatever clients send.
        own_id = uuid.uuid4().hex
        async with self._readers:  # decoded images are large
            prompt = await read_prompt(request.messages, self.settings, self._images)
            if request.cold:
                prompt = await asyncio.to_thread(cold_copy, prompt, own_id)
        num_tokens = await self._count_tokens(own_id, prompt)
        return Question(own_id, prompt, num_tokens, settings, num_choices, tuple(request.stop or ()), request.timeline)

    def answer(self, question: Question) -> Answering:
        """Its events; nothing begins before they are read."""
        return Answering(question, self.group.handles, self.settings, self.admission, self.meters)

    async def check(self) -> tuple[Status, dict[Role, bool]]:
        """Whether the service can answer, and which actors are up; those that hang are restarted.

        Any number of callers share one question to each actor. Nobody waits for an actor that is silent: it is away.
        """
        checks = {role: self._checking(role) for role in self.group.infos}
        await asyncio.wait(checks.values(), timeout=SILENT_AFTER_S)
        up = {role: check.done() and check.result() for role, check in checks.items()}
        self.meters.actors(up)
        if not up["target"]:
            return "unavailable", up
        return ("ok" if all(up.values()) else "degraded"), up

    def _checking(self, role: Role) -> asyncio.Task[bool]:
        if role not in self._checks or self._checks[role].done():
            self._checks[role] = asyncio.create_task(self.group.check_one(role), name=f"check the {role}")
        return self._checks[role]

    def _check_model(self, model: str) -> None:
        if model != self.settings.model_name:
            name = self.settings.model_name
            raise ApiError(404, f"there is no model {model!r}; this is {name!r}.", "model", "model_not_found")

    def _settings(self, request: ChatRequest) -> PipelineSettings:
        own = self.config.pipeline
        if request.window is not None and request.window > self.settings.max_window:
            raise refused("window", f"window = {request.window} is too wide; at most {self.settings.max_window}.")
        temperature = own.temperature if request.temperature is None else request.temperature
        max_tokens = self._max_tokens(request)
        seed = request.seed
        if seed is None:
            seed = secrets.randbits(31) if temperature > 0 else own.seed
        changes = {
            "method": request.method,
            "alpha": request.alpha,
            "window": request.window,
            "top_p": request.top_p,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
            "max_step_tokens": min(own.max_step_tokens, max_tokens),
        }
        given = {name: value for name, value in changes.items() if value is not None}
        settings = own.model_copy(update=given)  # the schema has checked every value
        try:
            check(settings)
        except ConfigError as error:  # the server's verdict does not go with the method
            raise refused("method", f"method = '{request.method}' does not work on this server: {error}") from None
        return settings

    def _max_tokens(self, request: ChatRequest) -> int:
        if request.max_tokens and request.max_completion_tokens and request.max_tokens != request.max_completion_tokens:
            raise refused("max_tokens", "max_tokens and max_completion_tokens are the same thing: give one of them.")
        largest = self.config.pipeline.max_tokens
        asked = request.max_completion_tokens or request.max_tokens or largest
        if asked > largest:
            param = "max_tokens" if request.max_tokens else "max_completion_tokens"
            raise refused(param, f"{param} = {asked} is too many; this server gives at most {largest}.")
        return asked

    async def _count_tokens(self, own_id: str, prompt: Prompt) -> int:
        """Asks again when the target was lost meanwhile and came back."""
        target = self.group.handles.target
        try:
            try:
                return await target.count_tokens(f"{own_id}/count", prompt)
            except ActorLost:
                async with asyncio.timeout(self.settings.queue_deadline_s):
                    await target.transport.recovered()
                return await target.count_tokens(f"{own_id}/count", prompt)
        except ValueError as error:
            raise refused("messages", str(error)) from error
        except (ActorLost, TimeoutError) as error:
            raise unavailable("the target model does not answer at the moment: ask again later.") from error
