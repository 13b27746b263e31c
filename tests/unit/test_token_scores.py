"""Log-probabilities beside verdicts equal those of a fresh forward, for any content of the prefix cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny
from support.engine_walks import EMBEDDED
from support.reference import Reference

from dreamr.engines.hf.engine import HFEngine
from dreamr.tasks.ledger import make_problem
from dreamr.types import ROOT, Prompt, Sampling, Step

Pair = tuple[HFEngine, Reference]


def pair(folder: Path) -> Iterator[Pair]:
    loaded = HFEngine.load(str(folder))
    yield loaded, Reference(folder)
    asyncio.run(loaded.close())


@pytest.fixture(scope="module")
def target() -> Iterator[Pair]:
    yield from pair(EMBEDDED / "target")


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from pair(tiny.save_checkpoint(tmp_path_factory.mktemp("model")))


async def check(pair: Pair, prompt: Prompt, chain: list[Step], temperature: float = 1.0) -> None:
    engine, reference = pair
    judged = await engine.score_tokens("x", prompt, chain, temperature)
    for step, one in zip(chain, judged, strict=True):
        assert one.logprobs == pytest.approx(reference.logprobs(prompt, step, temperature), abs=2e-4)
    verdicts = await engine.score("x", prompt, chain)
    assert [one.verdict.score for one in judged] == pytest.approx([verdict.score for verdict in verdicts], abs=1e-5)


async def test_of_the_embedded_target(target: Pair) -> None:
    prompt = make_problem("validation", 9, 0).prompt
    engine, reference = target
    chain: list[Step] = []
    while len(chain) < 4 and not (chain and chain[-1].closed):
        chain.append(await engine.next_step("x", prompt, chain[-1] if chain else ROOT, Sampling(max_tokens=40)))
    await check(target, prompt, chain)
    await check(target, prompt, chain[2:])  # all of it is cached now
    half = chain[1].tokens[: len(chain[1].tokens) // 2]
    wrong = replace(chain[1], tokens=half + half[::-1], text="wrong")
    await check(target, prompt, [wrong], temperature=0.7)  # shares its first tokens with the cached step
    assert min(reference.logprobs(prompt, wrong)) < -1


@pytest.mark.parametrize("name", ["no image", "two images"])
async def test_of_a_random_model_with_images_of_several_sizes(name: str, random_model: Pair) -> None:
    engine, _ = random_model
    steps, before = [], ROOT
    for text in ("a b c d e f g\n\n", "positive.\n\n", "c d"):
        tokens = tuple(engine.tokenizer(text, add_special_tokens=False)["input_ids"])
        before = Step(before.end, tokens, text, "delimiter")
        steps.append(before)
    await check(random_model, tiny.PROMPTS[name], steps)
