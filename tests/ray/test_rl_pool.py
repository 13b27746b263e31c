"""Rollouts by real actors: reproducible, equal to what the pipelines do, and not lost with a worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import ray
import torch
from ray.util.placement_group import remove_placement_group

from actors.placement import reserve_bundles
from actors.ray_transport import RayTransport, StoredPrompts
from actors.supervisor import ActorSupervisor
from dreamr.config import PipelineSettings
from dreamr.errors import ActorLost
from dreamr.tasks.ledger import make_problem
from pipelines import Request, run
from pipelines.handles import Handles, Verifier, Writer
from rl.chains import Chain, GroupRequest, RolloutTask
from rl.config import SapoConfig
from rl.launch import bundles
from rl.pool import RolloutPool

pytestmark = [
    pytest.mark.ray,
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.asyncio(loop_scope="module"),
]

DRAFT = "embedded:draft-untrained"
CONFIG = SapoConfig.model_validate(
    {
        "run": Path("nowhere"),
        "draft": {"engine": {"kind": "hf", "model": DRAFT}, "num_cpus": 0.5},
        "target": {"engine": {"kind": "hf", "model": "embedded:target"}, "num_cpus": 0.5},
        "rollout": {"workers": 2, "verifiers": 2, "groups_per_call": 1},
    }
)
FREE, IN_PIPELINE = (RolloutTask(mode, CONFIG.rollout.rule, target_logprobs=True) for mode in ("free", "in_pipeline"))
PROBLEMS = [make_problem("validation", 5, index) for index in range(3)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(ray_cluster: None) -> AsyncIterator[RolloutPool]:
    placement = await reserve_bundles(bundles(CONFIG)[CONFIG.learner.world_size :], 30)
    pool = RolloutPool(CONFIG, placement, 0)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.stop()
        remove_placement_group(placement)


def requests(temperature: float, size: int) -> list[GroupRequest]:
    return [GroupRequest(problem.prompt, tuple(range(size)), temperature) for problem in PROBLEMS]


def tokens(chains: tuple[Chain, ...]) -> list[tuple[int, ...]]:
    return [chain.tokens for chain in chains]


async def test_rollouts_in_the_pipeline_are_what_the_sequential_schedule_commits(pool: RolloutPool) -> None:
    for temperature in (0.0, 1.0):
        groups = await pool.roll_out(requests(temperature, 2), IN_PIPELINE)
        store = StoredPrompts()
        worker, verifier = pool.workers[0], pool.verifiers[0]
        draft, target = RayTransport(worker, store), RayTransport(verifier, store)
        handles = Handles(Writer(draft), Writer(target), Verifier(target))
        sources = set()
        for problem, group in zip(PROBLEMS, groups, strict=True):
            for seed, chain in enumerate(group.chains):
                settings = PipelineSettings(
                    method="sequential", temperature=temperature, seed=seed, max_tokens=512, max_step_tokens=96
                )
                trace = await run(Request(problem.prompt, settings), handles)
                assert [step.tokens for step in chain.steps] == [step.tokens for step in trace.steps]
                assert [step.source for step in chain.steps] == [step.source for step in trace.steps]
                assert sum(step.accepted for step in chain.drafted) == trace.num_accepted
                sources |= {step.source for step in chain.steps}
                assert chain.opening == "<think>"
                assert len(chain.target_logprobs) == len(chain.tokens)
                assert all(
                    (value < 0) == (written == 1)
                    for value, written in zip(chain.target_logprobs, chain.loss_mask, strict=True)
                    if not written or value < -1e-3
                )
        assert sources == {"draft", "target"}


async def test_the_targets_answer_has_as_many_steps_as_the_pipelines_say(pool: RolloutPool) -> None:
    asked = [replace(request, count_target_steps=True) for request in requests(0.0, 1)]
    groups = await pool.roll_out(asked, FREE)
    target = Writer(RayTransport(pool.verifiers[0], StoredPrompts()))
    settings = PipelineSettings(method="autoregressive", max_tokens=512, max_step_tokens=96)
    handles = Handles(target, target, Verifier(target.transport))
    traces = [await run(Request(problem.prompt, settings), handles) for problem in PROBLEMS]
    assert [group.target_steps for group in groups] == [len(trace.steps) for trace in traces]
    again = await pool.roll_out(asked, FREE)
    assert [group.target_steps for group in again] == [group.target_steps for group in groups]


async def test_a_killed_verifier_costs_no_chain(pool: RolloutPool) -> None:
    undisturbed = await pool.roll_out(requests(1.0, 4), IN_PIPELINE)
    rollout = asyncio.create_task(pool.roll_out(requests(1.0, 4), IN_PIPELINE))
    await asyncio.sleep(0.3)
    os.kill(pid(pool.verifiers[0]), signal.SIGKILL)
    assert [tokens(group.chains) for group in await rollout] == [tokens(group.chains) for group in undisturbed]
    await pool.verifiers[0].recovered()


async def test_a_killed_worker_is_replaced_and_changes_no_chain(pool: RolloutPool) -> None:
    weights = {name: weight + 0.01 for name, weight in _draft_weights().items()}
    reference = ray.put(weights)
    before = await pool.roll_out(requests(1.0, 4), FREE)
    await pool.set_weights([reference], 7)
    undisturbed = await pool.roll_out(requests(1.0, 4), FREE)
    assert [group.version for group in undisturbed] == [7, 7, 7]
    assert tokens(before[0].chains) != tokens(undisturbed[0].chains)
    rollout = asyncio.create_task(pool.roll_out(requests(1.0, 4), FREE))
    await asyncio.sleep(0.1)
    killed = pid(pool.workers[0])
    os.kill(killed, signal.SIGKILL)
    disturbed = await rollout
    assert [tokens(group.chains) for group in disturbed] == [tokens(group.chains) for group in undisturbed]
    assert [group.version for group in disturbed] == [7, 7, 7]
    for worker in pool.workers:
        await worker.recovered()
    again = await pool.roll_out(requests(1.0, 4), FREE)
    assert [tokens(group.chains) for group in again] == [tokens(group.chains) for group in undisturbed]
    assert pid(pool.workers[0]) != killed


def pid(actor: ActorSupervisor) -> int:
    assert actor.info is not None
    return actor.info.pid


def _draft_weights() -> dict[str, torch.Tensor]:
    from dreamr.engines.factory import model_location
    from dreamr.engines.hf.engine import HFEngine

    return dict(HFEngine.load(model_location(DRAFT)).module.named_parameters(remove_duplicate=False))


async def test_an_actor_that_never_comes_back_ends_the_rollout(pool: RolloutPool) -> None:
    """The last test: the pool has no workers after it."""
    for worker in pool.workers:
        await worker.stop()
    with pytest.raises(ActorLost, match="was stopped"):
        await pool.roll_out(requests(0.0, 1), FREE)
