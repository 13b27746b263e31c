"""The built-in pair behind Ray actors, from image and question to answer; and the same with actors killed midway.

The draft is the one before reinforcement learning: more of its steps are rejected, and both models write.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors.group import ActorGroup
from dreamr.config import load_config, with_draft
from dreamr.tasks.ledger import Problem, extract_answer, make_problem
from dreamr.types import Role
from pipelines import Request, Trace, run
from pipelines.trace import CommittedStep

pytestmark = [
    pytest.mark.ray,
    pytest.mark.e2e,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]
NUM_PROBLEMS = 16
"""Enough for over fifty drafted steps of which more than ten are rejected, which the comparison makes sure of."""
DRAFT = "embedded:draft-untrained"
CONFIG = with_draft(load_config(), DRAFT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(ray_cluster: None) -> AsyncIterator[ActorGroup]:
    async with ActorGroup(CONFIG.group) as running:
        yield running


async def answer(
    group: ActorGroup,
    method: str,
    problem: Problem,
    on_commit: Callable[[CommittedStep], None] | None = None,
    **settings: Any,
) -> Trace:
    chosen = CONFIG.pipeline.model_copy(update={"method": method, **settings})
    return await run(Request(problem.prompt, chosen), group.handles, on_commit)


def problem_number(number: int) -> Problem:
    return make_problem("test", 1, number)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def problem(group: ActorGroup) -> Problem:
    """One that the pair answers rightly: the target has to help early, then the draft's steps are all accepted."""
    for number in range(100):
        found = problem_number(number)
        trace = await answer(group, "fpsr", found)
        first, then = ({step.source for step in part} for part in (trace.steps[:2], trace.steps[2:]))
        helped = "target" in first and then == {"draft"} and len(trace.steps) > 5
        if helped and extract_answer(trace.text) == found.answer:
            return found
    raise AssertionError("no problem is answered that way")


@pytest.mark.slow
async def test_parallel_schedules_commit_what_the_sequential_one_commits(group: ActorGroup) -> None:
    two_at_once, correct = asyncio.Semaphore(2), []
    sources: Counter[str] = Counter()

    async def compare(number: int) -> None:
        async with two_at_once:
            problem = problem_number(number)
            slow, fast, batch = [
                await answer(group, method, problem) for method in ("sequential", "fpsr", "parallel_prefix")
            ]
        for trace in (fast, batch):
            assert trace.tokens == slow.tokens, f"problem {number}, {trace.method}"
            assert [step.source for step in trace.steps] == [step.source for step in slow.steps]
        sources.update(step.source for step in slow.steps)
        correct.append(extract_answer(slow.text) == problem.answer)

    async with asyncio.TaskGroup() as problems:
        for number in range(NUM_PROBLEMS):
            problems.create_task(compare(number))
    assert sources["draft"] > 50
    assert sources["target"] > 10
    assert sum(correct) > 0.7 * NUM_PROBLEMS


async def test_steps_of_both_models_lead_to_the_right_answer(group: ActorGroup, problem: Problem) -> None:
    committed: list[CommittedStep] = []
    trace = await answer(group, "fpsr", problem, committed.append)
    assert tuple(committed) == trace.steps
    assert trace.end == "answered"
    assert trace.num_losses == 0
    alpha = CONFIG.pipeline.alpha
    assert all(step.score is not None for step in trace.steps)
    assert all((step.source == "draft") == (step.score > alpha) for step in trace.steps if step.score is not None)


@pytest.mark.parametrize("role", ["draft", "verifier", "target"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
async def test_an_actor_lost_in_the_middle_of_a_request_costs_nothing_that_was_committed(
    group: ActorGroup, problem: Problem, role: Role, how: signal.Signals
) -> None:
    committed: list[CommittedStep] = []
    before = group.infos[role].pid

    def lose_the_actor(step: CommittedStep) -> None:
        committed.append(step)
        if len(committed) == 2:
            os.kill(before, how)

    quick = {"draft_deadline_s": 2.0, "verifier_deadline_s": 2.0, "target_deadline_s": 4.0, "stop_deadline_s": 2.0}
    trace = await answer(group, "fpsr", problem, lose_the_actor, **quick)
    assert trace.end == "answered"
    assert extract_answer(trace.text) == problem.answer
    assert tuple(committed) == trace.steps
    for lost in ("draft", "target", "verifier"):
        await group.transport(lost).recovered()
    assert group.infos[role].pid != before
    assert (await group.check())[role]


async def test_a_shared_verifier_commits_the_same(group: ActorGroup, problem: Problem) -> None:
    own = await answer(group, "fpsr", problem)
    config = with_draft(load_config(Path(__file__).parents[2] / "configs" / "shared-verifier.yaml"), DRAFT)
    async with ActorGroup(config.group) as shared:
        assert set(shared.infos) == {"draft", "target"}
        assert (await answer(shared, "fpsr", problem)).tokens == own.tokens
