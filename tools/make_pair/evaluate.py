"""Measures the embedded pair on held-out problems: `python -m tools.make_pair.evaluate`.

Answers, verdicts on steps sampled from the draft, styles and step times; all greedy unless said otherwise, one thread.
"""

from __future__ import annotations

import asyncio
import json
import platform
import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from dreamr.engines.hf.engine import HFEngine
from dreamr.tasks.ledger import Problem, Style, extract_answer, make_problem
from dreamr.types import ROOT, Prompt, Sampling, Step
from tools.make_pair.candidates import draft_each_step
from tools.make_pair.digest import weights_sha256
from tools.make_pair.tokenizer import build_tokenizer

ALPHA = 0.7
_MAX_STEPS = 16
NUM_OWN = 100
"""Problems on which the target judges its own steps."""


@dataclass(frozen=True, slots=True)
class Alone:
    """Measures of one model that answers without the other."""

    right: float
    unparsed: float
    valid_steps: float
    """Share of its steps that are correct after its own prefix."""
    concise_steps: float | None
    """Share of concise steps among those that are not the last one; None when there are none."""
    tokens_per_step: float
    step_ms: float
    """Mean time of one step."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The target's verdicts on drafted steps after correct prefixes, accepted when rho > alpha; None for no steps."""

    num_steps: int
    valid: float
    """Share of the steps that are correct."""
    accepted: float | None
    right_accepted: float | None
    wrong_rejected: float | None
    balanced_accuracy: float | None
    concise_right_accepted: float | None
    verdict_ms: float


async def alone(engine: HFEngine, problems: list[Problem], name: str) -> Alone:
    """Let one model answer every problem greedily."""
    right = unparsed = valid = concise = num_tokens = 0
    times: list[float] = []
    for problem in tqdm(problems, desc=f"{name} alone", mininterval=10):
        steps = await _answer(engine, problem)
        answer = extract_answer("".join(step.text for step in steps))
        right += answer == problem.answer
        unparsed += answer is None
        previous = ["", *(step.text for step in steps)]
        valid += sum(problem.is_valid_step(i, previous[i], step.text) for i, step in enumerate(steps))
        concise += sum(_is_concise(step.text) for step in steps)
        num_tokens += sum(len(step.tokens) for step in steps)
        times += [step.ended - step.started for step in steps]
    n, num_steps = len(problems), len(times)
    return Alone(
        right=right / n,
        unparsed=unparsed / n,
        valid_steps=valid / num_steps,
        concise_steps=concise / (num_steps - n) if num_steps > n else None,  # the answer line has no style
        tokens_per_step=num_tokens / num_steps,
        step_ms=1000 * statistics.mean(times),
    )


async def _answer(engine: HFEngine, problem: Problem) -> list[Step]:
    prompt = problem.prompt
    await engine.prefill(prompt)
    steps: list[Step] = []
    while len(steps) < _MAX_STEPS and not (steps and steps[-1].closed):
        steps.append(await engine.next_step("alone", prompt, steps[-1] if steps else ROOT, Sampling(max_tokens=64)))
    return steps


def _is_concise(text: str) -> bool:
    return not text.startswith(("First", "Next", "</think>"))


@dataclass(frozen=True, slots=True)
class _Judged:
    rho: float
    valid: bool
    concise: bool
    ms: float


async def judge(
    target: HFEngine, draft: HFEngine, problems: list[Problem], sampling: Callable[[int], Sampling], name: str
) -> Verdicts:
    """Verdicts on one drafted step after every correct prefix, where verbose and concise steps mix."""
    tokenizer = build_tokenizer()
    drafted: list[_Judged] = []
    for number, problem in enumerate(tqdm(problems, desc=f"verdicts, {name}", mininterval=10)):
        rng = random.Random(number)
        styles: list[Style] = [rng.choice(("verbose", "concise")) for _ in problem.operations]
        solution, prompt = problem.solution(styles), problem.prompt
        for index, step in enumerate(await draft_each_step(draft, tokenizer, problem, styles, sampling(number))):
            drafted.append(await _verdict(target, problem, prompt, index, solution[index - 1] if index else "", step))
    right = [one for one in drafted if one.valid]
    wrong = [one for one in drafted if not one.valid]
    right_accepted, wrong_accepted = _accepted(right), _accepted(wrong)
    wrong_rejected = None if wrong_accepted is None else 1 - wrong_accepted
    both = None if right_accepted is None or wrong_rejected is None else (right_accepted + wrong_rejected) / 2
    return Verdicts(
        num_steps=len(drafted),
        valid=len(right) / len(drafted),
        accepted=_accepted(drafted),
        right_accepted=right_accepted,
        wrong_rejected=wrong_rejected,
        balanced_accuracy=both,
        concise_right_accepted=_accepted([one for one in right if one.concise]),
        verdict_ms=statistics.mean(one.ms for one in drafted),
    )


async def own_accepted(target: HFEngine, problems: list[Problem]) -> float | None:
    """Share of the target's own correct steps, after its own prefixes, that it accepts."""
    own: list[_Judged] = []
    for problem in tqdm(problems, desc="verdicts, own steps", mininterval=10):
        previous, prompt = "", problem.prompt
        for index, step in enumerate(await _answer(target, problem)):
            own.append(await _verdict(target, problem, prompt, index, previous, step))
            previous = step.text
    return _accepted([one for one in own if one.valid])


async def _verdict(
    target: HFEngine, problem: Problem, prompt: Prompt, index: int, previous: str, step: Step
) -> _Judged:
    (verdict,) = await target.score("judge", prompt, [step])
    valid = problem.is_valid_step(index, previous, step.text)
    return _Judged(verdict.score, valid, _is_concise(step.text), 1000 * (verdict.ended - verdict.started))


def _accepted(steps: list[_Judged]) -> float | None:
    return sum(one.rho > ALPHA for one in steps) / len(steps) if steps else None


async def evaluate(target: HFEngine, draft: HFEngine, problems: list[Problem]) -> dict[str, object]:
    """All measures of one pair."""
    by_itself = {"target": await alone(target, problems, "target"), "draft": await alone(draft, problems, "draft")}
    greedy = await judge(target, draft, problems, lambda _: Sampling(max_tokens=64), "greedy drafts")
    sampled = await judge(
        target, draft, problems, lambda n: Sampling(temperature=1.0, max_tokens=64, seed=n), "drafts at temperature 1"
    )
    return {
        "num_problems": len(problems),
        "alpha": ALPHA,
        "machine": f"{platform.machine()}, one torch thread, torch {torch.__version__.split('+')[0]}",
        "num_parameters": {"target": target.num_parameters, "draft": draft.num_parameters},
        "alone": {role: asdict(result) for role, result in by_itself.items()},
        "verdicts_greedy": asdict(greedy),
        "verdicts_temperature_1": asdict(sampled),
        "own_right_steps_accepted": await own_accepted(target, problems[:NUM_OWN]),
        "step_time_ratio": by_itself["target"].step_ms / by_itself["draft"].step_ms,
    }


def main(
    models: Annotated[Path, typer.Option(help="Folder with the checkpoint folders of target and draft.")] = (
        Path(__file__).parent / "embedded"
    ),
    draft: Annotated[str, typer.Option(help="Name of the draft's folder in it.")] = "draft",
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Evaluate the embedded pair on problems whose images no training image equals."""
    torch.set_num_threads(1)
    held_out = [make_problem("test", seed, index) for index in range(problems)]
    folders = {"target": models / "target", "draft": models / draft}
    engines = {role: HFEngine.load(str(folder)) for role, folder in folders.items()}
    digests = {role: weights_sha256(folder) for role, folder in folders.items()}
    measured = asyncio.run(evaluate(engines["target"], engines["draft"], held_out))
    report = {"draft": draft, "weights_sha256": digests, "problem_seed": seed, **measured}
    text = json.dumps(_rounded(report), indent=2)
    typer.echo(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    typer.run(main)
