"""The application on Ray Serve under faults: kill -9 of every process while it works, clients that go, deletion."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import ray
from ray import serve
from serving import LocalGroup, free_port, scripted_config

from dreamr.actors.types import Prompt
from dreamr.config import Config
from dreamr.pipelines.registry import build_pipeline
from dreamr.pipelines.request import Request
from dreamr.serve.deployment import build, named

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

BACK_WITHIN_S = 10.0
APP = "pair"


@dataclass(frozen=True)
class Endpoint:
    url: str
    config: Config

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    async def right_answer(self, question: str) -> str:
        """What any schedule that verifies has to commit: it depends on verdicts alone."""
        group = LocalGroup(scripted_config())
        settings = self.config.pipeline.model_copy(update={"method": "sequential"})
        trace = await build_pipeline("sequential", group.actors).run(Request(Prompt(question), settings))
        return trace.text

    def process(self, role: str) -> int:
        group = named(self.config.group, APP)
        return next(actor["Pid"] for actor in alive() if actor["Name"] == f"{group.name}-{role}")

    def replica(self, tag: str) -> int:
        return next(actor["Pid"] for actor in alive() if actor["Name"].endswith(f"#{tag}"))


def alive() -> list[dict[str, Any]]:
    return [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]


@pytest.fixture(scope="module")
def endpoint(ray_cluster: None) -> Iterator[Endpoint]:
    """Two replicas over three actors whose models take some time."""
    config = scripted_config({"num_replicas": 2, "max_running": 8}, token_s=0.01, verdict_s=0.01)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"config": config}), name=APP, route_prefix="/")
    yield Endpoint(f"http://127.0.0.1:{port}", config)
    serve.shutdown()


@dataclass
class Asked:
    """One streamed request."""

    question: str
    replica: str = ""
    text: str = ""
    error: Exception | None = None


async def ask(client: openai.AsyncOpenAI, asked: Asked, started: asyncio.Event | None = None) -> Asked:
    try:
        raw = await client.chat.completions.with_raw_response.create(
            model="dreamr", messages=[{"role": "user", "content": asked.question}], stream=True
        )
        asked.replica = raw.headers["x-replica-id"]
        async for chunk in raw.parse():
            for choice in chunk.choices:
                asked.text += getattr(choice.delta, "reasoning", None) or ""
                if started and asked.text:
                    started.set()
    except (openai.APIError, httpx.HTTPError) as error:
        asked.error = error
    return asked


async def ask_many(client: openai.AsyncOpenAI, name: str, number: int) -> list[asyncio.Task[Asked]]:
    """That many streams, all of which have begun to answer."""
    started = [asyncio.Event() for _ in range(number)]
    tasks = [asyncio.create_task(ask(client, Asked(f"{name} {i}"), started[i])) for i in range(number)]
    await asyncio.gather(*(event.wait() for event in started))
    return tasks


async def health(url: str) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{url}/health", timeout=30)
    return response.status_code, response.json()


async def until_back(url: str) -> float:
    """Seconds until both replicas say that all is well. Bounded by the test's own time."""
    began = time.monotonic()
    while (await health(url))[1]["status"] != "ok":
        await asyncio.sleep(0.1)
    return time.monotonic() - began


@pytest.mark.parametrize("role", ["target", "draft", "verifier"])
async def test_a_killed_actor_costs_no_request_and_no_step(endpoint: Endpoint, role: str) -> None:
    async with endpoint.client() as client:
        tasks = await ask_many(client, f"kill {role}", 6)
        os.kill(endpoint.process(role), signal.SIGKILL)
        for asked in await asyncio.gather(*tasks):
            assert asked.error is None
            if role == "target":
                assert asked.text == await endpoint.right_answer(asked.question)
            else:
                assert asked.text.endswith("\n\n") or asked.text
        assert await until_back(endpoint.url) < BACK_WITHIN_S
        fresh = await ask(client, Asked("and now?"))
        assert fresh.text == await endpoint.right_answer("and now?")
