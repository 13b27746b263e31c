"""Measures the endpoint under load: `python -m tools.load --out docs/results/load.json`.

    client 1 ─ ask, wait, ask, wait ─┐
    client 2 ─ ask, wait, ask, wait ─┼─▶ endpoint        `concurrency` clients, each with one request at a time, until
    ...                              ┘                   the problems of the round are used up

Methods take turns round by round, on the same problems, each from cold prefix caches. Bounded by the number of
problems; without `--url` the application is started for the measurement and ends with it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from dreamr.config import Config, load_config
from dreamr.config.serve import ServeSettings
from dreamr.serve.middleware import api_keys
from dreamr.tasks.images import data_url
from dreamr.tasks.ledger import Problem, extract_answer, make_problem
from tools.load_report import Asked, summarise
from tools.reports import made_by, write

CHAT = "/v1/chat/completions"
DEADLINE_S = 300.0


class LoadTest:
    """Closed-loop clients against one endpoint."""

    def __init__(self, url: str, model: str, session: aiohttp.ClientSession) -> None:
        self._url, self._model, self._session = url, model, session

    async def round(self, method: str, concurrency: int, problems: Sequence[Problem]) -> list[Asked]:
        """Ask every problem once, by `concurrency` clients."""
        line = iter(problems)
        async with asyncio.TaskGroup() as clients:
            tasks = [clients.create_task(self._client(method, line)) for _ in range(concurrency)]
        return [asked for task in tasks for asked in task.result()]

    async def _client(self, method: str, line: Iterator[Problem]) -> list[Asked]:
        return [await self._ask(method, problem) for problem in line]

    async def _ask(self, method: str, problem: Problem) -> Asked:
        body = chat_body(self._model, problem) | {"method": method, "cold": True}
        began = time.monotonic()
        async with self._session.post(self._url + CHAT, json=body) as response:
            answer: dict[str, Any] = await response.json()
            ended = time.monotonic()
            if response.status != 200:
                raise RuntimeError(f"the endpoint answered {response.status}: {answer}")
        text = answer["choices"][0]["message"]["content"] or ""
        tokens = answer["usage"]["completion_tokens"]
        return Asked(began, ended, tokens, extract_answer(text) == problem.answer)


async def measure(
    url: str, serve: ServeSettings, methods: Sequence[str], levels: Sequence[int], num_problems: int, rounds: int
) -> list[dict[str, Any]]:
    """One row per method and level."""
    keys = api_keys(serve.api_key_env)
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    numbers = itertools.count()
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http:
        test = LoadTest(url, serve.model_name, http)
        for method in methods:
            await test.round(method, 2, [make_problem("validation", 0, index) for index in range(4)])
        rows = []
        for level in levels:
            asked: dict[str, list[list[Asked]]] = {method: [] for method in methods}
            for number in range(rounds):
                problems = [make_problem("test", 1, next(numbers)) for _ in range(num_problems)]
                for method in methods if number % 2 == 0 else methods[::-1]:
                    asked[method].append(await test.round(method, level, problems))
            rows += [{"method": method, "concurrency": level, **summarise(asked[method])} for method in methods]
            typer.echo(
                "\n".join(
                    f"{row['concurrency']:>3} {row['method']:<16} {row['throughput']:.2f} answers/s  "
                    f"p50 {row['p50_s']:.2f} s  p95 {row['p95_s']:.2f} s"
                    for row in rows[-len(methods) :]
                ),
                err=True,
            )
    return rows


async def chunks_of(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer. Raises ClientError unless it is whole."""
    response.raise_for_status()
    async for line in response.content:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: "):
            chunk: dict[str, Any] = json.loads(line[6:])
            if "error" in chunk:
                raise aiohttp.ClientPayloadError(str(chunk["error"]))
            yield chunk
    raise aiohttp.ClientPayloadError("the stream broke off")


def chat_body(model: str, problem: Problem) -> dict[str, Any]:
    """The body of a request with this problem."""
    [image] = problem.prompt.images
    content = [
        {"type": "text", "text": problem.question},
        {"type": "image_url", "image_url": {"url": data_url(image)}},
    ]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


@contextmanager
def running(config: Config) -> Iterator[str]:
    """The application on a free port of this machine, for the duration of the block."""
    from ray import serve

    from actors.cluster import connected
    from serve_app import CONTROLLER_OPTIONS, build

    with connected(config.cluster), socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        http = {"host": "127.0.0.1", "port": port}
        serve.start(proxy_location="HeadOnly", http_options=http, controller_options=CONTROLLER_OPTIONS)
        try:
            serve.run(build({"config": config}), name="dreamr", route_prefix="/")
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the report.")] = None,
    url: Annotated[str | None, typer.Option(help="A running endpoint, without /v1; else one is started.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; without it, the built-in models.")] = None,
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "autoregressive,fpsr",
    concurrency: Annotated[str, typer.Option(help="Numbers of clients, separated by commas.")] = "1,2,4,8",
    problems: Annotated[int, typer.Option(min=1, max=1000, help="Per method, level and round.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, max=20)] = 2,
) -> None:
    """Measure throughput and latency of each method by the number of clients."""
    settled, origin = load_config(config), made_by("tools.load")
    names, levels = methods.split(","), [int(level) for level in concurrency.split(",")]
    if url:
        rows = asyncio.run(measure(url, settled.serve, names, levels, problems, rounds))
    else:
        with running(settled) as own:
            rows = asyncio.run(measure(own, settled.serve, names, levels, problems, rounds))
    report = origin | {
        "serve": settled.serve.model_dump(include={"max_running", "write_ahead_up_to", "draft_up_to", "num_replicas"}),
        "pipeline": settled.pipeline.model_dump(include={"alpha", "window", "max_tokens", "temperature"}),
        "rows": rows,
    }
    write(report, out)
    if not out:
        typer.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    typer.run(main)
