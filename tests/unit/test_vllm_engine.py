"""What is vLLM's alone: requests are freed, prefixes are found, a dead process is noticed; and what it needs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_asyncio
from safetensors.torch import load_file
from support.engine_kinds import VLLM
from support.engine_walks import EMBEDDED, GREEDY, write_chain

from dreamr.config import VLLMEngineConfig
from dreamr.engines.base import EngineDied
from dreamr.engines.factory import build_engine
from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.vllm import loading as vllm_loading
from dreamr.engines.vllm.loading import core_pids
from dreamr.errors import Unable
from dreamr.tasks.ledger import make_problem
from dreamr.tasks.processor import ImageTextProcessor
from dreamr.types import ROOT, Sampling, Step

PROMPT = make_problem("test", 1, 0).prompt
on_vllm = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
has_vllm = importlib.util.find_spec("vllm") is not None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Any]:
    if not has_vllm:
        pytest.skip("vLLM is not installed here")
    engine = await VLLM().load(EMBEDDED / "draft")
    await engine.warm_up()
    yield engine
    await engine.close()


@pytest.mark.skipif(has_vllm, reason="vLLM is installed here")
def test_without_vllm_the_engine_says_how_to_get_it() -> None:
    with pytest.raises(ValueError, match=r"needs vLLM, which is not installed .* pip install -e '\.\[vllm\]'"):
        build_engine(VLLMEngineConfig(kind="vllm", model="embedded:draft"))


@pytest.mark.vllm
@pytest.mark.skipif(not has_vllm, reason="vLLM is not installed here")
def test_a_model_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model folder .*nowhere' does not exist"):
        build_engine(VLLMEngineConfig(kind="vllm", model=str(tmp_path / "nowhere")))


class StartedVLLM:
    """As much of a started vLLM as the checks after its start see."""

    def __init__(self) -> None:
        self.is_shut_down = False

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[StartedVLLM]:
    """Every vLLM that `start` has started, without vLLM."""
    all_started = list[StartedVLLM]()

    def start_engine(*_: object) -> StartedVLLM:
        all_started.append(StartedVLLM())
        return all_started[-1]

    monkeypatch.setattr(vllm_loading, "_check_platform", lambda config: "cpu")
    monkeypatch.setattr(vllm_loading, "_start_engine", start_engine)
    monkeypatch.setattr(vllm_loading, "AutoProcessor", ImageTextProcessor)  # transformers' own needs torchvision
    return all_started


def test_a_checkpoint_without_a_chat_template_is_refused_before_anything_starts(
    started: list[StartedVLLM], tmp_path: Path
) -> None:
    folder = shutil.copytree(EMBEDDED / "draft", tmp_path / "copy")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template: add chat_template\.jinja"):
        vllm_loading.start(VLLMEngineConfig(kind="vllm", model=str(folder)), str(folder))
    assert started == []


def test_a_started_vllm_ends_when_a_later_check_fails(
    started: list[StartedVLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_loading, "checkpoint_shapes", Mock(side_effect=ValueError("no weights")))
    with pytest.raises(ValueError, match="no weights"):
        vllm_loading.start(VLLMEngineConfig(kind="vllm", model="embedded:draft"), str(EMBEDDED / "draft"))
    assert [one.is_shut_down for one in started] == [True]


class TestOneEngine:
    """In order: the last test ends the engine's process."""

    pytestmark = on_vllm

    async def test_stopped_and_cancelled_steps_leave_no_request_behind(self, engine: Any) -> None:
        steps = [asyncio.create_task(engine.next_step(name, PROMPT, ROOT, GREEDY)) for name in ("stopped", "cancelled")]
        while engine._llm.get_num_unfinished_requests() < 2:  # noqa: ASYNC110 - vLLM tells nobody
            await asyncio.sleep(0.001)
        engine.stop("stopped")
        steps[1].cancel()
        stopped, cancelled = await asyncio.gather(*steps, return_exceptions=True)
        assert stopped.finish == "stopped"
        assert isinstance(cancelled, asyncio.CancelledError)
        assert engine._llm.get_num_unfinished_requests() == 0

    async def test_new_weights_are_refused_while_a_step_is_written(self, engine: Any) -> None:
        step = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
        while engine._llm.get_num_unfinished_requests() < 1:  # noqa: ASYNC110 - vLLM tells nobody
            await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="cannot be replaced while 1 requests run"):
            await engine.update_weights({})
        assert (await step).finish != "stopped"

    async def test_calls_that_begin_while_weights_are_replaced_wait_for_the_new_ones(
        self, engine: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = await engine.next_step("before", PROMPT, ROOT, GREEDY)
        own = load_file(EMBEDDED / "draft" / "model.safetensors")
        forget, answers = engine._llm.reset_prefix_cache, [False]

        async def refuse_once() -> bool:
            assert steps[0].done() == update.done()
            return answers.pop() if answers else await forget()

        monkeypatch.setattr(engine._llm, "reset_prefix_cache", refuse_once)
        update = asyncio.create_task(engine.update_weights({name: weight * 0 for name, weight in own.items()}))
        await asyncio.sleep(0)
        steps = [asyncio.create_task(engine.next_step("meanwhile", PROMPT, ROOT, GREEDY))]
        with pytest.raises(RuntimeError, match="cannot be replaced while others are loaded"):
            await engine.update_weights(own)
        await update
        assert (await steps[0]).tokens != before.tokens
        await engine.update_weights(own)
        assert (await engine.next_step("after", PROMPT, ROOT, GREEDY)).tokens == before.tokens

    async def test_a_step_goes_on_from_the_cached_prefix(self, engine: Any) -> None:
        chain = await write_chain(engine, PROMPT, 4)
        await engine.next_step("again", PROMPT, chain[-2], GREEDY)
        assert engine.num_cached_tokens >= 64
        await engine.score("judged", PROMPT, [chain[-1]])
        assert engine.num_cached_tokens >= 64

    async def test_a_promoted_step_is_the_same_and_leaves_no_request_behind(self, engine: Any) -> None:
        expected = await engine.next_step("a", PROMPT, ROOT, GREEDY)
        for turns in range(8):
            call = asyncio.create_task(engine.next_step("maybe", PROMPT, ROOT, GREEDY, "speculative"))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            engine.promote("maybe")
            assert (await call).tokens == expected.tokens
        engine.promote("unknown")
        assert engine._llm.get_num_unfinished_requests() == 0

    async def test_a_promoted_step_can_still_be_stopped_and_cancelled(self, engine: Any) -> None:
        steps = [asyncio.create_task(engine.next_step(name, PROMPT, ROOT, GREEDY, "speculative")) for name in "ab"]
        await asyncio.sleep(0.001)
        for name in "ab":
            engine.promote(name)
        engine.stop("a")
        steps[1].cancel()
        stopped, cancelled = await asyncio.gather(*steps, return_exceptions=True)
        assert stopped.finish == "stopped"
        assert isinstance(cancelled, asyncio.CancelledError)

    async def test_log_probabilities_are_refused_where_they_would_be_of_some_tokens_alone(self, engine: Any) -> None:
        with pytest.raises(Unable, match=r"but top_p is 0.9: set top_p: 1, or use engine 'hf'"):
            await engine.next_step("a", PROMPT, ROOT, Sampling(temperature=1.0, top_p=0.9, logprobs=True))

    async def test_log_probabilities_are_those_of_the_other_engine(self, engine: Any) -> None:
        """Of what it writes and of what it judges, on one prompt with images."""
        other = HFEngine.load(str(EMBEDDED / "draft"))
        chain: list[Step] = []
        for seed in range(3):
            sampling = Sampling(temperature=1.0, seed=seed, logprobs=True)
            chain.append(await engine.next_step("x", PROMPT, chain[-1] if chain else ROOT, sampling))
        assert await engine.tokenize(PROMPT) == await other.tokenize(PROMPT)
        for judged in (chain, chain[1:]):
            ours, theirs = [await one.score_tokens("x", PROMPT, judged) for one in (engine, other)]
            for step, mine, expected in zip(judged, ours, theirs, strict=True):
                assert step.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
                assert mine.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
                assert mine.verdict.score == pytest.approx(expected.verdict.score, abs=1e-3)
        with pytest.raises(Unable, match=r"at temperature 1 only, not at 0\.7"):
            await engine.score_tokens("x", PROMPT, chain, 0.7)
        await other.close()

    async def test_a_dead_process_is_noticed_by_running_calls_and_without_any(self, engine: Any) -> None:
        died = asyncio.create_task(engine.died())
        step = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
        while engine._llm.get_num_unfinished_requests() < 1:  # noqa: ASYNC110 - vLLM tells nobody
            await asyncio.sleep(0.001)
        assert not died.done()
        for pid in core_pids(engine._llm):
            os.kill(pid, signal.SIGKILL)
        for noticed in (died, step):
            with pytest.raises(EngineDied):
                await noticed


class TestSpeculative:
    """A second engine, with vLLM's n-gram speculation."""

    pytestmark = on_vllm

    async def test_it_writes_the_same_greedy_tokens_and_gives_no_verdicts(self) -> None:
        if not has_vllm:
            pytest.skip("vLLM is not installed here")
        speculative = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
        engine = await VLLM(speculative=speculative).load(EMBEDDED / "draft")
        plain = HFEngine.load(str(EMBEDDED / "draft"))
        try:
            await engine.warm_up()
            [written, expected] = [await write_chain(one, PROMPT, 6) for one in (engine, plain)]
            assert [step.tokens for step in written] == [step.tokens for step in expected]
            with pytest.raises(Unable, match="no verdict probabilities while it decodes speculatively"):
                await engine.score("a", PROMPT, written)
        finally:
            await engine.close()
            await plain.close()
