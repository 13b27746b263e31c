"""Whose actors are whose: names of groups, and the end of those that an update with other models leaves behind.

update ─▶ new replicas over new actors ─▶ old replicas leave ─▶ Serve calls the update done
                                                                      └─▶ a new replica stops the old actors
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.util import get_placement_group, list_named_actors, remove_placement_group

from dreamr.config import GroupConfig

log = logging.getLogger(__name__)

DIGEST = 8
"""Hexadecimal digits that tell apart groups of one name."""


def named(group: GroupConfig, app_name: str) -> GroupConfig:
    """The group under a name that tells apart applications, and what their actors are."""
    digest = hashlib.sha256(group.model_dump_json().encode()).hexdigest()[:DIGEST]
    name, namespace = f"{group.name or app_name}-{digest}", group.namespace or "dreamr"
    return group.model_copy(update={"name": name, "namespace": namespace})


def stop_superseded(group: GroupConfig, app_name: str) -> None:
    """Stop other groups of the application of `group`, a named one, unless an update of it is under way. Blocks."""
    old = _superseded(group)
    application = serve.status().applications.get(app_name) if old else None
    if application is None or application.status != ApplicationStatus.RUNNING:
        return  # a replica of them may still be answering
    for name, actors in old.items():
        log.info("stopping %s, which an update has replaced", ", ".join(actors))
        # Another replica may be doing the same.
        for actor in actors:
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(actor, namespace=group.namespace), no_restart=True)
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(name))


def _superseded(group: GroupConfig) -> dict[str, list[str]]:
    """The actors of each other group that differs from this one in its digest."""
    assert group.name, "the group has been named"
    kin = re.compile(rf"({re.escape(group.name[:-DIGEST])}[0-9a-f]{{{DIGEST}}})-[a-z]+")
    groups: dict[str, list[str]] = {}
    for actor in list_named_actors(all_namespaces=True):
        match = kin.fullmatch(actor["name"])
        if match and actor["namespace"] == group.namespace and match[1] != group.name:
            groups.setdefault(match[1], []).append(actor["name"])
    return groups
