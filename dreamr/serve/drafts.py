"""Another draft checkpoint for a running service: `POST /v1/admin/draft`.

    POST ─▶ replica 1 ── load into its actors ─▶ ok ── put ──▶ DraftRecord (a Ray actor) ── newer ──▶ replica 2, 3, ...
                              └─▶ 400: nothing has changed                                              load it as well

Every replica waits for the record's next change, and a new replica begins with what the record has. Replicas that
share their actors find the checkpoint loaded already. When the record's actor is lost, the replicas fill it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from fastapi import APIRouter
from pydantic import BaseModel, Field

from actors.swap import DraftWeights
from dreamr.config.base import Strict
from dreamr.errors import ActorLost, Unable
from dreamr.serve.bodies import JsonRoute
from dreamr.serve.errors import ApiError, refused
from dreamr.serve.replies import ErrorReply
from dreamr.serve.retries import Answers as Shared
from dreamr.types import EngineInfo, Role

log = logging.getLogger(__name__)

WAIT_S = 300.0
"""Longest wait of one call for a change; a replica that is gone leaves no call for longer."""
PAUSE_S = 15.0
"""Between two attempts to reach the record, or to load what it has."""


class DraftRecord:
    """The draft in service, by the configuration of the actors. Plain Python: replicas share one as a Ray actor."""

    def __init__(self) -> None:
        self._weights: dict[str, DraftWeights] = {}
        self._changed = asyncio.Condition()

    async def put(self, configuration: str, weights: DraftWeights) -> None:
        """Store weights unless there are later ones."""
        async with self._changed:
            if version_of(self._weights.get(configuration)) < weights.version:
                self._weights[configuration] = weights
                self._changed.notify_all()

    async def newer(self, configuration: str, known: DraftWeights | None, wait_s: float) -> DraftWeights | None:
        """The stored weights when they are later than `known`, at the latest after `wait_s`."""
        if known is not None:
            await self.put(configuration, known)
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: version_of(self._weights.get(configuration)) > version_of(known))
        except TimeoutError:
            pass
        return self._weights.get(configuration)


def version_of(weights: DraftWeights | None) -> int:
    """0 for the configured checkpoint."""
    return 0 if weights is None else weights.version


class SwappingGroup(Protocol):
    """The part of `ActorGroup` that is used here."""

    @property
    def infos(self) -> dict[Role, EngineInfo]: ...

    async def swap_draft(self, weights: DraftWeights) -> None: ...


class DraftSwitch:
    """One replica's draft. Use it from one event loop."""

    def __init__(self, group: SwappingGroup, record: Shared, configuration: str) -> None:
        """`configuration`: distinguishes groups of actors by their models."""
        self._group, self._record, self._configuration = group, record, configuration
        self._loaded: DraftWeights | None = None
        self._loading = asyncio.Lock()
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the draft in service, then follow its changes until `stop`."""
        await self._follow_once(0.0)
        self._follower = asyncio.create_task(self._follow(), name="follow the draft in service")

    async def stop(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)

    async def serve(self, checkpoint: str) -> str:
        """Put a checkpoint into service; return the one that is in service then.

        Raises ApiError: 400 when it cannot be loaded or does not fit, 503 when an actor was lost meanwhile.
        """
        weights = DraftWeights(time.time_ns(), checkpoint)
        try:
            await self._load(weights)
        except (ValueError, Unable) as error:
            raise refused("checkpoint", f"{str(error).rstrip('.')}; the draft in service stays.") from error
        except ActorLost as error:
            raise ApiError(503, f"{error} meanwhile: send this again in a moment.") from error
        try:
            await self._record.submit("put", self._configuration, weights)
        except Exception as error:
            log.warning("the record of the draft is unavailable: %s", error)
            raise ApiError(
                503, "the draft is loaded here, but other replicas may not have it: send this again."
            ) from error
        return self._group.infos["draft"].model

    async def _load(self, weights: DraftWeights) -> None:
        async with self._loading:
            if version_of(self._loaded) < weights.version:
                await self._group.swap_draft(weights)
                self._loaded = weights
                log.info("the draft in service is %s", weights.model)

    async def _follow(self) -> None:
        while True:
            if not await self._follow_once(WAIT_S):
                await asyncio.sleep(PAUSE_S)

    async def _follow_once(self, wait_s: float) -> bool:
        """Load what the record has, after at most `wait_s`. False when that failed."""
        weights: DraftWeights | None = None
        try:
            weights = await self._record.submit("newer", self._configuration, self._loaded, wait_s)
            if weights is not None:
                await self._load(weights)
        except Exception as error:
            what = weights.model if weights else "the record of the draft"
            log.error("%s is unavailable, so this replica keeps its draft for now: %s", what, error)
            return False
        return True


# -- HTTP --------------------------------------------------------------------------------------------------------------


class DraftRequest(Strict):
    checkpoint: str = Field(min_length=1, max_length=4096)
    """A folder that all nodes have, a hub id or the name of a built-in model."""


class DraftReply(BaseModel):
    draft: str
    """The checkpoint in service."""


def draft_routes(switch: DraftSwitch) -> APIRouter:
    """The endpoint over `switch`. The middleware checks the administrator's key."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/admin/draft", responses={status: {"model": ErrorReply} for status in (400, 401, 403, 503)})
    async def draft(asked: DraftRequest) -> DraftReply:
        """Put another checkpoint of the draft into service; requests are answered meanwhile."""
        return DraftReply(draft=await switch.serve(asked.checkpoint))

    return router
