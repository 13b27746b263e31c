"""`/v1/responses`: the answers of `/v1/chat/completions` in the format of OpenAI's Responses API.

An answer is a reasoning item with the chain of thought, then a message item. Nothing is stored: a conversation is
continued by sending its items again; reasoning items are dropped.

    created ─▶ in_progress ─▶ reasoning item: added, part, deltas, done ─▶ message item: the same ─▶ completed
                                                                                  incomplete (length), failed
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.sse import format_sse_event
from pydantic_core import to_json

from dreamr.serve.bodies import JsonRoute
from dreamr.serve.chat import ERRORS, log_question
from dreamr.serve.counts import finish_reason, metrics_of, run_info, usage_of
from dreamr.serve.errors import ApiError, api_error
from dreamr.serve.questions import Question
from dreamr.serve.responses_schema import ResponsesRequest
from dreamr.serve.retries import key_of
from dreamr.serve.service import Answered, Event, Service, StepCommitted
from dreamr.serve.streaming import CLIENT_GONE, EventStream, first_of, while_connected
from pipelines import rule_of

Kind = Literal["reasoning", "message"]

_PARAMS = {"messages": "input", "response_format": "text.format", "max_completion_tokens": "max_output_tokens"}
"""Names in a responses request of fields of the chat request."""


def responses_routes(service: Service) -> APIRouter:
    """The endpoint over `service`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/responses", responses=ERRORS | {200: {"content": {"text/event-stream": {}}}})
    async def responses(request: Request, asked: ResponsesRequest) -> Response:
        """Answer a conversation, as a response with a reasoning item and a message item."""
        try:
            chat = asked.as_chat()
            question = await service.read(chat)
        except ApiError as error:
            raise _renamed(error) from None
        log_question(question, chat)
        answering = await service.answer(question, key_of(request.headers))
        question, events = answering.question, answering.events()
        encoder = ResponseEncoder(question, asked)
        if not asked.stream:
            response = await while_connected(request, _whole(encoder, events))
            if response is None:
                return Response(status_code=CLIENT_GONE)
            return Response(to_json(response), media_type="application/json")
        first = await while_connected(request, first_of(events))
        if first is None:
            return Response(status_code=CLIENT_GONE)
        return EventStream(_lines(encoder, first, events))

    return router


class ResponseEncoder:
    """The objects of one response."""

    def __init__(self, question: Question, asked: ResponsesRequest) -> None:
        self._question, self._asked = question, asked
        self._created = time.time()
        self._numbers = iter(range(2**63))
        self._items: list[dict[str, Any]] = []
        self._text = ""
        """Text of the item that is being written."""
        self._answered: Answered | None = None

    # -- events ----------------------------------------------------------------------------------------------------

    def begin(self) -> Iterator[dict[str, Any]]:
        """The events that open a response."""
        yield self._event("response.created", response=self.response("in_progress"))
        yield self._event("response.in_progress", response=self.response("in_progress"))

    def add(self, event: Event) -> Iterator[dict[str, Any]]:
        """Convert one event of the service."""
        if isinstance(event, StepCommitted | Answered):
            yield from self._write("reasoning", event.piece.reasoning)
            yield from self._write("message", event.piece.content)
        if isinstance(event, Answered):
            self._answered = event
            yield from self._end_item()
            status = self.status
            yield self._event(f"response.{status}", response=self.response(status))

    def fail(self, error: ApiError) -> dict[str, Any]:
        """The last event after a failure."""
        response = self.response("failed") | {"error": {"code": "server_error", "message": error.message}}
        return self._event("response.failed", response=response)

    def _write(self, kind: Kind, text: str) -> Iterator[dict[str, Any]]:
        if not text:
            return
        if not self._items or self._items[-1]["type"] != kind:
            yield from self._end_item()
            yield from self._begin_item(kind)
        self._text += text
        yield self._event(f"response.{_PART_OF[kind]}.delta", **self._place, delta=text, **_LOGPROBS[kind])

    def _begin_item(self, kind: Kind) -> Iterator[dict[str, Any]]:
        self._text = ""
        item_id = f"{_PREFIX_OF[kind]}_{self._question.id}"
        self._items.append({"id": item_id, "type": kind, "status": "in_progress"} | _EMPTY[kind])
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=self._items[-1])
        yield self._event("response.content_part.added", **self._place, part=_part(kind, ""))

    def _end_item(self) -> Iterator[dict[str, Any]]:
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        kind: Kind = self._items[-1]["type"]
        part = _part(kind, self._text)
        status = "incomplete" if self.status == "incomplete" else "completed"
        self._items[-1] = self._items[-1] | {"status": status, "content": [part]}
        yield self._event(f"response.{_PART_OF[kind]}.done", **self._place, text=self._text, **_LOGPROBS[kind])
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=self._items[-1])

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers)} | fields

    @property
    def status(self) -> Literal["in_progress", "completed", "incomplete"]:
        """Status of the response unless it fails."""
        if self._answered is None:
            return "in_progress"
        return "completed" if finish_reason(self._answered) == "stop" else "incomplete"

    # -- the response ----------------------------------------------------------------------------------------------

    def response(self, status: Literal["in_progress", "completed", "incomplete", "failed"]) -> dict[str, Any]:
        """The response object so far."""
        asked, settings = self._asked, self._question.settings
        reasoning, text = asked.reasoning, asked.text
        return {
            "id": f"resp_{self._question.id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": list(self._items),  # a copy: events are encoded later
            "parallel_tool_calls": bool(asked.parallel_tool_calls),
            "previous_response_id": None,
            "reasoning": {"effort": reasoning and reasoning.effort, "summary": None},
            "store": False,
            "temperature": settings.temperature,
            "text": {"format": text.format.model_dump(by_alias=True) if text and text.format else {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": settings.top_p,
            "truncation": "disabled",
            "user": asked.user,
        } | self._counts()

    def _counts(self) -> dict[str, Any]:
        if self._answered is None:
            return {"usage": None}
        rule = rule_of(self._question.settings)
        usage = usage_of(self._question.prompt_tokens, [self._answered], rule)
        return {
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
                "total_tokens": usage.total_tokens,
                "speculation": usage.speculation,
            },
            "metrics": metrics_of([self._answered]),
            "dreamr": run_info(self._answered, self._question),
        }


_PART_OF: dict[Kind, str] = {"reasoning": "reasoning_text", "message": "output_text"}
_LOGPROBS: dict[Kind, dict[str, Any]] = {"reasoning": {}, "message": {"logprobs": []}}
_PREFIX_OF: dict[Kind, str] = {"reasoning": "rs", "message": "msg"}
_EMPTY: dict[Kind, dict[str, Any]] = {
    "reasoning": {"summary": [], "content": [], "encrypted_content": None},
    "message": {"role": "assistant", "content": []},
}


def _part(kind: Kind, text: str) -> dict[str, Any]:
    annotations: dict[str, Any] = {"annotations": []} if kind == "message" else {}
    return {"type": _PART_OF[kind], "text": text} | annotations | _LOGPROBS[kind]


def _renamed(error: ApiError) -> ApiError:
    """The error with the name that the field has in this request."""
    field, dot, rest = (error.param or "").partition(".")
    return ApiError(error.status, error.message, error.param and _PARAMS.get(field, field) + dot + rest, error.code)


async def _whole(encoder: ResponseEncoder, events: AsyncGenerator[Event, None]) -> dict[str, Any]:
    async with aclosing(events):
        async for event in events:
            list(encoder.add(event))  # only for the encoder's state
    return encoder.response(encoder.status)


async def _lines(
    encoder: ResponseEncoder, first: Event, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            for document in (*encoder.begin(), *encoder.add(first)):
                yield _line(document)
            async for event in events:
                for document in encoder.add(event):
                    yield _line(document)
        except Exception as error:
            yield _line(encoder.fail(api_error(error)))


def _line(document: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=to_json(document).decode(), event=document["type"])
