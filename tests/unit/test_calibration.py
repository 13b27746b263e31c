"""Steps that are accepted without a verdict, and the calibration of their threshold."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from support.scripted import World

from dreamr.bench.simulation import virtual
from dreamr.config import PipelineSettings
from dreamr.eval.calibration import Calibration, Judged, Skipped, calibrate, judged_steps, lowest_threshold, upper_bound
from dreamr.types import Prompt
from pipelines import Request, Trace, run

METHODS = ("sequential", "fpsr", "parallel_prefix", "auto")


def answer(seed: int, method: str, **settings: float | None) -> Trace:
    """One answer of a scripted world whose target is always needed for some steps."""

    async def work() -> Trace:
        world = World.make(seed, acceptance=0.7)
        asked = PipelineSettings.model_validate({"method": method} | settings)
        return await run(Request(Prompt("why?"), asked), world.handles, clock=asyncio.get_running_loop().time)

    return virtual(work())


@pytest.mark.parametrize("method", METHODS)
def test_without_a_sure_step_nothing_changes(method: str) -> None:
    plain, measured = answer(5, method), answer(5, method, skip_above=0.0)
    assert plain.num_skipped == measured.num_skipped == 0
    assert [(step.tokens, step.score, step.source) for step in plain.steps] == [
        (step.tokens, step.score, step.source) for step in measured.steps
    ]


@pytest.mark.parametrize("method", ["fpsr", "parallel_prefix"])
def test_sure_steps_are_committed_without_a_verdict_alike_in_all_schedules(method: str) -> None:
    num_skipped = 0
    for seed in range(30):
        one, other = (answer(seed, name, skip_above=-0.8) for name in (method, "sequential"))
        assert [(step.tokens, step.score) for step in one.steps] == [(step.tokens, step.score) for step in other.steps]
        assert one.num_skipped == sum(step.source == "draft" and step.score is None for step in one.steps)
        assert one.num_skipped + one.num_judged <= len(one.steps)
        num_skipped += one.num_skipped
    assert num_skipped > 30


def test_a_sure_step_costs_no_forward_of_the_verifier() -> None:
    def verdicts(trace: Trace) -> int:
        return sum(span.outcome == "verdict" for span in trace.spans)

    all_judged, none_judged = answer(5, "sequential"), answer(5, "sequential", skip_above=-10.0)
    assert verdicts(all_judged) == all_judged.num_judged > 0
    assert verdicts(none_judged) == none_judged.num_judged == 0
    assert none_judged.num_skipped == len(none_judged.steps)
    assert none_judged.acceptance_rate is None


@pytest.mark.parametrize(("num_errors", "num_trials", "expected"), [(0, 149, 0.0199), (3, 100, 0.0757), (5, 5, 1.0)])
def test_bounds_are_those_of_clopper_and_pearson(num_errors: int, num_trials: int, expected: float) -> None:
    assert upper_bound(num_errors, num_trials) == pytest.approx(expected, abs=1e-4)


def test_the_lowest_threshold_that_keeps_the_risk_is_chosen() -> None:
    sure = [Judged(-0.1, True)] * 200
    assert lowest_threshold([*sure, *[Judged(-2.0, False)] * 50, Judged(-3.0, True)], 0.02) == -2.0
    assert lowest_threshold([*sure[:20], Judged(-1.0, False)], 0.02) is None
    assert calibrate([sure, sure], 0.02).skip_above is None  # equal confidence: none is above another


def test_the_error_of_skipped_steps_stays_below_the_risk_on_other_problems() -> None:
    async def work() -> Calibration:
        world = World.make(2, acceptance=0.7, num_steps=(6, 12))
        prompts = [Prompt(f"problem {number}") for number in range(400)]
        return calibrate(await judged_steps(world.handles, PipelineSettings(), prompts), risk=0.05)

    found = virtual(work())
    assert found.skip_above is not None
    assert found.chosen.error_bound <= 0.05
    assert found.measured.error <= 0.05
    assert found.measured.share > 0.3
    assert found.measured.num_skipped > 500


def test_confidence_without_information_gives_no_threshold() -> None:
    rng = random.Random(1)
    steps = [[Judged(-rng.random(), rng.random() < 0.7)] for _ in range(400)]
    found = calibrate(steps, 0.02)
    assert found.skip_above is None
    assert found.measured == Skipped(200, 0, 0)
    assert math.isclose(found.measured.error_bound, 1.0)
