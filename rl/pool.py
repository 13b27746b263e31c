"""`RolloutPool`: the workers and verifiers of a run, kept alive; one call rolls out a whole batch.

    learner ── set_weights([ref]) ─▶ pool ── ref ─▶ every worker, before its next call
    learner ── roll_out(requests) ─▶ pool ── calls of a few groups ─▶ queue ─▶ worker 1 ─▶ verifier 1
                                                                        └───▶ worker 2 ─▶ verifier 2

One task per worker takes calls from the queue. A call whose worker or verifier was lost returns to the queue, and the
task waits for both to recover; meanwhile the others go on. Seeds belong to requests, so no chain depends on who wrote
it. Actors are restarted by `actors.supervisor`; a restarted worker gets the newest weights first.

`PoolClient` is the pool as a learner sees it, from the thread that trains.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup
from torch import Tensor, nn

from actors.ray_transport import RayRef, RayTransport, StoredPrompts, root_cause
from actors.supervisor import ActorSupervisor
from dreamr.config import GroupConfig, PipelineSettings
from dreamr.errors import ActorLost
from dreamr.tasks.images import cold_copy
from dreamr.types import Prompt
from pipelines import Request, Trace, run
from pipelines.handles import Handles, Verifier, Writer
from rl.chains import Group, GroupRequest, RolloutTask
from rl.config import SapoConfig
from rl.rollout import RolloutVerifier, RolloutWorker
from rl.writing import ChainLimits

MAX_TRIES = 5
"""A call that has lost its actors so often is itself what kills them."""


@dataclass(slots=True, eq=False)
class _Call:
    """Some neighbouring requests."""

    start: int
    requests: list[GroupRequest]
    tries: int = 0
    """How often serving them has failed."""


class RolloutPool:
    """Plain Python; the launcher makes a Ray actor of it."""

    def __init__(self, config: SapoConfig, placement: PlacementGroup, first_bundle: int) -> None:
        self._config, self._placement, self._first_bundle = config, placement, first_bundle
        self.workers: list[ActorSupervisor] = []
        self.verifiers: list[ActorSupervisor] = []
        self._weights: tuple[int, ray.ObjectRef[Any]] | None = None
        self._loaded: dict[ActorSupervisor, tuple[int, int]] = {}
        """Per worker the generation and the version that it has loaded."""
        rollout = config.rollout
        self._limits = ChainLimits(rollout.max_tokens, rollout.max_step_tokens, rollout.top_p)

    async def start(self) -> None:
        """Create all actors and load their models. Raises what `ActorSupervisor.start` raises."""
        config = self._config
        group = GroupConfig(draft=config.draft, target=config.target)
        self.workers = [ActorSupervisor(RolloutWorker, config.draft, group) for _ in range(config.rollout.workers)]
        self.verifiers = [
            ActorSupervisor(RolloutVerifier, config.target, group) for _ in range(config.rollout.verifiers)
        ]
        actors = [*self.workers, *self.verifiers]
        await asyncio.gather(
            *(actor.start(self._placement, self._first_bundle + bundle) for bundle, actor in enumerate(actors))
        )

    async def stop(self) -> None:
        """Kill all actors; returns when they have ended."""
        await asyncio.gather(*(actor.stop() for actor in [*self.workers, *self.verifiers]))

    async def set_weights(self, weights: list[ray.ObjectRef[Any]], version: int) -> None:
        """Have every worker load `weights` (one reference, in a list so that it arrives as one) before it goes on."""
        self._weights = version, weights[0]
        await asyncio.gather(*(self._sync(worker) for worker in self.workers))

    async def roll_out(
        self, requests: Sequence[GroupRequest], task: RolloutTask, size: int | None = None
    ) -> list[Group]:
        """A group per request, in their order; `size` requests go to a worker at a time.

        Raises ActorLost when an actor does not come back, and whatever the engines raise.
        """
        size = size or self._config.rollout.groups_per_call
        queue = deque(_Call(start, list(requests[start : start + size])) for start in range(0, len(requests), size))
        groups: list[Group | None] = [None] * len(requests)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(len(self.workers)):
                    tasks.create_task(self._serve(number, queue, groups, task), name=f"worker {number}")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return [group for group in groups if group is not None]

    async def time_pipelines(self, prompts: Sequence[Prompt]) -> list[tuple[float, float]]:
        """Per prompt the wall time of the target alone, and of FPSR with the first worker as its draft.

        Target and verifier are one actor where there is only one verifier. A prompt during which an actor is lost is
        timed again: the pipelines go on without it, or with a draft that has not got the newest weights yet.

        Raises ActorLost when an actor does not come back.
        """
        store = StoredPrompts()
        draft, target, verifier = self.workers[0], self.verifiers[0], self.verifiers[-1]
        rollout = self._config.rollout
        settings = PipelineSettings(
            alpha=self._config.evaluation.alpha,
            max_tokens=rollout.max_tokens,
            max_step_tokens=rollout.max_step_tokens,
        )
        handles = Handles(
            Writer(RayTransport(draft, store)),
            Writer(RayTransport(target, store)),
            Verifier(RayTransport(verifier, store)),
        )
        times: list[tuple[float, float]] = []
        for prompt in prompts:
            for _ in range(MAX_TRIES):
                await asyncio.gather(*(actor.recovered() for actor in {draft, target, verifier}))
                await self._sync(draft)
                traces = [await _answered(handles, prompt, settings, method) for method in ("autoregressive", "fpsr")]
                if not any(trace.num_losses for trace in traces):
                    times.append((traces[0].wall_s, traces[1].wall_s))
                    break
            else:
                raise ActorLost(f"actors were lost {MAX_TRIES} times while one problem was timed")
        return times

    async def _serve(self, number: int, queue: deque[_Call], groups: list[Group | None], task: RolloutTask) -> None:
        worker, verifier = self.workers[number], self.verifiers[number % len(self.verifiers)]
        while queue:
            call = queue.popleft()
            try:
                groups[call.start : call.start + len(call.requests)] = await self._call(worker, verifier, call, task)
            except ActorLost as lost:
                call.tries += 1
                if call.tries == MAX_TRIES:
                    raise ActorLost(f"a rollout call has lost its actors {MAX_TRIES} times: {lost}") from lost
                queue.append(call)
                await asyncio.gather(worker.check(), verifier.check())  # the loss may have been either's
                await asyncio.gather(worker.recovered(), verifier.recovered())

    async def _call(
        self, worker: ActorSupervisor, verifier: ActorSupervisor, call: _Call, task: RolloutTask
    ) -> list[Group]:
        await self._sync(worker)
        deadline_s = self._config.rollout.deadline_s
        remote = worker.actor.roll_out.remote(call.requests, verifier.actor, task, self._limits)
        reply: RayRef[list[Group]] = RayRef(remote, worker)
        try:
            async with asyncio.timeout(deadline_s):
                return await reply
        except TimeoutError as error:
            worker.report_lost()
            raise ActorLost(f"a rollout worker was silent for {deadline_s:g} s") from error

    async def _sync(self, worker: ActorSupervisor) -> None:
        """Give the worker the newest weights, unless its present process has them."""
        while self._weights is not None:
            await worker.recovered()
            version, reference = self._weights
            wanted = worker.generation, version
            if self._loaded.get(worker) == wanted:
                return
            try:
                await RayRef[None](worker.actor.set_weights.remote(reference, version), worker)
            except ActorLost:
                continue
            self._loaded[worker] = wanted


async def _answered(handles: Handles, prompt: Prompt, settings: PipelineSettings, method: str) -> Trace:
    """Answer from cold prefix caches: no run may profit from what another has cached."""
    request = Request(cold_copy(prompt, f"timing {uuid.uuid4().hex}"), settings.model_copy(update={"method": method}))
    return await run(request, handles)


class PoolClient:
    """Blocking calls of one learner rank."""

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
            torch.distributed.barrier()  # no rank samples from the old weights
        self._version = version
        self.sync_seconds = time.perf_counter() - began

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
        except ray.exceptions.RayError as error:
            raise root_cause(error) from error


def gather_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor] | None:
    """Copies of all parameters on the CPU where `keep` is true, else None; the whole of each, also under ZeRO-3.

    Collective: every rank has to call it. Under ZeRO-3 each parameter is gathered by itself, so no rank ever holds
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
