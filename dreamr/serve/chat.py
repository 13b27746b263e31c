"""`/v1/chat/completions`: one event stream, sent as it comes or gathered into one answer.

request ─▶ read (400, 404, 503) ─▶ first event (400, 503) ─▶ status 200 ─▶ further events ─▶ [DONE]
                                                                              │ a failure now: an error event
client gone: events closed ─▶ pipeline cancelled and awaited ◀────────────────┘
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from dreamr.serve.encoding import Encoder
from dreamr.serve.events import Event, Question
from dreamr.serve.failures import api_error
from dreamr.serve.logs import FIELDS, request_id
from dreamr.serve.replies import Chunk, Completion, ErrorReply
from dreamr.serve.schema import ChatRequest
from dreamr.serve.service import Service

log = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 404, 413, 500, 503, 504)
}

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Steps are of use while they are new: no proxy is to gather them."""


def chat_routes(service: Service) -> APIRouter:
    """The endpoint over `service`."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses=_ERRORS | {200: {"content": {"text/event-stream": {}}}},
    )
    async def chat_completions(request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation. Steps are streamed as soon as they are committed."""
        question = await service.read(asked, request_id.get())
        log.info("question", extra={FIELDS: _fields(question, asked)})
        events = service.answer(question).events()
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        encoder = Encoder(question, asked.model, include_usage=usage)
        if not asked.stream:
            return await _whole(request, encoder, events)
        first = await _first(events)
        return EventStream(_lines(encoder, first, events), headers=_HEADERS, media_type="text/event-stream")

    return router


def _fields(question: Question, asked: ChatRequest) -> dict[str, Any]:
    return {
        "user": asked.user,
        "method": question.settings.method,
        "stream": bool(asked.stream),
        "choices": question.num_choices,
        "images": len(question.prompt.images),
        "prompt_tokens": question.prompt_tokens,
    }


class EventStream(StreamingResponse):
    """Closes its source at once when the client goes, instead of when it is collected."""

    async def stream_response(self, send: Send) -> None:
        source = self.body_iterator
        assert isinstance(source, AsyncGenerator)
        async with aclosing(source):
            await super().stream_response(send)


async def _whole(request: Request, encoder: Encoder, events: AsyncGenerator[Event, None]) -> Response:
    """The completion; given up when the client goes before it is there."""
    answer = asyncio.create_task(_completion(encoder, events), name="answer")
    gone = asyncio.create_task(_gone(request), name="wait for the client to go")
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return JSONResponse(answer.result().model_dump())
        return Response(status_code=499)  # nobody reads it
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _completion(encoder: Encoder, events: AsyncGenerator[Event, None]) -> Completion:
    try:
        async with aclosing(events):
            return await encoder.completion(events)
    except Exception as error:
        raise api_error(error) from error


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(events: AsyncGenerator[Event, None]) -> Event:
    """The first event: what fails before it still sets the HTTP status."""
    try:
        return await anext(events)
    except Exception as error:
        raise api_error(error) from error


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
    return f"data: {json.dumps(chunk.model_dump(exclude_none=True), ensure_ascii=False)}\n\n"
