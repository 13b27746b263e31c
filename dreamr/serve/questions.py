"""Converts a client's request to a `Question`, and checks prompt, settings and limits before it takes a queue slot."""

from __future__ import annotations

import asyncio
import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dreamr.config import Config, PipelineSettings
from dreamr.config.serve import ServeSettings
from dreamr.engines.grammar import check_schema
from dreamr.errors import ActorLost, ConfigError, TooLong
from dreamr.serve.errors import ApiError, refused, shortened, unavailable
from dreamr.serve.images import ImageReader
from dreamr.serve.schema import (
    ChatRequest,
    ImagePart,
    JsonObject,
    JsonSchemaFormat,
    Message,
    ResponseFormat,
    UserMessage,
)
from dreamr.tasks.images import cold_copy
from dreamr.types import EngineInfo, Prompt, Turn
from pipelines import check
from pipelines.handles import Writer


@dataclass(frozen=True, slots=True)
class Question:
    """A request in the form that the pipeline takes."""

    id: str
    """The request id in replies and logs."""
    prompt: Prompt
    prompt_tokens: int
    settings: PipelineSettings
    """Settings of the first choice; each further one has the next seed."""
    num_choices: int = 1
    stop: tuple[str, ...] = ()
    timeline: bool = False
    """Report the calls of the actors as well."""
    schema: str | None = None
    """A JSON schema, as text, that the answer follows."""
    logprobs: bool = False
    """Report the log-probability of every token."""
    call_id: str = ""
    """Prefix of the call ids. Unique even if clients repeat request ids, since calls are stopped by id."""
    content_key: str = ""
    """Digest of the conversation as the client sent it."""


EFFORTS = {"none": 0.0, "minimal": 1 / 8, "low": 1 / 4, "medium": 1 / 2}
"""Share of `max_tokens` that the chain of thought may have, by `reasoning_effort`; higher efforts set no limit."""

MAX_SCHEMA_CHARS = 65_536
ANY_OBJECT = '{"type": "object"}'


def no_such_model(asked: str, served: str) -> ApiError:
    """404."""
    message = f"there is no model {shortened(asked, 64)!r}; this server has {served!r}."
    return ApiError(404, message, "model", "model_not_found")


class QuestionReader:
    """Reads requests under the limits of one server."""

    def __init__(self, config: Config, settings: ServeSettings, images: ImageReader) -> None:
        self._pipeline, self._settings, self._images = config.pipeline, settings, images
        self._slots = asyncio.Semaphore(settings.max_running)  # decoded images are large

    async def read(self, request: ChatRequest, target: Writer, info: EngineInfo) -> Question:
        """Convert a request; its prompt is encoded by the target's processor.

        `info` is the target's: prompt and answer share its context, and its checkpoint may recommend a sampling.

        Raises:
            ApiError: something in it is refused, or the target was lost.
            TooLong: the prompt leaves no token for the answer.
        """
        settings = self._pipeline_settings(request, info.recommended)
        schema = await _schema(request.response_format)
        num_choices = self.num_choices(request)
        own_id = uuid.uuid4().hex
        prompt = await self.prompt(request.messages)
        content_key = prompt.key
        if request.cold:
            prompt = await self.cold(prompt, own_id)
        num_tokens = await self._count_tokens(target, own_id, prompt)
        if info.max_positions:
            settings = _within_context(settings, num_tokens, info.max_positions)
        stop = tuple(request.stop or ())
        return Question(
            id=own_id,
            prompt=prompt,
            prompt_tokens=num_tokens,
            settings=settings,
            num_choices=num_choices,
            stop=stop,
            timeline=request.timeline,
            schema=schema,
            logprobs=bool(request.logprobs),
            call_id=own_id,
            content_key=content_key,
        )

    def num_choices(self, request: ChatRequest) -> int:
        """Number of answers that the request asks for. Raises ApiError (400)."""
        number, largest = request.n or 1, self._settings.max_choices
        if number > largest:
            raise refused("n", f"n = {number} is too many; at most {largest} are given.")
        return number

    # -- settings --------------------------------------------------------------------------------------------------

    def _pipeline_settings(self, request: ChatRequest, recommended: Mapping[str, float]) -> PipelineSettings:
        """The server's own settings, changed by those of the request. Raises ApiError (400, 404)."""
        own, name = self._pipeline.with_recommended(recommended), self._settings.model_name
        if request.model != name:
            raise no_such_model(request.model, name)
        if request.window is not None and request.window > self._settings.max_window:
            raise refused("window", f"window = {request.window} is too wide; at most {self._settings.max_window}.")
        if request.stream_options is not None and not request.stream:
            raise refused("stream_options", "stream_options belong to a stream: set stream as well, or leave them out.")
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
            "top_k": request.top_k and max(request.top_k, 0),
            "min_p": request.min_p,
            "thinking_budget": _thinking_budget(request, max_tokens),
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
            "max_step_tokens": min(own.max_step_tokens, max_tokens),
        }
        given = {name: value for name, value in changes.items() if value is not None}
        settings = own.model_copy(update=given)  # the schema has checked every value
        try:
            check(settings)
        except ConfigError as error:  # the method cannot use the configured kind of verdict
            raise refused("method", f"method = '{request.method}' does not work on this server: {error}") from None
        return settings

    def _max_tokens(self, request: ChatRequest) -> int:
        if request.max_tokens and request.max_completion_tokens and request.max_tokens != request.max_completion_tokens:
            raise refused("max_tokens", "max_tokens and max_completion_tokens mean the same: give one of them.")
        largest = self._pipeline.max_tokens
        asked = request.max_completion_tokens or request.max_tokens or largest
        if asked > largest:
            param = "max_tokens" if request.max_tokens else "max_completion_tokens"
            raise refused(param, f"{param} = {asked} is too many; this server gives at most {largest}.")
        return asked

    # -- prompt ----------------------------------------------------------------------------------------------------

    async def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The conversation; its last message, a user's, is the question. Raises ApiError (400)."""
        async with self._slots:
            return await asyncio.to_thread(_with_key, await self._conversation(messages))

    async def cold(self, prompt: Prompt, mark: str) -> Prompt:
        """A copy that no prefix cache holds."""
        async with self._slots:
            return await asyncio.to_thread(lambda: _with_key(cold_copy(prompt, mark)))

    async def _conversation(self, messages: Sequence[Message]) -> Prompt:
        last = messages[-1]
        if not isinstance(last, UserMessage):
            raise refused("messages", "the last message must be the user's.")
        self._check_sizes(messages)
        turns = [Turn(_role(message), _text(message), len(_image_urls(message))) for message in messages]
        if not turns[-1].text.strip():
            raise refused(f"messages.{len(messages) - 1}.content", "the last message asks nothing: it needs a text.")
        files = [
            await self._images.read(url, f"messages.{number}.content.{part}.image_url.url")
            for number, message in enumerate(messages)
            for part, url in _image_urls(message)
        ]
        return Prompt(turns[-1].text, tuple(files), tuple(turns[:-1]))

    def _check_sizes(self, messages: Sequence[Message]) -> None:
        limits = self._settings
        counts = {
            "messages": (len(messages), limits.max_messages),
            "characters": (sum(len(_text(message)) for message in messages), limits.max_text_chars),
            "images": (sum(len(_image_urls(message)) for message in messages), limits.images.max_images),
        }
        for name, (number, largest) in counts.items():
            if number > largest:
                raise refused("messages", f"{number} {name} are too many; at most {largest} are allowed.")

    async def _count_tokens(self, target: Writer, own_id: str, prompt: Prompt) -> int:
        """Length of the prompt; asked again when the target was lost and has been restarted."""
        try:
            try:
                return await target.count_tokens(f"{own_id}/count", prompt)
            except ActorLost:
                async with asyncio.timeout(self._settings.queue_deadline_s):
                    await target.transport.recovered()
                return await target.count_tokens(f"{own_id}/count", prompt)
        except TooLong:
            raise
        except ValueError as error:
            raise refused("messages", str(error)) from error
        except (ActorLost, TimeoutError) as error:
            raise unavailable("the target model does not answer at the moment: ask again later.") from error


def _thinking_budget(request: ChatRequest, max_tokens: int) -> int | None:
    """The smallest of the budgets that the request gives; None without any."""
    options = request.chat_template_kwargs
    budgets = [request.thinking_token_budget]
    if request.reasoning_effort in EFFORTS:
        budgets.append(int(EFFORTS[request.reasoning_effort] * max_tokens))
    if request.enable_thinking is False or (options is not None and options.enable_thinking is False):
        budgets.append(0)
    return min((budget for budget in budgets if budget is not None), default=None)


async def _schema(response_format: ResponseFormat | None) -> str | None:
    """The JSON schema of the answer, as text. Raises ApiError (400) for one that cannot be followed."""
    match response_format:
        case JsonObject():
            return ANY_OBJECT
        case JsonSchemaFormat(json_schema=asked):
            schema = json.dumps(asked.document)
            if len(schema) > MAX_SCHEMA_CHARS:
                raise refused("response_format", f"the schema is longer than {MAX_SCHEMA_CHARS} characters.")
            try:
                await asyncio.to_thread(check_schema, schema)
            except ValueError as error:
                said = shortened(str(error), 200)
                raise refused("response_format", f"this JSON schema cannot be followed: {said}.") from None
            return schema
        case _:
            return None


def _within_context(settings: PipelineSettings, prompt_tokens: int, max_positions: int) -> PipelineSettings:
    """The settings, `max_tokens` limited to the model's context. Raises TooLong."""
    if prompt_tokens >= max_positions:
        raise TooLong(
            f"the prompt has {prompt_tokens} tokens, but prompt and answer together may have {max_positions}: "
            "shorten the conversation or shrink the images."
        )
    return settings.model_copy(update={"max_tokens": min(settings.max_tokens, max_positions - prompt_tokens)})


def _with_key(prompt: Prompt) -> Prompt:
    """The prompt, with its digest computed, which takes a while for large images."""
    assert prompt.key
    return prompt


def _role(message: Message) -> Literal["system", "user", "assistant"]:
    return "system" if message.role == "developer" else message.role


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content or () if not isinstance(part, ImagePart))


def _image_urls(message: Message) -> list[tuple[int, str]]:
    """(number of the part, URL)"""
    if not isinstance(message, UserMessage) or isinstance(message.content, str):
        return []
    return [(number, part.image_url.url) for number, part in enumerate(message.content) if isinstance(part, ImagePart)]
