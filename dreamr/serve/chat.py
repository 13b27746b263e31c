"""`/v1/chat/completions`: the events of a request, sent as a stream or collected into one answer.

request ─▶ read (400, 404, 503) ─▶ first event (400, 503) ─▶ status 200 ─▶ further events ─▶ [DONE]
                                                                              │ a failure now: an error event
client gone: events closed ─▶ pipeline cancelled and awaited ◀────────────────┘
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import format_sse_event

from dreamr.serve.bodies import JsonRoute
from dreamr.serve.encoding import Encoder
from dreamr.serve.errors import api_error
from dreamr.serve.middleware import FIELDS
from dreamr.serve.questions import Question
from dreamr.serve.replies import Chunk, Completion, ErrorReply
from dreamr.serve.retries import key_of
from dreamr.serve.schema import ChatRequest
from dreamr.serve.service import Event, Service
from dreamr.serve.streaming import CLIENT_GONE, EventStream, first_of, while_connected

log = logging.getLogger(__name__)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 404, 408, 409, 413, 500, 503, 504)
}
"""Errors of every endpoint that answers questions."""


def chat_routes(service: Service) -> APIRouter:
    """The endpoint over `service`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses=ERRORS | {200: {"content": {"text/event-stream": {}}}},
    )
    async def chat_completions(request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation. Steps are streamed as soon as they are committed."""
        question = await service.read(asked)
        log_question(question, asked)
        answering = await service.answer(question, key_of(request.headers))
        question, events = answering.question, answering.events()
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        encoder = Encoder(question, asked.model, include_usage=usage)
        if not asked.stream:
            completion = await while_connected(request, _completion(encoder, events))
            return JSONResponse(completion.model_dump()) if completion else Response(status_code=CLIENT_GONE)
        first = await while_connected(request, first_of(events))
        if first is None:
            return Response(status_code=CLIENT_GONE)
        return EventStream(_lines(encoder, first, events))

    return router


def log_question(question: Question, asked: ChatRequest) -> None:
    """Write the line that connects a request id with the id of its calls at the actors."""
    fields = {
        "id": question.id,
        "user": asked.user,
        "method": question.settings.method,
        "stream": bool(asked.stream),
        "choices": question.num_choices,
        "images": len(question.prompt.images),
        "prompt_tokens": question.prompt_tokens,
    }
    log.info("question", extra={FIELDS: fields})


async def _completion(encoder: Encoder, events: AsyncGenerator[Event, None]) -> Completion:
    async with aclosing(events):
        return await encoder.completion(events)


async def _lines(encoder: Encoder, first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
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
            yield format_sse_event(data_str=json.dumps(api_error(error).document()))
        yield format_sse_event(data_str="[DONE]")


def _line(chunk: Chunk) -> bytes:
    document = chunk.model_dump(exclude_none=True)
    for choice in document["choices"]:
        choice.setdefault("finish_reason", None)  # some clients read it from every chunk
    return format_sse_event(data_str=json.dumps(document, ensure_ascii=False))
