"""Answerers of benchmark items: a schedule over actors, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from PIL import UnidentifiedImageError

from dreamr.config import PipelineSettings
from dreamr.errors import TooLong
from dreamr.tasks.images import data_url
from dreamr.types import Prompt
from pipelines import Request, run
from pipelines.handles import Handles

if TYPE_CHECKING:
    from openai import OpenAIError

CONNECT_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply to one item. Counts that an endpoint does not report are 0."""

    text: str
    truncated: bool
    """The budget of tokens, or a loop, ended it."""
    wall_s: float
    num_tokens: int = 0
    num_judged: int = 0
    num_accepted: int = 0
    num_steps: int = 0
    num_draft_steps: int = 0
    """Committed steps that the draft wrote."""
    refusal: str = ""
    """Why the model could not take this prompt, in one sentence; there is no text then."""


class Answerer(Protocol):
    """Answers prompts; several may be open at the same time."""

    asks_for_text: bool
    """The prompt has to say how to give the final answer, since no prompt configuration does."""

    async def answer(self, prompt: Prompt) -> Reply:
        """Raises TooLong and other kinds of ValueError for errors of this prompt; other errors mean that the model was
        lost."""
        ...


class PipelineAnswerer:
    """A schedule over actors."""

    asks_for_text = False

    def __init__(self, handles: Handles, settings: PipelineSettings) -> None:
        self._handles, self._settings = handles, settings

    async def answer(self, prompt: Prompt) -> Reply:
        trace = await run(Request(prompt, self._settings), self._handles)
        return Reply(
            text=trace.text,
            truncated=trace.truncated,
            wall_s=trace.wall_s,
            num_tokens=len(trace.tokens),
            num_judged=trace.num_judged,
            num_accepted=trace.num_accepted,
            num_steps=len(trace.steps),
            num_draft_steps=sum(step.source == "draft" for step in trace.steps),
        )


class EndpointAnswerer:
    """An OpenAI-compatible endpoint. Use as `async with`, in one event loop."""

    asks_for_text = True

    def __init__(self, base_url: str, api_key: str, model: str | None, settings: PipelineSettings) -> None:
        """`model` None: the first one that the endpoint offers."""
        import openai

        self._url, self._model, self._settings = base_url, model, settings
        timeout = openai.Timeout(settings.target_deadline_s, connect=CONNECT_DEADLINE_S)
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=timeout)

    async def __aenter__(self) -> EndpointAnswerer:
        """Check that the endpoint answers, and find the name of the model. Raises ConnectionError."""
        import openai

        try:
            offered = [model.id for model in (await self._client.models.list()).data]
        except openai.OpenAIError as error:
            await self._client.close()
            raise ConnectionError(f"--base-url {self._url}: {_reason(error)}") from error
        if self._model not in {None, *offered} or not offered:
            await self._client.close()
            raise ConnectionError(f"--model {self._model}: the endpoint offers {', '.join(offered) or 'none'}.")
        self._model = self._model or offered[0]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def answer(self, prompt: Prompt) -> Reply:
        """Raises ValueError for a request that the endpoint refuses, and openai.OpenAIError for a loss."""
        import openai

        settings, began = self._settings, time.monotonic()
        parts: list[Any] = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in prompt.images]
        parts.append({"type": "text", "text": prompt.question})
        try:
            done = await self._client.chat.completions.create(
                model=self._model or "",
                messages=[{"role": "user", "content": parts}],
                max_completion_tokens=settings.max_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=settings.seed,
            )
        except openai.BadRequestError as error:
            kind = TooLong if error.code == "context_length_exceeded" else ValueError
            raise kind(f"the endpoint refuses the row: {error.message}") from error
        choice = done.choices[0]
        return Reply(
            text=choice.message.content or "",
            truncated=choice.finish_reason == "length",
            wall_s=time.monotonic() - began,
            num_tokens=done.usage.completion_tokens if done.usage else 0,
        )


def _data_url(image: bytes) -> str:
    try:
        return data_url(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"an image of the row ({len(image)} bytes) cannot be read") from error


def _reason(error: OpenAIError) -> str:
    import openai

    if isinstance(error, openai.AuthenticationError):
        return "the API key is refused; set OPENAI_API_KEY."
    if isinstance(error, openai.APIConnectionError):
        return "no server answers there; start it or correct the address, which ends in /v1."
    return str(error)
