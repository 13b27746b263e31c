"""Steps sampled from trained drafts after correct prefixes: candidates like those in deployment."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from dreamr.engines.hf.engine import HFEngine
from dreamr.tasks.ledger import Problem, Style, problem_on
from dreamr.tasks.ledger_image import Cell
from dreamr.types import Sampling, Step
from tools.make_pair.tokenizer import build_tokenizer

NUM_PROBLEMS = 2_500


@dataclass(frozen=True, slots=True)
class DraftedProblem:
    """A problem of the image bank, with one drafted text per step."""

    problem: Problem
    image_row: int
    texts: tuple[str, ...]


class DraftSteps:
    """Drafted problems, by their number of arithmetic steps."""

    def __init__(self, drafted: list[DraftedProblem]) -> None:
        self._by_steps: dict[int, list[DraftedProblem]] = defaultdict(list)
        for one in drafted:
            self._by_steps[len(one.problem.operations)].append(one)

    def sample(
        self, num_steps: int, size: int, rng: random.Random
    ) -> tuple[list[Problem], list[int], list[tuple[str, ...]]]:
        """Problems, their rows in the image bank, and the drafted texts of their steps."""
        chosen = rng.choices(self._by_steps[num_steps], k=size)
        return [one.problem for one in chosen], [one.image_row for one in chosen], [one.texts for one in chosen]


def load_or_sample(drafts: list[Path], layouts: tuple[tuple[Cell, ...], ...], work: Path) -> DraftSteps:
    """Sample from each of the checkpoint folders `drafts` on images of the bank, or load what was sampled before."""
    drafted: list[DraftedProblem] = []
    for draft in drafts:
        saved = work / f"{draft.name}-steps.pt"
        if not saved.exists():
            torch.save(asyncio.run(_sample(draft, layouts)), saved)
        drafted += torch.load(saved, weights_only=False)  # our own file: it holds dataclasses
    return DraftSteps(drafted)


async def _sample(draft: Path, layouts: tuple[tuple[Cell, ...], ...]) -> list[DraftedProblem]:
    engine, tokenizer = HFEngine.load(str(draft)), build_tokenizer()
    drafted = []
    for number in tqdm(range(NUM_PROBLEMS), desc="draft steps", mininterval=10):
        rng = random.Random(f"candidates/{number}")
        row = rng.randrange(len(layouts))
        problem = problem_on(layouts[row], rng)
        styles: list[Style] = [rng.choice(("verbose", "concise")) for _ in problem.operations]
        sampling = Sampling(temperature=1.0, seed=number)
        steps = await draft_each_step(engine, tokenizer, problem, styles, sampling)
        drafted.append(DraftedProblem(problem, row, tuple(step.text for step in steps)))
    await engine.close()
    return drafted


async def draft_each_step(
    engine: HFEngine,
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    styles: list[Style],
    sampling: Sampling,
) -> list[Step]:
    """One drafted step after every correct prefix of the problem's solution."""
    prompt = problem.prompt
    prefix: tuple[int, ...] = ()
    steps = []
    for number, text in enumerate(problem.solution(styles)):
        steps.append(await engine.next_step(f"{number}", prompt, Step(tokens=prefix), sampling))
        prefix += tuple(tokenizer(text)["input_ids"])
    return steps
