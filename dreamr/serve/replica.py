"""`EndpointReplica`: one replica of the Ray Serve application, over a shared or a separate group of actors.

    serve app ─▶ replica 1 ─┐  each runs its own requests, supervises the actors, and finds them by name
                 replica 2 ─┴▶ <name>-draft, <name>-target, <name>-verifier     detached: they outlive replicas

    with `serve.groups`
    serve app ─▶ replica 1 ──▶ <name>-<replica>-draft, ...                      they end with their replica
                 replica 2 ──▶ <name>-<replica>-draft, ...

Shared actors belong to the application: they are stopped when it is deleted. Their name contains a digest of their
configuration, so an update with other models creates other actors:

update ─▶ new replicas over new actors ─▶ old replicas leave ─▶ Serve reports the update as done
                                                                      └─▶ a new replica stops the old actors
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import Awaitable
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.util import get_placement_group, list_named_actors, remove_placement_group

from actors.group import ActorGroup
from dreamr.config import Config, GroupConfig
from dreamr.serve.app import make_app
from dreamr.serve.drafts import DraftRecord, DraftSwitch
from dreamr.serve.middleware import api_keys, log_as_json
from dreamr.serve.retries import AnswerStore
from dreamr.serve.service import Service

log = logging.getLogger(__name__)

DIGEST = 8
"""Hexadecimal digits that distinguish groups of one name."""


class EndpointReplica:
    """One replica."""

    async def __init__(self, config: Config) -> None:  # type: ignore[misc]  # Serve awaits it
        log_as_json()
        context = serve.get_replica_context()
        self._app_name = context.app_name
        self._base_name = config.group.name or context.app_name
        self._owns_actors = config.serve.groups is not None
        self._group_config = named(config.group, context.app_name, context.replica_tag if self._owns_actors else None)
        self._group = ActorGroup(self._group_config, detached=not self._owns_actors)
        await self._group.start()
        shared = partial(_SharedActor, self._group_config.namespace)
        self._answers = shared(f"{self._base_name}-answers", AnswerStore, config.serve.keep_answers_s)
        self._service = Service(self._group, config, answers=self._answers)
        self._headers = {"X-Replica-ID": context.replica_tag}
        self._record: _SharedActor | None = None
        self._drafts: DraftSwitch | None = None
        if api_keys(config.serve.admin_key_env):
            self._record = shared(f"{self._base_name}-drafts", DraftRecord)
            self._drafts = DraftSwitch(self._group, self._record, digest(config.group), context.replica_tag)
            await self._drafts.start()
        log.info("replica %s is ready", context.replica_tag)
        if recommended := self._group.infos["target"].recommended:
            log.info("sampling that the target's generation_config.json recommends: %s", dict(recommended))
        if not api_keys(config.serve.api_key_env):
            log.warning("%s is not set: no API key is needed to use this endpoint", config.serve.api_key_env)

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Serve sends the id itself.
        return make_app(self._service, self._headers, echoes_id=False, drafts=self._drafts)

    async def check_health(self) -> None:
        """Called by Serve every few seconds. Actors that hang are restarted; a replica whose target is lost for good
        fails, so that Serve replaces it by one that creates a new target."""
        await self._service.check()
        if self._group.transport("target").gone:
            raise RuntimeError("the target actor was lost and cannot be restarted by this replica")
        await asyncio.to_thread(stop_superseded, self._base_name, self._group_config, self._app_name)

    async def __del__(self) -> None:
        group: ActorGroup | None = getattr(self, "_group", None)
        if group is None:
            return
        drafts: DraftSwitch | None = getattr(self, "_drafts", None)
        if drafts is not None:
            await drafts.stop()
        is_deleted = await asyncio.to_thread(self._application_is_deleted)
        await (group.stop() if is_deleted or self._owns_actors else group.leave())
        if is_deleted:
            for shared in filter(None, (self._answers, self._record)):
                shared.stop()

    def _application_is_deleted(self) -> bool:
        application = serve.status().applications.get(self._app_name)
        return application is None or application.status == ApplicationStatus.DELETING


class _SharedActor:
    """A detached actor that the replicas share. See `Answers`."""

    def __init__(self, namespace: str | None, name: str, kind: type, *arguments: Any) -> None:
        self._actor: Any = (
            ray.remote(kind)
            .options(
                name=name,
                namespace=namespace,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
            )
            .remote(*arguments)
        )

    def submit(self, method: str, *arguments: Any) -> Awaitable[Any]:
        call: Awaitable[Any] = getattr(self._actor, method).remote(*arguments)
        return call

    def stop(self) -> None:
        ray.kill(self._actor, no_restart=True)


def named(group: GroupConfig, app_name: str, owner: str | None = None) -> GroupConfig:
    """The group under a name that is unique to the application, the actors' configuration and, if given, the owner."""
    name, namespace = f"{group.name or app_name}-{digest(group)}", group.namespace or "dreamr"
    if owner is not None:
        name = f"{name}-{owner}"
    return group.model_copy(update={"name": name, "namespace": namespace})


def digest(group: GroupConfig) -> str:
    """Equal for equal configurations of the actors."""
    return hashlib.sha256(group.model_dump_json().encode()).hexdigest()[:DIGEST]


def stop_superseded(base_name: str, group: GroupConfig, app_name: str) -> None:
    """Stop the application's other shared groups, unless an update is under way. Blocks. `group` is a named one."""
    old = _superseded(base_name, group)
    application = serve.status().applications.get(app_name) if old else None
    if application is None or application.status != ApplicationStatus.RUNNING:
        return  # a replica that uses them may still be answering
    for name, actors in old.items():
        log.info("stopping %s, which an update has replaced", ", ".join(actors))
        # Another replica may be doing the same.
        for actor in actors:
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(actor, namespace=group.namespace), no_restart=True)
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(name))


def _superseded(base_name: str, group: GroupConfig) -> dict[str, list[str]]:
    """The actors of each shared group of the application that is not this one."""
    same_application = re.compile(
        rf"({re.escape(base_name)}-[0-9a-f]{{{DIGEST}}})-(?:draft|target|verifier)(?:-standby)?"
    )
    groups: dict[str, list[str]] = {}
    for actor in list_named_actors(all_namespaces=True):
        match = same_application.fullmatch(actor["name"])
        if match and actor["namespace"] == group.namespace and match[1] != group.name:
            groups.setdefault(match[1], []).append(actor["name"])
    return groups
