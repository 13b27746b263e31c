"""Training on a cluster: too few resources, calls of a worker to several verifiers, ranks that wait for rank 0."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from support.rl_actors import Judge, Rank

from dreamr.errors import NotEnoughResources
from rl.config import SapoConfig
from rl.launch import launch
from rl.pool import RolloutPool
from rl.verifier import Verifiers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def sapo_config(**changes: object) -> SapoConfig:
    models = {role: {"engine": {"kind": "hf", "model": f"embedded:{role}"}} for role in ("draft", "target")}
    return SapoConfig.model_validate({"run": Path("nowhere")} | models | changes)


async def test_a_cluster_that_is_too_small_is_refused_before_anything_starts() -> None:
    config = sapo_config(learner={"num_gpus": 2}, rollout={"workers": 50})
    with pytest.raises(NotEnoughResources, match=r"needed 53 CPU, 2 GPU; the whole cluster has: 4 CPU, 0 GPU"):
        await launch(config, None, print)


def judges(count: int) -> list[Any]:
    return [ray.remote(Judge).options(num_cpus=0).remote(number) for number in range(count)]


async def test_calls_of_one_worker_are_spread_over_all_verifiers() -> None:
    actors = judges(4)
    verifiers = Verifiers(actors)
    calls = [asyncio.create_task(verifiers.call("judge")) for _ in range(8)]
    await asyncio.sleep(0)
    await asyncio.gather(*(actor.go_on.remote() for actor in actors))
    assert sorted(await asyncio.gather(*calls)) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_a_call_whose_verifier_dies_goes_to_another_one() -> None:
    actors = judges(2)
    verifiers = Verifiers(actors)
    calls = [asyncio.create_task(verifiers.call("judge")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RayActorError):
        await actors[0].die.remote()
    await actors[1].go_on.remote()
    assert await asyncio.gather(*calls) == [1, 1]
    with pytest.raises(ValueError, match="no chain"):  # no loss of an actor: it is not sent to another one
        await verifiers.call("fail")
    with pytest.raises(RayActorError):
        await Verifiers(actors[:1]).call("judge")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_rank_waits_for_the_evaluation_of_rank_0_in_no_collective(free_tcp_port: int) -> None:
    pool = ray.remote(RolloutPool).options(num_cpus=0, max_concurrency=10).remote(sapo_config(), None, 0)
    ranks = [ray.remote(Rank).options(num_cpus=0.5).remote(rank, pool) for rank in range(2)]
    await asyncio.gather(*(rank.join.remote(free_tcp_port) for rank in ranks))
    assert await asyncio.gather(*(rank.evaluate.remote() for rank in ranks)) == [2.0, 2.0]
    waiting = [rank.wait_in_a_collective.remote() for rank in ranks]
    with pytest.raises(RuntimeError, match=r"(?i)timed out|timeout"):
        await waiting[1]
    for rank in ranks:
        ray.kill(rank)
