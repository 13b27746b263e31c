"""Ways through a model's answers that contract tests share, each step compared with a fresh forward."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from dreamr.engines.base import Engine
from dreamr.tasks.ledger import make_problem
from dreamr.types import ROOT, Prompt, Sampling, Step
from support.reference import Reference
from support.tiny import PROMPTS

EMBEDDED = Path(__file__).parents[2] / "dreamr" / "embedded"
GREEDY = Sampling(max_tokens=24)
QUESTIONS = PROMPTS | {"ledger": make_problem("test", 1, 0).prompt}


async def write_chain(engine: Engine, prompt: Prompt, num_steps: int, sampling: Sampling = GREEDY) -> list[Step]:
    chain: list[Step] = []
    while len(chain) < num_steps and not (chain and chain[-1].closed):
        chain.append(await engine.next_step(f"step {len(chain)}", prompt, chain[-1] if chain else ROOT, sampling))
    return chain


def assert_fresh(reference: Reference, prompt: Prompt, step: Step, sampling: Sampling = GREEDY) -> None:
    assert (step.tokens, step.finish) == reference.greedy_along(prompt, step.prefix, step.tokens, sampling.max_tokens)


async def roll_back_at_random(engine: Engine, reference: Reference, rho_tolerance: float, seed: int) -> None:
    """Steps, forks at any token and verdicts, over all questions in any order."""
    rng = random.Random(seed)
    known: list[tuple[Prompt, Step]] = [(prompt, ROOT) for prompt in QUESTIONS.values()]
    did: Counter[str] = Counter()
    for number in range(40):
        prompt, after = rng.choice(known)
        cut = Step(tokens=after.end[: rng.randint(0, len(after.end))])
        did[kind := rng.choice(["step", "step", "cut", "score"])] += 1
        if kind == "score" and after.tokens:
            [verdict] = await engine.score(f"{number}", prompt, [after])
            assert verdict.score == pytest.approx(reference.rho(prompt, after.end), abs=rho_tolerance)
        elif not after.closed:
            start = cut if kind == "cut" else after
            step = await engine.next_step(f"{number}", prompt, start, GREEDY)
            assert_fresh(reference, prompt, step)
            known.append((prompt, step))
    assert min(did.values()) >= 5
