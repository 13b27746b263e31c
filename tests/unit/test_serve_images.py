"""Images of requests: URLs that must not lead elsewhere, limits, broken files."""

from __future__ import annotations

import asyncio
import struct

import pytest
from aiohttp import web
from PIL import Image

from dreamr.config.serve import ImageLimits
from dreamr.serve.errors import ApiError
from dreamr.serve.images import ImageFetcher, check_image, is_public

NOT_ALLOWED = [
    "http://images.test:81/x.png",
    "http://images.test\\@127.0.0.1/x.png",
    "http://images.test@127.0.0.1/x.png",
    "http://127.0.0.1\\@images.test/x.png",
    "http://user:pass@images.test/x.png",
    "http://127.0.0.1/x.png",
    "http://[::1]/x.png",
    "http://2130706433/x.png",
    "http://0x7f.1/x.png",
    "http://images.test.evil.test/x.png",
    "http://evil.test/images.test",
    "http://images.test /x.png",
    "http://images.test\n/x.png",
    "http://ímages.test/x.png",
    "ftp://images.test/x.png",
    "file:///etc/passwd",
    "gopher://images.test/x",
    "//images.test/x.png",
    "http://",
    "",
]


@pytest.mark.parametrize("url", NOT_ALLOWED)
async def test_urls_that_lead_elsewhere_are_refused_before_any_connection(url: str) -> None:
    limits = ImageLimits(allowed_hosts=("images.test", "images.test:8080"))

    def never(address: str) -> bool:
        raise AssertionError(f"looked up {address}")

    with pytest.raises(ApiError, match="host that this server allows") as raised:
        await ImageFetcher(limits, never).fetch(url, "url")
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::",
    ],
)
def test_private_addresses_in_every_form(address: str) -> None:
    assert not is_public(address)


def test_public_addresses() -> None:
    assert is_public("93.184.215.14")
    assert is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


async def test_an_allowed_host_is_fetched_within_limits_and_only_from_public_addresses() -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        if request.path == "/moved":
            raise web.HTTPFound("/image")
        if request.path == "/slow":
            await asyncio.sleep(2)
        return web.Response(body=b"x" * (100 if request.path == "/image" else 10_000))

    app = web.Application()
    app.router.add_get("/{name}", respond)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    limits = ImageLimits(allowed_hosts=(f"LocalHost:{port}",), max_bytes=1000, fetch_timeout_s=0.5)
    fetcher = ImageFetcher(limits, allows=lambda address: address in ("127.0.0.1", "::1"))
    try:
        assert await fetcher.fetch(f"http://localhost:{port}/image", "url") == b"x" * 100
        for path, said in (
            ("moved", "answered 302"),
            ("large", "at most 1000 bytes"),
            ("slow", "could not be fetched"),
        ):
            with pytest.raises(ApiError, match=said):
                await fetcher.fetch(f"http://localhost:{port}/{path}", "url")
        with pytest.raises(ApiError, match="could not be fetched"):
            await ImageFetcher(limits).fetch(f"http://localhost:{port}/image", "url")
    finally:
        await runner.cleanup()


def test_whatever_a_decoder_raises_is_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ApiError, match="cannot be read") as raised:
        check_image(b"", 1, "url")
    assert raised.value.status == 400
