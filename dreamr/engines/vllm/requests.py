"""`VLLMInput`: prompts as vLLM's input; images are decoded once per prompt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache
from PIL import Image

from dreamr.errors import TooLong
from dreamr.tasks.chat import ChatEncoder
from dreamr.tasks.images import open_images
from dreamr.types import Prompt, Tokens

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

MAX_PROMPTS = 32
"""Prompts whose decoded images are kept."""


class VLLMInput:
    """Renders for one started vLLM. All methods belong to one event loop."""

    def __init__(self, llm: AsyncLLM, chat: ChatEncoder) -> None:
        self._llm, self._chat = llm, chat
        self.max_positions: int = llm.model_config.max_model_len
        self._images: LRUCache[str, list[Image.Image]] = LRUCache(MAX_PROMPTS)
        """Decoded images by prompt key: vLLM keeps what it made of them, but wants to see them again."""

    async def of(self, prompt: Prompt, suffix: Tokens) -> Any:
        """vLLM's input for prompt and suffix: images are decoded and processed once per prompt, then known by key.

        Raises TooLong when the model cannot go on from there.
        """
        tokens: dict[str, Any] = {"prompt_token_ids": [*self._chat.ids(self._chat.chat(prompt)), *suffix]}
        if prompt.images:
            images = await self._opened(prompt)
            tokens["multi_modal_data"] = {"image": images}
            tokens["multi_modal_uuids"] = {"image": [f"{prompt.key}/{number}" for number in range(len(images))]}
        return await self.checked(tokens)

    async def checked(self, tokens: Any) -> Any:
        """Tokens, perhaps with images, as rendered by vLLM. Raises TooLong for more than the model takes."""
        if len(tokens["prompt_token_ids"]) >= self.max_positions:
            raise self._too_long(len(tokens["prompt_token_ids"]))
        [rendered] = await self._llm.renderer.render_cmpl_async([tokens])
        if len(rendered["prompt_token_ids"]) >= self.max_positions:  # the images have their full length now
            raise self._too_long(len(rendered["prompt_token_ids"]))
        return rendered

    async def _opened(self, prompt: Prompt) -> list[Image.Image]:
        if prompt.key not in self._images:
            self._images[prompt.key] = await asyncio.to_thread(open_images, prompt)
        return self._images[prompt.key]

    def _too_long(self, num_tokens: int) -> TooLong:
        return TooLong(
            f"prompt and prefix have {num_tokens} tokens, but the model takes fewer than {self.max_positions}: "
            f"shorten the question, shrink the images or lower max_tokens"
        )
