"""From a prompt to model inputs: chat template, tokenizer and image processor of one Qwen3-VL checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Qwen3VLProcessor

from dreamr.tasks.chat import ChatEncoder
from dreamr.tasks.images import open_images
from dreamr.types import Prompt, Tokens


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


class PromptEncoder(ChatEncoder):
    """Applies a Qwen3-VL checkpoint's image processor as well. Build it with an `ImageTextProcessor`."""

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Model inputs of `prompt`. Raises ValueError for control tokens in the question and unreadable images."""
        text = self.chat(prompt)
        images = open_images(prompt)
        inputs = self.processor(text=[text], images=images or None, return_tensors="pt")
        return EncodedPrompt(
            tokens=tuple(inputs["input_ids"][0].tolist()),
            token_types=inputs["mm_token_type_ids"],
            pixel_values=inputs.get("pixel_values"),
            image_grid=inputs.get("image_grid_thw"),
        )
