"""From a configuration to a trained draft: placement group, actors, training, shutdown.

    reserve resources for all ──▶ pool: workers, verifiers   ──▶ fit on all ranks ──▶ folder of the trained draft
                                  learners, rank 0's address     └─ metrics to the caller, step by step

The first failure ends everything. However `launch` ends, all actors have ended and the placement group is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.placement import EMPTY_BUNDLE, reserve_bundles
from actors.ray_transport import last_line, root_cause
from dreamr.config import CheckpointConfig, ClusterSettings
from dreamr.engines.factory import checkpoint_bytes
from dreamr.errors import TrainingFailed
from rl import checkpoints
from rl.config import SapoConfig
from rl.learner import Learner

Report = Callable[[dict[str, float]], None]


async def launch(config: SapoConfig, checkpoint: Path | None, report: Report) -> Path:
    """Train, from `checkpoint` on where there is one; the folder of the trained draft.

    Raises:
        NotEnoughResources: the cluster cannot hold the run; nothing was created.
        ConfigError: a learner's node does not share the folder of the run.
        TrainingFailed: a learner's process died, or its loss or weights are not finite.
        ValueError, ActorLost: see `ActorSupervisor.start` and `RolloutPool.roll_out`.
    """
    placement = await reserve_bundles(bundles(config), config.wait_for_resources_s)
    from rl.pool import RolloutPool  # slow to import: only once the resources are reserved

    actors: list[Any] = []
    try:
        pool = _create(RolloutPool, placement, None, {"CPU": 0}, config, placement, config.learner.world_size)
        actors.append(pool)
        learners = [
            _create(Learner, placement, rank, _learner_bundle(config), config, rank, pool)
            for rank in range(config.learner.world_size)
        ]
        actors += learners
        written = checkpoints.read_config(config.folder)
        await asyncio.gather(*(_answer(learner.check_folder.remote(written)) for learner in learners))
        await _answer(pool.start.remote())
        return await _fit(learners, checkpoint, report)
    finally:
        await _end(actors)
        remove_placement_group(placement)


def cluster_of(config: SapoConfig) -> ClusterSettings:
    """`config.cluster` with an object store that holds the draft's weights twice, while new ones replace those in use.

    The learner sends float32, which takes up to twice the size of the checkpoint's files. A checkpoint that is not on
    this machine counts as nothing. Only a local cluster is started with these settings.
    """
    assert isinstance(config.draft.engine, CheckpointConfig)
    weights_mb = 2 * 2 * checkpoint_bytes(config.draft.engine.model) // 2**20
    return config.cluster.model_copy(update={"object_store_mb": config.cluster.object_store_mb + weights_mb})


def bundles(config: SapoConfig) -> list[dict[str, float]]:
    """Resources of each actor: learners, workers, verifiers, in this order."""
    rollout = config.rollout
    return [
        *[_learner_bundle(config) or EMPTY_BUNDLE] * config.learner.world_size,
        *[config.draft.resources() or EMPTY_BUNDLE] * rollout.workers,
        *[config.target.resources() or EMPTY_BUNDLE] * rollout.verifiers,
    ]


def _learner_bundle(config: SapoConfig) -> dict[str, float]:
    wanted = {"CPU": config.learner.num_cpus, "GPU": config.learner.num_gpus}
    return {name: amount for name, amount in wanted.items() if amount > 0}


def _create(kind: type, placement: PlacementGroup, bundle: int | None, takes: dict[str, float], *arguments: Any) -> Any:
    strategy = "DEFAULT" if bundle is None else PlacementGroupSchedulingStrategy(placement, bundle)
    options = {
        "num_cpus": takes.get("CPU", 0),
        "num_gpus": takes.get("GPU", 0),
        "max_concurrency": 100,
        "scheduling_strategy": strategy,
    }
    return ray.remote(kind).options(**options).remote(*arguments)


async def _fit(learners: list[Any], checkpoint: Path | None, report: Report) -> Path:
    host, port = await _answer(learners[0].address.remote())
    fits = [asyncio.ensure_future(_answer(learner.fit.remote(host, port, checkpoint))) for learner in learners]
    metrics = asyncio.create_task(_forward(learners[0], report), name="progress")
    try:
        folder, *_ = await asyncio.gather(*fits)
        await metrics
    finally:
        for task in (*fits, metrics):
            task.cancel()
        await asyncio.gather(*fits, metrics, return_exceptions=True)
    assert isinstance(folder, Path)
    return folder


async def _forward(learner: Any, report: Report) -> None:
    async for metrics in learner.progress.options(num_returns="streaming").remote():
        report(await metrics)


async def _answer(reference: Any) -> Any:
    try:
        return await reference
    except OutOfMemoryError as error:  # Ray's text lists every process of the node
        raise TrainingFailed(
            "Ray ended a process of the run because its node was short of memory: give it more, or lower "
            "rollout.workers, rollout.verifiers or learner.micro_batch"
        ) from error
    except RayError as error:
        cause = root_cause(error)
        if isinstance(cause, RayActorError):
            raise TrainingFailed(f"a process of the run died: {last_line(cause)}") from error
        raise cause from error


async def _end(actors: list[Any]) -> None:
    """Stop the pool, which stops the actors that it supervises, then kill all."""
    if actors:
        await asyncio.wait([asyncio.ensure_future(actors[0].stop.remote())], timeout=30)
    for actor in actors:
        ray.kill(actor)
