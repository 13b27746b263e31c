"""Counts answers that break their JSON schema: random schemas and ledger problems, on the built-in pair.

`python -m tools.structured --pairs 10000 --processes 2 --out docs/results/structured.json`. An answer counts as invalid
when it is not JSON, when it breaks its schema, or when it is cut off.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import typer

from actors.local import local_handles
from dreamr.config import HFEngineConfig, PipelineSettings
from dreamr.engines.factory import build_engine
from dreamr.tasks.ledger import make_problem
from dreamr.types import END_OF_THOUGHT
from pipelines import Request, run
from pipelines.handles import Handles
from tools.reports import conditions, made_by, write

METHODS = ("fpsr", "sequential", "autoregressive", "token_speculative")
AT_ONCE = 16


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A JSON schema with values of every type; `depth` bounds how deep objects and lists are nested."""
    nested = [_object, _object, _array, _any_of]
    return rng.choice([*[_scalar] * 6, *nested] if depth else [_scalar])(rng, depth - 1)


def _scalar(rng: random.Random, _: int) -> dict[str, Any]:
    scalars: list[dict[str, Any]] = [
        {"type": "string"},
        {"type": "string", "maxLength": rng.randint(1, 8)},
        {"type": "string", "pattern": rng.choice(["^[a-c]{2,4}$", "^\\d{3}$", "^(red|blue)$"])},
        {"type": "integer"},
        {"type": "integer", "minimum": rng.randint(-9, 0), "maximum": rng.randint(1, 99)},
        {"type": "number"},
        {"type": "boolean"},
        {"type": [rng.choice(["integer", "string"]), "null"]},
        {"enum": rng.sample(["yes", "no", 1, 2.5, None, True], 2)},
        {"const": rng.choice(["done", 0])},
    ]
    return rng.choice(scalars)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["result", "unit", "steps", "ok", "a b", "x_1"], rng.randint(1, 3))
    properties = {name: random_schema(rng, depth) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    closed = {"additionalProperties": False} if rng.random() < 0.7 else {}
    return {"type": "object", "properties": properties, "required": required} | closed


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "items": random_schema(rng, depth), "maxItems": rng.randint(1, 3)}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth) for _ in range(2)]}


async def problem_of(handles: Handles, seed: int, max_tokens: int) -> str | None:
    """Answer pair number `seed`; return the error in the answer, or None when it follows its schema."""
    rng = random.Random(f"structured/{seed}")
    schema = random_schema(rng)
    settings = PipelineSettings(
        method=rng.choice(METHODS),
        temperature=rng.choice([0.0, 0.0, 1.0]),
        seed=seed,
        max_tokens=max_tokens,
        thinking_budget=rng.choice([0, 0, 0, 8, 20]),
    )
    prompt = make_problem("test", 2, seed).prompt
    trace = await run(Request(prompt, settings, schema=json.dumps(schema)), handles)
    answer = trace.text.partition(END_OF_THOUGHT)[2]
    try:
        jsonschema.validate(json.loads(answer), schema)
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        return f"{type(error).__name__} ({trace.end}): {answer!r} for {json.dumps(schema)}"
    return None


async def count(pairs: int, max_tokens: int, first: int = 0, at_once: int = AT_ONCE) -> Counter[str]:
    """Count valid and invalid answers, `at_once` at a time in one batch; print the invalid ones."""
    import torch

    torch.set_num_threads(1)  # more threads slow down models this small
    target, draft = (build_engine(HFEngineConfig(model=f"embedded:{name}")).engine for name in ("target", "draft"))
    handles, outcomes = local_handles(draft, target, target), Counter[str]()
    seeds = iter(range(first, first + pairs))

    async def worker() -> None:
        for seed in seeds:
            problem = await problem_of(handles, seed, max_tokens)
            outcomes["invalid" if problem else "valid"] += 1
            if problem:
                typer.echo(f"{seed}: {problem}")
            if sum(outcomes.values()) % 500 == 0:
                typer.echo(f"{sum(outcomes.values())} pairs: {dict(outcomes)}", err=True)

    async with asyncio.TaskGroup() as workers:
        for _ in range(at_once):
            workers.create_task(worker())
    return outcomes


def _count(pairs: int, max_tokens: int, first: int, at_once: int) -> Counter[str]:
    return asyncio.run(count(pairs, max_tokens, first, at_once))


def count_in_processes(pairs: int, max_tokens: int, first: int, at_once: int, processes: int) -> Counter[str]:
    """`count`, with the pairs shared out to that many processes."""
    bounds = [first + pairs * number // processes for number in range(processes + 1)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_count, after - start, max_tokens, start, at_once) for start, after in pairwise(bounds)]
        return sum((future.result() for future in futures), Counter[str]())


def table(report: dict[str, Any]) -> str:
    """The report as a sentence, with its command and machine."""
    return (
        f"{report['invalid']} invalid answers of {report['pairs']} random pairs of a schema and a ledger problem, over "
        f"{', '.join(f'`{name}`' for name in METHODS)}, greedy and sampled, with and without a thinking budget: "
        f"{report['wall_s'] / 60:.0f} minutes of {conditions(report)}"
    )


def main(
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs of a schema and a problem.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Budget of one answer.")] = 128,
    first: Annotated[int, typer.Option(min=0, help="Number of the first pair.")] = 0,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Answers in one batch.")] = AT_ONCE,
    processes: Annotated[int, typer.Option(min=1, max=64, help="One core each.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file for the counts.")] = None,
) -> None:
    """Answer problems under random JSON schemas and count the answers that do not follow theirs."""
    origin, began = made_by("tools.structured"), time.monotonic()
    outcomes = count_in_processes(pairs, max_tokens, first, at_once, processes)
    report = origin | {
        "pairs": pairs,
        "valid": outcomes["valid"],
        "invalid": outcomes["invalid"],
        "wall_s": round(time.monotonic() - began, 1),
    }
    typer.echo(json.dumps(report))
    write(report, out)
    raise typer.Exit(1 if outcomes["invalid"] else 0)


if __name__ == "__main__":
    typer.run(main)
