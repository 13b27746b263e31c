"""Chains written side by side are the chains that the plain engine writes one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from support import tiny

from dreamr.engines.hf.engine import HFEngine
from dreamr.types import ROOT, Prompt, Step
from rl.chains import GroupRequest
from rl.writing import ChainBatch, ChainLimits, Row

LIMITS = ChainLimits(max_tokens=60, max_step_tokens=20)
NAMES = ["no image", "one wide image", "two images"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFEngine]:
    loaded = HFEngine.load(str(tiny.save_checkpoint(tmp_path_factory.mktemp("model"))))
    yield loaded
    asyncio.run(loaded.close())


def requests(temperature: float) -> list[GroupRequest]:
    """Prompts of different lengths and rope deltas."""
    return [GroupRequest(tiny.PROMPTS[name], (1, 2, 3), temperature) for name in NAMES]


async def one_by_one(engine: HFEngine, row: Row, limits: ChainLimits) -> list[Step]:
    """The chain of a row by the plain engine, under the pipelines' stop rules."""
    steps: list[Step] = []
    frontier = ROOT
    while True:
        step = await engine.next_step("x", row.request.prompt, frontier, row.request.sampling(len(steps), "draft"))
        steps.append(step)
        if step.closed or len(step.end) >= limits.max_tokens or step.tokens == frontier.tokens:
            return steps
        frontier = step


def text_of(engine: HFEngine, prompt: Prompt, step: Step, temperature: float) -> list[float]:
    """Log-probabilities of a step's tokens by one fresh forward."""
    placed = engine._placed(prompt)
    whole = torch.tensor([placed.tokens + step.end])
    inputs = {}
    if placed.encoded.pixel_values is not None:
        types = torch.zeros_like(whole)
        types[:, : placed.encoded.token_types.shape[1]] = placed.encoded.token_types
        inputs = {
            "pixel_values": placed.encoded.pixel_values,
            "image_grid_thw": placed.encoded.image_grid,
            "mm_token_type_ids": types,
        }
    with torch.inference_mode():
        logits = engine.model(input_ids=whole, **inputs).logits[0].float()
    logprobs = (logits / temperature).log_softmax(-1)
    first = len(placed.tokens) + len(step.prefix)
    return [float(logprobs[first + place - 1, token]) for place, token in enumerate(step.tokens)]


@pytest.mark.parametrize("limits", [LIMITS, ChainLimits(60, 20, top_p=0.8)], ids=["all tokens", "nucleus"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_writes_what_the_engine_writes(engine: HFEngine, temperature: float, limits: ChainLimits) -> None:
    batch = ChainBatch(engine, requests(temperature), limits)
    written = batch.write_chains()
    assert len(written) == 9
    compared = 0
    for row, steps in zip(batch.rows, written, strict=True):
        expected = asyncio.run(one_by_one(engine, row, limits))
        if {token for step in expected for token in step.tokens} & set(engine.image_tokens):
            continue  # the engine may sample an image's tokens, a rollout never does
        compared += 1
        assert [one.step.tokens for one in steps] == [step.tokens for step in expected]
        assert [one.step.text for one in steps] == [step.text for step in expected]
        assert [one.step.finish for one in steps] == [step.finish for step in expected]
    assert compared >= 6
    if temperature:
        first, second, *_ = (tuple(one.step.tokens for one in steps) for steps in written)
        assert first != second


def test_log_probabilities_are_those_of_a_fresh_forward(engine: HFEngine) -> None:
    batch = ChainBatch(engine, requests(temperature=1.3), LIMITS)
    for row, steps in zip(batch.rows, batch.write_chains(), strict=True):
        for one in steps:
            assert one.logprobs == pytest.approx(text_of(engine, row.request.prompt, one.step, 1.3), abs=1e-4)


def test_a_replaced_step_is_gone_and_the_chain_goes_on_behind_the_other(engine: HFEngine) -> None:
    batch = ChainBatch(engine, requests(temperature=0.0), LIMITS)
    first = batch.write_steps()
    others = {}
    for index, (row, one) in enumerate(zip(batch.rows, first, strict=True)):
        assert one is not None
        if index % 2:
            # Somebody else's step: the same one with its tokens in another order, longer or shorter than the row's.
            tokens = (*one.step.tokens[1:-1], *one.step.tokens[:1] * (index + 1), one.step.tokens[-1])
            others[index] = Step((), tokens, "other", "delimiter")
            batch.replace(row, ROOT, others[index])
    for index, one in enumerate(batch.write_steps()):
        row = batch.rows[index]
        before = others.get(index, first[index].step if first[index] else ROOT)
        if one is None:
            assert row.end is not None
            continue
        expected = asyncio.run(engine.next_step("x", row.request.prompt, before, row.request.sampling(1, "draft")))
        assert one.step.tokens == expected.tokens
        assert one.step.prefix == before.end
