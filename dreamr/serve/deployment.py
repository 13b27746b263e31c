"""The Ray Serve application: replicas that answer HTTP over one lasting group of actors.

    serve app ─▶ replica 1 ─┐  each drives requests of its own, supervises, and finds the actors by name
                 replica 2 ─┴▶ <name>-draft, <name>-target, <name>-verifier     detached: they outlive replicas

The actors belong to the application: a replica that is stopped because the application is deleted takes them along.
Their name holds a digest of what they are, so an update with other models gets its own (succession.py).
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.schema import ApplicationStatus

from actors.group import ActorGroup
from dreamr.config import Config, load_config, with_draft
from dreamr.serve.app import api_keys, make_app
from dreamr.serve.errors import RETRY_AFTER_S
from dreamr.serve.logs import log_as_json
from dreamr.serve.service import Service
from dreamr.serve.succession import named, stop_superseded

log = logging.getLogger(__name__)

MOST_AT_PROXY = 100
"""Requests that may wait at a proxy when no replica takes any more."""


def build(arguments: dict[str, Any] | None = None) -> Application:
    """The application, by a configuration file (`{"config": path}`), a `Config`, or for the built-in pair ({}).

    `draft` names another draft model than the configuration does: a folder, hub id or built-in name.
    """
    arguments = arguments or {}
    if unknown := set(arguments) - {"config", "draft"}:
        raise ValueError(f"unknown arguments {sorted(unknown)}: there are 'config', a file, and 'draft', a model.")
    given = arguments.get("config")
    config = given if isinstance(given, Config) else load_config(Path(given) if given else None)
    config = with_draft(config, arguments.get("draft"))
    limits = config.serve.of_one_replica()
    deploy = serve.deployment(
        name=Reasoner.__name__,
        num_replicas=limits.num_replicas,
        # Our own line decides who waits and who is refused: Serve is not to hold back what it should see.
        max_ongoing_requests=10 * (limits.max_running + limits.max_queued) + 100,
        max_queued_requests=MOST_AT_PROXY,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        # New replicas first, then the old ones go: somebody answers all the time.
        max_surge_percent=100,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return deploy(serve.ingress()(Reasoner)).bind(config)


class Reasoner:
    """One replica."""

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        log_as_json()
        context = serve.get_replica_context()
        self._app_name = context.app_name
        self._group_config = named(config.group, context.app_name)
        self._group = ActorGroup(self._group_config, detached=True)
        await self._group.start()
        self._service = Service(self._group, config)
        self._headers = {"X-Replica-ID": context.replica_tag}
        log.info("replica %s is ready", context.replica_tag)
        if not api_keys(config.serve.api_key_env):
            log.warning("%s is not set: everybody who can reach this endpoint may ask", config.serve.api_key_env)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._service, self._headers, echoes_id=False)  # Serve sends the id itself

    async def check_health(self) -> None:
        """Serve asks every few seconds: actors that hang are restarted, and a replica whose target is lost for good
        gives way to one that makes a new target."""
        await self._service.check()
        if self._group.transport("target").gone:
            raise RuntimeError("the target actor is gone and this replica cannot bring it back")
        await asyncio.to_thread(stop_superseded, self._group_config, self._app_name)

    async def __del__(self) -> None:
        group: ActorGroup | None = getattr(self, "_group", None)
        if group is None:
            return
        if await asyncio.to_thread(self._is_deleted):
            await group.stop()
        else:
            await group.leave()

    def _is_deleted(self) -> bool:
        """Whether the application goes, and not this replica alone."""
        application = serve.status().applications.get(self._app_name)
        return application is None or application.status == ApplicationStatus.DELETING
