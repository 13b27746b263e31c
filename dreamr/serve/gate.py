"""`Gate`: what every HTTP request passes first: a request id, the API key, the size of its body; and the access log.

Plain ASGI, so that streams pass through unbuffered and a client that goes is seen by the endpoint.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreamr.serve.errors import ApiError, too_large
from dreamr.serve.failures import api_error
from dreamr.serve.logs import FIELDS, request_id
from dreamr.serve.meters import Meters

log = logging.getLogger(__name__)

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Gate:
    """`open_paths` need no key: health, and the page's own files, which a browser asks for without one."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        open_paths: Sequence[str],
        max_body_bytes: int,
        meters: Meters,
        headers: Mapping[str, str],
        echoes_id: bool,
    ) -> None:
        self._app, self._max_body_bytes, self._meters = app, max_body_bytes, meters
        self._keys = [key.encode() for key in keys]
        self._open_paths = tuple(open_paths)
        self._headers = SECURITY_HEADERS | dict(headers)
        self._echoes_id = echoes_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id.set(given if _ID.fullmatch(given) else uuid.uuid4().hex[:16])
        access = _Access(scope, send, self._headers, self._echoes_id)
        try:
            self._check_key(scope, headers)
            self._check_length(headers)
            await self._app(scope, self._counted(receive), access.send)
        except Exception as error:
            # Here, because Starlette raises what it has answered with 500 once more, to be logged once more.
            answer = api_error(error)
            if not access.has_begun:
                await answer.response()(scope, receive, access.send)
        finally:
            access.log(self._meters)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = _own_path(scope)
        if not self._keys or path in self._open_paths or path.startswith("/page/"):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Every key is compared, in constant time: how long it takes tells nothing of any.
        known = [hmac.compare_digest(key.strip().encode(), known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer <key>.", code="invalid_api_key")

    def _check_length(self, headers: Headers) -> None:
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)

    def _counted(self, receive: Receive) -> Receive:
        """The body as it comes in, whose announced length may be missing."""
        size = 0

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                raise HTTPException(413)  # the only kind that FastAPI lets through while it reads a body
            return message

        return receive_counted


def _own_path(scope: Scope) -> str:
    """The path without the prefix under which Serve routes to this application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


class _Access:
    """Adds headers to a response and writes its line in the log."""

    def __init__(self, scope: Scope, send: Send, headers: Mapping[str, str], echoes_id: bool) -> None:
        self._scope, self._send, self._headers, self._echoes_id = scope, send, headers, echoes_id
        self._began = time.monotonic()
        self._status = 0
        self._is_complete = False

    @property
    def has_begun(self) -> bool:
        """Whether the response has a status already."""
        return self._status > 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            if self._echoes_id:
                headers["X-Request-ID"] = request_id.get()
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    def log(self, meters: Meters) -> None:
        if self._status >= 400:
            meters.refused(self._status)
        fields = {
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": self._status,
            "seconds": round(time.monotonic() - self._began, 4),
            "complete": self._is_complete,
        }
        quiet = _own_path(self._scope) in ("/health", "/metrics") and self._status < 400
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={FIELDS: fields})
