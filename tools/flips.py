"""Counts greedy steps and verdicts that change with the number type, the engine and the batch.

`python -m tools.flips --out docs/results/flips.json`; from the environment with vLLM, `--engine vllm` adds its rows.
Every step of the target's answers, and one step of the draft beside it, is computed again after the same prefix. The
reference is transformers in float32, one call at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from tqdm import tqdm

from dreamr.config import HFEngineConfig, VLLMEngineConfig
from dreamr.engines.base import Engine
from dreamr.engines.factory import build_engine
from dreamr.markdown import markdown_table
from dreamr.tasks.ledger import make_problem
from dreamr.types import ROOT, Prompt, Sampling, Step
from tools.reports import conditions, made_by, write

ALPHA = 0.7
TOGETHER = 16
"""Calls at a time in the rows that batch."""
SAMPLING = Sampling(max_tokens=96)
_MAX_STEPS = 16

Kind = Literal["hf", "vllm"]


@dataclass(frozen=True, slots=True)
class Case:
    """The target's greedy step after a prefix, the draft's step there, and whether the target accepts that."""

    prompt: Prompt
    after: Step
    written: Step
    drafted: Step
    accepted: bool


@dataclass(frozen=True, slots=True)
class Flips:
    """What one way to compute the same steps has changed."""

    engine: str
    dtype: str
    together: int
    """Calls at a time."""
    steps: int
    """Steps whose tokens differ from the reference's."""
    verdicts: int
    """Drafted steps that are accepted where the reference rejects them, or the other way round."""


async def cases(target: Engine, draft: Engine, problems: Sequence[Prompt]) -> list[Case]:
    """One case per step of the target's greedy answers, one call at a time."""
    found = []
    for number, prompt in enumerate(tqdm(problems, desc="reference", mininterval=10)):
        after = ROOT
        for index in range(_MAX_STEPS):
            call = f"{number}/{index}"
            drafted = await draft.next_step(call, prompt, after, SAMPLING)
            (verdict,) = await target.score(call, prompt, [drafted])
            written = await target.next_step(call, prompt, after, SAMPLING)
            found.append(Case(prompt, after, written, drafted, verdict.score > ALPHA))
            if written.closed:
                break
            after = written
    return found


async def flips(engine: Engine, known: Sequence[Case], together: int) -> tuple[int, int]:
    """How many steps and verdicts of an engine differ, at so many calls at a time."""

    async def step_differs(number: int, case: Case) -> bool:
        step = await engine.next_step(f"{number}", case.prompt, case.after, SAMPLING)
        return step.tokens != case.written.tokens

    async def verdict_differs(number: int, case: Case) -> bool:
        (verdict,) = await engine.score(f"{number}", case.prompt, [case.drafted])
        return (verdict.score > ALPHA) != case.accepted

    steps = await _gathered(step_differs, known, together)
    return sum(steps), sum(await _gathered(verdict_differs, known, together))


async def _gathered(
    differs: Callable[[int, Case], Awaitable[bool]], known: Sequence[Case], together: int
) -> list[bool]:
    results: list[bool] = []
    for first in range(0, len(known), together):
        part = known[first : first + together]
        results += await asyncio.gather(*(differs(first + n, case) for n, case in enumerate(part)))
    return results


def _configs(kind: Kind, model: str) -> Iterator[HFEngineConfig | VLLMEngineConfig]:
    for dtype in ("float32", "bfloat16"):
        common: dict[str, Any] = {"model": model, "dtype": dtype}
        if kind == "hf":
            yield HFEngineConfig(**common)
        else:
            yield VLLMEngineConfig(kind="vllm", **common, max_model_len=2048, kv_cache_mb=256, enforce_eager=True)


async def measure(kind: Kind, target: str, draft: str, num_problems: int) -> tuple[int, list[Flips]]:
    """The number of steps, and a row per number type and batch of one engine."""
    torch.set_num_threads(1)
    writer, drafter = (build_engine(HFEngineConfig(model=name, dtype="float32")).engine for name in (target, draft))
    prompts = [make_problem("test", 5, number).prompt for number in range(num_problems)]
    known = await cases(writer, drafter, prompts)
    rows = []
    for config in _configs(kind, target):
        loaded = await asyncio.to_thread(build_engine, config)
        for together in (1, TOGETHER):
            steps, verdicts = await flips(loaded.engine, known, together)
            rows.append(Flips(kind, config.dtype, together, steps, verdicts))
            typer.echo(f"{rows[-1]}", err=True)
    return len(known), rows


def table(report: dict[str, Any]) -> str:
    """Flips per 1,000 steps."""
    rows = [["engine", "number type", "calls at a time", "other tokens", "other verdicts"]]
    names = {"hf": "transformers", "vllm": "vLLM"}
    for row in report["rows"]:
        shares = (f"{1000 * row[what] / report['steps']:.1f}" for what in ("steps", "verdicts"))
        rows.append([names[row["engine"]], row["dtype"], str(row["together"]), *shares])
    return f"{markdown_table(rows)}\n\nOf 1,000 steps each; {report['steps']} were computed: {conditions(report)}"


def main(
    engine: Annotated[str, typer.Option(help="hf or vllm.")] = "hf",
    problems: Annotated[int, typer.Option(min=1, help="Ledger problems.")] = 100,
    target: Annotated[str, typer.Option(help="Checkpoint of the target.")] = "embedded:target",
    draft: Annotated[str, typer.Option(help="Checkpoint of the draft.")] = "embedded:draft-untrained",
    out: Annotated[Path | None, typer.Option(help="JSON file; rows of the other engine in it stay.")] = None,
) -> None:
    """Count steps and verdicts that differ from the float32 reference."""
    if engine not in ("hf", "vllm"):
        raise typer.BadParameter(f"'{engine}' is none of hf, vllm", param_hint="--engine")
    kind: Kind = "hf" if engine == "hf" else "vllm"
    origin = made_by("tools.flips")
    steps, rows = asyncio.run(measure(kind, target, draft, problems))
    kept = json.loads(out.read_text(encoding="utf-8"))["rows"] if out and out.exists() else []
    new = [asdict(row) for row in rows]
    report = origin | {
        "steps": steps,
        "target": target,
        "draft": draft,
        "alpha": ALPHA,
        "rows": sorted([row for row in kept if row["engine"] != kind] + new, key=lambda row: str(row["engine"])),
    }
    typer.echo(table(report))
    write(report, out)


if __name__ == "__main__":
    typer.run(main)
