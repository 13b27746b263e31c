"""`ActorGroup`: the actors of one pair of models, from placement to shutdown.

start:  reserve ──▶ create + load, all at once ──▶ ready          stop:  supervisors cancelled and awaited
          │                    │                                           │
          ▼                    ▼ first failure                             ▼
   NotEnoughResources     stop, then raise                         processes killed, awaited ──▶ placement group removed

A detached group outlives the process that made it: `start` finds existing actors by their names, `leave` only ends the
supervision, and any process that has found the actors may `stop` them.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.engine_actor import EngineActor
from actors.placement import find_or_reserve, reserve
from actors.ray_transport import RayTransport, StoredPrompts
from actors.roles import DraftActor, TargetActor, VerifierActor
from actors.supervisor import ActorSupervisor
from actors.swap import DraftWeights
from dreamr.config import GroupConfig, HFEngineConfig
from dreamr.types import EngineInfo, Role
from pipelines.costs import Costs
from pipelines.handles import Handles, Verifier, Writer

_CLASSES: dict[Role, type[EngineActor]] = {"draft": DraftActor, "target": TargetActor, "verifier": VerifierActor}


class ActorGroup:
    """Draft, target and verifier. `async with ActorGroup(config) as group:` starts and stops it.

    With `detached`, actors and placement group have names (`config.name` is required) and live until `stop`.
    """

    def __init__(self, config: GroupConfig, *, detached: bool = False) -> None:
        if detached and not config.name:
            raise ValueError("a detached ActorGroup is found by its name: set group.name.")
        self._config = config
        self._detached = detached
        self._supervisors: dict[Role, ActorSupervisor] = {}
        self._placement: PlacementGroup | None = None
        self._prompts = StoredPrompts()
        self._costs = Costs()

    async def start(self) -> None:
        """Return when every actor has loaded its model.

        Raises:
            NotEnoughResources: the cluster cannot hold the actors; none was created.
            ValueError: a model cannot be loaded.
            ActorLost: an actor died or was not ready within `ready_deadline_s`.
            RuntimeError: no Ray, or the group has been started before.
        """
        if not ray.is_initialized():
            raise RuntimeError("Ray is not running: call actors.cluster.connect() first.")
        if self._supervisors:
            raise RuntimeError("this ActorGroup has been started already; make a new one.")
        try:
            self._placement = await (find_or_reserve if self._detached else reserve)(self._config)
            self._supervisors = {
                role: ActorSupervisor(_CLASSES[role], config, self._config, detached=self._detached)
                for role, config in self._config.actors().items()
            }
            await self._start_supervisors(self._placement)
        except BaseException as error:
            # Other processes may use the actors of a detached group, unless its models cannot be loaded at all.
            await (self.leave() if self._detached and not isinstance(error, ValueError) else self.stop())
            raise

    async def leave(self) -> None:
        """End the supervision by this process; the actors of a detached group continue."""
        await asyncio.gather(*(supervisor.leave() for supervisor in self._supervisors.values()))

    async def stop(self) -> None:
        """Kill the actors and remove the placement group; returns when both are done. May be called again."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors.values()))
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    async def check(self) -> dict[Role, bool]:
        """Whether each actor is up and answers. One that hangs is killed and restarted."""
        answers = await asyncio.gather(*(self.check_one(role) for role in self._supervisors))
        return dict(zip(self._supervisors, answers, strict=True))

    async def check_one(self, role: Role) -> bool:
        """`check` for one of them."""
        return await self._supervisors[role].check()

    async def swap_draft(self, weights: DraftWeights) -> None:
        """Replace the weights of the draft, and of a target's assistant that runs the same checkpoint.

        Running calls end first and new ones wait for that; none fails. Raises as `ActorSupervisor.swap_draft`.
        """
        await self._supervisors["draft"].swap_draft(weights)
        draft, target = self._config.draft.engine, self._config.target.engine
        if (
            isinstance(target, HFEngineConfig)
            and target.assistant is not None
            and target.assistant == getattr(draft, "model", None)
        ):
            await self._supervisors["target"].swap_draft(weights)

    @property
    def infos(self) -> dict[Role, EngineInfo]:
        """What each actor reported when it last became ready."""
        return {role: supervisor.info for role, supervisor in self._supervisors.items() if supervisor.info is not None}

    @property
    def handles(self) -> Handles:
        """All three, as schedules take them; the verifier is the target's actor where it is `shared`."""
        target = self._supervisors["target"].info
        return Handles(
            Writer(self.transport("draft")),
            Writer(self.transport("target")),
            Verifier(self.transport("verifier")),
            self._costs,
            target.thought_end if target else None,
        )

    def transport(self, role: Role) -> RayTransport:
        """The calls to one actor."""
        return RayTransport(self.supervisor(role), self._prompts)

    def supervisor(self, role: Role) -> ActorSupervisor:
        """The supervisor of an actor; the target's for a shared verifier."""
        return self._supervisors[role] if role in self._supervisors else self._supervisors["target"]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start_supervisors(self, placement: PlacementGroup) -> None:
        roles = list(self._supervisors)
        spares = {role: len(roles) + place for place, role in enumerate(self._config.spares())}
        starts = [
            asyncio.create_task(
                self._supervisors[role].start(placement, bundle, spares.get(role)), name=f"start {role}"
            )
            for bundle, role in enumerate(roles)
        ]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
