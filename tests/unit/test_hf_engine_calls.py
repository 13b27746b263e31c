"""Calls that share one engine: one forward for all, priorities, stopping, cancelling, new weights."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reference import Reference
from support.tiny import PROMPTS, save_checkpoint

from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.hf.jobs import Output, WriteJob
from dreamr.engines.hf.model import Model, Row
from dreamr.engines.sampling import NumericalError
from dreamr.engines.steps import EarlyStops
from dreamr.types import ROOT, Sampling, Step

PROMPT = PROMPTS["one wide image"]
GREEDY = Sampling(max_tokens=24)
"""The first step of PROMPT has more than 8 tokens, which `checkpoint` makes sure of."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    for seed in range(20):
        folder = save_checkpoint(tmp_path_factory.mktemp("tiny"), seed)
        if len(Reference(folder).step(PROMPT, (), GREEDY.max_tokens)[0]) > 8:
            return folder
    pytest.fail("no random checkpoint writes a long first step")


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[HFEngine]:
    engine = HFEngine.load(str(checkpoint))
    yield engine
    await engine.close()


def on_forward(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[list[Row]]:
    """Call `act(number of forwards so far)` before every forward; returns the growing list of their rows."""
    forwards: list[list[Row]] = []
    run = Model.run

    def observed(self: Model, rows: Any) -> Any:
        forwards.append(list(rows))
        act(len(forwards))
        return run(self, rows)

    monkeypatch.setattr(Model, "run", observed)
    return forwards


class Gate:
    """Holds the loop before forward number `at` until it is opened."""

    def __init__(self, at: int = 1) -> None:
        self._at, self._reached, self._open = at, threading.Event(), threading.Event()

    def __call__(self, number: int) -> None:
        if number == self._at:
            self._reached.set()
            assert self._open.wait(10)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 10)

    def open(self) -> None:
        self._open.set()


async def submitted() -> None:
    """Let tasks that were just created reach the engine; prompts are encoded in threads, once."""
    await asyncio.sleep(0.2)


async def test_steps_that_run_at_once_share_every_forward(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.prefill(PROMPT)
    gate = Gate()
    forwards = on_forward(monkeypatch, gate)
    calls = [asyncio.create_task(engine.next_step("first", PROMPT, ROOT, Sampling(max_tokens=8)))]
    await gate.reached()
    calls += [asyncio.create_task(engine.next_step(name, PROMPT, ROOT, Sampling(max_tokens=8))) for name in "ab"]
    await submitted()
    gate.open()
    steps = await asyncio.gather(*calls)
    assert {step.tokens for step in steps} == {steps[0].tokens}
    assert [len(rows) for rows in forwards] == [1] + [3] * 7 + [2]


async def test_a_verdict_joins_the_forward_of_a_running_step(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await engine.next_step("first", PROMPT, ROOT, Sampling(max_tokens=2))
    alone = await engine.score("alone", PROMPT, [first])
    gate = Gate(2)
    forwards = on_forward(monkeypatch, gate)
    step = asyncio.create_task(engine.next_step("step", PROMPT, ROOT, Sampling(max_tokens=8)))
    await gate.reached()
    score = asyncio.create_task(engine.score("score", PROMPT, [first]))
    await submitted()
    gate.open()
    assert (await score)[0].score == pytest.approx(alone[0].score, abs=1e-6)
    assert len((await step).tokens) == 8
    assert [len(rows) for rows in forwards] == [1, 1, 2, *[1] * 5]


async def test_a_speculative_step_waits_for_needed_ones_until_it_is_promoted(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await engine.next_step("alone", PROMPT, ROOT, Sampling(max_tokens=8))
    for promoted in (False, True):
        ended: list[str] = []
        gate = Gate()
        with monkeypatch.context() as patch:
            on_forward(patch, gate)
            calls = [asyncio.create_task(engine.next_step("busy", PROMPT, ROOT, Sampling(max_tokens=1)))]
            await gate.reached()
            calls += [
                asyncio.create_task(engine.next_step("maybe", PROMPT, ROOT, Sampling(max_tokens=8), "speculative")),
                asyncio.create_task(engine.next_step("sure", PROMPT, ROOT, Sampling(max_tokens=8))),
            ]
            for name, call in zip(("maybe", "sure"), calls[1:], strict=True):
                call.add_done_callback(lambda _, name=name, ended=ended: ended.append(name))
            await submitted()
            if promoted:
                engine.promote("maybe")
            gate.open()
            _, maybe, sure = await asyncio.gather(*calls)
        assert maybe.tokens == sure.tokens == alone.tokens
        assert sorted(ended) == ["maybe", "sure"]
        assert promoted or ended == ["sure", "maybe"]
    engine.promote("never heard of")


@pytest.mark.parametrize("agreeing", [0, 3, 8])
async def test_a_hint_is_kept_as_far_as_the_step_agrees_and_changes_no_token(
    engine: HFEngine, agreeing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await engine.next_step("whole", PROMPT, ROOT, Sampling(max_tokens=8))
    hint = whole.tokens[:agreeing] + tuple((token + 1) % 100 for token in whole.tokens[agreeing:])
    forwards = on_forward(monkeypatch, lambda _: None)
    step = await engine.next_step("hinted", PROMPT, ROOT, Sampling(max_tokens=8, hint=hint))
    assert (step.tokens, step.text, step.finish) == (whole.tokens, whole.text, whole.finish)
    assert step.num_salvaged == min(agreeing, 7)
    assert len(forwards) == 8 - step.num_salvaged
    again = await engine.next_step("after", PROMPT, Step(tokens=whole.tokens[:2]), Sampling(max_tokens=6))
    assert again.tokens == whole.tokens[2:]


async def test_a_hint_reaches_a_step_that_is_under_way(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await engine.next_step("whole", PROMPT, ROOT, Sampling(max_tokens=8))
    gate = Gate(3)
    forwards = on_forward(monkeypatch, gate)
    call = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, Sampling(max_tokens=8), "speculative"))
    await gate.reached()
    engine.promote("a", whole.tokens)
    gate.open()
    step = await call
    assert step.tokens == whole.tokens
    assert step.num_salvaged > 0
    assert len(forwards) < 8


async def test_a_stopped_step_keeps_its_tokens_and_the_cache_stays_correct(
    engine: HFEngine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_forward(monkeypatch, lambda number: engine.stop("a") if number == 3 else None)
    stopped = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    whole, finish = Reference(checkpoint).step(PROMPT, (), GREEDY.max_tokens)
    assert (stopped.tokens, stopped.finish) == (whole[:3], "stopped")
    again = await engine.next_step("b", PROMPT, ROOT, GREEDY)
    assert (again.tokens, again.finish) == (whole, finish)
    engine.check_integrity()


async def test_a_stop_reaches_a_call_that_waits(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    on_forward(monkeypatch, gate)
    first = asyncio.create_task(engine.next_step("first", PROMPT, ROOT, Sampling(max_tokens=2)))
    await gate.reached()
    waiting = asyncio.create_task(engine.next_step("waiting", PROMPT, ROOT, GREEDY))
    await submitted()
    engine.stop("waiting")
    gate.open()
    assert ((await waiting).tokens, (await waiting).finish) == ((), "stopped")
    assert len((await first).tokens) == 2


async def test_a_stop_of_an_ended_or_another_call_changes_nothing(engine: HFEngine) -> None:
    first = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    engine.stop("a")
    engine.stop("never heard of")
    assert (await engine.next_step("a", PROMPT, ROOT, GREEDY)).tokens == first.tokens


def test_stops_of_unknown_calls_are_forgotten_after_a_while() -> None:
    stops = EarlyStops()
    for number in range(5000):
        stops.stop(f"{number}")
    assert not stops.begin("0")
    assert stops.begin("4999")
    stops.end("4999")
    stops.stop("4999")  # late
    assert not stops.begin("4999")


async def test_a_cancelled_step_ends_before_the_task_ends(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(2)
    forwards = on_forward(monkeypatch, gate)
    task = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await gate.reached()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(forwards) == 2
    engine.check_integrity()


async def test_the_event_loop_runs_while_the_model_does(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    on_forward(monkeypatch, lambda number: None if number > 1 else _assert_soon(answered))
    task = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await asyncio.sleep(0)
    answered.set()  # while the loop waits within its first forward
    await task


def _assert_soon(event: threading.Event) -> None:
    assert event.wait(10)


async def test_an_error_of_one_job_leaves_the_others_alone(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    take = WriteJob.take

    def fails(self: WriteJob, output: Output) -> None:
        if self.call_id == "bad" and len(self.tokens) == 2:
            raise ValueError("only this one")
        take(self, output)

    monkeypatch.setattr(WriteJob, "take", fails)
    calls = [engine.next_step(name, PROMPT, ROOT, Sampling(max_tokens=6)) for name in ("bad", "good")]
    bad, good = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert isinstance(good, Step)
    assert len(good.tokens) == 6
    engine.check_integrity()


async def test_the_vision_tower_runs_once_per_prompt(engine: HFEngine) -> None:
    runs: list[object] = []
    engine.module.model.visual.register_forward_hook(lambda *_: runs.append(1))
    first = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    await engine.score("b", PROMPT, [first])
    await asyncio.gather(*(engine.next_step(f"{i}", PROMPT, Step(tokens=first.tokens[:i]), GREEDY) for i in range(4)))
    assert len(runs) == 1
    await engine.prefill(PROMPTS["two images"])
    await engine.prefill(PROMPTS["two images"])
    assert len(runs) == 2


async def test_prefill_leaves_only_the_last_token_to_run(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.prefill(PROMPT)
    forwards = on_forward(monkeypatch, lambda _: None)
    await engine.next_step("a", PROMPT, ROOT, Sampling(max_tokens=3))
    assert [len(row.tokens) for rows in forwards for row in rows] == [1, 1, 1]


async def test_new_weights_are_refused_while_a_step_is_written(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    on_forward(monkeypatch, gate)
    step = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await gate.reached()
    with pytest.raises(RuntimeError, match="1 requests are running"):
        await engine.update_weights(engine.module.state_dict())
    gate.open()
    assert (await step).finish != "stopped"


async def test_broken_weights_are_an_error_and_the_engine_recovers(engine: HFEngine) -> None:
    good = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    bad = {name: torch.full_like(tensor, torch.nan) for name, tensor in good.items()}
    before = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    await engine.update_weights(bad)
    with pytest.raises(NumericalError, match="logits is nan"):
        await engine.next_step("a", PROMPT, ROOT, GREEDY)
    with pytest.raises(NumericalError, match="nan"):
        await engine.score("a", PROMPT, [before])
    await engine.update_weights(good)
    assert (await engine.next_step("a", PROMPT, ROOT, GREEDY)).tokens == before.tokens
    engine.check_integrity()


async def test_close_stops_what_runs(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    on_forward(monkeypatch, gate)
    step = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await gate.reached()
    close = asyncio.create_task(engine.close())
    await submitted()
    gate.open()
    await close
    assert ((await step).finish, len((await step).tokens)) == ("stopped", 1)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        await engine.next_step("b", PROMPT, ROOT, GREEDY)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system knows no such scheduling")
async def test_forwards_of_speculative_steps_alone_run_in_the_background(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HFEngine.load(str(checkpoint), background=True)
    policies: list[int] = []
    on_forward(monkeypatch, lambda _: policies.append(os.sched_getscheduler(0)))
    needed = await engine.next_step("a", PROMPT, ROOT, Sampling(max_tokens=4))
    maybe = await engine.next_step("b", PROMPT, ROOT, Sampling(max_tokens=4), "speculative")
    assert needed.tokens == maybe.tokens
    assert policies == [os.SCHED_OTHER] * 4 + [os.SCHED_IDLE] * 4
    await engine.close()
