"""Losses and hangs injected at every call of a request: nothing that is committed is lost, and the answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
from support.scripted import PROMPT, World, check_steps

from actors.local import LocalTransport
from dreamr.bench.simulation import virtual
from dreamr.errors import ActorLost
from dreamr.types import Prompt, Step
from pipelines import SCHEDULES, Trace

pytestmark = pytest.mark.timeout(120)

Part = Literal["draft", "target", "verifier"]
DEADLINES = {"draft_deadline_s": 50, "verifier_deadline_s": 50, "target_deadline_s": 50, "stop_deadline_s": 50}


def eight_steps(acceptance: float = 0.6) -> World:
    """A world whose answers have eight steps, and whose three engines fail apart from each other."""
    latencies = {"first_token_s": 0.05, "token_s": 0.01, "verdict_s": 0.04, "jitter": 0.2}
    return World.make(7, acceptance=acceptance, num_steps=(8, 8), shared=False, **latencies)


def at_call(handle: LocalTransport, number: int, fault: Callable[[], Awaitable[Any]]) -> None:
    """Have `fault` happen in the engine's call `number`, counted over steps and verdicts."""
    engine: Any = handle.engine
    count = 0

    def faulty(work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                await fault()
            return await work(*arguments)

        return call

    for name in ("next_step", "next_steps", "score", "propose_tokens", "check_tokens"):
        setattr(engine, name, faulty(getattr(engine, name)))


async def run_with_loss(method: str, part: Part, number: int, down_s: float) -> Trace:
    world = eight_steps()
    handle: LocalTransport = getattr(world, part)

    async def die() -> None:
        asyncio.get_running_loop().call_later(down_s, handle.restore)
        handle.lose()
        await asyncio.Event().wait()  # until the loss, which cancels every open call, gets here

    at_call(handle, number, die)
    trace = await world.run(method, PROMPT, **DEADLINES)
    check_steps(world, trace, method=method)
    assert trace.end == "answered"
    assert world.num_in_flight == 0
    return trace


@pytest.mark.parametrize("part", ["draft", "target", "verifier"])
@pytest.mark.parametrize("method", SCHEDULES)
@pytest.mark.parametrize("down_s", [0.001, 0.5, 20.0])
def test_an_actor_lost_at_any_call_costs_no_committed_step(method: str, part: Part, down_s: float) -> None:
    for number in range(1, 25):
        virtual(run_with_loss(method, part, number, down_s))


@pytest.mark.parametrize("part", ["draft", "verifier"])
def test_without_draft_or_verifier_the_target_goes_on_alone(part: Part) -> None:
    trace = virtual(run_with_loss("fpsr", part, 1, down_s=1e6))
    assert {step.source for step in trace.steps} == {"target"}
    assert trace.num_losses == 1
    assert trace.acceptance_rate is None


@pytest.mark.parametrize("part", ["draft", "verifier"])
def test_speculation_resumes_when_the_lost_actor_is_back(part: Part) -> None:
    trace = virtual(run_with_loss("fpsr", part, 1, down_s=0.3))
    assert trace.steps[0].source == "target"
    assert any(step.source == "draft" for step in trace.steps)


@pytest.mark.parametrize("part", ["draft", "target", "verifier"])
@pytest.mark.parametrize("method", SCHEDULES)
def test_an_actor_that_hangs_counts_as_lost_after_its_deadline(method: str, part: Part) -> None:
    async def run(number: int) -> None:
        world = eight_steps()
        at_call(getattr(world, part), number, asyncio.Event().wait)
        trace = await world.run(method, PROMPT, **DEADLINES)
        check_steps(world, trace, method=method)
        assert trace.end == "answered"
        assert trace.wall_s < 2 * 50
        assert world.num_in_flight == 0

    for number in range(1, 25):
        virtual(run(number))


def test_a_call_that_waits_for_its_turn_is_not_lost() -> None:
    """Sixteen requests at once on slow engines: each call takes longer than its deadline, and no actor is killed."""

    async def run() -> None:
        world = World.make(
            3, acceptance=0.5, num_steps=(3, 4), shared=False, first_token_s=0.5, token_s=0.2, verdict_s=2.0, jitter=0.0
        )
        deadlines = dict.fromkeys(DEADLINES, 4.0)
        prompts = [Prompt(f"question {number}") for number in range(16)]
        traces = await asyncio.gather(*(world.run("fpsr", prompt, **deadlines) for prompt in prompts))
        assert {trace.num_losses for trace in traces} == {0}
        assert max(trace.wall_s for trace in traces) > 40
        alone = [await world.run("sequential", prompt, **deadlines) for prompt in prompts]
        assert [trace.tokens for trace in traces] == [trace.tokens for trace in alone]

    virtual(run())


def test_a_target_that_is_killed_by_the_request_each_time_fails_the_request() -> None:
    async def run() -> None:
        world = eight_steps(acceptance=0.0)

        calls, recoveries = [], []

        async def die(*arguments: object) -> Step:
            calls.append(arguments)
            raise ActorLost("the target actor was lost during a call")

        async def recovered() -> None:
            recoveries.append(1)

        world.target.engine.next_step = die  # type: ignore[method-assign]
        world.target.recovered = recovered  # type: ignore[method-assign]
        with pytest.raises(ActorLost, match="5 times while it wrote step 0"):
            await world.run("fpsr", PROMPT)
        assert world.num_in_flight == 0
        assert (len(calls), len(recoveries)) == (5, 4)

    virtual(run())


def test_a_draft_that_fails_on_a_prompt_does_not_fail_the_request() -> None:
    async def run() -> None:
        world = eight_steps()

        async def refuse(*_: object) -> Step:
            raise ValueError("too long for the draft")

        world.draft.engine.next_step = refuse  # type: ignore[method-assign]
        trace = await world.run("fpsr", PROMPT)
        check_steps(world, trace)
        assert {step.source for step in trace.steps} == {"target"}
        assert trace.num_losses == 0  # it refuses, but is there

    virtual(run())


@pytest.mark.parametrize("method", ["fpsr", "sequential", "lookahead"])
def test_a_drafted_step_that_says_nothing_does_not_count_as_judged(method: str) -> None:
    async def run() -> None:
        world = eight_steps()

        async def say_nothing(_id: str, _prompt: object, after: Step, _sampling: object) -> Step:
            return Step(prefix=after.end, finish="eos")

        world.draft.engine.next_step = say_nothing  # type: ignore[method-assign]
        trace = await world.run(method, PROMPT)
        assert {(step.source, step.score) for step in trace.steps} == {("target", None)}
        assert trace.num_judged == 0
        assert trace.acceptance_rate is None

    virtual(run())
