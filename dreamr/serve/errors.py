"""`ApiError`: everything that a client can be told, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

RETRY_AFTER_S = 2
"""About the time in which a place in line becomes free, or a lost actor comes back."""

_TYPES = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error"}


class ApiError(Exception):
    """One sentence for the client, with the HTTP status that it has before the first byte."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def document(self) -> dict[str, Any]:
        """The body."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.document(), self.status, headers)


def refused(param: str, message: str, code: str | None = None) -> ApiError:
    """A request that cannot be done as it is."""
    return ApiError(400, message, param, code)


def too_large(limit: int) -> ApiError:
    """A body with more bytes than that."""
    return ApiError(413, f"the request is too large; at most {limit} bytes are taken.")


def busy(message: str) -> ApiError:
    """Come again later."""
    return ApiError(503, message, code="overloaded")


def unavailable(message: str) -> ApiError:
    """The target cannot answer at the moment."""
    return ApiError(503, message, code="target_unavailable")


def internal() -> ApiError:
    """Nothing that a client could change, or should know."""
    return ApiError(500, "something went wrong here that is not your fault; the request id leads to it in the logs.")
