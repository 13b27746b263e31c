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
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from dreamr.config import Config, load_config
from tools import chaos_report
from tools.chaos_clients import Load
from tools.chaos_faults import (
    FAULTS,
    NO_FAULT,
    NODE_FAULT,
    SPARE_FAULTS,
    Fault,
    fault_row,
    several_nodes,
    with_spare_target,
)
from tools.load import CHAT, running
from tools.reports import made_by, write


@dataclass(frozen=True, slots=True)
class Size:
    """Of each row."""

    num_clients: int
    num_requests: int


def scripted_pair() -> Config:
    """Two replicas over scripted engines: one model in three actors, with the latencies of a small one."""
    engine = {"kind": "scripted", "seed": 1, "num_steps": (3, 4), "acceptance": 0.7, "max_positions": 4096}
    latencies = {"token_s": 0.002, "verdict_s": 0.005, "max_batch": 16}
    actor = {"num_cpus": 0.1, "engine": engine | latencies}
    group = {"draft": actor, "target": actor, "verifier": actor, "health_deadline_s": 2}
    limits = {"num_replicas": 2, "max_running": 16, "max_queued": 64}
    return Config.model_validate({"group": group, "serve": limits})


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


async def faults_of(
    url: str, model: str, faults: Sequence[Fault], size: Size, strike: Callable[[int], None] | None = None
) -> list[dict[str, Any]]:
    """A row without a fault, whose answers the others have to equal, and one per fault."""
    expected: dict[int, str] = {}
    rows = []
    async with session() as http:
        for fault in (NO_FAULT, *faults):
            load = Load(http, url, model, size.num_requests)
            row = await fault_row(load, fault, size.num_clients, expected, strike)
            if row is None:
                continue
            if fault == NO_FAULT:
                expected = {place: one.text for place, one in load.asked.items()}
            rows.append(row)
            typer.echo(str(row), err=True)
    return rows


async def junk_of(url: str, model: str, size: Size) -> list[dict[str, Any]]:
    """A row per kind of junk."""
    rows = []
    async with session() as http:
        for kind in JUNK:
            load = Load(http, url, model, max(size.num_requests // 4, 1))
            rows.append(await junk_row(load, kind, max(1, size.num_clients // 2)))
            typer.echo(str(rows[-1]), err=True)
    return rows


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


def measure(config: Config, size: Size, only: set[str]) -> dict[str, Any]:
    """Both tables. `only`: names of victims, `spare`, `node`, `junk`; all when empty."""
    model = config.serve.model_name
    wanted = [fault for fault in FAULTS if not only or fault.what in only]
    faults, junk = [], []
    if wanted or "junk" in only:
        with running(config) as url:
            if wanted:
                faults += asyncio.run(faults_of(url, model, wanted, size))
            if not only or "junk" in only:
                junk += asyncio.run(junk_of(url, model, size))
    if not only or "spare" in only:
        with running(with_spare_target(config)) as url:
            faults += asyncio.run(faults_of(url, model, SPARE_FAULTS, size))[1:]
    if not only or "node" in only:
        with several_nodes(config) as (spread, strike), running(spread) as url:
            faults += asyncio.run(faults_of(url, model, [NODE_FAULT], size, strike))[1:]
    return {"faults": faults, "junk": junk}


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; without it, scripted engines.")] = None,
    clients: Annotated[int, typer.Option(min=1, max=64)] = 8,
    requests: Annotated[int, typer.Option(min=1, max=1000, help="Of each client and row.")] = 100,
    only: Annotated[str, typer.Option(help="Rows, separated by commas: draft, replica, spare, node, junk, ...")] = "",
) -> None:
    """Measure failed requests, recovery, stalls and different answers under each fault, and latency under junk."""
    settled, origin = load_config(config) if config else scripted_pair(), made_by("tools.chaos")
    tables = measure(settled, Size(clients, clients * requests), set(filter(None, only.split(","))))
    report = origin | tables
    write(report, out)
    typer.echo(chaos_report.table(report))


if __name__ == "__main__":
    typer.run(main)
