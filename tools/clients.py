"""Measures methods with several clients at once: `python -m tools.clients --out docs/results/clients.json`.

    client 1 ─ ask, wait, ask, wait ─┐
    client 2 ─ ask, wait, ask, wait ─┼─▶ one method over three Ray actors, whose scripted engines really wait
    ...                              ┘
    the same on a virtual clock, without Ray ─▶ the ideal: calls take no time, each actor has a device

So parallelism can be measured on a machine that has fewer cores than there are actors: the engines wait, and what
remains is the cost of Ray, the event loops and the schedules. All methods answer the same questions.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamr.bench.methods import MethodSpec, parse_methods
from dreamr.bench.simulation import virtual
from dreamr.bench.summary import speedup
from dreamr.config import Config, GroupConfig, ScriptedEngineConfig, load_config
from dreamr.errors import BadInput, reported
from dreamr.markdown import markdown_table
from dreamr.types import Prompt, Role
from pipelines import BASELINE, Request, Trace, run
from pipelines.handles import Handles
from pipelines.trace import acceptance_rate
from tools.reports import conditions, made_by, write

DEFAULT = Path(__file__).parents[1] / "configs/scripted-32b-2b.yaml"


async def answer_all(
    handles: Handles, spec: MethodSpec, prompts: Sequence[Sequence[Prompt]], clock: Callable[[], float]
) -> list[Trace]:
    """Answer the prompts of each client: all clients at once, each of which asks one after the other."""

    async def client(own: Sequence[Prompt]) -> list[Trace]:
        return [await run(Request(prompt, spec.settings), handles, clock=clock) for prompt in own]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(own)) for own in prompts]
    return [trace for task in tasks for trace in task.result()]


def _prompts(num_clients: int, num_questions: int) -> list[list[Prompt]]:
    return [
        [Prompt(f"question {place} of client {number}") for place in range(num_questions)]
        for number in range(num_clients)
    ]


async def _ideal(config: GroupConfig, spec: MethodSpec, prompts: Sequence[Sequence[Prompt]]) -> list[Trace]:
    clock = asyncio.get_running_loop().time
    return await answer_all(_local_handles(config, clock), spec, prompts, clock)


def _local_handles(config: GroupConfig, clock: Callable[[], float]) -> Handles:
    """The configured engines in this process, on the clock of the running event loop."""
    from actors.local import local_handles
    from dreamr.engines.scripted import ScriptedEngine

    engines = {role: ScriptedEngine(engine, clock) for role, engine in scripted_engines(config).items()}
    return local_handles(engines["draft"], engines["target"], engines.get("verifier", engines["target"]))


def scripted_engines(config: GroupConfig) -> dict[Role, ScriptedEngineConfig]:
    """The engines by role. Raises BadInput when one is no scripted engine."""
    engines: dict[Role, ScriptedEngineConfig] = {}
    for role, actor in config.actors().items():
        if not isinstance(actor.engine, ScriptedEngineConfig):
            raise BadInput(f"--config: group.{role}.engine.kind is '{actor.engine.kind}'; it has to be 'scripted'.")
        engines[role] = actor.engine
    return engines


def measure(
    config: Config, specs: Sequence[MethodSpec], levels: Sequence[int], num_answers: int
) -> list[dict[str, Any]]:
    """One row per number of clients and method. All clients of a level ask equally many questions, at least
    `num_answers` together."""
    from actors.cluster import connected
    from actors.group import ActorGroup

    prompts = {level: _prompts(level, math.ceil(num_answers / level)) for level in levels}

    async def real() -> list[list[list[Trace]]]:
        async with ActorGroup(config.group) as group:
            for spec in specs:
                warm_up = Request(Prompt("warm-up"), spec.limited(spec.settings.warm_up_tokens))
                await run(warm_up, group.handles)
            measured = []
            for level in levels:
                typer.echo(f"{level} clients ...", err=True)
                measured.append([await answer_all(group.handles, spec, prompts[level], time.time) for spec in specs])
            return measured

    with connected(config.cluster):
        measured = asyncio.run(real())
    rows = []
    for level, by_method in zip(levels, measured, strict=True):
        ideal = [virtual(_ideal(config.group, spec, prompts[level])) for spec in specs]
        rows += [_row(spec.name, level, [by_method[0], own], [ideal[0], best])
                 for spec, own, best in zip(specs, by_method, ideal, strict=True)]  # fmt: skip
    return rows


def read_levels(numbers: str, option: str = "--clients", most: int = 256) -> list[int]:
    """The numbers that an option gives, such as those of clients. Raises BadInput."""
    try:
        levels = [int(level) for level in numbers.split(",")]
    except ValueError:
        levels = [0]
    if not all(1 <= level <= most for level in levels):
        raise BadInput(f"{option} {numbers}: numbers from 1 to {most}, separated by commas.")
    return levels


def _row(method: str, num_clients: int, measured: list[list[Trace]], ideal: list[list[Trace]]) -> dict[str, Any]:
    """`measured` and `ideal`: the answers of the target alone and those of the method."""
    plain, own, plain_ideal, own_ideal = ([trace.wall_s for trace in traces] for traces in (*measured, *ideal))
    faster, best = speedup(plain, own), speedup(plain_ideal, own_ideal)
    return {
        "method": method,
        "clients": num_clients,
        "answers": len(own),
        "latency_s": statistics.fmean(own),
        "ideal_latency_s": statistics.fmean(own_ideal),
        "acceptance_rate": acceptance_rate(measured[1]),
        "speedup": faster.model_dump(),
        "ideal_speedup": best.geomean,
        "share_of_ideal": faster.geomean / best.geomean,
    }


def table(document: dict[str, Any]) -> str:
    """The document as a Markdown table."""
    titles = ["clients", "method", "time per answer", "ideal", "speedup", "ideal", "share of the ideal"]
    rows = [
        [
            str(row["clients"]),
            f"`{row['method']}`",
            f"{row['latency_s']:.2f} s",
            f"{row['ideal_latency_s']:.2f} s",
            f"{row['speedup']['geomean']:.2f}",
            f"{row['ideal_speedup']:.2f}",
            f"{row['share_of_ideal']:.2f}",
        ]
        for row in document["rows"]
    ]
    return f"{markdown_table([titles, *rows])}\n\n{conditions(document)}"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    config: Annotated[Path, typer.Option(help="YAML file whose engines are scripted.")] = DEFAULT,
    methods: Annotated[str, typer.Option(help="Names, separated by commas; the target alone is always measured.")] = (
        "sequential,fpsr"
    ),
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas.")] = "1,2,4,8,16,32",
    answers: Annotated[int, typer.Option(min=1, max=1000, help="At least so many answers of each method.")] = 4,
) -> None:
    """Measure the time per answer of each method by the number of clients, and the ideal."""
    with reported():
        settled, origin = load_config(config), made_by("tools.clients")
        scripted_engines(settled.group)
        specs = parse_methods(f"{BASELINE},{methods}", None, settled.pipeline)
        document = origin | {
            "group": settled.group.model_dump(mode="json"),
            "rows": measure(settled, specs, read_levels(clients), answers),
        }
        write(document, out)
        typer.echo(table(document))


if __name__ == "__main__":
    app()
