"""`ActorSupervisor`: keeps one actor alive.

                     create, start
                           │
        ┌──────────────────▼─────┐  lifeline breaks (process died), notice_death,     ┌────────────────────────┐
        │ up                     │  no progress (kill -9, then the lifeline breaks)   │ down                   │
        │ supervisor waits for   ├───────────────────────────────────────────────────▶│ supervisor waits for   │
        │ lifeline or failure    │◀───────────────────────────────────────────────────┤ Ray's restart + start  │
        └────────────────────────┘  generation + 1, `recovered()` returns             └───────────┬────────────┘
                                                                                         deadline │ restarts used up
                                                                                      ┌───────────▼────────────┐
                                                                                      │ gone: `recovered()`    │
                                                                                      │ raises ActorLost       │
                                                                                      └────────────────────────┘

With a spare (`actors.standby`), `down` ends at once: the spare is the actor from then on, and the lost one is
restarted as the next spare.

One supervisor task per actor, owned here, cancelled and awaited by `stop`. There is no polling: the lifeline is a call
that never returns, so even the death of an idle actor is noticed at once. Reports of a failure while the actor is down
are ignored, and so is a report without an open call of the present generation, which comes too late.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup

from actors.engine_actor import MAX_CONCURRENCY, EngineActor
from actors.placement import actor_options
from actors.ray_transport import RayRef, last_line, names_role, root_cause
from actors.standby import MAX_PAUSE_S, Standby, killed, watch
from actors.swap import DraftWeights
from dreamr.config import ActorConfig, GroupConfig
from dreamr.errors import ActorLost
from dreamr.types import EngineInfo, Role

log = logging.getLogger(__name__)

SHORT_LIFE_S = 60.0
"""An actor that is lost again within `SHORT_LIFE_S` is restarted after a pause, at most `MAX_PAUSE_S`."""

Failure = Literal["died", "hangs"]


class ActorSupervisor:
    """One actor and its supervision. Use it from one event loop."""

    def __init__(
        self, actor_class: type[EngineActor], config: ActorConfig, group: GroupConfig, *, detached: bool = False
    ) -> None:
        self.role: Role = actor_class.role
        self.generation = 0
        self.info: EngineInfo | None = None
        self.calls: set[RayRef[Any]] = set()
        """Calls of this generation whose results have not been received."""
        self.actor: Any = None
        """The Ray handle; the same over all restarts, another one when a spare takes over."""
        self._actor_class = actor_class
        self._config = config
        self._group = group
        self._detached = detached
        self._restarts: list[float] = []
        """Times of its latest restarts."""
        self._weights: DraftWeights | None = None
        """Of the draft, in place of the configured ones, after every restart too."""
        self._supervisor: asyncio.Task[None] | None = None
        self._standby: Standby | None = None
        self._lifeline: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def up(self) -> bool:
        return self._ready.done() and self._ready.exception() is None

    @property
    def gone(self) -> bool:
        """True when it will not come back."""
        return self._ready.done() and self._ready.exception() is not None

    @property
    def has_spare(self) -> bool:
        """Whether a loss now would cost no loading."""
        return self._standby is not None and self._standby.is_ready

    async def recovered(self) -> None:
        """Return when up; raises ActorLost when the actor will not come back."""
        await asyncio.shield(self._ready)

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self, placement: PlacementGroup, bundle: int, spare_bundle: int | None = None) -> None:
        """Create the actor (or find it, if detached), load its model, begin to supervise it.

        With a `spare_bundle`, a second actor is loaded there meanwhile, which takes over when the first is lost.

        Raises:
            ActorLost: not ready within `ready_deadline_s`, or its process died.
            ValueError: the model cannot be loaded; the engine's sentence.
        """
        self.actor = self._created(placement, bundle, "")
        if spare_bundle is not None:
            spare = self._created(placement, spare_bundle, "-standby")
            self._standby = Standby(self.role, spare, self._group.health_deadline_s)
        async with _deadline(self.role, self._group.ready_deadline_s):
            await self._come_up()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.role}")

    async def leave(self) -> None:
        """End the supervision by this process; a detached actor continues."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._standby is not None:
            await self._standby.leave()
        self._mark_gone(ActorLost(f"the {self.role} actor was stopped"))

    async def stop(self) -> None:
        """End the supervision, kill the process, return when it is gone."""
        await self.leave()
        if self._standby is not None:
            await self._standby.stop()
        if self.actor is None:
            return
        await killed(self.actor)
        self._lifeline.cancel()

    async def check(self) -> bool:
        """Make a health call; a process that does not answer within `health_deadline_s` is killed and restarted."""
        if not self.up:
            return False
        if self._standby is not None:
            await self._standby.check()
        generation = self.generation
        try:
            async with asyncio.timeout(self._group.health_deadline_s):
                await self.actor.check_health.remote()
        except TimeoutError:
            self._notice(generation, "hangs")
        except RayError:
            self._notice(generation, "died")
        return self.up

    async def swap_draft(self, weights: DraftWeights) -> None:
        """Replace the draft's weights in this actor and its spare, now and after each restart.

        Raises ValueError when they do not fit, Unable, and ActorLost: the old ones stay.
        """
        try:
            self.info = await self.actor.swap_draft.remote(weights)
        except RayError as error:
            cause = root_cause(error)
            raise ActorLost(f"the {self.role} actor was lost") if isinstance(cause, RayError) else cause from error
        self._weights = weights
        if self._standby is not None:
            await self._standby.swap_draft(weights)

    # -- losses ----------------------------------------------------------------------------------------------------

    def notice_death(self, generation: int) -> None:
        """A call of that generation failed because the process was gone."""
        self._notice(generation, "died")

    async def grace_s(self, deadline_s: float) -> float:
        """Seconds that a call which has reached its deadline may still take; 0 when its actor is lost and restarted.

        Under load a call waits for its turn, and killing a busy actor would only add to the load. So the time since the
        last progress of each actor that may have failed decides.
        """
        if not self.up:
            return 0.0
        idle = await asyncio.gather(*(one._idle_s() for one in self._suspects()))
        grace_s = deadline_s - max(idle, default=deadline_s)
        if grace_s > 0:
            return grace_s
        self.report_lost()
        return 0.0

    def report_lost(self) -> None:
        """A call has taken too long: kill the process that it waits for. Without an open call the report is ignored."""
        for supervisor in self._suspects() if self.up else ():
            supervisor._notice(supervisor.generation, "hangs")

    def _suspects(self) -> set[ActorSupervisor]:
        """The actors that open calls wait for: this one, if one of its calls has all its arguments; else the actors
        whose results are awaited as arguments."""
        waiting = [call for call in self.calls if not call.has_result]
        awaited = [[argument for argument in call.arguments if not argument.has_result] for call in waiting]
        if not all(awaited):
            return {self}
        others = {argument.supervisor for arguments in awaited for argument in arguments} - {self}
        return {one for other in others for one in other._suspects()}

    async def _idle_s(self) -> float:
        """Seconds since the engine last finished a forward; infinite when the process does not answer."""
        generation = self.generation
        try:
            async with asyncio.timeout(self._group.health_deadline_s):
                idle_s: float = await self.actor.progress.remote()
        except TimeoutError:
            return math.inf
        except RayError:
            self._notice(generation, "died")
            return math.inf
        return idle_s

    def is_named_by(self, cause: BaseException) -> bool:
        """True when the error names this actor as the one that was lost."""
        if isinstance(cause, RayActorError) and self.actor is not None:
            own = [self.actor] if self._standby is None else [self.actor, self._standby.actor]
            return cause.actor_id in {actor._actor_id.hex() for actor in own}
        return names_role(cause, self.role)

    def _notice(self, generation: int, failure: Failure) -> None:
        if generation == self.generation and self.up:
            self._mark_down()
            self._failure.set_result(failure)

    # -- supervision -----------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            events: set[asyncio.Future[Any]] = {self._lifeline, self._failure}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            self._mark_down()
            log.warning("the %s actor (process %s) was lost, restarting it", self.role, self.info and self.info.pid)
            if self._standby is not None and self._standby.is_ready:
                self._take_over(self._standby)
                continue
            await asyncio.sleep(self._pause_s())
            try:
                async with _deadline(self.role, self._group.ready_deadline_s):
                    await self._kill_if_it_hangs()
                    await self._come_up()
            except Exception as error:
                log.error("the %s actor did not come back: %s", self.role, error)
                self._mark_gone(ActorLost(f"the {self.role} actor did not come back: {error}"))
                return

    def _take_over(self, standby: Standby) -> None:
        """Continue with the spare; the lost actor is restarted as the next one."""
        spare = standby.exchange(self.actor, self._lifeline)
        self.actor, self.info, self._lifeline = spare.actor, spare.info, spare.lifeline
        self._begin_generation()

    def _pause_s(self) -> float:
        """Seconds until the next restart: none after a long life, doubled after each short one."""
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < SHORT_LIFE_S] + [now]
        return min(MAX_PAUSE_S, 2.0 ** (len(self._restarts) - 2)) if len(self._restarts) > 1 else 0.0

    async def _kill_if_it_hangs(self) -> None:
        if self._failure.done() and self._failure.result() == "hangs" and not self._lifeline.done():
            ray.kill(self.actor, no_restart=False)
            # Only then start: a process whose engine hangs but whose event loop runs would still answer.
            await asyncio.wait({self._lifeline})

    async def _come_up(self) -> None:
        try:
            self.info = await self.actor.start.remote(self._weights)
        except RayError as error:
            raise self._start_error(root_cause(error)) from error
        if self.generation == 0 or self._lifeline.done():
            self._lifeline = watch(self.actor)
        self._begin_generation()

    def _begin_generation(self) -> None:
        self.generation += 1
        self.calls.clear()
        self._failure = asyncio.get_running_loop().create_future()
        self._ready.set_result(None)

    def _start_error(self, cause: BaseException) -> BaseException:
        if isinstance(cause, RayActorError):
            return ActorLost(f"the {self.role} actor died while it started: {last_line(cause)}")
        return cause

    def _mark_down(self) -> None:
        if self._ready.done():
            self._ready = asyncio.get_running_loop().create_future()

    def _mark_gone(self, error: ActorLost) -> None:
        self._mark_down()
        self._ready.set_exception(error)
        self._ready.exception()  # it may never be awaited: mark it as retrieved

    def _created(self, placement: PlacementGroup, bundle: int, suffix: str) -> Any:
        """A new actor, or the one that has the name."""
        options = actor_options(self._config, placement, bundle)
        if self._group.name:
            options |= {"name": f"{self._group.name}-{self.role}{suffix}", "namespace": self._group.namespace}
        if self._detached:
            options |= {"lifetime": "detached", "get_if_exists": True}
        actor_class = ray.remote(self._actor_class).options(max_concurrency=MAX_CONCURRENCY, **options)
        return actor_class.remote(self._config, self._group.ids_of(self.role))


@asynccontextmanager
async def _deadline(role: Role, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ActorLost(
            f"the {role} actor was not ready within {seconds:g} s; raise group.ready_deadline_s if its model is large"
        ) from error
