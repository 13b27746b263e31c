"""Middleware of every HTTP request: request id, API key, body size, and the log line.

Plain ASGI, so that streams pass through unbuffered and the endpoint sees when a client disconnects. Logs are JSON, one
object per line, with the id of the request that they belong to.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import re
import sys
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreamr.config.serve import ServeSettings
from dreamr.serve.errors import ApiError, BodyError, api_error, busy, too_large
from dreamr.serve.metrics import Metrics

log = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that the current task works on."""

ADMIN_PATHS = "/v1/admin/"
"""Beginning of the paths for administrators."""

FIELDS = "fields"
"""Key of `extra` under which a log record carries further fields."""

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def api_keys(variable: str) -> list[str]:
    """The keys in the environment variable; none when it is unset or empty."""
    return [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]


class RequestMiddleware:
    """Checks keys and body sizes, and logs responses.

    `open_paths` need no key: health, and the page's files. Paths under `ADMIN_PATHS` need one of `admin_keys`.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        admin_keys: Sequence[str],
        open_paths: Sequence[str],
        settings: ServeSettings,
        metrics: Metrics,
        headers: Mapping[str, str],
        echoes_id: bool,
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._num_buffered = 0
        """Bytes of all bodies that have arrived and whose requests have not ended."""
        self._keys = [key.encode() for key in keys]
        self._admin_keys = [key.encode() for key in admin_keys]
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
        body = _Body(receive, self)
        response = _Response(scope, send, self._headers, self._echoes_id)
        try:
            self._check_key(scope, headers)
            self._check_length(headers)
            await self._app(scope, body.receive, response.send)
        except Exception as error:
            # Starlette re-raises errors that it has answered with 500; caught here, so they are logged once.
            answer = api_error(error)
            if not response.has_begun:
                await answer.response()(scope, receive, response.send)
        finally:
            self._num_buffered -= body.size
            response.log(self._metrics)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = _path(scope)
        keys = self._keys
        if path.startswith(ADMIN_PATHS):
            keys = self._admin_keys
            if not keys:
                message = f"this path is off: set {self._settings.admin_key_env} in the environment of the replicas."
                raise ApiError(403, message)
        elif not keys or path in self._open_paths or path.startswith("/page/"):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Every key is compared, in constant time: the time taken reveals nothing about any of them.
        known = [hmac.compare_digest(key.strip().encode(), known) for known in keys]
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer <key>.", code="invalid_api_key")

    def _check_length(self, headers: Headers) -> None:
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)

    def buffered(self, size: int, num_new: int) -> None:
        """Count `num_new` bytes of a body that now has `size`. Raises BodyError (413, 503)."""
        self._num_buffered += num_new
        if size > self._settings.max_body_bytes:
            raise BodyError(too_large(self._settings.max_body_bytes))
        if self._num_buffered > self._settings.max_buffered_bytes:
            raise BodyError(busy("too many large requests at once: ask again in a moment."))

    @property
    def body_deadline_s(self) -> float:
        return self._settings.body_deadline_s


class _Body:
    """Counts a body as it arrives, since its announced length may be missing or wrong, and bounds the time it takes."""

    def __init__(self, receive: Receive, owner: RequestMiddleware) -> None:
        self._receive, self._owner = receive, owner
        self._deadline = asyncio.get_running_loop().time() + owner.body_deadline_s
        self._is_complete = False
        self.size = 0

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()  # the client's disconnect
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise BodyError(
                ApiError(408, f"the body did not arrive within {self._owner.body_deadline_s:g} s.")
            ) from None
        self._is_complete = not message.get("more_body", False)
        num_new = len(message.get("body", b""))
        self.size += num_new
        self._owner.buffered(self.size, num_new)
        return message


def _path(scope: Scope) -> str:
    """The path without the prefix under which Serve routes to this application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


class _Response:
    """Adds headers to a response and writes its line in the log."""

    def __init__(self, scope: Scope, send: Send, headers: Mapping[str, str], echoes_id: bool) -> None:
        self._scope, self._send, self._headers, self._echoes_id = scope, send, headers, echoes_id
        self._began = time.monotonic()
        self._status = 0
        self._is_complete = False

    @property
    def has_begun(self) -> bool:
        """Whether a status has been sent."""
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

    def log(self, metrics: Metrics) -> None:
        if self._status >= 400:
            metrics.refused(self._status)
        fields = {
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": self._status,
            "seconds": round(time.monotonic() - self._began, 4),
            "complete": self._is_complete,
        }
        quiet = _path(self._scope) in ("/health", "/metrics") and self._status < 400
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={FIELDS: fields})


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            entry["request_id"] = current
        entry |= getattr(record, FIELDS, {})
        if record.exc_info and record.exc_info[1]:
            entry["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(entry, ensure_ascii=False, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Write the records of this package to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("dreamr")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
