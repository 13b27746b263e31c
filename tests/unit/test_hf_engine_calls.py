"""Calls that share one engine: turns, stopping, cancelling, new weights."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch
from support.reference import Reference
from support.tiny import PROMPTS, save_checkpoint

from dreamr.engines.calls import Calls
from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.sampling import NumericalError, TokenChooser
from dreamr.engines.turns import Turns
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


def on_token(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> list[str]:
    """Call `act(number of tokens so far)` after every token; returns the growing list of threads that chose one."""
    chosen: list[str] = []
    choose = TokenChooser.choose

    def observed(self: TokenChooser, logits: torch.Tensor) -> int:
        token = choose(self, logits)
        chosen.append(threading.current_thread().name)
        act(len(chosen))
        return token

    monkeypatch.setattr(TokenChooser, "choose", observed)
    return chosen


async def queued(turns: Turns, num_waiting: int) -> None:
    """Return when that many threads wait for their turn; the caller holds it, so none can go on."""
    async with asyncio.timeout(10):
        while turns.num_waiting < num_waiting:  # noqa: ASYNC110 - threads wait there, not tasks
            await asyncio.sleep(0.001)


async def test_two_steps_take_turns_token_by_token(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = on_token(monkeypatch, lambda _: None)
    engine.turns.take()
    calls = [asyncio.create_task(engine.next_step(name, PROMPT, ROOT, Sampling(max_tokens=8))) for name in "ab"]
    await queued(engine.turns, 2)
    engine.turns.give()
    steps = await asyncio.gather(*calls)
    assert len(steps[0].tokens) == len(steps[1].tokens) == 8
    assert chosen == [chosen[0], chosen[1]] * 8
    assert chosen[0] != chosen[1]


async def test_a_score_waits_for_one_token_of_a_running_step(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await engine.next_step("first", PROMPT, ROOT, Sampling(max_tokens=2))
    chosen = on_token(monkeypatch, lambda _: None)
    engine.turns.take()
    step = asyncio.create_task(engine.next_step("step", PROMPT, ROOT, Sampling(max_tokens=8)))
    await queued(engine.turns, 1)
    num_chosen: list[int] = []
    judge = engine.judge
    monkeypatch.setattr(engine, "verifier", lambda *args: (judge(*args), num_chosen.append(len(chosen)))[0])
    score = asyncio.create_task(engine.score("score", PROMPT, [first]))
    await queued(engine.turns, 2)
    engine.turns.give()
    await asyncio.gather(step, score)
    assert len(chosen) == 8
    assert num_chosen[0] in (1, 2)  # the judge's thread reads the count after it has given its turn back


async def test_a_stopped_step_keeps_its_tokens_and_the_cache_stays_right(
    engine: HFEngine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_token(monkeypatch, lambda count: engine.stop("a") if count == 3 else None)
    stopped = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    whole, finish = Reference(checkpoint).step(PROMPT, (), GREEDY.max_tokens)
    assert (stopped.tokens, stopped.finish) == (whole[:3], "stopped")
    again = await engine.next_step("b", PROMPT, ROOT, GREEDY)
    assert (again.tokens, again.finish) == (whole, finish)


async def test_a_stop_reaches_a_call_that_waits_for_its_turn(engine: HFEngine) -> None:
    engine.turns.take()
    call = asyncio.create_task(engine.next_step("waiting", PROMPT, ROOT, GREEDY))
    await queued(engine.turns, 1)
    engine.stop("waiting")
    engine.turns.give()
    assert ((await call).tokens, (await call).finish) == ((), "stopped")


async def test_a_stop_of_an_ended_or_another_call_changes_nothing(engine: HFEngine) -> None:
    first = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    engine.stop("a")
    engine.stop("never heard of")
    assert (await engine.next_step("a", PROMPT, ROOT, GREEDY)).tokens == first.tokens


async def test_stops_of_unknown_calls_are_forgotten_after_a_while() -> None:
    calls = Calls(1, "test")
    for number in range(5000):
        calls.stop(f"{number}")
    assert not await calls.run("0", lambda stop: stop.is_set())
    assert await calls.run("4999", lambda stop: stop.is_set())
    await calls.close()


async def test_a_cancelled_step_ends_its_thread_before_the_task_ends(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def pause(count: int) -> None:
        if count == 2:
            reached.set()
            go_on.wait(10)

    chosen = on_token(monkeypatch, pause)
    task = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await asyncio.to_thread(reached.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(chosen) == 2
    assert engine.cache.num_leased == 0


async def test_the_event_loop_runs_while_the_model_does(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    on_token(monkeypatch, lambda count: None if count > 1 else assert_soon(answered))
    task = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await asyncio.sleep(0)
    answered.set()  # while the thread waits within its first token
    await task


def assert_soon(event: threading.Event) -> None:
    assert event.wait(10)


async def test_the_vision_tower_runs_once_per_prompt(engine: HFEngine) -> None:
    runs: list[object] = []
    engine.model.model.visual.register_forward_hook(lambda *_: runs.append(1))
    first = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    await engine.score("b", PROMPT, [first])
    await asyncio.gather(*(engine.next_step(f"{i}", PROMPT, Step(tokens=first.tokens[:i]), GREEDY) for i in range(4)))
    assert len(runs) == 1
    evicting = PROMPTS["two images"]
    await engine.prefill(evicting)
    await engine.prefill(evicting)
    assert len(runs) == 2


async def test_a_prompt_is_encoded_while_others_are(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=10)
    encode = engine._encoder.encode
    monkeypatch.setattr(engine._encoder, "encode", lambda prompt: (together.wait(), encode(prompt))[1])
    runs: list[object] = []
    engine.model.model.visual.register_forward_hook(lambda *_: runs.append(1))
    await asyncio.gather(*(engine.prefill(prompt) for prompt in (PROMPT, PROMPT, PROMPTS["two images"])))
    assert len(runs) == 2  # whoever encodes the same prompt a second time drops what it made


async def test_prefill_leaves_only_the_last_token_to_run(engine: HFEngine) -> None:
    await engine.prefill(PROMPT)
    lengths: list[int] = []
    engine.model.model.language_model.norm.register_forward_hook(lambda _m, args, _o: lengths.append(args[0].shape[1]))
    await engine.next_step("a", PROMPT, ROOT, Sampling(max_tokens=3))
    assert lengths == [1, 1, 1]


async def test_new_weights_are_refused_while_a_step_is_written(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, update_waits = threading.Event(), threading.Event()

    def pause(count: int) -> None:
        if count == 1:
            reached.set()
            update_waits.wait(10)

    on_token(monkeypatch, pause)
    step = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await asyncio.to_thread(reached.wait, 10)
    update = asyncio.create_task(engine.update_weights(engine.model.state_dict()))
    await queued(engine.turns, 1)
    update_waits.set()
    with pytest.raises(RuntimeError, match="1 sequences are in use"):
        await update
    assert (await step).finish != "stopped"


async def test_broken_weights_are_an_error_and_the_engine_recovers(engine: HFEngine) -> None:
    good = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    bad = {name: torch.full_like(tensor, torch.nan) for name, tensor in good.items()}
    before = await engine.next_step("a", PROMPT, ROOT, GREEDY)
    await engine.update_weights(bad)
    with pytest.raises(NumericalError, match="logits is nan"):
        await engine.next_step("a", PROMPT, ROOT, GREEDY)
    with pytest.raises(NumericalError, match="not finite"):
        await engine.score("a", PROMPT, [before])
    await engine.update_weights(good)
    assert (await engine.next_step("a", PROMPT, ROOT, GREEDY)).tokens == before.tokens


async def test_close_stops_what_runs(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = threading.Event(), threading.Event()
    on_token(monkeypatch, lambda count: (reached.set(), go_on.wait(10)) if count == 1 else None)
    step = asyncio.create_task(engine.next_step("a", PROMPT, ROOT, GREEDY))
    await asyncio.to_thread(reached.wait, 10)
    close = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    go_on.set()
    await close
    assert ((await step).finish, len((await step).tokens)) == ("stopped", 1)


def test_waiting_threads_get_their_turn_in_order() -> None:
    turns, order = Turns(), []

    def work(number: int) -> None:
        with turns:
            order.append(number)
            turns.pass_on()
            order.append(number)

    turns.take()
    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        while turns.num_waiting <= number:
            pass
    turns.give()
    for thread in threads:
        thread.join(10)
    assert order == [*range(5), *range(5)]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system knows no such scheduling")
async def test_background_calls_get_only_what_other_threads_leave() -> None:
    calls = Calls(2, "test")
    policies = [
        await calls.run(name, lambda _: os.sched_getscheduler(0), background=background)
        for name, background in (("1", True), ("2", False), ("3", True))
    ]
    assert policies == [os.SCHED_IDLE, os.SCHED_OTHER, os.SCHED_IDLE]
    await calls.close()


async def test_a_background_step_has_the_same_tokens(engine: HFEngine) -> None:
    steps = [
        await engine.next_step(f"{background}", PROMPTS["one wide image"], ROOT, Sampling(background=background))
        for background in (True, False)
    ]
    assert steps[0].tokens == steps[1].tokens
