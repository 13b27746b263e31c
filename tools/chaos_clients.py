"""The load of `tools.chaos`: clients that stream answers and repeat failed requests under the same Idempotency-Key."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import aiohttp

from tools.load import CHAT, chunks_of

ATTEMPT_DEADLINE_S, PAUSE_S, MAX_ATTEMPTS = 20.0, 0.5, 120
"""Longest silence of one attempt, the pause before the next one, attempts in all."""


@dataclass(slots=True)
class Asked:
    """One request, with its repetitions."""

    text: str = ""
    num_attempts: int = 0
    longest_gap_s: float = 0.0
    latency_s: float = 0.0
    is_answered: bool = False


@dataclass(slots=True)
class Load:
    """Clients that share a number of questions."""

    http: aiohttp.ClientSession
    url: str
    model: str
    num_requests: int
    asked: dict[int, Asked] = field(default_factory=dict)
    third: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a third of the requests has been answered."""

    async def run(self, num_clients: int) -> None:
        numbers = iter(range(self.num_requests))
        async with asyncio.TaskGroup() as clients:
            for _ in range(num_clients):
                clients.create_task(self._client(numbers))

    async def _client(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            self.asked[number] = await self._ask(number)
            if 3 * len(self.asked) >= self.num_requests:
                self.third.set()

    async def _ask(self, number: int) -> Asked:
        asked, began, key = Asked(), time.monotonic(), uuid.uuid4().hex
        last = began
        while not asked.is_answered and asked.num_attempts < MAX_ATTEMPTS:
            if asked.num_attempts:
                await asyncio.sleep(PAUSE_S)
            asked.num_attempts += 1
            asked.text = ""  # a repeated stream begins with the stored steps
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async for piece in self._stream(number, key):
                    asked.longest_gap_s = max(asked.longest_gap_s, time.monotonic() - last)
                    last = time.monotonic()
                    asked.text += piece
                asked.is_answered = True
        asked.latency_s = time.monotonic() - began
        return asked

    async def _stream(self, number: int, key: str) -> AsyncIterator[str]:
        """The text of one attempt. Raises ClientError when it does not get a whole answer."""
        body = {"model": self.model, "messages": [{"role": "user", "content": f"question {number}"}], "stream": True}
        timeout = aiohttp.ClientTimeout(sock_connect=2, sock_read=ATTEMPT_DEADLINE_S)
        headers = {"Idempotency-Key": key}
        async with self.http.post(self.url + CHAT, json=body, headers=headers, timeout=timeout) as response:
            async for chunk in chunks_of(response):
                for choice in chunk["choices"]:
                    yield (choice["delta"].get("reasoning") or "") + (choice["delta"].get("content") or "")
