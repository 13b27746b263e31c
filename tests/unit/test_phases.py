"""Bounded reasoning and answers by a schema: in every schedule, with scripted and with the built-in models."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from support.scripted import World

from dreamr.bench.simulation import virtual
from dreamr.config import PipelineSettings
from dreamr.engines.script import END_OF_ANSWER, JSON_VALUE, THOUGHT_END
from dreamr.types import END_OF_THOUGHT, Prompt
from pipelines import SCHEDULES, Request, Trace, run

OBJECT = '{"type": "object"}'


async def phased(world: World, method: str, schema: str | None, **settings: object) -> Trace:

    asked = PipelineSettings.model_validate({"method": method} | settings)
    clock = asyncio.get_running_loop().time
    trace = await run(Request(Prompt("how many?"), asked, schema=schema), world.handles, clock=clock)
    assert world.num_in_flight == 0
    return trace


def world(seed: int) -> World:
    rng = random.Random(f"thought/{seed}")
    most = rng.randint(1, 6)
    return World.make(seed, num_steps=(4, 9), thought_steps=(1, most))


def reasoning_of(trace: Trace) -> tuple[int, ...]:
    return tuple(token for step in trace.steps if step.phase == "reasoning" for token in step.tokens)


def answer_of(trace: Trace) -> tuple[int, ...]:
    return tuple(token for step in trace.steps if step.phase == "answer" for token in step.tokens)


@pytest.mark.parametrize("method", list(SCHEDULES))
@pytest.mark.parametrize("schema", [None, OBJECT])
def test_the_reasoning_keeps_its_budget_and_the_answer_follows(method: str, schema: str | None) -> None:
    async def check(seed: int) -> None:
        for budget in (0, 3, 11, 40, 8192):
            trace = await phased(world(seed), method, schema, thinking_budget=budget)
            thought, answer = reasoning_of(trace), answer_of(trace)
            assert thought.count(THOUGHT_END) == 1
            assert thought[-1] == THOUGHT_END
            assert len(thought) <= budget + 1
            assert trace.end == "answered"
            assert (answer == (JSON_VALUE, END_OF_ANSWER)) == (schema is not None)
            assert [step.index for step in trace.steps] == list(range(len(trace.steps)))
            kept = trace.text.partition(END_OF_THOUGHT)
            assert kept[1]
            if schema:
                assert kept[2] == "{}"
                assert {step.source for step in trace.steps if step.phase == "answer"} == {"target"}

    for seed in range(12):
        virtual(check(seed))


@pytest.mark.parametrize("schema", [None, OBJECT])
def test_fpsr_commits_what_the_sequential_schedule_commits_in_phases_too(schema: str | None) -> None:
    async def compare(seed: int) -> None:
        rng = random.Random(f"phases/{seed}")
        settings = {
            "window": rng.choice([1, 2, 4, 8]),
            "temperature": rng.choice([0.0, 0.8]),
            "thinking_budget": rng.choice([None, 0, 5, 15, 40]),
            "max_tokens": rng.choice([6, 25, 8192]),
        }
        fast, slow = [await phased(world(seed), method, schema, **settings) for method in ("fpsr", "sequential")]
        kept = [[(s.tokens, s.text, s.source, s.score, s.phase) for s in trace.steps] for trace in (fast, slow)]
        assert kept[0] == kept[1]
        assert (fast.end, slow.end) == (slow.end, slow.end)
        assert len(fast.tokens) <= settings["max_tokens"]

    for seed in range(200):
        virtual(compare(seed))


def test_without_space_for_an_answer_the_budget_ends_the_request() -> None:
    async def check() -> None:
        trace = await phased(world(1), "fpsr", OBJECT, thinking_budget=5, max_tokens=6)
        assert (trace.end, len(trace.tokens)) == ("budget", 5)
        trace = await phased(world(1), "fpsr", OBJECT, thinking_budget=5, max_tokens=7)
        assert (trace.end, trace.tokens[-2:]) == ("budget", (THOUGHT_END, JSON_VALUE))

    virtual(check())


# What the two lookaheads commit depends on where their rounds begin, and on which model is faster.
@pytest.mark.parametrize("method", [name for name in SCHEDULES if not name.startswith("lookahead")])
@pytest.mark.parametrize(("schema", "budget"), [(None, None), (None, 11), (OBJECT, 11), (OBJECT, None)])
def test_an_answer_goes_on_where_an_earlier_run_was_cut_off(
    method: str, schema: str | None, budget: int | None
) -> None:
    async def check(seed: int) -> None:

        settings = PipelineSettings(method=method, thinking_budget=budget)
        request = Request(Prompt("how many?"), settings, schema=schema)
        clock = asyncio.get_running_loop().time
        whole = await run(request, world(seed).handles, clock=clock)
        for kept in range(len(whole.steps) + 1):
            again, said = world(seed), []
            resumed = await run(
                replace(request, committed=whole.steps[:kept]), again.handles, on_commit=said.append, clock=clock
            )
            assert [(s.tokens, s.text, s.source, s.phase) for s in resumed.steps] == [
                (s.tokens, s.text, s.source, s.phase) for s in whole.steps
            ]
            assert resumed.end == whole.end
            assert [step.index for step in said] == list(range(len(whole.steps)))
            if kept == len(whole.steps):
                assert not again.target.watch.priorities

    for seed in range(6):
        virtual(check(seed))


def test_a_known_end_of_thought_saves_a_call_per_request() -> None:
    async def check() -> None:
        one = world(3)
        known = replace(one.handles, thought_end=await one.handles.target.thought_end("0", Prompt("any")))
        one.target.actor.thought_end = pytest.fail  # type: ignore[method-assign]
        settings = PipelineSettings(method="fpsr", thinking_budget=11)
        trace = await run(Request(Prompt("how many?"), settings), known, clock=asyncio.get_running_loop().time)
        assert trace.tokens == (await phased(world(3), "fpsr", None, thinking_budget=11)).tokens

    virtual(check())
