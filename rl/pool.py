"""`RolloutPool`: the workers and verifiers of a run, kept alive; one call rolls out a whole batch.

    learner ── set_weights([ref]) ─▶ pool ── ref ─▶ every worker, before its next call
    learner ── roll_out(requests) ─▶ pool ── calls of a few groups ─▶ queue ─┬▶ worker 1 ─┬▶ verifier 1
                                                                             └▶ worker 2 ─┴▶ verifier 2

One task per worker takes calls from the queue. A call whose worker, or all of whose verifiers, were lost returns to
the queue, and the task waits for them to recover; the others continue. A worker that makes no progress for
`rollout.deadline_s` is lost as well. Seeds belong to requests, so no chain depends on the worker that wrote it.
`actors.supervisor` restarts actors; a restarted worker first gets the newest weights.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
"""A call that has lost its actors so often is probably the cause."""


@dataclass(slots=True, eq=False)
class _Call:
    """Consecutive requests for one worker."""

    start: int
    requests: list[GroupRequest]
    tries: int = 0
    """Failed attempts so far."""


class RolloutPool:
    """Plain Python; the launcher makes a Ray actor of it."""

    def __init__(self, config: SapoConfig, placement: PlacementGroup, first_bundle: int) -> None:
        self._config, self._placement, self._first_bundle = config, placement, first_bundle
        self.workers: list[ActorSupervisor] = []
        self.verifiers: list[ActorSupervisor] = []
        self._weights: tuple[int, ray.ObjectRef[Any]] | None = None
        self._loaded: dict[ActorSupervisor, tuple[int, int]] = {}
        """Per worker the generation and the version that it has loaded."""
        self._target_steps: dict[str, int | None] = {}
        """By prompt the number of steps of the target's answer, once it was counted."""
        self._milestones: dict[str, int] = {}
        self._passed = asyncio.Condition()
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
        """Have every worker load `weights` before its next call; one reference, in a list so that Ray passes it on."""
        self._weights = version, weights[0]
        await asyncio.gather(*(self._sync(worker) for worker in self.workers))

    async def roll_out(
        self, requests: Sequence[GroupRequest], task: RolloutTask, size: int | None = None
    ) -> list[Group]:
        """A group per request, in their order; `size` requests go to a worker at a time.

        Raises ActorLost when an actor does not come back, and errors of the engines.
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

    async def pass_milestone(self, name: str, step: int) -> None:
        """Note that rank 0 has passed this milestone at that optimizer step, and wake the ranks that wait for it."""
        async with self._passed:
            self._milestones[name] = step
            self._passed.notify_all()

    async def reached(self, name: str, step: int) -> None:
        """Return when rank 0 has passed the milestone at that step or a later one."""
        async with self._passed:
            await self._passed.wait_for(lambda: self._milestones.get(name, -1) >= step)

    async def time_pipelines(self, prompts: Sequence[Prompt]) -> list[tuple[float, float]]:
        """Wall times per prompt: of the target alone, and of FPSR with the first worker as its draft.

        Target and verifier are one actor where there is only one verifier. A prompt during which an actor is lost is
        timed again: the pipelines would continue without it, or with a draft that has older weights.

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
        worker, actors = self.workers[number], [self.workers[number], *self.verifiers]
        # Each worker begins with another verifier, so that their first calls do not collide.
        verifiers = [*self.verifiers[number % len(self.verifiers) :], *self.verifiers[: number % len(self.verifiers)]]
        while queue:
            call = queue.popleft()
            try:
                groups[call.start : call.start + len(call.requests)] = await self._call(worker, verifiers, call, task)
            except ActorLost as lost:
                call.tries += 1
                if call.tries == MAX_TRIES:
                    raise ActorLost(f"a rollout call has lost its actors {MAX_TRIES} times: {lost}") from lost
                queue.append(call)
                await asyncio.gather(*(actor.check() for actor in actors))  # any of them may have been lost
                await asyncio.gather(*(actor.recovered() for actor in actors))

    async def _call(
        self, worker: ActorSupervisor, verifiers: Sequence[ActorSupervisor], call: _Call, task: RolloutTask
    ) -> list[Group]:
        await self._sync(worker)
        requests = [self._without_known_steps(request) for request in call.requests]
        handles = [verifier.actor for verifier in verifiers]
        remote = worker.actor.roll_out.remote(requests, handles, task, self._limits)
        groups = await self._while_progressing(worker, RayRef(remote, worker))
        for request, group in zip(requests, groups, strict=True):
            if request.count_target_steps:
                self._target_steps[request.prompt.key] = group.target_steps
        return [
            replace(group, target_steps=self._target_steps.get(request.prompt.key))
            for request, group in zip(requests, groups, strict=True)
        ]

    def _without_known_steps(self, request: GroupRequest) -> GroupRequest:
        known = request.prompt.key in self._target_steps
        return replace(request, count_target_steps=request.count_target_steps and not known)

    async def _while_progressing(self, worker: ActorSupervisor, reply: RayRef[list[Group]]) -> list[Group]:
        """Await the reply while the worker makes progress. Raises ActorLost when it makes none."""
        deadline_s = self._config.rollout.deadline_s
        answer = asyncio.ensure_future(_awaited(reply))
        progress: int | None = None
        try:
            while not (await asyncio.wait({answer}, timeout=deadline_s))[0]:
                before, progress = progress, await self._progress(worker)
                if progress == before:
                    worker.report_lost()
                    raise ActorLost(f"a rollout worker made no progress for {deadline_s:g} s")
            return answer.result()
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def _progress(self, worker: ActorSupervisor) -> int | None:
        """None when the process does not answer, whether it is dead or hangs."""
        try:
            async with asyncio.timeout(self._config.rollout.deadline_s):
                return await RayRef[int](worker.actor.num_done.remote(), worker)
        except (TimeoutError, ActorLost):
            return None

    async def _sync(self, worker: ActorSupervisor) -> None:
        """Send the worker the newest weights, unless its present process has them."""
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


async def _awaited(reply: RayRef[list[Group]]) -> list[Group]:
    return await reply


async def _answered(handles: Handles, prompt: Prompt, settings: PipelineSettings, method: str) -> Trace:
    """Answer from cold prefix caches, so that no run profits from the cache of another."""
    request = Request(cold_copy(prompt, f"timing {uuid.uuid4().hex}"), settings.model_copy(update={"method": method}))
    return await run(request, handles)
