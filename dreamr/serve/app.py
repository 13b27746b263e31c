"""The HTTP application over a `Service`: endpoints, middleware, and every error in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from dreamr.serve.chat import chat_routes
from dreamr.serve.errors import ApiError, api_error, refused, too_large
from dreamr.serve.middleware import RequestMiddleware, api_keys
from dreamr.serve.routes import PAGE, routes
from dreamr.serve.schema import NEUTRAL_ONLY
from dreamr.serve.service import Service

OPEN_PATHS = ("/", "/health")
"""Need no API key, like the page's files."""


def make_app(service: Service, headers: Mapping[str, str] | None = None, *, echoes_id: bool = True) -> FastAPI:
    """The application. API keys are read from the environment now.

    Every response carries `headers`, and the request id unless `echoes_id` is False: Ray Serve sends it itself.
    """
    app = FastAPI(
        title="dreamr",
        description="An OpenAI-compatible endpoint for speculative reasoning.",
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
    )
    app.state.max_body_bytes = service.settings.max_body_bytes
    app.include_router(chat_routes(service))
    app.include_router(routes(service))
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    for kind in (ApiError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _on_error)
    keys = api_keys(service.settings.api_key_env)
    app.add_middleware(
        RequestMiddleware,
        keys=keys,
        open_paths=OPEN_PATHS,
        max_body_bytes=service.settings.max_body_bytes,
        metrics=service.metrics,
        headers=headers or {},
        echoes_id=echoes_id,
    )
    _complete_document(app, needs_key=bool(keys))
    return app


def _complete_document(app: FastAPI, *, needs_key: bool) -> None:
    """Add to the OpenAPI document what FastAPI cannot derive: 400 in place of its 422, and the API key."""
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
    """The first problem, under the name that the client used."""
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
