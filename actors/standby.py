"""`Standby`: a second actor of a role, loaded and idle, that takes the place of one that is lost.

    supervisor   up ── lost ──▶ exchange ──▶ up: the spare answers at once          (without one: down until reloaded)
    standby                        └──▶ the lost actor: restarted by Ray, loaded ──▶ ready, the next spare

Owned by the role's supervisor. Replicas that share a detached group each do the same, and find both actors by name.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.swap import DraftWeights
from dreamr.types import EngineInfo, Role

log = logging.getLogger(__name__)

KILL_DEADLINE_S = 30.0
"""Longest wait for the end of a killed process. Ray itself waits 5 s before it uses SIGKILL."""
MAX_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """An actor whose model is loaded, and the lifeline of its process."""

    actor: Any
    info: EngineInfo
    lifeline: asyncio.Future[None]


class Standby:
    """Keeps one spare actor loaded, from its creation until `leave` or `stop`. Use it from one event loop."""

    def __init__(self, role: Role, actor: Any, health_deadline_s: float) -> None:
        self.actor = actor
        self._weights: DraftWeights | None = None
        self._role, self._health_deadline_s = role, health_deadline_s
        self._dying: asyncio.Future[None] | None = None
        """The lifeline of a hanging actor, which has to break before the actor is started again."""
        self._loaded: Loaded | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._keep_loaded(), name=f"standby of the {role}")

    @property
    def is_ready(self) -> bool:
        """Whether the spare could take over now."""
        return self._loaded is not None and not self._loaded.lifeline.done()

    def exchange(self, lost: Any, lifeline: asyncio.Future[None]) -> Loaded:
        """The spare, for the lost actor in its place; `lifeline` is the lost one's, unbroken where it hangs."""
        assert self._loaded is not None, "is_ready was checked"
        spare, self._loaded = self._loaded, None
        self.actor, self._dying = lost, None if lifeline.done() else lifeline
        self._changed.set()
        return spare

    async def check(self) -> None:
        """Health check: a spare that does not answer in time is killed and loaded again."""
        if self._loaded is None:
            return
        spare = self._loaded.actor
        try:
            async with asyncio.timeout(self._health_deadline_s):
                await spare.check_health.remote()
        except TimeoutError:
            if self._loaded is not None and self._loaded.actor is spare:
                ray.kill(spare, no_restart=False)
        except RayError as error:
            log.debug("the spare %s: %s", self._role, error)  # its lifeline breaks as well

    async def swap_draft(self, weights: DraftWeights) -> None:
        """Load the weights that the role's actor has loaded, now and after each loss."""
        self._weights = weights
        if self._loaded is not None:
            try:
                await self._loaded.actor.swap_draft.remote(weights)
            except (RayError, ValueError) as error:
                log.error("the spare %s keeps other weights: %s", self._role, error)

    async def leave(self) -> None:
        """End the supervision by this process; a detached actor keeps running."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        """End the supervision, kill the spare, return when its process has ended."""
        await self.leave()
        await killed(self.actor)

    async def _keep_loaded(self) -> None:
        pause_s = 1.0
        while True:
            self._changed.clear()
            try:
                actor = self.actor
                await self._await_death()
                info: EngineInfo = await actor.start.remote(self._weights)
            except (RayError, ValueError) as error:
                log.warning("the spare %s cannot be loaded, trying again in %g s: %s", self._role, pause_s, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                continue
            pause_s = 1.0
            self._loaded = Loaded(actor, info, watch(actor))
            changed = asyncio.create_task(self._changed.wait())
            news: set[asyncio.Future[Any]] = {self._loaded.lifeline, changed}
            try:
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if not self._changed.is_set():
                self._loaded = None
                log.warning("the spare %s was lost, loading it again", self._role)

    async def _await_death(self) -> None:
        """Kill an actor that hangs; only then start it: a process whose engine hangs may still answer."""
        if self._dying is not None:
            ray.kill(self.actor, no_restart=False)
            await asyncio.wait({self._dying})
            self._dying = None


def watch(actor: ActorHandle[Any]) -> asyncio.Future[None]:
    """A future that fails when the actor's present process dies."""
    lifeline: asyncio.Future[None] = asyncio.wrap_future(actor.lifeline.remote().future())
    lifeline.add_done_callback(lambda future: future.cancelled() or future.exception())  # no "never retrieved" log
    return lifeline


async def killed(actor: Any) -> None:
    """Kill an actor without restart; returns when its process has ended."""
    ray.kill(actor, no_restart=True)
    # A new lifeline, since an old one may have broken long ago: it fails when the last process is dead.
    last = watch(actor)
    await asyncio.wait({last}, timeout=KILL_DEADLINE_S)
    last.cancel()
