"""From a prompt to model inputs: chat template, tokenizer and image processor of one Qwen3-VL checkpoint."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import PreTrainedTokenizerFast, Qwen3VLProcessor

from dreamr.actors.types import Prompt, Tokens
from dreamr.tasks.prompts import PromptConfig, chat_messages, same_chat, score_turn, verdict_turn


class ImageTextProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without the video part, which needs torchvision.

    `AutoProcessor` silently returns a bare tokenizer where torchvision is missing; this class's `from_pretrained` does
    not, and takes the same folders and hub ids.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        template = chat_template or tokenizer.chat_template
        super().__init__(image_processor, tokenizer, None, chat_template=template)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One prompt as model inputs; the tensors are torch's, on the CPU."""

    tokens: Tokens
    token_types: Any
    """(1, num_tokens): 1 at image tokens, else 0."""
    pixel_values: Any | None
    """(num_patches, patch_dim); None without images."""
    image_grid: Any | None
    """(num_images, 3): frames, rows and columns of patches."""


class PromptEncoder:
    """Applies one checkpoint's chat template, tokenizer and image processor under one `PromptConfig`.

    Raises ValueError at construction when a verdict word is not exactly one token.
    """

    def __init__(self, processor: ImageTextProcessor, config: PromptConfig) -> None:
        self.config = config
        self.tokenizer = cast(PreTrainedTokenizerFast, processor.tokenizer)
        self._processor = processor
        self._control_tokens = [str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        self.verdict_turn: Tokens = tuple(self._ids(verdict_turn(config)))
        self.score_turn: Tokens = tuple(self._ids(score_turn(config)))
        self.verdict_words = (
            self._word_id("positive verdict", config.positive),
            self._word_id("negative verdict", config.negative),
        )
        """Token ids of the words for a good and a bad step."""

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Model inputs of `prompt`. Raises ValueError for control tokens in the question and unreadable images."""
        for text in (prompt.question, *(turn.text for turn in prompt.earlier)):
            for token in self._control_tokens:
                if token in text:
                    raise ValueError(f"the question contains {token!r}, a control token of the model: remove it")
        images = [open_image(data, number) for number, data in enumerate(prompt.images, start=1)]
        chat = self._processor.apply_chat_template(
            chat_messages(prompt, self.config), tokenize=False, add_generation_prompt=True
        )
        text = chat + self.config.generation_suffix
        inputs = self._processor(text=[text], images=images or None, return_tensors="pt")
        return EncodedPrompt(
            tokens=tuple(inputs["input_ids"][0].tolist()),
            token_types=inputs["mm_token_type_ids"],
            pixel_values=inputs.get("pixel_values"),
            image_grid=inputs.get("image_grid_thw"),
        )

    @cached_property
    def digits(self) -> Tokens:
        """Token ids of "0" to "9". Raises ValueError when one is not exactly one token."""
        return tuple(self._word_id("score", str(digit)) for digit in range(10))

    def same_chat(self, first: str, second: str) -> Tokens:
        """The chat, text alone, that asks whether two steps mean the same."""
        return tuple(self._ids(same_chat(self.config, first, second)))

    def text(self, text: str) -> Tokens:
        """Plain text as tokens, without any chat around it."""
        return tuple(self._ids(text))

    def decode(self, tokens: Tokens) -> str:
        """Text of generated tokens, without control tokens."""
        return cast(
            str, self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _ids(self, text: str) -> list[int]:
        return cast(list[int], self.tokenizer.encode(text, add_special_tokens=False))

    def _word_id(self, field: str, word: str) -> int:
        ids = self._ids(word)
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise ValueError(
                f"the {field} word {word!r} is {len(ids)} tokens {ids} of this tokenizer, not one known token: "
                f"choose another word in the prompt settings"
            )
        return ids[0]


def open_image(data: bytes, number: int) -> Image.Image:
    """Decode one image file, upright and in RGB. Raises ValueError that names the image by its `number`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {number} of the prompt cannot be read ({len(data)} bytes): {error}") from error
