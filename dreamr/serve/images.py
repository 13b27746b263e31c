"""Images of a request: from a data URL or an allowed host to checked bytes.

Nothing is decoded before its size is known. http(s) URLs must not become a way into the network of this server:

    URL ──parse once (yarl)──▶ scheme, host and port allowed? ──▶ resolve ──▶ public address? ──▶ connect to
                                       │ no: 400                        every address, at connect time   exactly that

The library that connects also parses the URL, so no second parser can read another host out of it. Addresses are
checked when the connection is made: a name that resolves to another address a moment later is refused as well.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import ipaddress
import re
import socket
from collections.abc import Callable

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image
from yarl import URL

from dreamr.config.serve import ImageLimits
from dreamr.serve.errors import ApiError, refused

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w-]+=[\w.+-]+){0,4};base64,", re.ASCII | re.IGNORECASE)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Parsers disagree about backslashes, blanks and control characters; no image URL needs them unescaped.
_PLAIN = re.compile(r"https?://[!-\[\]-~]+", re.ASCII | re.IGNORECASE)


class ImageReader:
    """Reads the images of requests. Raises ApiError (400) that names the part."""

    def __init__(self, limits: ImageLimits, fetcher: ImageFetcher) -> None:
        self._limits, self._fetcher = limits, fetcher

    async def read(self, url: str, param: str) -> bytes:
        """The encoded image file."""
        if url[:5].lower() == "data:":
            data = await asyncio.to_thread(self._decoded, url, param)
        else:
            data = await self._fetcher.fetch(url, param)
        if len(data) > self._limits.max_bytes:
            raise refused(param, f"the image has {len(data)} bytes; at most {self._limits.max_bytes} are allowed.")
        await asyncio.to_thread(check_image, data, self._limits.max_pixels, param)
        return data

    def _decoded(self, url: str, param: str) -> bytes:
        head = _DATA_URL.match(url)
        if head is None:
            raise refused(param, "a data URL must begin with data:image/<type>;base64, as in data:image/png;base64,...")
        if len(url) > self._limits.max_bytes * 3 // 2 + 256:
            raise refused(param, f"the image is too large; at most {self._limits.max_bytes} bytes are allowed.")
        try:
            payload = "".join(url[head.end() :].split())  # some encoders break lines
            return base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError):
            raise refused(param, "the data URL is not valid base64.") from None


def check_image(data: bytes, max_pixels: int, param: str) -> None:
    """Raises ApiError (400) unless `data` is a whole image of a known format and size."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise refused(
                    param, f"the image has {image.width} x {image.height} pixels; at most {max_pixels} are allowed."
                )
            if getattr(image, "n_frames", 1) > 1:
                raise refused(param, "the image is animated; send one of its frames.")
            image.load()
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise refused(param, f"the image has too many pixels; at most {max_pixels} are allowed.") from None
    except Exception:  # decoders raise all kinds of errors for broken files
        raise refused(param, f"the image cannot be read; send a whole file of {', '.join(FORMATS)}.") from None


def is_public(address: str) -> bool:
    """Whether an IP address is outside of every private network, also where an IPv6 form contains an IPv4 one."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        contained = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if contained is not None:
            return contained.is_global
        if parsed in _NAT64:
            return False
    return parsed.is_global and not parsed.is_multicast


class _Refused(OSError):
    """An address that must not be connected to."""


class _CheckedResolver(AbstractResolver):
    def __init__(self, allows: Callable[[str], bool]) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._allows = allows

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(self._allows(entry["host"]) for entry in found):
            raise _Refused(f"{host} has an address that is not public")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class ImageFetcher:
    """Fetches from the hosts in `limits.allowed_hosts` only; no redirects, no proxies, no cookies."""

    def __init__(self, limits: ImageLimits, allows: Callable[[str], bool] = is_public) -> None:
        self._limits, self._allows = limits, allows

    async def fetch(self, url: str, param: str) -> bytes:
        """The body at `url`. Raises ApiError (400) that reveals nothing about the network of this server."""
        target = self._checked(url, param)
        timeout = aiohttp.ClientTimeout(total=self._limits.fetch_timeout_s)
        connector = aiohttp.TCPConnector(resolver=_CheckedResolver(self._allows), use_dns_cache=False)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
                ) as session,
                session.get(target, allow_redirects=False, headers={"Accept": "image/*"}) as response,
            ):
                if response.status != 200:
                    raise refused(param, f"the image's host answered {response.status} (redirects are not followed).")
                return await self._body(response, param)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            raise refused(
                param, f"the image could not be fetched within {self._limits.fetch_timeout_s:g} s; send a data URL."
            ) from None

    def _checked(self, url: str, param: str) -> URL:
        no = refused(param, "image URLs must be data URLs or plain http(s) URLs of a host that this server allows.")
        if not _PLAIN.fullmatch(url):
            raise no
        try:
            parsed = URL(url)
            host_and_port = f"{parsed.host}:{parsed.port}"
        except ValueError:
            raise no from None
        if parsed.user is not None or parsed.password is not None or parsed.host is None or _is_address(parsed.host):
            raise no
        names = {host_and_port, parsed.host} if parsed.is_default_port() else {host_and_port}
        if names.isdisjoint(self._limits.allowed_hosts):
            raise no
        return parsed

    async def _body(self, response: aiohttp.ClientResponse, param: str) -> bytes:
        body = bytearray()
        async for block in response.content.iter_chunked(64 * 1024):
            body += block
            if len(body) > self._limits.max_bytes:
                raise refused(param, f"the image is too large; at most {self._limits.max_bytes} bytes are allowed.")
        return bytes(body)


def _is_address(host: str) -> bool:
    """Whether a host is a literal address, also in the forms `127.1`, `0x7f000001` and `2130706433`."""
    try:
        socket.inet_aton(host)
    except OSError:
        return ":" in host
    return True
