"""Which group of actors gets a request: the one that has read its conversation before, unless it is busy.

    X-Session-ID ─▶ consistent hash ─▶ its group ─┬─▶ has a free slot: there, its prefix cache has the earlier turns
                                                  └─▶ busy: the group with the fewest requests, as without the header

A group that is added or removed moves only its share of the sessions. Ray Serve reads the header at its proxy (the name
is its setting RAY_SERVE_SESSION_ID_HEADER_KEY); bodies do not pass through its routers, so no other key is possible.
"""

from __future__ import annotations

from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica


class SessionRouter(ConsistentHashRouter):
    """A request router of Ray Serve. Runs in its proxies."""

    def initialize_state(self, **kwargs: Any) -> None:
        """`busy_at`: a group that works on so many requests has no free slot."""
        self._busy_at: int = kwargs.pop("busy_at")
        super().initialize_state(**kwargs)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are tried; of those in one list, the one with the fewest requests."""
        ranked = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is not None and pending_request.metadata.session_id and ranked:
            [preferred] = ranked[0]
            if (self._replica_queue_len_cache.get(preferred.replica_id) or 0) < self._busy_at:
                return ranked
        return [candidate_replicas] if candidate_replicas else []
