"""`LocalTransport`: an actor inside this process, without Ray; on a virtual clock, for simulation.

Writer ── submit ──▶ LocalTransport ── task: await the arguments, then the actor's method ──▶ LocalRef
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Generator
from typing import Any, Generic, TypeVar

from actors.engine_actor import EngineActor
from actors.roles import DraftActor, TargetActor, VerifierActor
from dreamr.engines.base import Engine
from dreamr.errors import ActorLost
from dreamr.types import Prompt, Role, Tokens
from pipelines.handles import Handles, Ref, Verifier, Writer

T = TypeVar("T")

TICK_S = 1e-3
"""Shorter waits count as none: a virtual clock would not advance by them."""


class LocalRef(Generic[T]):
    """The future result of one call. Cancelling a task that awaits it does not end the call."""

    def __init__(self, task: asyncio.Task[T], role: Role) -> None:
        self.task = task
        self._role = role

    def __await__(self) -> Generator[Any, None, T]:
        try:
            return (yield from asyncio.shield(self.task).__await__())
        except asyncio.CancelledError:
            if self.task.cancelled():
                raise ActorLost(f"the {self._role} was lost during a call") from None
            raise


class LocalTransport:
    """See `Transport`. `lose` makes it behave as an actor whose process died."""

    def __init__(self, kind: type[EngineActor], engine: Engine) -> None:
        """An actor of that kind around a loaded engine."""
        self.engine = engine
        self._new_actor = lambda: kind.around(engine)
        self.actor = self._new_actor()
        self.tasks: set[asyncio.Task[Any]] = set()
        """Calls in flight."""
        self._up = asyncio.Event()
        self._up.set()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def submit(self, method: str, call_id: str, prompt: Prompt, *arguments: Any) -> LocalRef[Any]:
        task = asyncio.create_task(self._call(method, call_id, prompt, arguments), name=f"{method} {call_id}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return LocalRef(task, self.actor.role)

    def stop(self, call_id: str) -> None:
        self.actor.stop_now(call_id)

    def promote(self, call_id: str, hint: Tokens) -> None:
        self.actor.promote_now(call_id, hint)

    async def grace_s(self, ref: Ref[Any], deadline_s: float) -> float:
        """A local engine cannot be restarted: its open calls end as lost, and it continues."""
        grace_s = deadline_s - self.actor.idle_s()
        if grace_s > TICK_S:
            return grace_s
        if self.up:
            self.lose()
            self.restore()
        return 0.0

    async def recovered(self) -> None:
        await self._up.wait()

    def lose(self) -> None:
        """All open calls end with ActorLost, and new ones do too, until `restore`."""
        self._up.clear()
        for task in self.tasks:
            task.cancel()
        self.actor = self._new_actor()

    def restore(self) -> None:
        self._up.set()

    async def _call(self, method: str, call_id: str, prompt: Prompt, arguments: tuple[Any, ...]) -> Any:
        if not self.up:
            raise ActorLost(f"the {self.actor.role} is down")
        values = [await argument if inspect.isawaitable(argument) else argument for argument in arguments]
        return await getattr(self.actor, method)(call_id, prompt, *values)


def local_handles(draft: Engine, target: Engine, verifier: Engine) -> Handles:
    """Handles over engines in this process; `verifier` may be `target`."""
    return Handles(
        Writer(LocalTransport(DraftActor, draft)),
        Writer(LocalTransport(TargetActor, target)),
        Verifier(LocalTransport(VerifierActor, verifier)),
    )
