"""The Ray Serve application: replicas that answer HTTP over one lasting group of actors.

    serve app ─▶ replica 1 ─┐  each drives requests of its own, supervises, and finds the actors by name
                 replica 2 ─┴▶ <name>-draft, <name>-target, <name>-verifier     detached: they outlive replicas

The actors belong to the application: a replica that is stopped because the application is deleted takes them along.
Their name holds a digest of what they are, so an update with other models gets its own; the old replica, when it is
the only one, goes after the new one has come and takes the old ones along.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.schema import ApplicationStatus
from ray.util import list_named_actors

from dreamr.actors.group import ActorGroup
from dreamr.cli.inputs import with_draft
from dreamr.config import Config, GroupConfig, load_config
from dreamr.serve.app import api_keys, make_app
from dreamr.serve.errors import RETRY_AFTER_S
from dreamr.serve.logs import log_as_json
from dreamr.serve.service import Service

log = logging.getLogger(__name__)

MOST_AT_PROXY = 100
"""Requests that may wait at a proxy when no replica takes any more."""
DIGEST = 8
"""Hexadecimal digits that tell apart groups of one name."""


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
        # The new replica first, then the old one goes: only so can the old one see that its actors are superseded.
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
        self._app_name, self._config = context.app_name, config
        self._group_config = named(config.group, context.app_name)
        self._group = ActorGroup(self._group_config, lasting=True)
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
        if self._group.target.gone:
            raise RuntimeError("the target actor is gone and this replica cannot bring it back")

    async def __del__(self) -> None:
        group: ActorGroup | None = getattr(self, "_group", None)
        if group is None:
            return
        if await asyncio.to_thread(self._is_last):
            await group.stop()
        else:
            await group.leave()

    def _is_last(self) -> bool:
        """Whether no other replica needs these actors any more, now or later."""
        application = serve.status().applications.get(self._app_name)
        if application is None or application.status == ApplicationStatus.DELETING:
            return True
        return self._config.serve.num_replicas == 1 and _is_superseded(self._group_config)


def named(group: GroupConfig, app_name: str) -> GroupConfig:
    """The group under a name that tells apart applications, and what their actors are."""
    digest = hashlib.sha256(group.model_dump_json().encode()).hexdigest()[:DIGEST]
    name, namespace = f"{group.name or app_name}-{digest}", group.namespace or "dreamr"
    return group.model_copy(update={"name": name, "namespace": namespace})


def _is_superseded(group: GroupConfig) -> bool:
    """Whether actors of the same application exist that are something else."""
    assert group.name, "the group has been named"
    kin = re.compile(rf"{re.escape(group.name[:-DIGEST])}[0-9a-f]{{{DIGEST}}}-[a-z]+")
    actors = [actor for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == group.namespace]
    names = [actor["name"] for actor in actors if kin.fullmatch(actor["name"])]
    return any(not name.startswith(group.name) for name in names)
