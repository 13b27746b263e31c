"""A trained draft is put into a running service: the built-in pair on Ray Serve, under concurrent requests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from support.serving import ADMIN_KEY, ADMIN_KEY_ENV, data_url, free_port

from dreamr.config import Config
from dreamr.engines.factory import model_location
from dreamr.tasks.ledger import make_problem
from serve_app import build

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

APP = "swapped"
NUM_CLIENTS = 3


def pair() -> Config:
    """The untrained draft and the target, which also gives the verdicts."""
    actor = {"num_cpus": 0.5}
    group = {
        "draft": actor | {"engine": {"kind": "hf", "model": "embedded:draft-untrained"}},
        "target": actor | {"engine": {"kind": "hf", "model": "embedded:target"}},
        "ready_deadline_s": 200,
    }
    settings = {"num_replicas": 2, "admin_key_env": ADMIN_KEY_ENV}
    pipeline = {"max_tokens": 80, "draft_deadline_s": 60, "verifier_deadline_s": 60, "target_deadline_s": 60}
    return Config.model_validate({"group": group, "pipeline": pipeline, "serve": settings})


def body(number: int, method: str) -> dict[str, Any]:
    problem = make_problem("test", 1, number)
    [image] = problem.prompt.images
    content = [
        {"type": "text", "text": problem.question},
        {"type": "image_url", "image_url": {"url": data_url(image)}},
    ]
    return {"model": "dreamr", "messages": [{"role": "user", "content": content}], "method": method}


async def ask(client: httpx.AsyncClient, number: int, method: str) -> str:
    response = await client.post("/v1/chat/completions", json=body(number, method))
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["reasoning"]


async def drafts(client: httpx.AsyncClient) -> set[str]:
    """The drafts that the replicas say they have."""
    replies = [await client.get("/v1/models", headers={"Connection": "close"}) for _ in range(8)]
    return {reply.json()["data"][0]["actors"]["draft"]["model"] for reply in replies}


async def all_have(client: httpx.AsyncClient, draft: str) -> None:
    """Bounded by the test's own time."""
    while True:
        if await drafts(client) == {draft}:
            return
        await asyncio.sleep(0.2)


async def draft_is_back(client: httpx.AsyncClient) -> None:
    """Bounded by the test's own time."""
    while True:
        if (await client.get("/health")).json()["actors"]["draft"]:
            return
        await asyncio.sleep(0.2)


def draft_process() -> int:
    actors = ray._private.state.actors().values()
    return next(
        actor["Pid"]
        for actor in actors
        if actor["State"] == "ALIVE" and actor["Name"].startswith(APP) and actor["Name"].endswith("-draft")
    )


async def test_no_request_fails_while_the_draft_is_replaced(ray_cluster: None, tmp_path: Path) -> None:
    trained = str(shutil.copytree(model_location("embedded:draft"), tmp_path / "draft"))
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    await asyncio.to_thread(serve.run, build({"config": pair()}), name=APP)
    swap = {"headers": {"Authorization": f"Bearer {ADMIN_KEY}"}, "timeout": 120}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            expected = [await ask(client, number, "autoregressive") for number in range(NUM_CLIENTS)]
            swapped = asyncio.Event()

            async def keep_asking(number: int) -> int:
                """Until one whole round has begun after the swap; the number of answers."""
                num_answers = 0
                while True:
                    is_last = swapped.is_set()
                    assert await ask(client, number, "token_speculative") == expected[number]
                    assert await ask(client, number, "fpsr")
                    num_answers += 2
                    if is_last:
                        return num_answers

            clients = [asyncio.create_task(keep_asking(number)) for number in range(NUM_CLIENTS)]
            reply = await client.post("/v1/admin/draft", json={"checkpoint": trained}, **swap)
            assert (reply.status_code, reply.json()) == (200, {"draft": trained})
            await all_have(client, trained)
            swapped.set()
            assert min(await asyncio.gather(*clients)) >= 2

            reply = await client.post("/v1/admin/draft", json={"checkpoint": "embedded:target"}, **swap)
            assert reply.status_code == 400
            assert "do not fit" in reply.json()["error"]["message"]
            os.kill(draft_process(), signal.SIGKILL)
            assert await ask(client, 0, "token_speculative") == expected[0]
            await draft_is_back(client)
            assert await drafts(client) == {trained}  # after its restart too
    finally:
        serve.shutdown()
