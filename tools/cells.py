"""Compares `auto` with fixed methods by drafts and clients: `python -m tools.cells --out docs/results/auto.json`.

    drafts   untrained │ trained │ random weights          each a group of actors with the built-in target
    clients  1, 2, 4, 8, 16                                each asks, waits, asks, waits
    cell     every method answers the same problems, `auto` after a warm-up at the same number of clients

`auto / best fixed` is the best fixed method's mean time per answer / that of `auto`: above 1, `auto` is faster.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamr.bench.methods import MethodSpec, parse_methods
from dreamr.config import Config, load_config, with_draft
from dreamr.errors import BadInput, reported
from dreamr.markdown import markdown_table
from dreamr.tasks.images import cold_copy
from dreamr.tasks.ledger import make_problem
from dreamr.types import Prompt
from pipelines import BASELINE
from pipelines.handles import Handles
from tools.clients import answer_all, read_levels
from tools.reports import conditions, made_by, write

AUTO = "auto"
DRAFTS = {"untrained": "embedded:draft-untrained", "trained": "embedded:draft"}
RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured in every cell."""

    specs: list[MethodSpec]
    num_answers: int
    """At least so many of each method in a round."""
    num_rounds: int
    seed: int


def measure(config: Config, drafts: Sequence[str], levels: Sequence[int], plan: Plan) -> list[dict[str, Any]]:
    """A row per draft, number of clients and method."""
    from actors.cluster import connected
    from actors.group import ActorGroup

    async def of_draft(name: str, model: str) -> list[dict[str, Any]]:
        async with ActorGroup(with_draft(config, model).group) as group:
            for spec in plan.specs:
                await _ask(group.handles, spec, 1, plan, f"warm-up {spec.name}")
            rows = []
            for level in levels:
                typer.echo(f"{name} draft, {level} clients ...", err=True)
                rows += [{"draft": name} | row for row in await _cell(group.handles, level, plan)]
            return rows

    with connected(config.cluster), _models(drafts) as models:
        return [row for name, model in models.items() for row in asyncio.run(of_draft(name, model))]


async def _cell(handles: Handles, num_clients: int, plan: Plan) -> list[dict[str, Any]]:
    """Each method in turn, in reverse order in every second round."""
    (auto,) = [spec for spec in plan.specs if spec.name == AUTO]
    await _ask(handles, auto, num_clients, plan, "warm-up")
    walls: dict[str, list[float]] = {spec.name: [] for spec in plan.specs}
    for number in range(plan.num_rounds):
        for spec in plan.specs if number % 2 == 0 else plan.specs[::-1]:
            walls[spec.name] += await _ask(handles, spec, num_clients, plan, f"round {number}")
    return [
        {"clients": num_clients, "method": name, "answers": len(own), "latency_s": statistics.fmean(own)}
        for name, own in walls.items()
    ]


async def _ask(handles: Handles, spec: MethodSpec, num_clients: int, plan: Plan, name: str) -> list[float]:
    """Wall times of the answers to the same problems, each from cold caches."""
    each = math.ceil(plan.num_answers / num_clients)

    def prompt(number: int) -> Prompt:
        problem = make_problem("test", plan.seed, number)
        return cold_copy(problem.prompt, f"{name} {spec.name} {num_clients} {number}")

    prompts = [[prompt(client * each + place) for place in range(each)] for client in range(num_clients)]
    return [trace.wall_s for trace in await answer_all(handles, spec, prompts, time.time)]


@contextmanager
def _models(drafts: Sequence[str]) -> Iterator[dict[str, str]]:
    """Drafts by name; the one with random weights exists for the duration of the block."""
    with tempfile.TemporaryDirectory() as folder:
        known = DRAFTS | {RANDOM: folder}
        if RANDOM in drafts:
            _save_random(Path(folder))
        yield {name: known[name] for name in drafts}


def _save_random(folder: Path) -> None:
    """The built-in draft with new weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from dreamr.engines.factory import model_location

    source = Path(model_location(DRAFTS["trained"]))
    shutil.copytree(source, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)


def table(document: dict[str, Any]) -> str:
    """The document as a Markdown table: a row per cell."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for row in document["rows"]:
        cells.setdefault((row["draft"], row["clients"]), {})[row["method"]] = row["latency_s"]
    titles = ["draft", "clients", "target alone", "best fixed method", "`auto`", "auto / best fixed", "auto / alone"]
    rows = []
    for (draft, clients), latency_s in cells.items():
        auto_s = latency_s[AUTO]
        best_s, best = min((own_s, name) for name, own_s in latency_s.items() if name != AUTO)
        rows.append(
            [
                draft,
                str(clients),
                f"{latency_s[BASELINE]:.3f} s",
                f"`{best}`, {best_s:.3f} s",
                f"{auto_s:.3f} s",
                f"{best_s / auto_s:.2f}",
                f"{latency_s[BASELINE] / auto_s:.2f}",
            ]
        )
    return f"{markdown_table([titles, *rows])}\n\n{conditions(document)}"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    methods: Annotated[str, typer.Option(help="Fixed methods, separated by commas, besides the target alone.")] = (
        "sequential,fpsr,parallel_prefix"
    ),
    drafts: Annotated[str, typer.Option(help="Of untrained, trained and random.")] = "untrained,trained,random",
    clients: Annotated[str, typer.Option(help="Numbers of clients, separated by commas.")] = "1,2,4,8,16",
    answers: Annotated[int, typer.Option(min=1, max=1000, help="At least so many of each method in a round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each method answers them.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
) -> None:
    """Measure the time per answer of `auto` and of fixed methods by drafts and numbers of clients."""
    with reported():
        named, levels, origin, config = drafts.split(","), read_levels(clients), made_by("tools.cells"), load_config()
        if unknown := set(named) - {*DRAFTS, RANDOM}:
            raise BadInput(f"--drafts {','.join(sorted(unknown))}: choose of untrained, trained and random.")
        specs = parse_methods(f"{BASELINE},{methods},{AUTO}", None, config.pipeline)
        document = origin | {"rows": measure(config, named, levels, Plan(specs, answers, rounds, seed))}
        write(document, out)
        typer.echo(table(document))


if __name__ == "__main__":
    app()
