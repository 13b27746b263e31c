"""Measures throughput by the number of groups of actors: `python -m tools.groups --out docs/results/groups.json`.

    client 1 ─ ask, read the stream, ask, ... ─┐                     ┌─▶ replica 1 ─▶ draft, target, verifier
    client 2 ─ ask, read the stream, ask, ... ─┼─▶ Ray Serve's proxy ┤
    ...                                        ┘                     └─▶ replica 2 ─▶ draft, target, verifier

The engines are scripted and really wait, so groups that outnumber the cores can be measured: what is lost against
linear growth is the cost of routing, of unequal queues, and of cores that have no time left. There are twice as many
clients as slots, so that every group has requests in its queue; they begin one after the other, since a burst would all
go to one group. Tokens count when their step arrives, in a window after a warm-up; bounded by its seconds. The engines
are slowed down, so that the calls of all groups together need a part of the cores only.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from dreamr.config import ActorConfig, Config, load_config
from dreamr.config.serve import GroupLimits, ServeSettings
from dreamr.errors import reported
from dreamr.markdown import markdown_table
from tools.clients import DEFAULT, read_levels, scripted_engines
from tools.load import CHAT, chunks_of, running
from tools.reports import conditions, made_by, write

SLOTS = 4
"""Answers that a group works on at once."""
CLIENTS_PER_SLOT = 2
MAX_GROUPS = 16
LATENCIES = ("first_token_s", "token_s", "verdict_s")
NUM_QUESTIONS = 32
"""They are asked over and over, so that every level has the same mixture."""


@dataclass(slots=True)
class Arrivals:
    """Steps and ends of answers as the clients saw them."""

    steps: list[tuple[float, str, int]] = field(default_factory=list)
    """Time, replica and number of tokens."""
    ends: list[float] = field(default_factory=list)

    async def client(
        self, http: aiohttp.ClientSession, model: str, questions: itertools.cycle[str], pause_s: float
    ) -> None:
        """Ask after a pause until cancelled. Raises ClientError when a request fails."""
        await asyncio.sleep(pause_s)
        while True:
            messages = [{"role": "user", "content": next(questions)}]
            async with http.post(CHAT, json={"model": model, "messages": messages, "stream": True}) as response:
                async for chunk in chunks_of(response):
                    origins = (choice.get("dreamr") or {} for choice in chunk["choices"])
                    at, replica = time.monotonic(), response.headers["X-Replica-ID"]
                    self.steps += [(at, replica, one["num_tokens"]) for one in origins if "source" in one]
            self.ends.append(time.monotonic())


async def arrivals_of(url: str, model: str, num_clients: int, warm_up_s: float, seconds: float) -> Arrivals:
    """What `num_clients` clients received; the last one begins in the middle of the warm-up."""
    arrivals, questions = Arrivals(), itertools.cycle([f"question {number}" for number in range(NUM_QUESTIONS)])
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:
        clients = [
            asyncio.create_task(
                arrivals.client(http, model, questions, number * warm_up_s / 2 / num_clients), name=f"client {number}"
            )
            for number in range(num_clients)
        ]
        try:
            failed, _ = await asyncio.wait(clients, timeout=warm_up_s + seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        for client in failed:
            client.result()
    return arrivals


def measure(config: Config, num_groups: int, seconds: float, warm_up_s: float) -> dict[str, Any]:
    """One row: the application with so many groups, started for it."""
    limits = GroupLimits(min=num_groups, max=num_groups)
    num_clients = CLIENTS_PER_SLOT * SLOTS * num_groups
    serve = ServeSettings(groups=limits, max_running=SLOTS, max_queued=num_clients, queue_deadline_s=600)
    typer.echo(f"{num_groups} groups ...", err=True)
    with running(config.model_copy(update={"serve": serve})) as url:
        began = time.monotonic() + warm_up_s
        arrivals = asyncio.run(arrivals_of(url, serve.model_name, num_clients, warm_up_s, seconds))
        load = os.getloadavg()[0]
    tokens: Counter[str] = Counter()
    for at, replica, num_tokens in arrivals.steps:
        tokens[replica] += num_tokens * (at >= began)
    row = {
        "groups": num_groups,
        "clients": num_clients,
        "tokens_per_s": tokens.total() / seconds,
        "tokens_per_s_by_group": sorted(number / seconds for number in tokens.values()),
        "answers_per_s": sum(at >= began for at in arrivals.ends) / seconds,
        "load": load,
    }
    typer.echo(str(row), err=True)
    return row


def slowed(config: Config, factor: float) -> Config:
    """Longer latencies of all engines. Raises BadInput when one is no scripted engine."""
    actors = config.group.actors()
    changed: dict[str, ActorConfig] = {}
    for role, engine in scripted_engines(config.group).items():
        latencies = {name: factor * getattr(engine, name) for name in LATENCIES}
        changed[role] = actors[role].model_copy(update={"engine": engine.model_copy(update=latencies)})
    return config.model_copy(update={"group": config.group.model_copy(update=changed)})


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    rows = [["groups", "clients", "tokens/s", "of each group", "answers/s", "share of linear growth", "load average"]]
    first = report["rows"][0]
    for row in report["rows"]:
        linear = first["tokens_per_s"] * row["groups"] / first["groups"]
        rows.append(
            [
                str(row["groups"]),
                str(row["clients"]),
                f"{row['tokens_per_s']:.1f}",
                ", ".join(f"{rate:.1f}" for rate in row["tokens_per_s_by_group"]),
                f"{row['answers_per_s']:.2f}",
                f"{row['tokens_per_s'] / linear:.3f}" if linear else "–",
                f"{row['load']:.1f}",
            ]
        )
    return f"{markdown_table(rows)}\n\n{conditions(report)}"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    config: Annotated[Path, typer.Option(help="YAML file whose engines are scripted.")] = DEFAULT,
    groups: Annotated[str, typer.Option(help="Numbers of groups, separated by commas.")] = "1,2,4",
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of each measurement.")] = 180,
    warm_up: Annotated[float, typer.Option(min=0, max=600, help="Seconds before it.")] = 60,
    slower: Annotated[float, typer.Option(min=0.01, max=100, help="Factor on the latencies of the engines.")] = 4,
) -> None:
    """Measure tokens per second by the number of groups, and their share of linear growth."""
    from actors.cluster import connected

    with reported():
        settled, origin = slowed(load_config(config), slower), made_by("tools.groups")
        levels = read_levels(groups, "--groups", MAX_GROUPS)
        with connected(settled.cluster):
            rows = [measure(settled, level, seconds, warm_up) for level in levels]
        report = origin | {"group": settled.group.model_dump(mode="json"), "rows": rows}
        write(report, out)
        typer.echo(table(report))


if __name__ == "__main__":
    app()
