"""Copies of a prompt that no engine can have cached: the same pixels, another `Prompt.key`."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from dreamr.actors.types import Prompt


def cold_copy(prompt: Prompt, mark: str) -> Prompt:
    """The prompt with each image stored anew, pixel for pixel, as a PNG file that carries `mark` as a text chunk.

    Engines share cached prefixes between prompts with equal keys, and the key is a digest of the images' bytes. A
    prompt without images comes back as it is: nothing but its text could be changed, and that would change the answer.
    """
    return replace(prompt, images=tuple(_marked(image, mark) for image in prompt.images))


def _marked(data: bytes, mark: str) -> bytes:
    info = PngInfo()
    info.add_text("dreamr", mark)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        # What the engines make of every image: upright RGB.
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()
