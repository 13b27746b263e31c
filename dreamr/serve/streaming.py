"""Server-sent events, and the end of work whose client has disconnected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Send

T = TypeVar("T")

CLIENT_GONE = 499
"""For the log: the client has disconnected."""


class EventStream(StreamingResponse):
    """Server-sent events, sent one by one. Closes its source as soon as the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        # No proxy may buffer or cache the steps.
        super().__init__(lines, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def stream_response(self, send: Send) -> None:
        source = self.body_iterator
        assert isinstance(source, AsyncGenerator)
        async with aclosing(source):
            await super().stream_response(send)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
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


async def first_of(events: AsyncGenerator[T, None]) -> T:
    """The first event: an error before it still sets the HTTP status."""
    return await anext(events)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
