"""`EndpointAnswerer`: items answered by an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import openai
from PIL import Image, UnidentifiedImageError

from dreamr.config import PipelineSettings
from dreamr.errors import TooLong
from dreamr.eval.reply import Reply
from dreamr.types import Prompt

CONNECT_DEADLINE_S = 10.0


class EndpointAnswerer:
    """Use as `async with`, in one event loop."""

    asks_for_text = True

    def __init__(self, base_url: str, api_key: str, model: str | None, settings: PipelineSettings) -> None:
        """`model` None: the first one that the endpoint offers."""
        self._url, self._model, self._settings = base_url, model, settings
        timeout = openai.Timeout(settings.target_deadline_s, connect=CONNECT_DEADLINE_S)
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, timeout=timeout)

    async def __aenter__(self) -> EndpointAnswerer:
        """Find out whether somebody answers, and the name of the model. Raises ConnectionError."""
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
        """Raises ValueError for what the endpoint refuses as a bad request, and openai.OpenAIError for a loss."""
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
        with Image.open(io.BytesIO(image)) as opened:
            kind = Image.MIME.get(opened.format or "", "image/png")
    except UnidentifiedImageError as error:
        raise ValueError(f"an image of the row ({len(image)} bytes) cannot be read") from error
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def _reason(error: openai.OpenAIError) -> str:
    if isinstance(error, openai.AuthenticationError):
        return "the API key is refused; set OPENAI_API_KEY."
    if isinstance(error, openai.APIConnectionError):
        return "nobody answers there; start the server or correct the address, which ends in /v1."
    return str(error)
