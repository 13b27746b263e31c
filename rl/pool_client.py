"""`PoolClient`: the pool as one learner rank sees it, from the thread that trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
import torch

from actors.ray_transport import root_cause
from rl.chains import Group, GroupRequest, RolloutTask
from rl.weights import gather_weights


class PoolClient:
    """Blocking calls, made by no event loop."""

    def __init__(self, pool: Any, rank: int) -> None:
        self._pool, self._rank = pool, rank
        self._version: int | None = None
        self._reference: ray.ObjectRef[Any] | None = None
        """Keeps the newest weights alive: a restarted worker may need them again."""
        self.sync_seconds = 0.0
        """How long the last transfer took."""

    def sync(self, model: Any, version: int) -> None:
        """Give the workers the weights of optimizer step `version`, once; rank 0 sends. Collective."""
        if version == self._version:
            return
        began = time.perf_counter()
        weights = self.gather(model)
        if weights is not None:
            self._reference = ray.put(weights)
            self._get(self._pool.set_weights.remote([self._reference], version))
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.barrier()  # nobody samples from the old weights
        self._version = version
        self.sync_seconds = time.perf_counter() - began

    def gather(self, model: Any) -> dict[str, torch.Tensor] | None:
        """The weights on rank 0, None on the others. Collective."""
        return gather_weights(_unwrapped(model), keep=self._rank == 0)

    def roll_out(self, requests: Sequence[GroupRequest], task: RolloutTask, size: int | None = None) -> list[Group]:
        """See `RolloutPool.roll_out`."""
        groups: list[Group] = self._get(self._pool.roll_out.remote(requests, task, size))
        return groups

    def time_pipelines(self, prompts: Sequence[Any]) -> list[tuple[float, float]]:
        """See `RolloutPool.time_pipelines`."""
        times: list[tuple[float, float]] = self._get(self._pool.time_pipelines.remote(prompts))
        return times

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            raise root_cause(error) from error


def _unwrapped(model: Any) -> Any:
    return model.module if hasattr(model, "module") else model
