"""Another draft checkpoint for a running service: `POST /v1/admin/draft`, and `GET` for what each replica has.

    POST ─▶ replica 1 ── load into its actors ─▶ ok ── put ──▶ DraftRecord (a Ray actor) ── newer ──▶ replica 2, 3, ...
                              └─▶ 400: nothing has changed                                              load it as well

Every replica waits for the record's next change, and a new replica begins with what the record has. Replicas that
share their actors find the checkpoint loaded already. When the record's actor is lost, the replicas fill it again.

A replica that cannot load the checkpoint tries again after growing pauses, keeps its draft after the last of them, and
reports that with its next call. The next checkpoint ends the pauses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cachetools import TTLCache
from fastapi import APIRouter
from pydantic import BaseModel, Field

from actors.swap import DraftWeights
from dreamr.config.base import Strict
from dreamr.errors import ActorLost, Unable, first_line
from dreamr.serve.bodies import JsonRoute
from dreamr.serve.errors import ApiError, refused
from dreamr.serve.replies import ErrorReply
from dreamr.serve.retries import Answers as Shared
from dreamr.types import EngineInfo, Role

log = logging.getLogger(__name__)

WAIT_S = 300.0
"""Longest wait of one call for a change; a replica that is gone leaves no call for longer."""
RECORD_PAUSE_S = 15.0
"""Between two attempts to reach the record."""
PAUSES_S = (5.0, 15.0, 45.0, 135.0, 300.0)
"""Before each further attempt to load a checkpoint."""
MAX_REPORTS = 1000


@dataclass(frozen=True, slots=True)
class ReplicaDraft:
    """What one replica has."""

    replica: str
    draft: str
    error: str | None
    """Why it does not have the draft in service; None while it has it or still tries."""


class DraftRecord:
    """The draft in service, by the configuration of the actors. Plain Python: replicas share one as a Ray actor."""

    def __init__(self) -> None:
        self._weights: dict[str, DraftWeights] = {}
        self._changed = asyncio.Condition()
        # A replica calls once per WAIT_S at least, so the reports of those that are gone are dropped.
        self._reports: TTLCache[tuple[str, str], ReplicaDraft] = TTLCache(MAX_REPORTS, 2 * WAIT_S)

    async def put(self, configuration: str, weights: DraftWeights) -> None:
        """Store weights unless there are later ones."""
        async with self._changed:
            if version_of(self._weights.get(configuration)) < weights.version:
                self._weights[configuration] = weights
                self._changed.notify_all()

    async def newer(
        self, configuration: str, known: DraftWeights | None, seen: int, wait_s: float, report: ReplicaDraft
    ) -> DraftWeights | None:
        """The stored weights, as soon as their version is above `seen`, at the latest after `wait_s`.

        `known`: what the caller has loaded.
        """
        self._reports[configuration, report.replica] = report
        if known is not None:
            await self.put(configuration, known)
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: version_of(self._weights.get(configuration)) > seen)
        except TimeoutError:
            pass
        return self._weights.get(configuration)

    async def reports(self, configuration: str) -> list[ReplicaDraft]:
        """What the replicas have reported lately."""
        return [report for (reported, _), report in self._reports.items() if reported == configuration]


def version_of(weights: DraftWeights | None) -> int:
    """0 for the configured checkpoint."""
    return 0 if weights is None else weights.version


class SwappingGroup(Protocol):
    """The part of `ActorGroup` that is used here."""

    @property
    def infos(self) -> dict[Role, EngineInfo]: ...

    async def swap_draft(self, weights: DraftWeights) -> None: ...


@dataclass(frozen=True, slots=True)
class _Failed:
    weights: DraftWeights
    num_attempts: int
    reason: str


class DraftSwitch:
    """One replica's draft. Use it from one event loop."""

    def __init__(
        self,
        group: SwappingGroup,
        record: Shared,
        configuration: str,
        replica: str,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        """`configuration`: distinguishes groups of actors by their models."""
        self._group, self._record, self._configuration = group, record, configuration
        self._replica, self._pauses_s = replica, pauses_s
        self._loaded: DraftWeights | None = None
        self._failed: _Failed | None = None
        """The last checkpoint, when it could not be loaded."""
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

    async def replicas(self) -> list[ReplicaDraft]:
        """What each replica has. Raises ApiError (503) when the record is unavailable."""
        try:
            reports: list[ReplicaDraft] = await self._record.submit("reports", self._configuration)
        except Exception as error:
            raise ApiError(503, "the record of the draft is unavailable: send this again in a moment.") from error
        return sorted(reports, key=lambda report: report.replica)

    async def _load(self, weights: DraftWeights) -> None:
        async with self._loading:
            if version_of(self._loaded) < weights.version:
                await self._group.swap_draft(weights)
                self._loaded = weights
                self._failed = None
                log.info("the draft in service is %s", weights.model)

    async def _follow(self) -> None:
        while True:
            pause_s = self._pause_s()
            if not await self._follow_once(WAIT_S if pause_s is None else pause_s):
                await asyncio.sleep(RECORD_PAUSE_S)

    async def _follow_once(self, wait_s: float) -> bool:
        """Load what the record has, after at most `wait_s`. False when the record is unavailable."""
        seen = max(version_of(self._loaded), version_of(self._failed.weights if self._failed else None))
        error = self._failed.reason if self._failed and self._pause_s() is None else None
        report = ReplicaDraft(self._replica, self._group.infos["draft"].model, error)
        try:
            weights: DraftWeights | None = await self._record.submit(
                "newer", self._configuration, self._loaded, seen, wait_s, report
            )
        except Exception as lost:
            log.error("the record of the draft is unavailable, so this replica keeps its draft for now: %s", lost)
            return False
        if weights is not None and (weights.version > seen or self._pause_s() is not None):
            await self._try(weights)
        return True

    async def _try(self, weights: DraftWeights) -> None:
        try:
            await self._load(weights)
        except Exception as error:
            before = self._failed.num_attempts if self._failed and self._failed.weights == weights else 0
            self._failed = _Failed(weights, before + 1, first_line(error))
            if self._pause_s() is None:
                kept = self._group.infos["draft"].model
                log.error("this replica keeps the draft %s: %s", kept, self._failed.reason)
            elif not before:
                log.warning("%s cannot be loaded by this replica yet: %s", weights.model, self._failed.reason)

    def _pause_s(self) -> float | None:
        """Seconds until the next attempt to load the checkpoint that failed; None when there is none to come."""
        if self._failed is None or self._failed.num_attempts > len(self._pauses_s):
            return None
        return self._pauses_s[self._failed.num_attempts - 1]


# -- HTTP --------------------------------------------------------------------------------------------------------------


class DraftRequest(Strict):
    checkpoint: str = Field(min_length=1, max_length=4096)
    """A folder that all nodes have, a hub id or the name of a built-in model."""


class DraftReply(BaseModel):
    draft: str
    """The checkpoint in service."""


class ReplicasReply(BaseModel):
    replicas: list[ReplicaDraft]


def draft_routes(switch: DraftSwitch) -> APIRouter:
    """The endpoint over `switch`. The middleware checks the administrator's key."""
    router = APIRouter(route_class=JsonRoute)

    @router.get("/v1/admin/draft", responses={status: {"model": ErrorReply} for status in (401, 403, 503)})
    async def drafts() -> ReplicasReply:
        """The draft of each replica."""
        return ReplicasReply(replicas=await switch.replicas())

    @router.post("/v1/admin/draft", responses={status: {"model": ErrorReply} for status in (400, 401, 403, 503)})
    async def draft(asked: DraftRequest) -> DraftReply:
        """Put another checkpoint of the draft into service; requests are answered meanwhile."""
        return DraftReply(draft=await switch.serve(asked.checkpoint))

    return router
