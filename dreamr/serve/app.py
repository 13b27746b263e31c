"""The HTTP application over a `Service`: endpoints, the gate before them, and errors in OpenAI's form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from dreamr.serve.chat import chat_routes
from dreamr.serve.errors import ApiError, refused, too_large
from dreamr.serve.failures import api_error
from dreamr.serve.gate import Gate
from dreamr.serve.routes import PAGE, routes
from dreamr.serve.schema import NEUTRAL_ONLY
from dreamr.serve.service import Service

OPEN_PATHS = ("/", "/health")


def make_app(service: Service, headers: Mapping[str, str] | None = None, *, echoes_id: bool = True) -> FastAPI:
    """The application; the API keys are read from the environment now.

    `headers` go with every response, and the request id does unless somebody else sends it.
    """
    app = FastAPI(
        title="dreamr",
        description="An OpenAI-compatible endpoint for speculative reasoning.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.max_body_bytes = service.settings.max_body_bytes
    app.include_router(chat_routes(service))
    app.include_router(routes(service))
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    keys = api_keys(service.settings.api_key_env)
    app.add_middleware(
        Gate,
        keys=keys,
        open_paths=OPEN_PATHS,
        max_body_bytes=service.settings.max_body_bytes,
        meters=service.meters,
        headers=headers or {},
        echoes_id=echoes_id,
    )
    _describe(app, needs_key=bool(keys))
    return app


def _describe(app: FastAPI, *, needs_key: bool) -> None:
    """What FastAPI cannot know: invalid input is 400, as with OpenAI, not its own 422; and what `Gate` refuses."""
    document = app.openapi()
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    unauthorized = {
        "description": "Unauthorized",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if operation["responses"].pop("422", None):
                operation["responses"].setdefault("400", {"description": "Bad Request"})
            if path not in OPEN_PATHS:
                operation["responses"].setdefault("401", unauthorized)
                operation["security"] = [{"key": []}] if needs_key else []


def api_keys(variable: str) -> list[str]:
    """The keys in the environment variable; none when it is unset or empty."""
    return [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]


async def _on_error(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            return _invalid(error.errors()).response()
        case HTTPException(status_code=413):
            return too_large(request.app.state.max_body_bytes).response()
        case HTTPException():
            return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.").response()
        case _:
            return api_error(error).response()


def _invalid(problems: Sequence[Any]) -> ApiError:
    """The first problem, named as the client named it."""
    problem = problems[0]
    place = [str(part) for part in problem["loc"] if part not in ("body", "query")]
    field = place[0] if place else ""
    if problem["type"] == "json_invalid":
        return refused("body", "the body is not valid JSON.")
    if problem["type"] == "extra_forbidden":
        return refused(".".join(place), f"'{place[-1]}' is not known here: leave it out.", "unknown_field")
    if field in NEUTRAL_ONLY:
        return refused(field, f"'{field}' is not supported in this value: leave it out.", "unsupported_field")
    where = ".".join(place) or "body"
    message = problem["msg"]
    return refused(where, f"{where}: {message[:1].lower()}{message[1:]}.")
