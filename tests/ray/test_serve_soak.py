"""Minutes of bounded load, clients that go included: memory stays flat, every answer is the right one. `make soak`."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from support.serving import LocalGroup, free_port, scripted_config

from dreamr.config import Config
from dreamr.types import Prompt
from pipelines import Request, run
from serve_app import build

SECONDS = 180
MOST_REQUESTS = 20_000
MOST_GROWTH = 0.10

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.timeout(SECONDS + 120)]


@pytest.fixture
def endpoint(ray_cluster: None) -> Iterator[tuple[str, Config]]:
    config = scripted_config({"max_running": 8}, token_s=0.001, verdict_s=0.001)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"config": config}), name="soak", route_prefix="/")
    yield f"http://127.0.0.1:{port}", config
    serve.shutdown()


def memory() -> dict[str, int]:
    """Resident bytes of the replica and its actors."""
    alive = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE" and actor["Name"]]
    ours = [actor for actor in alive if "soak" in actor["Name"]]
    return {actor["Name"]: resident(actor["Pid"]) for actor in ours}


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_memory_is_flat_and_answers_are_right(endpoint: tuple[str, Config]) -> None:
    url, config = endpoint
    questions = [f"question {number}" for number in range(40)]
    right = {question: await reference(config, question) for question in questions}
    numbers = itertools.count()
    began = time.monotonic()
    readings: list[dict[str, int]] = []

    async def ask(client: httpx.AsyncClient) -> None:
        while (number := next(numbers)) < MOST_REQUESTS and time.monotonic() - began < SECONDS:
            question = questions[number % len(questions)]
            body = {"model": "dreamr", "messages": [{"role": "user", "content": question}], "stream": number % 3 == 0}
            if number % 3 == 0:
                async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                    await anext(response.aiter_lines())  # and away
            else:
                answer = await client.post(f"{url}/v1/chat/completions", json=body)
                assert answer.json()["choices"][0]["message"]["reasoning"] == right[question]
            if number % 200 == 100:
                readings.append(memory())

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(ask(client) for _ in range(8)))
        health = (await client.get(f"{url}/health")).json()
    assert (health["status"], health["running"], health["waiting"]) == ("ok", 0, 0)
    assert len(readings) >= 4
    settled = readings[len(readings) // 3]
    for name, before in settled.items():
        growth = readings[-1][name] / before - 1
        print(f"{name}: {before / 2**20:.0f} MiB, {growth:+.1%} over {next(numbers)} requests")
        assert growth < MOST_GROWTH, f"{name} grew by {growth:.1%}"


async def reference(config: Config, question: str) -> str:
    group = LocalGroup(scripted_config())
    settings = config.pipeline.model_copy(update={"method": "sequential"})
    return (await run(Request(Prompt(question), settings), group.handles)).text
