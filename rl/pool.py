"""`RolloutPool`: the workers and verifiers of a run, kept alive; one call rolls out a whole batch.

    learner ── set_weights([ref]) ─▶ pool ── ref ─▶ every worker, before its next call
    learner ── roll_out(requests) ─▶ pool ── calls of a few groups ─▶ line ─▶ worker 1 ─▶ verifier 1
                                                                       └───▶ worker 2 ─▶ verifier 2

One task per worker takes calls from the line. A call whose worker or verifier was lost goes back to the line, and the
task waits for both to recover; meanwhile the others go on. Seeds belong to requests, so nothing depends on who served
what. Members restart by themselves (`actors.member`); a restarted worker gets the newest weights first.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.ray_transport import RayRef, RayTransport, StoredPrompts
from actors.supervisor import ActorSupervisor
from dreamr.config import GroupConfig, PipelineSettings
from dreamr.errors import ActorLost
from dreamr.tasks.images import cold_copy
from dreamr.types import Prompt
from pipelines import Request, Trace, run
from pipelines.handles import Handles, Verifier, Writer
from rl.chains import Group, GroupRequest, RolloutTask
from rl.config import SapoConfig
from rl.rollout import RolloutWorker
from rl.verifier import RolloutVerifier
from rl.writing import ChainLimits

MAX_TRIES = 5
"""A call that has lost its actors so often is what kills them."""


class RolloutPool:
    """Plain Python; the launcher makes a Ray actor of it."""

    def __init__(self, config: SapoConfig, placement: PlacementGroup, first_bundle: int) -> None:
        self._config, self._placement, self._first_bundle = config, placement, first_bundle
        self._workers: list[ActorSupervisor] = []
        self._verifiers: list[ActorSupervisor] = []
        self._weights: tuple[int, ray.ObjectRef[Any]] | None = None
        self._loaded: dict[ActorSupervisor, tuple[int, int]] = {}
        """Per worker the generation and the version that it has loaded."""
        rollout = config.rollout
        self._limits = ChainLimits(rollout.max_tokens, rollout.max_step_tokens, rollout.top_p)

    async def start(self) -> None:
        """Create all actors and load their models. Raises what `ActorSupervisor.start` raises."""
        config = self._config
        group = GroupConfig(draft=config.draft, target=config.target)
        self._workers = [ActorSupervisor(RolloutWorker, config.draft, group) for _ in range(config.rollout.workers)]
        self._verifiers = [
            ActorSupervisor(RolloutVerifier, config.target, group) for _ in range(config.rollout.verifiers)
        ]
        members = [*self._workers, *self._verifiers]
        await asyncio.gather(
            *(member.start(self._placement, self._first_bundle + bundle) for bundle, member in enumerate(members))
        )

    async def stop(self) -> None:
        """Kill all actors; returns when they are gone."""
        await asyncio.gather(*(member.stop() for member in [*self._workers, *self._verifiers]))

    async def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.info.pid for worker in self._workers if worker.info is not None]

    async def set_weights(self, weights: list[ray.ObjectRef[Any]], version: int) -> None:
        """Have every worker load `weights` (one reference, in a list so that it arrives as one) before it goes on."""
        self._weights = version, weights[0]
        await asyncio.gather(*(self._sync(worker) for worker in self._workers))

    async def roll_out(
        self, requests: Sequence[GroupRequest], task: RolloutTask, size: int | None = None
    ) -> list[Group]:
        """A group per request, in their order; `size` requests go to a worker at a time.

        Raises ActorLost when an actor is gone for good, and whatever the engines raise.
        """
        size = size or self._config.rollout.groups_per_call
        line = deque(_Call(start, list(requests[start : start + size])) for start in range(0, len(requests), size))
        groups: list[Group | None] = [None] * len(requests)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(len(self._workers)):
                    tasks.create_task(self._serve(number, line, groups, task), name=f"worker {number}")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return [group for group in groups if group is not None]

    async def time_pipelines(self, prompts: Sequence[Prompt]) -> list[tuple[float, float]]:
        """Per prompt the wall time of the target alone, and of FPSR with the first worker as its draft.

        Target and verifier are one actor where there is only one verifier. A prompt during which an actor is lost is
        timed again: the pipelines go on without it, or with a draft that has not got the newest weights yet.

        Raises ActorLost when an actor is gone for good.
        """
        store = StoredPrompts()
        draft, target, judge = self._workers[0], self._verifiers[0], self._verifiers[-1]
        rollout = self._config.rollout
        settings = PipelineSettings(
            alpha=self._config.evaluation.alpha,
            max_tokens=rollout.max_tokens,
            max_step_tokens=rollout.max_step_tokens,
        )
        handles = Handles(
            Writer(RayTransport(draft, store)),
            Writer(RayTransport(target, store)),
            Verifier(RayTransport(judge, store)),
        )
        times: list[tuple[float, float]] = []
        for prompt in prompts:
            for _ in range(MAX_TRIES):
                await asyncio.gather(*(member.recovered() for member in {draft, target, judge}))
                await self._sync(draft)
                traces = [await _answered(handles, prompt, settings, method) for method in ("autoregressive", "fpsr")]
                if not any(trace.num_losses for trace in traces):
                    times.append((traces[0].wall_s, traces[1].wall_s))
                    break
            else:
                raise ActorLost(f"actors were lost {MAX_TRIES} times while one problem was timed")
        return times

    async def _serve(self, number: int, line: deque[_Call], groups: list[Group | None], task: RolloutTask) -> None:
        worker, verifier = self._workers[number], self._verifiers[number % len(self._verifiers)]
        while line:
            call = line.popleft()
            try:
                groups[call.start : call.start + len(call.requests)] = await self._call(worker, verifier, call, task)
            except ActorLost as lost:
                call.tries += 1
                if call.tries == MAX_TRIES:
                    raise ActorLost(f"a rollout call has lost its actors {MAX_TRIES} times: {lost}") from lost
                line.append(call)
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


class _Call:
    """Some neighbouring requests, and how often serving them has failed."""

    def __init__(self, start: int, requests: list[GroupRequest]) -> None:
        self.start, self.requests, self.tries = start, requests, 0
