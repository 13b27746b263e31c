"""Groups of actors by load, on Ray Serve: one per replica, added under load, ended with their replica."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from support.serving import free_port, scripted_config, settled
from typer.testing import CliRunner

from serve_app import build
from tools import groups

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

APP = "grown"


def targets() -> set[int]:
    """Processes of the targets."""
    actors = ray._private.state.actors().values()
    return {
        actor["Pid"]
        for actor in actors
        if actor["State"] == "ALIVE" and actor["Name"].startswith(APP) and actor["Name"].endswith("-target")
    }


def replica_process(tag: str) -> int:
    actors = ray._private.state.actors().values()
    return next(actor["Pid"] for actor in actors if actor["State"] == "ALIVE" and actor["Name"].endswith(f"#{tag}"))


async def ask(client: httpx.AsyncClient, number: int, session: str | None = None) -> tuple[str, str]:
    """The replica that answered, and the text."""
    headers = {"X-Session-ID": session} if session else {}
    body = {"model": "dreamr", "messages": [{"role": "user", "content": f"question {number}"}], "method": "sequential"}
    response = await client.post("/v1/chat/completions", json=body, headers=headers)
    response.raise_for_status()
    return response.headers["x-replica-id"], response.json()["choices"][0]["message"]["reasoning"]


async def sessions_stay(client: httpx.AsyncClient, replicas: set[str]) -> None:
    """Every turn of a session reaches the same group, and sessions are spread over all."""
    homes: dict[str, set[str]] = {}
    for turn in range(3):
        for session in (f"conversation {number}" for number in range(12)):
            replica, _ = await ask(client, turn, session)
            homes.setdefault(session, set()).add(replica)
    assert all(len(home) == 1 for home in homes.values())
    assert set.union(*homes.values()) == replicas


async def test_a_group_is_added_under_load_and_groups_end_with_their_replicas(ray_cluster: None) -> None:
    groups = {"min": 1, "max": 2, "upscale_delay_s": 0}
    config = scripted_config({"groups": groups, "max_running": 2, "max_queued": 40}, token_s=0.01)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    await asyncio.to_thread(serve.run, build({"config": config}), name=APP)
    assert len(targets()) == 1
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        answers: dict[int, str] = {}
        replicas: set[str] = set()
        deadline = time.monotonic() + 240
        while len(replicas) < 2 and time.monotonic() < deadline:
            for number, (replica, text) in enumerate(await asyncio.gather(*(ask(client, one) for one in range(12)))):
                replicas.add(replica)
                assert answers.setdefault(number, text) == text  # by whichever group
        assert len(replicas) == 2
        await sessions_stay(client, replicas)
        both = targets()
        assert len(both) == 2
        os.kill(replica_process(min(replicas)), signal.SIGKILL)
        await settled(lambda: not both <= targets())
        assert len(both - targets()) == 1
        await asyncio.to_thread(serve.delete, APP)
    assert not targets()
    serve.shutdown()


def test_the_throughput_of_groups_is_measured(ray_cluster: None, tmp_path: Path) -> None:
    arguments = ["--groups", "1,2", "--seconds", "3", "--warm-up", "3", "--out", str(tmp_path / "groups.json")]
    result = CliRunner().invoke(groups.app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "groups.json").read_text())["rows"]
    assert [(row["groups"], row["tokens_per_s"] > 0) for row in rows] == [(1, True), (2, True)]
