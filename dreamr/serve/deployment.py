"""The Ray Serve application: replicas that answer HTTP over one lasting group of actors.

    serve app ─▶ replica 1 ─┐  each drives requests of its own, supervises, and finds the actors by name
                 replica 2 ─┴▶ <name>-draft, <name>-target, <name>-verifier     detached: they outlive replicas

The actors belong to the application: a replica that is stopped because the application is deleted takes them along.
Their name holds a digest of what they are, so an update with other models gets its own; the old replica, when it is
the only one, takes the old ones along.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.schema import ApplicationStatus
from ray.util import list_named_actors

from dreamr.actors.group import ActorGroup
from dreamr.config import Config, GroupConfig, load_config
from dreamr.serve.app import api_keys, make_app
from dreamr.serve.logs import log_as_json
from dreamr.serve.service import Service

log = logging.getLogger(__name__)


def build(arguments: dict[str, Any] | None = None) -> Application:
    """The application, by a configuration file (`{"config": path}`), a `Config`, or for the built-in pair ({})."""
    arguments = arguments or {}
    if unknown := set(arguments) - {"config"}:
        raise ValueError(f"unknown arguments {sorted(unknown)}: the only one is 'config', a file or nothing.")
    given = arguments.get("config")
    config = given if isinstance(given, Config) else load_config(Path(given) if given else None)
    return Reasoner.options(  # type: ignore[no-any-return]
        num_replicas=config.serve.num_replicas,
        # Our own line decides who waits and who is refused: Serve is not to hold back what it should see.
        max_ongoing_requests=10 * (config.serve.max_running + config.serve.max_queued) + 100,
    ).bind(config)


@serve.deployment(
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=5,
    health_check_timeout_s=30,
    graceful_shutdown_wait_loop_s=0.5,
)
@serve.ingress()
class Reasoner:
    """One replica."""

    async def __init__(self, config: Config) -> None:
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
        is_last = self._config.serve.num_replicas == 1 and _is_superseded(self._app_name, self._group_config)
        if is_last or await asyncio.to_thread(_is_deleted, self._app_name):
            await group.stop()
        else:
            await group.leave()


def named(group: GroupConfig, app_name: str) -> GroupConfig:
    """The group under a name that tells apart applications, and what their actors are."""
    digest = hashlib.sha256(group.model_dump_json().encode()).hexdigest()[:8]
    name, namespace = f"{group.name or app_name}-{digest}", group.namespace or "dreamr"
    return group.model_copy(update={"name": name, "namespace": namespace})


def _is_superseded(app_name: str, group: GroupConfig) -> bool:
    """Whether actors of the same application exist that are something else."""
    mine = f"{group.name}-"
    names = [actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == group.namespace]
    return any(name.startswith(f"{app_name}-") and not name.startswith(mine) for name in names)


def _is_deleted(app_name: str) -> bool:
    application = serve.status().applications.get(app_name)
    return application is None or application.status == ApplicationStatus.DELETING
