"""`auto` on scripted engines under a virtual clock: it commits what `sequential` does, and finds the fastest plan."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from support.scripted import World

from dreamr.bench.simulation import virtual
from dreamr.types import Prompt, Step, Verdict
from pipelines.costs import Costs
from pipelines.means import LinearMean, Mean
from pipelines.plans import PLAIN, Estimate, Plan, expected_times

pytestmark = pytest.mark.timeout(120)

STEADY = {"first_token_s": 0.0, "jitter": 0.0, "shared": False, "num_steps": (6, 10), "step_tokens": (9, 11)}


def test_auto_commits_what_the_sequential_schedule_or_the_target_alone_commits() -> None:
    async def compare(seed: int) -> None:
        world, rng = World.make(seed), random.Random(seed)
        for number in range(6):  # later requests take other plans, from what the earlier ones measured
            prompt = Prompt(f"question {number}")
            settings = {"window": rng.choice([1, 2, 4, 8]), "max_tokens": rng.choice([20, 8192])}
            chosen = await world.run("auto", prompt, **settings)
            speculates = chosen.decisions[0].plan.judged_together > 0
            same = await world.run("sequential" if speculates else "autoregressive", prompt, **settings)
            assert [(s.tokens, s.source) for s in chosen.steps] == [(s.tokens, s.source) for s in same.steps]
            assert chosen.end == same.end
            assert world.num_in_flight == 0

    for seed in range(60):
        virtual(compare(seed))


async def walls(world: World, method: str, numbers: range, **settings: Any) -> float:
    return sum([(await world.run(method, Prompt(f"q{number}"), **settings)).wall_s for number in numbers])


@pytest.mark.slow
@pytest.mark.parametrize("acceptance", [0.05, 0.5, 0.76, 0.99])
@pytest.mark.parametrize(("token_s", "draft_token_s", "verdict_s"), [
    (0.01, 0.001, 0.015),
    (0.01, 0.001, 0.06),
    (0.01, 0.008, 0.01),
    (0.004, 0.0005, 0.2),
])  # fmt: skip
def test_auto_is_about_as_fast_as_the_best_fixed_schedule(
    acceptance: float, token_s: float, draft_token_s: float, verdict_s: float
) -> None:
    async def compare() -> tuple[float, dict[str, float]]:
        latencies = {"token_s": token_s, "verdict_s": verdict_s, "draft": {"token_s": draft_token_s}}
        world = World.make(1, acceptance=acceptance, **latencies, **STEADY)
        await walls(world, "auto", range(100, 130))  # measures
        fixed = {name: await walls(world, name, range(40)) for name in
                 ("autoregressive", "sequential", "fpsr", "parallel_prefix")}  # fmt: skip
        return await walls(world, "auto", range(40)), fixed

    own, fixed = virtual(compare())
    assert own <= 1.06 * min(fixed.values()), fixed


def test_requests_at_once_do_not_mix_and_all_plans_end() -> None:
    async def run() -> None:
        world = World.make(5, acceptance=0.5)
        prompts = [Prompt(f"question {number}") for number in range(12)]
        together = await asyncio.gather(*(world.run("auto", prompt) for prompt in prompts))
        for prompt, trace in zip(prompts, together, strict=True):
            speculates = trace.decisions[0].plan.judged_together > 0
            alone = await world.run("sequential" if speculates else "autoregressive", prompt)
            assert trace.tokens == alone.tokens
        assert world.num_in_flight == 0
        assert world.costs.num_running == 0

    virtual(run())


def test_decisions_say_what_was_expected() -> None:
    costs = Costs()
    first = costs.choose_start(most=4)
    assert (first.plan, first.reason) == (PLAIN, "the target's own steps are not measured yet")
    assert costs.choose(0, accepted=0, judged=0, most=4).reason == "drafting is not measured yet"


def add_round(costs: Costs, plan: Plan, *, step_s: float, verdict_s: float, num_blank: int = 0, at: int = 1) -> None:
    """A round of the plan whose work takes so long, at the step number `at`; calls take no time."""
    num_steps = plan.judged_together
    chain = [Step((1,) * (at + place), (1,), started=place * step_s, ended=(place + 1) * step_s)
             for place in range(num_steps)]  # fmt: skip
    blank = [Step(chain[-1].end, finish="eos", started=chain[-1].ended, ended=chain[-1].ended)] * num_blank
    verdicts = [Verdict(1.0, started=0.0, ended=verdict_s)] * num_steps
    drafting_s = num_steps * step_s
    waited_s = max(drafting_s, verdict_s) if plan.overlaps else drafting_s + verdict_s
    costs.add_round(plan, [*chain, *blank], verdicts, waited_s, drafted_ahead=plan.overlaps)
    for _ in chain:
        costs.decided(True)


def measured(num_blank: int = 0) -> Costs:
    """The costs after one step of the target and one round."""
    costs = Costs()
    costs.add_target_step(Step(tokens=(1,) * 10, started=0.0, ended=0.5), waited_s=0.5)
    add_round(costs, Plan(2), step_s=0.02, verdict_s=0.04, num_blank=num_blank)
    return costs


def test_blank_steps_after_the_end_of_an_answer_do_not_make_drafting_look_faster() -> None:
    assert measured(num_blank=6).choose(0, 0, 0, most=8) == measured().choose(0, 0, 0, most=8)


@pytest.mark.parametrize("drift", [1.0, 3.0])
@pytest.mark.parametrize(("slower", "overlaps"), [(1.0, True), (2.5, False)])
def test_a_kind_of_plan_that_slows_the_actors_down_is_tried_and_left(
    slower: float, overlaps: bool, drift: float
) -> None:
    costs, chosen = measured(), []
    for number in range(120):
        plan = costs.choose(0, 0, 0, most=2).plan
        factor = (slower if plan.overlaps else 1.0) * (drift if number > 60 else 1.0)
        add_round(costs, plan, step_s=0.02 * factor, verdict_s=0.04 * factor)
        chosen.append(plan.overlaps)
    assert any(chosen)
    assert chosen[20:].count(overlaps) > 90


COST = Estimate(draft_s=0.01, verdict_s=tuple(0.02 + 0.002 * count for count in range(10)), target_s=0.1, call_s=0.0)


def test_expected_times_of_plans_whose_result_is_certain() -> None:
    assert expected_times(Plan(4), COST, acceptance=1.0)[8] == pytest.approx(2 * (4 * 0.01 + 0.026))
    assert expected_times(Plan(4, overlaps=True), COST, 1.0)[8] == pytest.approx(4 * 0.01 + 0.026 + 0.04)
    assert expected_times(Plan(1), COST, acceptance=0.0)[3] == pytest.approx(3 * (0.03 + 0.1))
    assert expected_times(Plan(1, writes_ahead=True), COST, 0.0)[3] == pytest.approx(3 * 0.1)
    half = replace(COST, ahead=0.5)  # of 0.1 s, 0.015 s were worked off in the 0.03 s before
    assert expected_times(Plan(1, writes_ahead=True), half, 0.0)[3] == pytest.approx(3 * 0.115)


def test_means_forget_and_lines_are_learnt() -> None:
    mean, line = Mean(), LinearMean()
    for value in [1.0] * 50 + [3.0] * 100:
        mean.add(value)
    assert mean.value == pytest.approx(3.0, abs=0.05)
    for count in [1, 2, 4, 8] * 30:
        line.add(count, 0.02 + 0.001 * count)
    assert line.at(3) == pytest.approx(0.023, abs=1e-4)
