"""Placement groups: what a group of actors needs, what the cluster has, and the reservation."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import ray
from ray.exceptions import RaySystemError
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import can_grow
from dreamr.config import ActorConfig, GroupConfig
from dreamr.errors import NotEnoughResources

RELEASE_GRACE_S = 2.0
"""Ray counts the resources of actors that have just ended as taken for a moment longer."""

EMPTY_BUNDLE = {"CPU": 0.001}
"""For an actor without resources: Ray refuses an empty bundle."""


async def find_or_reserve(config: GroupConfig) -> PlacementGroup:
    """The placement group with the group's name, else a new detached one with that name.

    Raises:
        NotEnoughResources: as `reserve`.
    """
    assert config.name, "a detached placement group is found by its name"
    try:
        return get_placement_group(config.name)
    except ValueError:
        pass
    try:
        return await reserve(config, detached=True)
    except RaySystemError as error:
        try:
            return get_placement_group(config.name)  # another process was faster
        except ValueError:
            raise error from None


async def reserve(config: GroupConfig, *, detached: bool = False) -> PlacementGroup:
    """Reserve one bundle per actor, in the order of `config.actors()`, then one per spare, before any is created.

    Raises:
        NotEnoughResources: the group does not fit, now or within `wait_for_resources_s`.
    """
    actors = config.actors()
    bundles = [actors[role].resources() or EMPTY_BUNDLE for role in (*actors, *config.spares())]
    name = config.name if detached else None
    return await reserve_bundles(bundles, config.wait_for_resources_s, config.placement, name)


async def reserve_bundles(
    bundles: list[dict[str, float]], wait_for_resources_s: float, strategy: str = "PACK", name: str | None = None
) -> PlacementGroup:
    """Reserve all the bundles or none; with a `name` the placement group is detached: it stays until it is removed.

    Raises NotEnoughResources as `reserve` does.
    """
    needed = total(bundles)
    everything: dict[str, float] = ray.cluster_resources()
    if (wait_for_resources_s == 0 or not can_grow()) and (short := missing(needed, everything)):
        raise NotEnoughResources(refusal(short, needed, everything, "the whole cluster has"))
    names = {"name": name, "lifetime": "detached"} if name else {}
    placement: PlacementGroup = placement_group(bundles, strategy=strategy, **names)
    try:
        patience = max(wait_for_resources_s, RELEASE_GRACE_S)
        placed = await asyncio.to_thread(placement.wait, patience)
        if not placed:
            available: dict[str, float] = ray.available_resources()
            short = missing(needed, available)
            raise NotEnoughResources(refusal(short, needed, available, "free now"))
    except BaseException:
        remove_placement_group(placement)
        raise
    return placement


def actor_options(config: ActorConfig, placement: PlacementGroup, bundle: int) -> dict[str, Any]:
    """Ray's options of an actor in one bundle of a placement group."""
    needs = config.resources()
    return {
        "num_cpus": config.num_cpus,
        "num_gpus": config.num_gpus,
        "memory": int(needs["memory"]) if "memory" in needs else None,
        "accelerator_type": config.accelerator_type,
        "resources": dict(config.custom_resources),
        "max_restarts": config.max_restarts,
        "runtime_env": {"env_vars": dict(config.env)} if config.env else None,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=bundle),
    }


def total(bundles: list[dict[str, float]]) -> dict[str, float]:
    """Sum over the bundles, by resource name."""
    needed: Counter[str] = Counter()
    for bundle in bundles:
        needed.update(bundle)
    return dict(needed)


def missing(needed: dict[str, float], offered: dict[str, float]) -> list[str]:
    """Names of the resources of which there is too little."""
    return [name for name, amount in needed.items() if offered.get(name, 0.0) < amount - 1e-9]


def refusal(short: list[str], needed: dict[str, float], offered: dict[str, float], where: str) -> str:
    """One sentence. Without a shortage in total, the amounts do not fit together on the nodes."""
    names = short or sorted(needed)
    wants = ", ".join(f"{_amount(name, needed[name])} {name}" for name in names)
    has = ", ".join(f"{_amount(name, offered.get(name, 0.0))} {name}" for name in names)
    reason = "" if short else " in total, but not where group.placement wants them"
    return (
        f"not enough resources for the actors: needed {wants}; {where}: {has}{reason}. "
        "Ask for less (num_cpus, num_gpus, memory_mb, accelerator_type, custom_resources), free some, or set "
        "group.wait_for_resources_s."
    )


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**20:.0f} MiB of" if name == "memory" else f"{amount:g}"
