"""Other verdicts than rho, against fresh forwards of the plain model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from support.reference import Reference
from support.tiny import PROMPTS, save_checkpoint

from dreamr.engines.hf.engine import HFEngine
from dreamr.tasks.prompts import PromptConfig, same_chat
from dreamr.types import ROOT, Criterion, Prompt, Sampling, Step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("questions") / "model")


async def written(engine: HFEngine, prompt: Prompt, count: int) -> list[Step]:
    chain: list[Step] = []
    while len(chain) < count:
        step = await engine.next_step("w", prompt, chain[-1] if chain else ROOT, Sampling(max_tokens=9))
        if not step.tokens:
            break
        chain.append(step)
    return chain


@pytest.mark.parametrize("name", ["no image", "one tall image"])
def test_digits_are_those_of_a_fresh_forward(folder: Path, name: str) -> None:
    engine, reference, prompt = HFEngine.load(str(folder)), Reference(folder), PROMPTS[name]
    encoder = engine.encoder

    async def judge() -> tuple[list[Step], dict[str, list[float]]]:
        chain = await written(engine, prompt, 3)
        criteria: tuple[Criterion, ...] = ("digit", "mean_digit")
        return chain, {
            kind: [verdict.score for verdict in await engine.score("j", prompt, chain, kind)] for kind in criteria
        }

    chain, values = asyncio.run(judge())
    for place, step in enumerate(chain):
        turn = encoder.score_turn[1:] if step.tokens[-1] == encoder.score_turn[0] else encoder.score_turn
        logits = reference.logits(prompt, step.end + turn)
        shares = torch.softmax(logits[list(encoder.digits)], -1)
        likeliest = int(logits.argmax())
        assert values["mean_digit"][place] == pytest.approx(float(shares @ torch.arange(10.0)), abs=1e-3)
        assert values["digit"][place] == (encoder.digits.index(likeliest) if likeliest in encoder.digits else 0)


def test_same_meaning_is_asked_in_a_chat_of_its_own(folder: Path) -> None:
    engine, reference = HFEngine.load(str(folder)), Reference(folder)
    one, other = Step((), (5,), "red is right\n\n"), Step((), (6,), "the circles\n\n")

    async def judge() -> float:
        return (await engine.score("s", PROMPTS["no image"], [other], "same", [one]))[0].score

    ids = torch.tensor([engine.encoder.same_chat(one.text, other.text)])
    with torch.no_grad():
        logits = reference.model(input_ids=ids, use_cache=False).logits[0, -1]
    expected = torch.softmax(logits[list(engine.encoder.verdict_words)], -1)[0]
    assert asyncio.run(judge()) == pytest.approx(float(expected), abs=1e-4)


def test_equal_texts_are_more_alike_than_others(folder: Path) -> None:
    engine = HFEngine.load(str(folder))
    red, blue = Step((), (5,), "red is right"), Step((), (6,), "how many squares?")

    async def cosine(one: Step, other: Step) -> float:
        return (await engine.score("e", PROMPTS["no image"], [one], "embedding", [other]))[0].score

    assert asyncio.run(cosine(red, red)) == pytest.approx(1.0, abs=1e-5)
    assert asyncio.run(cosine(red, blue)) < 0.999


def test_a_comparison_without_a_reference_is_refused(folder: Path) -> None:
    engine = HFEngine.load(str(folder))
    with pytest.raises(ValueError, match="1 steps cannot be compared with 0 references"):
        asyncio.run(engine.score("s", PROMPTS["no image"], [Step((), (5,), "red")], "same"))


def test_steps_are_put_into_the_template_as_they_are() -> None:
    config = PromptConfig(same_template="{second}|{first}")
    assert "b {first}|a {second}" in same_chat(config, "a {second}\n\n", " b {first}")
    with pytest.raises(ValueError, match=r"must hold \{first\} and \{second\} once"):
        PromptConfig(same_template="{first} alone")
