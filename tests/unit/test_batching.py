"""Which steps share a forward, and what becomes of those that are stopped or fail while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from actors.batching import VerdictBatcher
from dreamr.types import NO_VERDICT, Prefill, Prompt, Step, Verdict

FIRST, SECOND = Prompt("first"), Prompt("second")


class GatedEngine:
    """Judges when told to; remembers what came together."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.forwards: list[list[int]] = []
        self.error: Exception | None = None

    async def score(self, call_id: str, prompt: Prompt, chain: Sequence[Step], *criterion: object) -> list[Verdict]:
        self.forwards.append([step.tokens[0] for step in chain])
        await self.gate.wait()
        if self.error:
            raise self.error
        return [Verdict(score=step.tokens[0] / 10) for step in chain]

    async def next_step(self, *arguments: object) -> Step:
        raise NotImplementedError

    async def prefill(self, prompt: Prompt) -> Prefill:
        raise NotImplementedError

    def stop(self, call_id: str) -> None:
        raise NotImplementedError


def chain(*first_tokens: int) -> list[Step]:
    """Steps of one token each that follow each other."""
    return [Step(first_tokens[:place], (token,), "so") for place, token in enumerate(first_tokens)]


async def submit(batcher: VerdictBatcher, prompt: Prompt, steps: Sequence[Step]) -> list[asyncio.Task[Verdict]]:
    tasks = [asyncio.create_task(batcher.score(f"{step.tokens[0]}", prompt, step)) for step in steps]
    await asyncio.sleep(0)  # let them line up
    await asyncio.sleep(0)  # let the first one go to the engine
    return tasks


async def test_steps_that_wait_together_and_follow_each_other_are_judged_together() -> None:
    engine = GatedEngine()
    batcher = VerdictBatcher(engine)
    first = await submit(batcher, FIRST, chain(1))
    rest = await submit(batcher, FIRST, chain(1, 2, 3, 4)[1:])
    engine.gate.set()
    verdicts = await asyncio.gather(*first, *rest)
    assert [verdict.score for verdict in verdicts] == [0.1, 0.2, 0.3, 0.4]
    assert engine.forwards == [[1], [2, 3, 4]]


async def test_steps_of_another_chain_are_judged_after_it() -> None:
    engine = GatedEngine()
    batcher = VerdictBatcher(engine)
    tasks = await submit(batcher, FIRST, chain(1))
    tasks += await submit(batcher, FIRST, [*chain(5, 6), *chain(7, 8)])
    engine.gate.set()
    await asyncio.gather(*tasks)
    assert engine.forwards == [[1], [5, 6], [7, 8]]


async def test_prompts_do_not_wait_for_each_other() -> None:
    engine = GatedEngine()
    batcher = VerdictBatcher(engine)
    tasks = await submit(batcher, FIRST, chain(1)) + await submit(batcher, SECOND, chain(2))
    assert engine.forwards == [[1], [2]]
    engine.gate.set()
    await asyncio.gather(*tasks)


async def test_a_stopped_step_leaves_its_queue_unjudged() -> None:
    engine = GatedEngine()
    batcher = VerdictBatcher(engine)
    tasks = await submit(batcher, FIRST, chain(1))
    tasks += await submit(batcher, FIRST, chain(5, 6, 7))
    for name in ("6", "7", "unknown"):
        batcher.stop(name)
    engine.gate.set()
    verdicts = await asyncio.gather(*tasks)
    assert [verdict.judged for verdict in verdicts] == [True, True, False, False]
    assert engine.forwards == [[1], [5]]


async def test_what_cannot_be_judged_never_reaches_the_engine() -> None:
    engine = GatedEngine()
    batcher = VerdictBatcher(engine)
    assert await batcher.score("1", FIRST, Step()) == NO_VERDICT
    assert await batcher.score("2", FIRST, Step(tokens=(1,), finish="stopped")) == NO_VERDICT
    assert engine.forwards == []


async def test_an_error_reaches_every_step_of_its_forward_and_no_other() -> None:
    engine = GatedEngine()
    batcher = VerdictBatcher(engine)
    tasks = await submit(batcher, FIRST, chain(1))
    engine.error = ValueError("no such image")
    engine.gate.set()
    with pytest.raises(ValueError, match="no such image"):
        await tasks[0]
    engine.error = None
    assert (await batcher.score("2", FIRST, chain(2)[0])).score == 0.2


async def test_a_caller_that_gives_up_does_not_disturb_the_others() -> None:
    engine = GatedEngine()
    batcher = VerdictBatcher(engine)
    tasks = await submit(batcher, FIRST, chain(1))
    tasks += await submit(batcher, FIRST, chain(5, 6))
    tasks[1].cancel()
    engine.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert results[2] == Verdict(score=0.6)
    assert engine.forwards == [[1], [6]]
