"""`ActorGroup`: the actors of one pair of models, from placement to shutdown.

start:  reserve ──▶ create + load, all at once ──▶ ready          stop:  supervisors cancelled and awaited
          │                    │                                           │
          ▼                    ▼ first failure                             ▼
   NotEnoughResources     stop, then raise                         processes killed, awaited ──▶ room given back

A lasting group outlives the process that made it: `start` finds by their names the actors that are there, `leave` ends
the supervision alone, and any process that has found them may `stop` them.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.base import EngineActor
from actors.draft import DraftActor
from actors.handles import RayJudge, RayWriter
from actors.member import Member
from actors.prompt_store import PromptStore
from actors.resources import find_or_reserve, reserve
from actors.target import TargetActor
from actors.verifier import VerifierActor
from dreamr.config import GroupConfig
from dreamr.types import EngineInfo, Role
from pipelines.handles import Actors

_CLASSES: dict[Role, type[EngineActor]] = {"draft": DraftActor, "target": TargetActor, "verifier": VerifierActor}


class ActorGroup:
    """Draft, target and verifier. `async with ActorGroup(config) as group:` starts and stops it.

    With `lasting`, actors and room have names (`config.name` is needed) and live until somebody stops them.
    """

    def __init__(self, config: GroupConfig, *, lasting: bool = False) -> None:
        if lasting and not config.name:
            raise ValueError("a lasting ActorGroup is found by its name: set group.name.")
        self._config = config
        self._lasting = lasting
        self._members: dict[Role, Member] = {}
        self._placement: PlacementGroup | None = None
        self._prompts = PromptStore()

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
        if self._members:
            raise RuntimeError("this ActorGroup has been started already; make a new one.")
        try:
            self._placement = await (find_or_reserve if self._lasting else reserve)(self._config)
            self._members = {
                role: Member(_CLASSES[role], config, self._config, lasting=self._lasting)
                for role, config in self._config.actors().items()
            }
            await self._start_members(self._placement)
        except BaseException as error:
            # Others may be using the actors of a lasting group, unless its models cannot be loaded by anybody.
            await (self.leave() if self._lasting and not isinstance(error, ValueError) else self.stop())
            raise

    async def leave(self) -> None:
        """End the supervision by this process; the actors of a lasting group go on."""
        await asyncio.gather(*(member.leave() for member in self._members.values()))

    async def stop(self) -> None:
        """Kill the actors and give their room back; returns when both are done. May be called again."""
        await asyncio.gather(*(member.stop() for member in self._members.values()))
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None

    async def check(self) -> dict[Role, bool]:
        """Whether each actor is up and answers. One that hangs is killed and restarted."""
        answers = await asyncio.gather(*(self.check_one(role) for role in self._members))
        return dict(zip(self._members, answers, strict=True))

    async def check_one(self, role: Role) -> bool:
        """`check` for one of them."""
        return await self._members[role].check()

    @property
    def infos(self) -> dict[Role, EngineInfo]:
        """What each actor said about itself when it last became ready."""
        return {role: member.info for role, member in self._members.items() if member.info is not None}

    @property
    def draft(self) -> RayWriter:
        return RayWriter(self._members["draft"], self._prompts)

    @property
    def target(self) -> RayWriter:
        return RayWriter(self._members["target"], self._prompts)

    @property
    def judge(self) -> RayJudge:
        """The verifier's actor, or the target's where the configuration says `shared`."""
        return RayJudge(self._members.get("verifier", self._members["target"]), self._prompts)

    @property
    def actors(self) -> Actors:
        """All three, as schedules take them."""
        return Actors(self.draft, self.target, self.judge)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start_members(self, placement: PlacementGroup) -> None:
        starts = [
            asyncio.create_task(member.start(placement, bundle), name=f"start {member.role}")
            for bundle, member in enumerate(self._members.values())
        ]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
