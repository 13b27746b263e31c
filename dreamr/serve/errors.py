"""Errors as clients get them: one sentence in OpenAI's error format, with an HTTP status."""

from __future__ import annotations

import logging
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dreamr.errors import ActorLost, TooLong, Unable

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2
"""Value of `Retry-After`: about the time until a queue slot is free or a lost actor is loaded again."""

MAX_MESSAGE, MAX_PARAM = 500, 120
"""Most characters of each: input of a client is never echoed in full."""

_TYPES = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error"}


class ApiError(Exception):
    """An error for the client, in one sentence. Its status is sent unless the response has already begun."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def document(self) -> dict[str, Any]:
        """The body."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message, param = shortened(self.message, MAX_MESSAGE), self.param and shortened(self.param, MAX_PARAM)
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.document(), self.status, headers)


class BodyError(HTTPException):
    """An ApiError raised while the body is read. FastAPI lets only an HTTPException through there."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning when it is longer than the limit."""
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def refused(param: str, message: str, code: str | None = None) -> ApiError:
    """400: the request is invalid."""
    return ApiError(400, message, param, code)


def too_large(limit: int) -> ApiError:
    """413: the body has more bytes than allowed."""
    return ApiError(413, f"the request is too large; at most {limit} bytes are allowed.")


def busy(message: str) -> ApiError:
    """503: too many requests at the moment."""
    return ApiError(503, message, code="overloaded")


def unavailable(message: str) -> ApiError:
    """503: the target cannot answer at the moment."""
    return ApiError(503, message, code="target_unavailable")


def api_error(error: Exception) -> ApiError:
    """Convert any error to the one that the client gets. Internal details go to the log only, once."""
    match error:
        case ApiError():
            return error
        case BodyError():
            return error.error
        case ActorLost():
            log.error("the target was lost: %s", error)
            return unavailable("the target model was lost and did not come back: ask again later.")
        case TooLong():
            return refused("messages", str(error), "context_length_exceeded")
        case Unable():
            return refused("method", f"this server's models do not support that: {str(error).rstrip('.')}.")
        case _:
            log.error("a request failed", exc_info=error)
            return ApiError(500, "internal error; the server's log has the cause under this request's X-Request-ID.")
