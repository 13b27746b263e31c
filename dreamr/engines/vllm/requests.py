"""`Requests`: prompts rendered as vLLM's input, and sent; images are decoded once per prompt.

    prompt + tokens ── render ──▶ Rendered ── send ──▶ stream of outputs
                          │                     ▲ once more, rendered afresh, when vLLM has lost an image
                          └── images: processed once, then sent as their key

vLLM keeps two caches of images: the sender's, which records the images of the engine process, and the engine
process's own. Rendering records an image as sent, even if the request is then stopped, cancelled or too long. The next
request with that image is sent without it, and ends with an error before its first token.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache
from PIL import Image

from dreamr.engines.base import EngineDied
from dreamr.errors import TooLong
from dreamr.tasks.chat import ChatEncoder
from dreamr.tasks.images import open_images
from dreamr.types import Priority, Prompt, Tokens

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

MAX_PROMPTS = 32
"""Number of prompts whose decoded images are kept."""
MAX_COUNTS = 1024
PRIORITIES: dict[Priority, int] = {"needed": 0, "speculative": 1}
"""vLLM starts waiting requests with a smaller number first, and preempts those with a larger one."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One request's input."""

    tokens: dict[str, Any]
    """The input before rendering."""
    input: Any
    """The rendered input for vLLM."""

    @property
    def num_tokens(self) -> int:
        """Length of the prompt, images at their full length."""
        return len(self.input["prompt_token_ids"])


class Requests:
    """Renders and sends for one started vLLM. All methods belong to one event loop."""

    def __init__(self, llm: AsyncLLM, chat: ChatEncoder) -> None:
        self._llm, self._chat = llm, chat
        self.max_positions: int = llm.model_config.max_model_len
        self.num_running = 0
        self.num_cached_tokens = 0
        """How many tokens of the request that began last were found in the prefix cache."""
        self.last_output = time.monotonic()
        self.may_begin = asyncio.Event()
        """Cleared while weights are replaced."""
        self.may_begin.set()
        self._images: LRUCache[str, list[Image.Image]] = LRUCache(MAX_PROMPTS)
        """Decoded images by prompt key: vLLM caches processed images, but needs the decoded ones with each request."""
        self._counts: LRUCache[str, int] = LRUCache(MAX_COUNTS)
        self._numbers = itertools.count()

    async def of(self, prompt: Prompt, suffix: Tokens) -> Rendered:
        """A prompt and tokens after it. Raises TooLong when the model cannot continue from there."""
        return await self._rendered(await self._tokens(prompt, suffix))

    async def of_text(self, tokens: Tokens) -> Rendered:
        """Tokens alone. Raises TooLong."""
        return await self._rendered({"prompt_token_ids": list(tokens)})

    async def count(self, prompt: Prompt) -> int:
        """Length of the prompt. Raises TooLong."""
        if prompt.key not in self._counts:
            self._counts[prompt.key] = len(await self.prompt_tokens(prompt))
        return self._counts[prompt.key]

    async def prompt_tokens(self, prompt: Prompt) -> Tokens:
        """Tokens of the prompt, images at their full length. Raises TooLong."""
        # No request follows, so the images must not be recorded as sent.
        rendered = await self._rendered(await self._tokens(prompt, ()), is_sent=False)
        return tuple(rendered.input["prompt_token_ids"])

    async def outputs(
        self, call_id: str, rendered: Rendered, params: SamplingParams, priority: Priority = "needed"
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's answer to one request, which is aborted when this generator is closed early.

        A request that ends with an error before its first output is sent once more, images and all.
        """
        for is_last in (False, True):
            has_begun = False
            async with aclosing(self._sent(call_id, rendered, params, priority)) as outputs:
                async for output in outputs:
                    if output.outputs[0].finish_reason == "error":
                        break
                    has_begun = True
                    yield output
                else:
                    return
            if is_last or has_begun:
                raise RuntimeError(f"vLLM ended the request {call_id!r} with an error; its own messages name the cause")
            rendered = await self._rendered(rendered.tokens, is_sent=False)

    async def _sent(
        self, call_id: str, rendered: Rendered, params: SamplingParams, priority: Priority
    ) -> AsyncGenerator[RequestOutput, None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        while not self.may_begin.is_set():
            await self.may_begin.wait()
        self.num_running += 1
        request_id = f"{call_id}/{next(self._numbers)}"
        try:
            stream = self._llm.generate(rendered.input, params, request_id, priority=PRIORITIES[priority])
            async with aclosing(stream):
                async for output in stream:
                    self.last_output = time.monotonic()
                    self.num_cached_tokens = output.num_cached_tokens or 0
                    yield output
        except EngineDeadError as error:
            raise EngineDied("vLLM's own process has died") from error
        finally:
            self.num_running -= 1

    async def _tokens(self, prompt: Prompt, suffix: Tokens) -> dict[str, Any]:
        tokens: dict[str, Any] = {"prompt_token_ids": [*self._chat.ids(self._chat.chat(prompt)), *suffix]}
        if prompt.images:
            images = await self._opened(prompt)
            tokens["multi_modal_data"] = {"image": images}
            tokens["multi_modal_uuids"] = {"image": [f"{prompt.key}/{number}" for number in range(len(images))]}
        return tokens

    async def _rendered(self, tokens: dict[str, Any], *, is_sent: bool = True) -> Rendered:
        """`is_sent` False: the images are part of the input in any case, and the sender's cache stays as it is."""
        if len(tokens["prompt_token_ids"]) >= self.max_positions:
            raise self._too_long(len(tokens["prompt_token_ids"]))
        [rendered] = await self._llm.renderer.render_cmpl_async([tokens], skip_mm_cache=not is_sent)
        if len(rendered["prompt_token_ids"]) >= self.max_positions:  # the images have their full length now
            raise self._too_long(len(rendered["prompt_token_ids"]))
        return Rendered(tokens, rendered)

    async def _opened(self, prompt: Prompt) -> list[Image.Image]:
        if prompt.key not in self._images:
            self._images[prompt.key] = await asyncio.to_thread(open_images, prompt)
        return self._images[prompt.key]

    def _too_long(self, num_tokens: int) -> TooLong:
        return TooLong(
            f"prompt and prefix have {num_tokens} tokens, but the model takes fewer than {self.max_positions}: "
            f"shorten the question, shrink the images or lower max_tokens"
        )
