"""Measures the endpoint while its processes are killed and stopped: `make chaos`.

    8 clients ── stream, Idempotency-Key ──▶ endpoint on loopback       one row per fault: 800 requests, and the fault
        ▲  └─ a request that fails is sent again                        when a third of them has been answered
        └── text, longest gap between two steps

Draft and target are the same scripted model, so a greedy answer is the same after any draft, loss or retry:
any other text is an error. A second table sends junk next to valid requests. The load is bounded by its number of
requests; everything runs on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from dreamr.bench.report import Machine
from dreamr.config import Config, load_config
from tools import chaos_report
from tools.chaos_clients import CHAT, Load
from tools.load import running

RECOVERY_DEADLINE_S = 180.0
POLL_S = 0.1
FAULTS = [
    ("none", "none"),
    *[(role, fault) for role in ("draft", "target", "verifier", "replica") for fault in ("kill", "hang")],
    ("proxy", "kill"),
    ("core", "kill"),
]
"""Victims and faults: SIGKILL or SIGSTOP. `core` is a vLLM process of the target, if it has one."""
_SIGNALS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}


def scripted_pair() -> Config:
    """Two replicas over scripted engines: one model in three actors, with the latencies of a small one."""
    engine = {"kind": "scripted", "seed": 1, "num_steps": (4, 6), "acceptance": 0.7, "max_positions": 4096}
    latencies = {"token_s": 0.002, "verdict_s": 0.005, "max_batch": 16}
    actor = {"num_cpus": 0.1, "engine": engine | latencies}
    group = {"draft": actor, "target": actor, "verifier": actor, "health_deadline_s": 2}
    limits = {"num_replicas": 2, "max_running": 16, "max_queued": 64}
    return Config.model_validate({"group": group, "serve": limits})


# -- faults ------------------------------------------------------------------------------------------------------------


def processes(what: str) -> set[int]:
    """Process ids of a role, of the replicas, of the proxies, or of vLLM's own processes."""
    import ray

    if what == "core":
        return {child for target in processes("target") for child in _children(target)}
    marks: dict[str, Callable[[str], bool]] = {
        "replica": lambda name: "#dreamr#" in name,
        "proxy": lambda name: "SERVE_PROXY" in name,
    }
    is_it = marks.get(what, lambda name: name.endswith(f"-{what}"))
    actors = ray._private.state.actors().values()
    return {actor["Pid"] for actor in actors if actor["State"] == "ALIVE" and is_it(actor["Name"])}


def _children(pid: int) -> list[int]:
    """vLLM processes that an actor has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "VLLM" in Path(f"/proc/{child}/comm").read_text()]


async def recovery_s(what: str, victim: int, before: int, http: aiohttp.ClientSession, url: str) -> float | None:
    """Seconds until another process has taken the victim's place and the service is healthy; None after a long time."""
    began = time.monotonic()
    while time.monotonic() - began < RECOVERY_DEADLINE_S:
        present = await asyncio.to_thread(processes, what)
        if victim not in present and len(present) >= before and await _is_healthy(http, url):
            return time.monotonic() - began
        await asyncio.sleep(POLL_S)
    return None


async def _is_healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/health", timeout=aiohttp.ClientTimeout(total=5)) as response:
            return bool((await response.json())["status"] == "ok")
    except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError):
        return False


async def fault_row(
    load: Load, what: str, fault: str, num_clients: int, expected: dict[int, str]
) -> dict[str, Any] | None:
    """One row; None when there is no such process."""
    victims = await asyncio.to_thread(processes, what) if what != "none" else set()
    if what != "none" and not victims:
        return None
    running_load = asyncio.create_task(load.run(num_clients), name=f"{what} {fault}")
    recovered: float | None = 0.0
    if victims:
        await load.third.wait()
        victim = min(victims)
        os.kill(victim, _SIGNALS[fault])
        recovered = await recovery_s(what, victim, len(victims), load.http, load.url)
    await running_load
    asked = load.asked
    return {
        "what": what,
        "fault": fault,
        "requests": len(asked),
        "failed_once": sum(one.num_attempts > 1 or not one.is_answered for one in asked.values()),
        "failed": sum(not one.is_answered for one in asked.values()),
        "recovery_s": recovered,
        "longest_stall_s": max(one.longest_gap_s for one in asked.values()),
        "different": sum(
            expected.get(number, one.text) != one.text for number, one in asked.items() if one.is_answered
        ),
    }


# -- junk --------------------------------------------------------------------------------------------------------------


def _drip() -> AsyncIterator[bytes]:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100
            await asyncio.sleep(0.1)

    return body()


def _chat(model: str, content: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode()


JUNK: dict[str, Callable[[str], Any]] = {
    "none": lambda model: None,
    "too long": lambda model: _chat(model, "word " * 15_000),
    "huge": lambda model: _chat(model, [{}] * 1_000_000),
    "deep": lambda model: b"[" * 1_000_000,
    "slow": lambda model: _drip(),
}


async def junk_row(load: Load, kind: str, num_clients: int) -> dict[str, Any]:
    """Send valid requests while as many clients send junk."""
    statuses: dict[str, int] = {}

    async def send() -> None:
        headers = {"Content-Type": "application/json"}
        while True:
            try:
                async with load.http.post(load.url + CHAT, data=JUNK[kind](load.model), headers=headers) as response:
                    await response.read()
                    said = str(response.status)
            except aiohttp.ClientError:
                said = "closed"
            statuses[said] = statuses.get(said, 0) + 1

    senders = [
        asyncio.create_task(send(), name=f"junk {number}") for number in range(num_clients if kind != "none" else 0)
    ]
    try:
        await load.run(num_clients)
    finally:
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
    latencies = sorted(one.latency_s for one in load.asked.values())
    return {
        "junk": kind,
        "requests": len(latencies),
        "failed": sum(one.num_attempts > 1 for one in load.asked.values()),
        "p50_s": latencies[len(latencies) // 2],
        "p95_s": latencies[int(0.95 * (len(latencies) - 1))],
        "junk_statuses": statuses,
    }


async def measure(url: str, model: str, num_clients: int, per_client: int, only: set[str]) -> dict[str, Any]:
    """Measure both tables. `only`: names of victims; all when empty."""
    number = num_clients * per_client
    expected: dict[int, str] = {}
    faults, junk = [], []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        for what, fault in FAULTS:
            if only and what not in only | {"none"}:
                continue
            load = Load(http, url, model, number)
            row = await fault_row(load, what, fault, num_clients, expected)
            if row is None:
                continue
            if what == "none":
                expected = {place: one.text for place, one in load.asked.items()}
            faults.append(row)
            typer.echo(str(row), err=True)
        for kind in JUNK if not only or "junk" in only else ():
            junk.append(await junk_row(Load(http, url, model, number // 4), kind, max(1, num_clients // 2)))
            typer.echo(str(junk[-1]), err=True)
    return {"faults": faults, "junk": junk}


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; without it, scripted engines.")] = None,
    clients: Annotated[int, typer.Option(min=1, max=64)] = 8,
    requests: Annotated[int, typer.Option(min=1, max=1000, help="Of each client and row.")] = 100,
    only: Annotated[str, typer.Option(help="Victims, separated by commas: draft, replica, junk, ...")] = "",
) -> None:
    """Measure failed requests, recovery, stalls and different answers under each fault, and latency under junk."""
    settled = load_config(config) if config else scripted_pair()
    names = set(filter(None, only.split(",")))
    with running(settled) as url:
        tables = asyncio.run(measure(url, settled.serve.model_name, clients, requests, names))
    command = shlex.join(["python", "-m", "tools.chaos", *sys.argv[1:]])
    report = {"command": command, "machine": Machine.this().model_dump(), **tables}
    if out:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    typer.echo(chaos_report.table(report))


if __name__ == "__main__":
    typer.run(main)
