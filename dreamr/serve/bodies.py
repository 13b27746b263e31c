"""JSON bodies, bounded before they are parsed and parsed outside of the event loop.

    bytes ──▶ few enough brackets and commas? ──▶ json.loads in a thread ──▶ few, shallow values? ──▶ pydantic
                   │ no: 400                                                    │ no: 400

A body of junk may be small and still cost seconds: each `{}` of two bytes becomes an object of Python and an error of
pydantic's. Valid bodies are large because of images, which are one value each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from dreamr.serve.errors import BodyError, refused

MAX_VALUES = 20_000
"""Numbers, texts, objects, ... in one body."""
MAX_DEPTH = 32
_STRUCTURE = (b"{", b"[", b",")


class JsonRoute(APIRoute):
    """A route whose JSON body is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def with_bounded_json(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return with_bounded_json


class _BoundedRequest(Request):
    async def json(self) -> Any:
        max_text_chars: int = self.app.state.max_text_chars
        return await asyncio.to_thread(parse, await self.body(), max_text_chars)


def parse(body: bytes, max_text_chars: int) -> Any:
    """The value of a JSON text.

    Raises:
        BodyError: it has too many values, or they are nested too deeply.
        json.JSONDecodeError: it is not JSON.
    """
    # Texts contain commas as well, but no more than there may be characters.
    if sum(map(body.count, _STRUCTURE)) > MAX_VALUES + max_text_chars:
        raise _too_many()
    try:
        value = json.loads(body)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(error.reason, "", error.start) from None
    _check(value)
    return value


def _check(value: Any) -> None:
    level, num_values = [value], 0
    for _ in range(MAX_DEPTH):
        num_values += len(level)
        if num_values > MAX_VALUES:
            raise _too_many()
        level = [part for one in level if isinstance(one, dict | list) for part in _parts(one)]
        if not level:
            return
    raise _too_deep()


def _parts(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _too_many() -> BodyError:
    return BodyError(refused("body", f"the body has too many values; at most {MAX_VALUES} are allowed."))


def _too_deep() -> BodyError:
    return BodyError(refused("body", f"the body is nested too deeply; at most {MAX_DEPTH} levels are allowed."))
