"""The actors of a bench: those of the group, and further ones for some baselines.

start:  actors of the group (given) ─┬─▶ schedules, draft_alone
        a target with their cores ───┼─▶ autoregressive_all_cores       each is made only when a method needs it, and
        transformers' own pair ──────┴─▶ transformers, ..._assisted     is idle while another method runs
stop:   what was made here is stopped and awaited; the group belongs to the caller
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import ray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.group import ActorGroup
from actors.placement import EMPTY_BUNDLE, reserve_bundles
from dreamr.bench.baselines import TransformersActor, TransformersMethod
from dreamr.bench.methods import ALL_CORES, ASSISTED, DRAFT_ALONE, GENERATE, Method, MethodSpec, ScheduleMethod
from dreamr.config import ActorConfig, GroupConfig, HFEngineConfig, ScriptedEngineConfig
from dreamr.errors import NotEnoughResources
from pipelines.costs import Costs
from pipelines.handles import Handles, Verifier


class BenchActors:
    """`async with BenchActors(group, config, specs, cores) as actors:` has `actors.methods` and what `failed`."""

    def __init__(self, group: ActorGroup, config: GroupConfig, specs: Sequence[MethodSpec], cores: int) -> None:
        self._group, self._config, self._specs = group, config, specs
        self.num_threads = min(cores, sum(actor.num_threads for actor in config.actors().values()))
        """Most threads of any method, and the threads of the target in `autoregressive_all_cores`."""
        self._stack = AsyncExitStack()
        self._pair: Any = None
        self._assisted_costs = Costs()
        """Costs of methods with an assistant: `auto` must not mix them with costs of the other methods."""
        self.methods: list[Method] = []
        self.failed: dict[str, str] = {}
        """Methods that cannot run with this configuration, and why."""

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            for spec in self._specs:
                await self._add(spec)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _add(self, spec: MethodSpec) -> None:
        try:
            self.methods.append(await self._method(spec))
        except Exception as error:
            # No GPU for one more actor, a pair that transformers cannot load: the other methods are measured.
            self.failed[spec.name] = " ".join(str(error).split())[:300]

    async def _method(self, spec: MethodSpec) -> Method:
        match spec.base:
            case name if name == ALL_CORES:
                return await self._all_cores(spec)
            case name if name == DRAFT_ALONE:
                return self._draft_alone(spec)
            case name if name in (GENERATE, ASSISTED):
                return TransformersMethod(spec, await self._transformers(), self._config.target)
            case _:
                actors: dict[str, ActorConfig] = dict(self._config.actors().items())
                handles = self._assisted_handles() if spec.settings.assisted else self._group.handles
                return ScheduleMethod(spec, handles, actors)

    def _assisted_handles(self) -> Handles:
        engine = self._config.target.engine
        if not isinstance(engine, HFEngineConfig) or engine.assistant is None:
            raise ValueError("the target has no assistant: it needs engine kind 'hf', and the draft as well")
        return replace(self._group.handles, costs=self._assisted_costs)

    def _draft_alone(self, spec: MethodSpec) -> Method:
        """The autoregressive schedule with the draft's actor as its target."""
        handles = self._group.handles
        alone = Handles(handles.draft, handles.draft, Verifier(handles.draft.transport))
        return ScheduleMethod(spec, alone, {"target": self._config.draft})

    async def _all_cores(self, spec: MethodSpec) -> Method:
        """A second target, since torch's threads cannot be changed in a process that has computed already."""
        engine = self._hf(self._config.target)
        if engine.device != "cpu":
            raise ValueError("the target runs on a GPU, where the number of threads does not matter")
        engine = engine.model_copy(update={"assistant": None, "background": False})  # neither is used by this method
        target = self._config.target.model_copy(
            update={"engine": engine, "num_threads": self.num_threads, "num_cpus": 0.0}
        )
        # A group needs a draft; this one is never called.
        idle = ActorConfig(engine=ScriptedEngineConfig(kind="scripted"), num_cpus=0.0)
        alone = self._config.model_copy(update={"draft": idle, "target": target, "verifier": "shared", "name": None})
        group = await self._stack.enter_async_context(ActorGroup(alone))
        return ScheduleMethod(spec, group.handles, {"target": target})

    async def _transformers(self) -> Any:
        if self._pair is None:
            target, draft = self._hf(self._config.target), self._hf(self._config.draft)
            self._pair = await self._baseline_actor(TransformersActor, target, draft, self._config.target.num_threads)
        return self._pair

    async def _baseline_actor(self, kind: type[Any], *arguments: Any) -> Any:
        """An actor with GPUs like the target's, ready to answer.

        Raises ValueError when these are not free: Ray would keep the actor waiting for as long as the group runs.
        """
        target = self._config.target
        gpus = {name: amount for name, amount in target.resources().items() if "GPU" in name or "accelerator" in name}
        try:
            placement = await reserve_bundles([gpus if target.num_gpus else EMPTY_BUNDLE], wait_for_resources_s=0)
        except NotEnoughResources as error:
            raise ValueError(f"it loads separate models in addition to the group's actors: {error}") from error
        self._stack.callback(remove_placement_group, placement)
        options = {
            "num_cpus": 0,
            "num_gpus": target.num_gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(placement),
        }
        actor = ray.remote(kind).options(**options).remote(*arguments)
        self._stack.callback(ray.kill, actor)
        async with asyncio.timeout(self._config.ready_deadline_s):
            await actor.ready.remote()
        return actor

    def _hf(self, actor: ActorConfig) -> HFEngineConfig:
        if not isinstance(actor.engine, HFEngineConfig):
            raise ValueError(f"it runs checkpoints by transformers, not the engine kind '{actor.engine.kind}'")
        return actor.engine
