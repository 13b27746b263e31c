"""`EngineActor`: one engine in an actor, loaded on `start`, on one event loop.

    driver ── start ─────▶ load in a thread ─▶ engine         health calls are answered while it loads
           ── lifeline ──▶ never returns                      its failure shows the driver that this process died
           ── stop ──────▶ engine.stop                        never waits: all calls share one loop, and the
           ── next_step ─▶ engine ── its own threads          engine computes outside of it

Ray runs `__init__` again when it restarts the process, with an engine still to be loaded: until the next `start`,
every call is refused with `NotLoaded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable
from dataclasses import replace
from typing import ClassVar, Self, TypeVar

import ray

from actors.swap import DraftWeights, Swap
from dreamr.config import ActorConfig, ScriptedEngineConfig
from dreamr.engines.base import Engine, EngineDied, Phases, Swappable
from dreamr.engines.factory import LoadedEngine, build_engine
from dreamr.errors import ActorLost, Unable
from dreamr.types import (
    EngineInfo,
    Prefill,
    Prompt,
    Role,
    ThoughtEnd,
    Tokens,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

PHASES = "bounded reasoning and answers by a schema"
SWAP = "another draft while it runs"

MAX_CONCURRENCY = 1000
"""Calls in one actor at a time: so many that `stop` and health calls never wait for steps."""


class NotLoaded(ActorLost):
    """A call reached a process that has not loaded its model (yet, or again after a restart)."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.role = role

    def __str__(self) -> str:
        return f"the {self.role} actor has not loaded its model yet"


class EngineActor:
    """The calls that all three answer. Plain Python: the group makes Ray actors of the subclasses."""

    role: ClassVar[Role]

    def __init__(self, config: ActorConfig, ids_of: str | None = None) -> None:
        """`ids_of`: the model whose token ids steps carry, where it is not the one that this actor runs."""
        self._config = config
        self._ids_of = ids_of
        self._loaded: LoadedEngine | None = None
        self._loading = asyncio.Lock()
        self._swap = Swap()
        # OpenMP reads this once, when torch is imported; more threads than cores cost more than they bring.
        os.environ["OMP_NUM_THREADS"] = str(config.num_threads)

    @classmethod
    def around(cls, engine: Engine) -> Self:
        """An actor in this process, around an engine that is loaded already."""
        actor = cls(ActorConfig(engine=ScriptedEngineConfig(kind="scripted")))
        actor._loaded = LoadedEngine(engine, model="", device="", num_parameters=0)
        return actor

    # Retried by Ray, so that a call made while the process dies is answered by the next one.
    @ray.method(max_task_retries=-1)
    async def start(self, weights: DraftWeights | None = None) -> EngineInfo:
        """Load the engine unless it is loaded, then the draft's `weights`, in place of the configured ones if they fit.

        Raises ValueError when the engine cannot be loaded.
        """
        async with self._loading:
            if self._loaded is None:
                loaded = await asyncio.to_thread(self._load)
                if loaded.warm_up is not None:
                    await loaded.warm_up()
                self._loaded = loaded
        if weights is not None:
            try:
                await self._swap_draft(weights)
            except ValueError as error:
                log.error("the %s actor continues with the configured draft: %s", self.role, error)
        return await self.info()

    async def swap_draft(self, weights: DraftWeights) -> EngineInfo:
        """Replace the draft's weights: this engine's, or a target's assistant's. Raises ValueError, Unable."""
        await self._swap_draft(weights)
        return await self.info()

    async def _swap_draft(self, weights: DraftWeights) -> None:
        engine = self._able(Swappable, SWAP)
        served = await self._swap.load(weights, engine, engine.update_weights)
        self._loaded = replace(self._require(), model=served.model)

    async def info(self) -> EngineInfo:
        loaded = self._require()
        return EngineInfo(
            role=self.role,
            model=loaded.model,
            device=loaded.device,
            num_parameters=loaded.num_parameters,
            max_positions=loaded.max_positions,
            recommended=loaded.recommended,
            thought_end=await self._known_thought_end(),
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
        )

    async def _known_thought_end(self) -> ThoughtEnd | None:
        with contextlib.suppress(Unable):
            return await self._able(Phases, PHASES).thought_end()
        return None

    async def check_health(self) -> None:
        """Answers when the event loop runs and the engine is loaded."""
        self._require()

    async def progress(self) -> float:
        """Seconds since the engine last finished a forward."""
        return self.idle_s()

    def idle_s(self) -> float:
        return self._engine.idle_s()

    async def lifeline(self) -> None:
        """Never returns; fails at the caller when this process dies; it does so when its engine's process has died."""
        if self._loaded is not None and self._loaded.died is not None:
            await self._or_end(self._loaded.died())
        await asyncio.Event().wait()

    async def prefill(self, call_id: str, prompt: Prompt) -> Prefill:
        return await self._alive(self._engine.prefill(prompt))

    async def count_tokens(self, call_id: str, prompt: Prompt) -> int:
        return await self._alive(self._engine.count_tokens(prompt))

    async def tokenize(self, call_id: str, prompt: Prompt, text: str | None = None) -> Tokens:
        return await self._alive(self._able(Phases, PHASES).tokenize(prompt if text is None else text))

    async def thought_end(self, call_id: str, prompt: Prompt) -> ThoughtEnd:
        return await self._alive(self._able(Phases, PHASES).thought_end())

    async def _alive(self, work: Awaitable[T]) -> T:
        """Await a call of the engine, between two swaps of the draft."""
        async with self._swap.call():
            return await self._or_end(work)

    async def _or_end(self, work: Awaitable[T]) -> T:
        """Await the engine; when the engine's own process has died, this one ends too, so that Ray restarts both."""
        try:
            return await work
        except EngineDied:
            log.exception("the %s actor ends", self.role)
            os._exit(1)

    @ray.method(num_returns=0)
    async def stop(self, call_id: str) -> None:
        self.stop_now(call_id)

    @ray.method(num_returns=0)
    async def promote(self, call_id: str, hint: Tokens) -> None:
        self.promote_now(call_id, hint)

    def promote_now(self, call_id: str, hint: Tokens) -> None:
        """A speculative step is needed now; `hint` are tokens that it may begin with."""
        if self._loaded is not None:
            self._loaded.engine.promote(call_id, hint)

    def stop_now(self, call_id: str) -> None:
        """End that call between two tokens; no error for one that is unknown or has ended."""
        if self._loaded is not None:  # before that there is no call to stop
            self._loaded.engine.stop(call_id)

    @property
    def _engine(self) -> Engine:
        return self._require().engine

    def _able(self, protocol: type[T], feature: str) -> T:
        """The engine. Raises Unable when it lacks the feature that the protocol stands for."""
        engine = self._engine
        if not isinstance(engine, protocol):
            raise Unable(
                f"the {self.role}'s engine, of kind {self._config.engine.kind!r}, does not support {feature}; "
                "engines of kind 'hf' do"
            )
        return engine

    def _require(self) -> LoadedEngine:
        if self._loaded is None:
            raise NotLoaded(self.role)
        return self._loaded

    def _load(self) -> LoadedEngine:
        if self._config.engine.kind == "hf":
            import torch

            torch.set_num_threads(self._config.num_threads)
        return build_engine(self._config.engine, self._ids_of)
