"""Images of prompts: reading, decoding as for every engine, and copies that no engine has cached."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from dreamr.types import Prompt

ImageSource = str | Path | bytes | Image.Image


def read_image(source: ImageSource) -> bytes:
    """An encoded image file that can be decoded. Raises ValueError in one sentence."""
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        source.save(file, format="PNG")
        return file.getvalue()
    name = f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file; give the path of a PNG, JPEG or WebP file.") from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror}); give the path of an image file.") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: has too many pixels; make it smaller.") from error
    except (OSError, SyntaxError, ValueError) as error:  # what PIL's decoders raise for broken files
        raise ValueError(f"{name}: is not an image that can be read; give a whole PNG or JPEG file.") from error
    return data


def open_images(prompt: Prompt) -> list[Image.Image]:
    """The images of a prompt, decoded. Raises ValueError that names the first one that cannot be read."""
    return [open_image(data, number) for number, data in enumerate(prompt.images, start=1)]


def open_image(data: bytes, number: int) -> Image.Image:
    """Decode one image file, upright and in RGB. Raises ValueError that names the image by its `number`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {number} of the prompt cannot be read ({len(data)} bytes): {error}") from error


def data_url(data: bytes) -> str:
    """An image file as a data URL, which is how clients send it to an endpoint."""
    with Image.open(io.BytesIO(data)) as image:
        kind = image.get_format_mimetype() or "image/png"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def cold_copy(prompt: Prompt, mark: str) -> Prompt:
    """The prompt with each image encoded again, pixel for pixel, as a PNG file that carries `mark` as a text chunk.

    Engines share cached prefixes between prompts with equal keys, and the key is a digest of the images' bytes. A
    prompt without images is returned unchanged: only its text could be changed, which would change the answer.
    """
    return replace(prompt, images=tuple(_marked(image, mark) for image in prompt.images))


def _marked(data: bytes, mark: str) -> bytes:
    info = PngInfo()
    info.add_text("dreamr", mark)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        # As the engines decode every image: upright RGB.
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()
