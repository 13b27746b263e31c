"""`PoolClient`: calls of the pool by one learner rank, from the thread that trains.

While rank 0 works alone, the other ranks wait for the pool and not in a collective, whose timeout would end the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch
from torch import Tensor, nn

from actors.ray_transport import last_line, root_cause
from dreamr.errors import TrainingFailed
from dreamr.types import Prompt
from rl.chains import Group, GroupRequest, RolloutTask


class PoolClient:
    """Blocking calls of one learner rank."""

    def __init__(self, pool: Any, rank: int) -> None:
        self._pool, self._rank = pool, rank
        self._version: int | None = None
        self._reference: ray.ObjectRef[Any] | None = None
        """Keeps the newest weights in the object store: a restarted worker may need them again."""
        self.sync_seconds = 0.0
        """How long the last transfer took."""

    def sync(self, model: Any, version: int) -> None:
        """Give the workers the weights of optimizer step `version`, once; rank 0 sends. Collective."""
        if version == self._version:
            return
        began = time.perf_counter()
        weights = self.gather(model)
        if weights is not None:
            for name, weight in weights.items():
                stop_unless_finite(f"weight {name}", weight, version)
            self._reference = ray.put(weights)
            self._get(self._pool.set_weights.remote([self._reference], version))
        self.wait_for_rank_0("weights", version)  # no rank may sample from the old ones
        self._version = version
        self.sync_seconds = time.perf_counter() - began

    def wait_for_rank_0(self, name: str, step: int) -> None:
        """Return when rank 0 has called this with the same arguments."""
        if self._rank == 0:
            self._get(self._pool.pass_milestone.remote(name, step))
        else:
            self._get(self._pool.reached.remote(name, step))

    def gather(self, model: Any) -> dict[str, Tensor] | None:
        """The weights on rank 0, None on the others. Collective."""
        return gather_weights(model.module if hasattr(model, "module") else model, keep=self._rank == 0)

    def roll_out(self, requests: Sequence[GroupRequest], task: RolloutTask, size: int | None = None) -> list[Group]:
        """See `RolloutPool.roll_out`."""
        groups: list[Group] = self._get(self._pool.roll_out.remote(requests, task, size))
        return groups

    def time_pipelines(self, prompts: Sequence[Prompt]) -> list[tuple[float, float]]:
        """See `RolloutPool.time_pipelines`."""
        times: list[tuple[float, float]] = self._get(self._pool.time_pipelines.remote(prompts))
        return times

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayActorError as error:
            raise TrainingFailed(f"the actor that runs the rollouts died: {last_line(error)}") from error
        except ray.exceptions.RayError as error:
            raise root_cause(error) from error


def stop_unless_finite(name: str, values: Tensor, step: int) -> None:
    """Raises TrainingFailed: the run cannot recover, and the next checkpoint would hold these values."""
    if not torch.isfinite(values).all():
        raise TrainingFailed(
            f"{name} is not finite after optimizer step {step}: lower learner.learning_rate or learner.max_grad_norm"
        )


def gather_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor] | None:
    """Copies of all parameters on the CPU where `keep` is true, else None; the whole of each, also under ZeRO-3.

    Collective: every rank has to call it. Under ZeRO-3 parameters are gathered one at a time, so no rank ever holds
    the whole model twice.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with _gathered(parameter), torch.no_grad():
            if keep:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights if keep else None


def _gathered(parameter: Any) -> Any:
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
