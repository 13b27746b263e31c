"""`Arena`: the contenders of a run, over a group's actors and over those that only some baselines need.

start:  group's own actors (given) ─┬─▶ schedules
        a target with their cores ──┼─▶ autoregressive_all_cores        each made only when it is asked for; all are
        transformers' own pair ─────┴─▶ transformers, ..._assisted      idle while another contender runs
stop:   what was made here is stopped and awaited; the group is its owner's
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import ray

from actors.group import ActorGroup
from dreamr.bench.contender import ALL_CORES, ASSISTED, GENERATE, Contender, Entry, PipelineContender
from dreamr.bench.generate import GenerateContender
from dreamr.bench.transformers_actor import TransformersActor
from dreamr.config import ActorConfig, GroupConfig, HFEngineConfig, ScriptedEngineConfig


class Arena:
    """`async with Arena(group, config, entries, cores) as arena:` has `arena.contenders`, and says what `failed`."""

    def __init__(self, group: ActorGroup, config: GroupConfig, entries: Sequence[Entry], cores: int) -> None:
        self._group, self._config, self._entries = group, config, entries
        self.num_threads = min(cores, sum(actor.num_threads for actor in config.actors().values()))
        """What a method can use at most, and so what the target gets for itself in `autoregressive_all_cores`."""
        self._stack = AsyncExitStack()
        self._pair: Any = None
        self.contenders: list[Contender] = []
        self.failed: dict[str, str] = {}
        """Entries that cannot run with this configuration, and why."""

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            for entry in self._entries:
                await self._add(entry)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _add(self, entry: Entry) -> None:
        try:
            self.contenders.append(await self._contender(entry))
        except Exception as error:
            # No room for one more actor, a pair that transformers cannot load: the others are measured all the same.
            self.failed[entry.name] = " ".join(str(error).split())[:300]

    async def _contender(self, entry: Entry) -> Contender:
        match entry.base:
            case name if name == ALL_CORES:
                return await self._all_cores(entry)
            case name if name in (GENERATE, ASSISTED):
                return GenerateContender(entry, await self._transformers(), self._config.target)
            case _:
                actors: dict[str, ActorConfig] = dict(self._config.actors().items())
                return PipelineContender(entry, self._group.handles, actors)

    async def _all_cores(self, entry: Entry) -> Contender:
        """A second target, since torch's threads cannot be changed in a process that has computed already."""
        if self._hf(self._config.target).device != "cpu":
            raise ValueError("the target runs on a GPU, where the number of threads does not matter")
        engine = self._hf(self._config.target).model_copy(update={"background": False})
        target = self._config.target.model_copy(
            update={"num_threads": self.num_threads, "num_cpus": 0.0, "engine": engine}
        )
        # A group needs a draft; this one is never asked.
        idle = ActorConfig(engine=ScriptedEngineConfig(kind="scripted"), num_cpus=0.0)
        alone = self._config.model_copy(update={"draft": idle, "target": target, "verifier": "shared", "name": None})
        group = await self._stack.enter_async_context(ActorGroup(alone))
        return PipelineContender(entry, group.handles, {"target": target})

    async def _transformers(self) -> Any:
        if self._pair is None:
            target, draft = self._hf(self._config.target), self._hf(self._config.draft)
            options = {"num_cpus": 0.0, "num_gpus": self._config.target.num_gpus}
            actor = ray.remote(TransformersActor).options(**options)
            self._pair = actor.remote(target, draft, self._config.target.num_threads)
            self._stack.callback(ray.kill, self._pair)
            async with asyncio.timeout(self._config.ready_deadline_s):
                await self._pair.ready.remote()
        return self._pair

    def _hf(self, actor: ActorConfig) -> HFEngineConfig:
        if not isinstance(actor.engine, HFEngineConfig):
            raise ValueError(f"it runs checkpoints by transformers, not the engine kind '{actor.engine.kind}'")
        return actor.engine
