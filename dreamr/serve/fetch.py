"""`ImageFetcher`: http(s) images of allowed hosts, without becoming a way into the network that this server is in.

    URL ──parse once (yarl)──▶ scheme, host and port on the list? ──▶ resolve ──▶ public address? ──▶ connect to
                                       │ no: 400                        every address, at connect time   exactly that

The URL is parsed by the library that connects, so no second parser can read another host out of it. Addresses are
checked where they are used: a name that resolves to something else a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dreamr.config.serve import ImageLimits
from dreamr.serve.errors import refused

# Backslashes, blanks and control signs are what parsers disagree about; no image needs them unescaped.
_PLAIN = re.compile(r"https?://[!-\[\]-~]+", re.ASCII | re.IGNORECASE)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to nobody's private network, also where an IPv6 form hides an IPv4 one."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        hidden = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if hidden is not None:
            return hidden.is_global
        if parsed in _NAT64:
            return False
    return parsed.is_global and not parsed.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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
        """The body at `url`. Raises ApiError (400) that does not tell what it found inside of the network."""
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
            place = f"{parsed.host}:{parsed.port}"
        except ValueError:
            raise no from None
        if parsed.user is not None or parsed.password is not None or parsed.host is None or _is_address(parsed.host):
            raise no
        names = {place, parsed.host} if parsed.is_default_port() else {place}
        if names.isdisjoint(self._limits.allowed_hosts):
            raise no
        return parsed

    async def _body(self, response: aiohttp.ClientResponse, param: str) -> bytes:
        body = bytearray()
        async for block in response.content.iter_chunked(64 * 1024):
            body += block
            if len(body) > self._limits.max_bytes:
                raise refused(param, f"the image is too large; at most {self._limits.max_bytes} bytes are taken.")
        return bytes(body)


def _is_address(host: str) -> bool:
    """Also in the forms (`127.1`, `0x7f000001`, `2130706433`) that system calls understand."""
    try:
        socket.inet_aton(host)
    except OSError:
        return ":" in host
    return True
