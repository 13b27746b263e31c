"""Counts answers that break their JSON schema: random schemas and ledger problems, on the built-in pair.

`python -m tools.structured --pairs 10000 --out docs/results/structured.json`. An answer counts as invalid when it is
not JSON, when it breaks its schema, or when it is cut off.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import torch
import typer

from actors.local import local_handles
from dreamr.bench.report import Machine
from dreamr.config import HFEngineConfig, PipelineSettings
from dreamr.engines.factory import build_engine
from dreamr.tasks.ledger import make_problem
from dreamr.types import END_OF_THOUGHT
from pipelines import Request, run
from pipelines.handles import Handles

METHODS = ("fpsr", "sequential", "autoregressive", "token_speculative")


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


async def count(pairs: int, max_tokens: int, first: int = 0) -> Counter[str]:
    """Count valid and invalid answers; print the invalid ones."""
    torch.set_num_threads(1)  # more threads slow down models this small
    target, draft = (build_engine(HFEngineConfig(model=f"embedded:{name}")).engine for name in ("target", "draft"))
    handles, outcomes = local_handles(draft, target, target), Counter[str]()
    for seed in range(first, first + pairs):
        problem = await problem_of(handles, seed, max_tokens)
        outcomes["invalid" if problem else "valid"] += 1
        if problem:
            typer.echo(f"{seed}: {problem}")
        if sum(outcomes.values()) % 500 == 0:
            typer.echo(f"{sum(outcomes.values())} pairs: {dict(outcomes)}", err=True)
    return outcomes


def main(
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs of a schema and a problem.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Budget of one answer.")] = 128,
    first: Annotated[int, typer.Option(min=0, help="Number of the first pair.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the counts.")] = None,
) -> None:
    """Answer problems under random JSON schemas and count the answers that do not follow theirs."""
    outcomes = asyncio.run(count(pairs, max_tokens, first))
    report = {"pairs": pairs, "max_tokens": max_tokens, "first": first, "machine": Machine.this().cpu, **outcomes}
    typer.echo(json.dumps(report))
    if out:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(1 if outcomes["invalid"] else 0)


if __name__ == "__main__":
    typer.run(main)
