"""`/v1/chat/completions`: the events of a request, sent as a stream or collected into one answer.

request ─▶ read (400, 404, 503) ─▶ first event (400, 503) ─▶ status 200 ─▶ further events ─▶ [DONE]
                                                                              │ a failure now: an error event
client gone: events closed ─▶ pipeline cancelled and awaited ◀────────────────┘
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from dreamr.serve.bodies import JsonRoute
from dreamr.serve.encoding import Encoder
from dreamr.serve.errors import api_error
from dreamr.serve.middleware import FIELDS
from dreamr.serve.questions import Question
from dreamr.serve.replies import Chunk, Completion, ErrorReply
from dreamr.serve.schema import ChatRequest
from dreamr.serve.service import Event, Service

log = logging.getLogger(__name__)

T = TypeVar("T")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 404, 408, 413, 500, 503, 504)
}

CLIENT_GONE = 499
"""For the log: the client has disconnected."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Steps are sent at once: no proxy may buffer or cache them."""


def chat_routes(service: Service) -> APIRouter:
    """The endpoint over `service`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses=_ERRORS | {200: {"content": {"text/event-stream": {}}}},
    )
    async def chat_completions(request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation. Steps are streamed as soon as they are committed."""
        question = await service.read(asked)
        log.info("question", extra={FIELDS: _fields(question, asked)})
        events = service.answer(question).events()
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        encoder = Encoder(question, asked.model, include_usage=usage)
        if not asked.stream:
            completion = await _while_connected(request, _completion(encoder, events))
            return JSONResponse(completion.model_dump()) if completion else Response(status_code=CLIENT_GONE)
        first = await _while_connected(request, _first(events))
        if first is None:
            return Response(status_code=CLIENT_GONE)
        return EventStream(_lines(encoder, first, events), headers=_HEADERS, media_type="text/event-stream")

    return router


def _fields(question: Question, asked: ChatRequest) -> dict[str, Any]:
    return {
        "id": question.id,
        "user": asked.user,
        "method": question.settings.method,
        "stream": bool(asked.stream),
        "choices": question.num_choices,
        "images": len(question.prompt.images),
        "prompt_tokens": question.prompt_tokens,
    }


class EventStream(StreamingResponse):
    """Closes its source as soon as the client disconnects, not when it is garbage collected."""

    async def stream_response(self, send: Send) -> None:
        source = self.body_iterator
        assert isinstance(source, AsyncGenerator)
        async with aclosing(source):
            await super().stream_response(send)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when the client disconnected first: `work` has been cancelled and has ended.

    Serve cancels the whole endpoint in that case, but not with every proxy.
    """
    answer = asyncio.create_task(work, name="answer")
    disconnect = asyncio.create_task(_disconnect(request), name="wait for a disconnect")
    try:
        await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        for task in (answer, disconnect):
            task.cancel()
        await asyncio.gather(answer, disconnect, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _completion(encoder: Encoder, events: AsyncGenerator[Event, None]) -> Completion:
    async with aclosing(events):
        return await encoder.completion(events)


async def _first(events: AsyncGenerator[Event, None]) -> Event:
    """The first event: an error before it still sets the HTTP status."""
    return await anext(events)


async def _lines(encoder: Encoder, first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        try:
            for chunk in encoder.chunks(first):
                yield _line(chunk)
            async for event in events:
                for chunk in encoder.chunks(event):
                    yield _line(chunk)
            for chunk in encoder.last_chunks():
                yield _line(chunk)
        except Exception as error:
            yield f"data: {json.dumps(api_error(error).document())}\n\n"
        yield "data: [DONE]\n\n"


def _line(chunk: Chunk) -> str:
    document = chunk.model_dump(exclude_none=True)
    for choice in document["choices"]:
        choice.setdefault("finish_reason", None)  # some clients read it from every chunk
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
