"""Images of a request: from data URL or allowed host to checked bytes. Nothing is decoded before its size is known."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re

from PIL import Image

from dreamr.config.serve import ImageLimits
from dreamr.serve.errors import ApiError, refused
from dreamr.serve.fetch import ImageFetcher

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


class ImageReader:
    """Reads the images of requests. Raises ApiError (400) that names the part."""

    def __init__(self, limits: ImageLimits, fetcher: ImageFetcher) -> None:
        self._limits, self._fetcher = limits, fetcher

    async def read(self, url: str, param: str) -> bytes:
        """The encoded image file."""
        data = self._decoded(url, param) if url[:5].lower() == "data:" else await self._fetcher.fetch(url, param)
        if len(data) > self._limits.max_bytes:
            raise refused(param, f"the image has {len(data)} bytes; at most {self._limits.max_bytes} are taken.")
        await asyncio.to_thread(check_image, data, self._limits.max_pixels, param)
        return data

    def _decoded(self, url: str, param: str) -> bytes:
        head = _DATA_URL.match(url)
        if head is None:
            raise refused(param, "a data URL must begin with data:image/<type>;base64, as in data:image/png;base64,...")
        if len(url) > self._limits.max_bytes * 4 // 3 + 128:
            raise refused(param, f"the image is too large; at most {self._limits.max_bytes} bytes are taken.")
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise refused(param, "the data URL is not valid base64.") from None


def check_image(data: bytes, max_pixels: int, param: str) -> None:
    """Raises ApiError (400) unless `data` is a whole image of a known format and size."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise refused(
                    param, f"the image has {image.width} x {image.height} pixels; at most {max_pixels} are taken."
                )
            if getattr(image, "n_frames", 1) > 1:
                raise refused(param, "the image moves; send one of its frames.")
            image.load()
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise refused(param, f"the image has too many pixels; at most {max_pixels} are taken.") from None
    except Exception:  # there is no end to what decoders raise for broken files
        raise refused(param, f"the image cannot be read; send a whole file of {', '.join(FORMATS)}.") from None
