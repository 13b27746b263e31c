"""The HTTP application over a `Service`: endpoints, middleware, and every error in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from dreamr.errors import TooLong
from dreamr.serve.chat import chat_routes
from dreamr.serve.drafts import DraftSwitch, draft_routes
from dreamr.serve.errors import MAX_PARAM, ApiError, BodyError, api_error, refused, shortened
from dreamr.serve.middleware import ADMIN_PATHS, RequestMiddleware, api_keys
from dreamr.serve.responses import responses_routes
from dreamr.serve.routes import PAGE, routes
from dreamr.serve.schema import NEUTRAL_ONLY
from dreamr.serve.service import Service

OPEN_PATHS = ("/", "/health", "/ping")
"""Need no API key, like the page's files."""


def make_app(
    service: Service,
    headers: Mapping[str, str] | None = None,
    *,
    echoes_id: bool = True,
    drafts: DraftSwitch | None = None,
) -> FastAPI:
    """The application. API keys are read from the environment now. With `drafts`, the draft can be replaced.

    Every response carries `headers`, and the request id unless `echoes_id` is False: Ray Serve sends it itself.
    """
    app = FastAPI(
        title="dreamr",
        description="An OpenAI-compatible endpoint for speculative reasoning.",
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
    )
    app.state.max_text_chars = service.settings.max_text_chars
    app.include_router(chat_routes(service))
    app.include_router(responses_routes(service))
    app.include_router(routes(service))
    if drafts is not None:
        app.include_router(draft_routes(drafts))
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    for kind in (ApiError, TooLong, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _on_error)
    keys = api_keys(service.settings.api_key_env)
    app.add_middleware(
        RequestMiddleware,
        keys=keys,
        admin_keys=api_keys(service.settings.admin_key_env),
        open_paths=OPEN_PATHS,
        settings=service.settings,
        metrics=service.metrics,
        headers=headers or {},
        echoes_id=echoes_id,
    )
    if origins := service.settings.cors_origins:
        app.add_middleware(  # outermost: a browser asks for permission without a key
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
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
                operation["security"] = [{"key": []}] if needs_key or path.startswith(ADMIN_PATHS) else []


_NO_OBJECT = "must be a JSON object"


async def _on_error(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            return _invalid(error).response()
        case HTTPException() if not isinstance(error, BodyError):
            answer = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.").response()
            answer.headers.update(error.headers or {})  # Allow, for a wrong method
            return answer
        case _:
            return api_error(error).response()


def _invalid(error: RequestValidationError) -> ApiError:
    """The most specific problem, under the name that the client used."""
    problem = max(error.errors(), key=lambda one: len(one["loc"]))
    place = _place(problem, error.body)
    field = place[0] if place else ""
    where = ".".join(place) or "body"
    if field in NEUTRAL_ONLY and problem["type"] != "extra_forbidden":
        return refused(field, f"'{field}' is not supported with this value: leave it out.", "unsupported_field")
    code = "unknown_field" if problem["type"] == "extra_forbidden" else None
    return refused(where, _sentence(problem, where), code)


def _place(problem: Any, body: Any) -> list[str]:
    """Place of the problem in the body or query. pydantic's own place also names alternatives of union types."""
    source, *parts = problem["loc"]
    if source != "body":
        return [str(part) for part in parts]
    place, value = [], body
    for part in parts:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]
        elif problem["type"] != "missing" or part is not parts[-1]:
            continue
        place.append(str(part))
    return place


def _sentence(problem: Any, where: str) -> str:
    context = problem.get("ctx", {})
    match problem["type"]:
        case "json_invalid":
            said = "is not valid JSON"
        case "extra_forbidden":
            said = "is not known here: leave it out"
        case "union_tag_not_found":
            said = f"{context['discriminator']} is missing" if isinstance(problem["input"], dict) else _NO_OBJECT
        case "union_tag_invalid":
            said = f"{context['discriminator']} must be one of {context['expected_tags']}"
        case "model_attributes_type" | "model_type" | "dict_type":
            said = _NO_OBJECT
        case _:
            message = problem["msg"].removeprefix("Value error, ")
            said = f"{message[:1].lower()}{message[1:]}"
    return f"{shortened(where, MAX_PARAM)}: {said}."
