"""Chains written in one batch are the chains that the engine writes one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny
from support.reference import Reference
from support.toy_engine import ToyEngine

from dreamr.engines.hf.engine import HFEngine
from dreamr.errors import Unable
from dreamr.types import ROOT, Step
from rl.chains import GroupRequest
from rl.writing import ChainBatch, ChainLimits, Row

LIMITS = ChainLimits(max_tokens=60, max_step_tokens=20)
NAMES = ["no image", "one wide image", "two images"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[HFEngine]:
    loaded = HFEngine.load(str(folder))
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
        sampling = replace(row.request.sampling(len(steps), "draft"), logprobs=True)
        step = await engine.next_step("x", row.request.prompt, frontier, sampling)
        steps.append(step)
        if step.closed or len(step.end) >= limits.max_tokens or step.tokens == frontier.tokens:
            return steps
        frontier = step


@pytest.mark.parametrize("limits", [LIMITS, ChainLimits(60, 20, top_p=0.8)], ids=["all tokens", "nucleus"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_writes_what_the_engine_writes(engine: HFEngine, temperature: float, limits: ChainLimits) -> None:
    batch = ChainBatch(engine, requests(temperature), limits)
    written = asyncio.run(batch.write_chains())
    assert len(written) == 9
    for row, steps in zip(batch.rows, written, strict=True):
        expected = asyncio.run(one_by_one(engine, row, limits))
        assert [one.tokens for one in steps] == [step.tokens for step in expected]
        assert [one.text for one in steps] == [step.text for step in expected]
        assert [one.finish for one in steps] == [step.finish for step in expected]
    if temperature:
        first, second, *_ = (tuple(one.tokens for one in steps) for steps in written)
        assert first != second


def test_log_probabilities_are_those_of_a_fresh_forward(engine: HFEngine, folder: Path) -> None:
    reference = Reference(folder)
    batch = ChainBatch(engine, requests(temperature=1.3)[:2], LIMITS)
    for row, steps in zip(batch.rows, asyncio.run(batch.write_chains()), strict=True):
        for one in steps:
            expected = reference.logprobs(row.request.prompt, one, 1.3)
            assert one.logprobs == pytest.approx(expected, abs=1e-4)


def test_an_engine_without_log_probabilities_is_refused() -> None:
    batch = ChainBatch(ToyEngine(), requests(temperature=1.0), LIMITS)
    with pytest.raises(Unable, match=r"draft's engine gives no log-probabilities .* engine 'hf' or 'vllm'"):
        asyncio.run(batch.write_steps())


def test_a_replaced_step_is_gone_and_the_chain_continues_after_the_other(engine: HFEngine) -> None:
    batch = ChainBatch(engine, requests(temperature=0.0), LIMITS)
    first = asyncio.run(batch.write_steps())
    others = {}
    for index, (row, one) in enumerate(zip(batch.rows, first, strict=True)):
        assert one is not None
        if index % 2:
            # The same step with its tokens in another order, longer or shorter than the row's.
            tokens = (*one.tokens[1:-1], *one.tokens[:1] * (index + 1), one.tokens[-1])
            others[index] = Step((), tokens, "other", "delimiter")
            batch.replace(row, ROOT, others[index])
    for index, one in enumerate(asyncio.run(batch.write_steps())):
        row = batch.rows[index]
        before = others.get(index, first[index] or ROOT)
        if one is None:
            assert row.end is not None
            continue
        expected = asyncio.run(engine.next_step("x", row.request.prompt, before, row.request.sampling(1, "draft")))
        assert one.tokens == expected.tokens
        assert one.prefix == before.end
