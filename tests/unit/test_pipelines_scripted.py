"""The schedules on scripted engines under a virtual clock: the promises of FPSR, over a thousand random worlds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from support.scripted import PROMPT, WatchedTransport, World, check_steps

from dreamr.bench.simulation import virtual
from dreamr.types import Prompt, Step
from pipelines.recorder import end_after

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_fpsr_commits_what_the_sequential_schedule_commits_over_a_thousand_worlds(temperature: float) -> None:
    async def compare(seed: int) -> None:
        rng = random.Random(seed)
        window = rng.choice([1, 2, 4, 8])
        settings = {"window": window, "temperature": temperature, "max_tokens": rng.choice([20, 8192])}
        fast, slow = World.make(seed), World.make(seed)
        parallel = await fast.run("fpsr", PROMPT, **settings)
        sequential = await slow.run("sequential", PROMPT, **settings)
        assert [(s.tokens, s.source, s.score) for s in parallel.steps] == [
            (s.tokens, s.source, s.score) for s in sequential.steps
        ]
        assert parallel.end == sequential.end
        assert fast.target.watch.most == 1
        assert fast.draft.watch.most <= window
        assert fast.num_in_flight == slow.num_in_flight == 0
        if seed % 10 == 0:
            check_steps(fast, parallel, **settings)
            assert all(step.score is not None for step in parallel.steps)

    for seed in range(500 if temperature else 1000):
        virtual(compare(seed))


def test_a_rejecting_verifier_leaves_exactly_the_targets_own_answer() -> None:
    async def run() -> None:
        world = World.make(0, acceptance=0.0)
        alone, speculated = [await world.run(method, PROMPT) for method in ("autoregressive", "fpsr")]
        assert speculated.tokens == alone.tokens
        assert speculated.coverage == speculated.acceptance_rate == 0.0
        assert alone.acceptance_rate is None
        assert all(span.outcome == "committed" for span in alone.spans)

    virtual(run())


def test_speculation_that_is_always_right_needs_the_target_for_nothing_but_verdicts() -> None:
    async def run() -> None:
        latencies = {"first_token_s": 0.0, "token_s": 0.1, "verdict_s": 0.001, "jitter": 0.0}
        world = World.make(0, acceptance=1.0, draft={"token_s": 0.001}, **latencies)
        trace = await world.run("fpsr", PROMPT)
        alone = await world.run("autoregressive", PROMPT)
        assert trace.coverage == trace.acceptance_rate == 1.0
        assert trace.wall_s < alone.wall_s / 10
        assert trace.wasted_draft_tokens == 0
        assert {span.outcome for span in trace.spans if span.lane == "target"} <= {"stopped"}

    virtual(run())


def test_the_verdict_decides_although_the_target_is_there_first() -> None:
    async def run() -> None:
        world = World.make(0, acceptance=1.0, first_token_s=0.0, token_s=0.0, verdict_s=5.0, jitter=0.0)
        trace = await world.run("fpsr", PROMPT)
        assert {step.source for step in trace.steps} == {"draft"}
        assert {span.outcome for span in trace.spans if span.lane == "target"} == {"unused"}

    virtual(run())


def test_only_a_target_step_beside_a_draft_is_speculative() -> None:
    async def run() -> None:
        world = World.make(0, acceptance=0.5)
        await world.run("autoregressive", PROMPT)
        await world.run("sequential", PROMPT)
        assert set(world.target.watch.priorities) == {"needed"}
        world.target.watch.priorities.clear()
        await world.run("fpsr", PROMPT)
        assert set(world.target.watch.priorities) == {"speculative"}
        assert set(world.draft.watch.priorities) == {"needed"}

    virtual(run())


def test_counts_add_up() -> None:
    async def run(seed: int) -> None:
        world = World.make(seed, acceptance=0.5)
        trace = await world.run("fpsr", PROMPT)
        from_draft = [step for step in trace.steps if step.source == "draft"]
        assert trace.num_accepted == len(from_draft)
        assert trace.num_judged == len(trace.steps) <= trace.num_drafted
        assert trace.drafted_tokens == trace.wasted_draft_tokens + sum(len(step.tokens) for step in from_draft)
        committed = [span for span in trace.spans if span.outcome == "committed"]
        assert sum(span.num_tokens for span in committed) == len(trace.tokens)
        in_spans = sum(span.num_tokens for span in trace.spans if span.lane == "target")
        assert in_spans == trace.wasted_target_tokens + len(trace.tokens) - sum(len(s.tokens) for s in from_draft)
        assert [step.at for step in trace.steps] == sorted(step.at for step in trace.steps)
        assert trace.wall_s == trace.steps[-1].at
        assert -1e-9 <= trace.orchestration_s <= trace.wall_s

    for seed in range(50):
        virtual(run(seed))


def test_a_schedule_whose_calls_cost_nothing_has_no_orchestration() -> None:
    async def run() -> None:
        world = World.make(3, acceptance=0.5, first_token_s=0.01, token_s=0.01, verdict_s=0.01)
        for method in ("autoregressive", "sequential", "fpsr"):
            # A window of one: else a verdict may wait for another that it is not judged together with.
            trace = await world.run(method, PROMPT, window=1)  # type: ignore[arg-type]
            assert trace.wall_s > 0
            assert trace.orchestration_s == pytest.approx(0, abs=1e-9)

    virtual(run())


@pytest.mark.parametrize("method", ["autoregressive", "sequential", "fpsr"])
def test_the_step_that_reaches_the_budget_is_the_last_and_is_kept(method: str) -> None:
    async def run() -> None:
        trace = await World.make(1, num_steps=(50, 50)).run(method, PROMPT, max_tokens=30)  # type: ignore[arg-type]
        assert trace.end == "budget"
        assert len(trace.tokens) >= 30 > len(trace.tokens) - len(trace.steps[-1].tokens)

    virtual(run())


@pytest.mark.parametrize("method", ["autoregressive", "sequential", "fpsr"])
def test_two_equal_steps_end_the_answer(method: str) -> None:
    async def run() -> None:
        world = World.make(1, num_steps=(50, 50), acceptance=0.0)
        world.target.engine.script.step = lambda *_: (5, 0)  # type: ignore[method-assign]
        trace = await world.run(method, PROMPT)  # type: ignore[arg-type]
        assert trace.end == "loop"
        assert [step.tokens for step in trace.steps] == [(5, 0), (5, 0)]

    virtual(run())


def written_after(steps: Sequence[tuple[int, ...]]) -> Step:
    *before, last = steps
    return Step(tuple(token for step in before for token in step), last, finish="delimiter")


@pytest.mark.parametrize(
    ("steps", "end"),
    [
        ([(1, 0), (2, 3, 0)] * 3, "loop"),
        ([(9, 0), *[(1, 0), (2, 3, 0), (4, 0)] * 3], "loop"),
        ([(1, 0), (2, 3, 0)] * 2, None),  # said twice: a check, perhaps
        ([(1, 0), (2, 3, 0), (1, 0), (2, 4, 0), (1, 0), (2, 5, 0)], None),  # the same words about something else
        ([(9, 0), (7, 7, 7, 7, 7, 7, 0)], None),  # within one step
        ([(1, *range(10, 700)), (2, 0)] * 3, "loop"),
        ([(1, *range(10, 2100)), (2, 0)] * 3, None),  # longer than LONGEST_LOOP
    ],
)
def test_steps_that_come_round_three_times_end_the_answer(steps: list[tuple[int, ...]], end: str | None) -> None:
    assert end_after(written_after(steps), Step((), steps[-2]), max_tokens=10**6) == end


@pytest.mark.parametrize("method", ["autoregressive", "sequential", "fpsr"])
def test_a_cancelled_request_leaves_nothing_in_flight(method: str) -> None:
    async def run(seed: int) -> None:
        world = World.make(seed, num_steps=(20, 20))
        task = asyncio.create_task(world.run(method, PROMPT))  # type: ignore[arg-type]
        await asyncio.sleep(random.Random(seed).uniform(0, 1))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert world.num_in_flight == 0

    for seed in range(50):
        virtual(run(seed))


def test_requests_at_the_same_time_do_not_mix() -> None:
    async def run() -> None:
        world = World.make(5, acceptance=0.5)
        prompts = [Prompt(f"question {number}") for number in range(5)]
        alone = [await world.run("sequential", prompt) for prompt in prompts]
        together = await asyncio.gather(*(world.run("fpsr", prompt) for prompt in prompts))
        assert [trace.tokens for trace in together] == [trace.tokens for trace in alone]
        assert world.num_in_flight == 0

    virtual(run())


def test_a_refused_prompt_is_the_targets_error() -> None:
    async def run() -> None:
        world = World.make(5)

        async def refuse(*_: object) -> Step:
            raise ValueError("the image is broken")

        world.target.engine.next_step = refuse  # type: ignore[method-assign]
        world.draft.engine.next_step = refuse  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="the image is broken"):
            await world.run("fpsr", PROMPT)
        assert world.num_in_flight == 0

    virtual(run())


@pytest.mark.parametrize(("method", "most"), [("parallel_prefix", 0.7), ("sequential", 2.0), ("autoregressive", 1.0)])
def test_calls_of_the_actors_per_committed_step(method: str, most: float) -> None:
    """A window of accepted steps takes two calls: one drafts the chain, one judges it."""

    async def check() -> None:
        world = World.make(4, acceptance=1.0, num_steps=(12, 12))
        calls = [submitted(one) for one in (world.draft, world.target, world.verifier)]
        trace = await world.run(method, PROMPT)
        num_prefills = method == "parallel_prefix"
        assert sum(map(len, calls)) - num_prefills <= most * len(trace.steps)

    virtual(check())


def submitted(transport: WatchedTransport) -> list[str]:
    """The methods of the calls that are made from now on."""
    methods: list[str] = []
    submit = transport.submit

    def counted(method: str, *arguments: Any) -> Any:
        methods.append(method)
        return submit(method, *arguments)

    transport.submit = counted  # type: ignore[method-assign]
    return methods
