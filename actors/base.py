"""What the three actors share: one engine, loaded on `start`, behind one event loop.

    driver ── start ─────▶ load in a thread ─▶ engine         health calls are answered while it loads
           ── lifeline ──▶ never returns                      its error is the news that this process died
           ── stop ──────▶ engine.stop                        never waits: all calls share one loop, and the
           ── next_step ─▶ engine ── its own threads          engine computes outside of it

Ray runs `__init__` again when it restarts the process, with an engine still to be loaded: until somebody calls
`start` again, every call is refused with `NotLoaded`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from typing import ClassVar, TypeVar

import ray

from dreamr.config import ActorConfig
from dreamr.engines.base import Engine, EngineDied
from dreamr.engines.factory import LoadedEngine, build_engine
from dreamr.errors import ActorLost
from dreamr.types import EngineInfo, Prefill, Prompt, Role

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_CONCURRENCY = 1000
"""Calls in one actor at a time: so many that `stop` and health calls never queue behind steps."""


class NotLoaded(ActorLost):
    """A call reached a process that has not loaded its model (yet, or again after a restart)."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.role = role

    def __str__(self) -> str:
        return f"the {self.role} actor has not loaded its model yet"


class EngineActor:
    """Base of the actors. Plain Python: the group makes Ray actors of the subclasses."""

    role: ClassVar[Role]

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        """`ids_of`: the model whose token ids steps carry, where it is not the one that this actor runs."""
        self._config = config
        self._ids_of = ids_of
        self._loaded: LoadedEngine | None = None
        self._loading = asyncio.Lock()
        # OpenMP reads this once, when torch is imported; more threads than cores cost more than they bring.
        os.environ["OMP_NUM_THREADS"] = str(config.num_threads)

    # Retried by Ray, so that a call made while the process dies is answered by the next one.
    @ray.method(max_task_retries=-1)
    async def start(self) -> EngineInfo:
        """Load the engine unless it is loaded. Raises ValueError when it cannot be."""
        async with self._loading:
            if self._loaded is None:
                loaded = await asyncio.to_thread(self._load)
                if loaded.warm_up is not None:
                    await loaded.warm_up()
                self._loaded = loaded
        return await self.info()

    async def info(self) -> EngineInfo:
        loaded = self._require()
        return EngineInfo(
            role=self.role,
            model=loaded.model,
            device=loaded.device,
            num_parameters=loaded.num_parameters,
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
        )

    async def check_health(self) -> None:
        """Answers when the event loop turns and the engine is loaded."""
        self._require()

    async def lifeline(self) -> None:
        """Never returns; fails at the caller when this process dies."""
        await asyncio.Event().wait()

    async def prefill(self, prompt: Prompt) -> Prefill:
        return await self._alive(self._engine.prefill(prompt))

    async def count_tokens(self, prompt: Prompt) -> int:
        return await self._engine.count_tokens(prompt)

    async def _alive(self, work: Awaitable[T]) -> T:
        """Await the engine; when a process behind it has died, this one ends as well, so that Ray starts both anew."""
        try:
            return await work
        except EngineDied:
            log.exception("the %s actor ends", self.role)
            os._exit(1)

    @ray.method(num_returns=0)
    async def stop(self, call_id: str) -> None:
        self._stop(call_id)

    def _stop(self, call_id: str) -> None:
        if self._loaded is not None:  # before that there is no call to stop
            self._loaded.engine.stop(call_id)

    @property
    def _engine(self) -> Engine:
        return self._require().engine

    def _require(self) -> LoadedEngine:
        if self._loaded is None:
            raise NotLoaded(self.role)
        return self._loaded

    def _load(self) -> LoadedEngine:
        if self._config.engine.kind == "hf":
            import torch

            torch.set_num_threads(self._config.num_threads)
        return build_engine(self._config.engine, self._ids_of)
