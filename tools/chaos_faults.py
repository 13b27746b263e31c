"""The faults of `tools.chaos`: processes that are killed or stopped, and the time until the service is well again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from dreamr.config import Config
from tools.chaos_clients import Load

RECOVERY_DEADLINE_S = 180.0
POLL_S = 0.1
_SIGNALS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: the victim and what happens to it."""

    what: str
    fault: Literal["none", "kill", "hang"]
    spare: bool = False
    """Whether the victim's role has a spare actor."""


NO_FAULT = Fault("none", "none")
_KINDS: tuple[Literal["kill", "hang"], ...] = ("kill", "hang")
FAULTS = [Fault(what, kind) for what in ("draft", "target", "verifier", "core", "replica", "proxy") for kind in _KINDS]
"""SIGKILL or SIGSTOP. `core` is a vLLM process of the target, if it has one."""
SPARE_FAULTS = [Fault("target", kind, spare=True) for kind in _KINDS]
NODE_FAULT = Fault("node", "kill")
"""The target's node: its raylet and all its workers."""


def with_spare_target(config: Config) -> Config:
    return _with_target(config, {"standby": 1})


def _with_target(config: Config, changes: dict[str, Any]) -> Config:
    target = config.group.target.model_copy(update=changes)
    return config.model_copy(update={"group": config.group.model_copy(update={"target": target})})


def processes(what: str) -> set[int]:
    """Process ids of a role, of the replicas, of the proxies, or of vLLM's own processes."""
    import ray

    if what == "core":
        return {core for target in processes("target") for core in vllm_cores(target)}
    marks: dict[str, Callable[[str], bool]] = {
        "replica": lambda name: "#dreamr#" in name,
        "proxy": lambda name: "SERVE_PROXY" in name,
        "node": lambda name: name.endswith("-target"),
    }
    is_it = marks.get(what, lambda name: name.endswith(f"-{what}"))
    actors = ray._private.state.actors().values()
    return {actor["Pid"] for actor in actors if actor["State"] == "ALIVE" and is_it(actor["Name"])}


def vllm_cores(pid: int) -> list[int]:
    """vLLM's processes that an actor has started; a thread has, so they are not among the main thread's children."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for started in threads for child in started.read_text().split()]
    return [int(child) for child in children if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def fault_row(
    load: Load,
    fault: Fault,
    num_clients: int,
    expected: dict[int, str],
    strike: Callable[[int], None] | None = None,
) -> dict[str, Any] | None:
    """One row; None when there is no such process. `strike` replaces the signal to the victim."""
    victims = await asyncio.to_thread(processes, fault.what) if fault != NO_FAULT else set()
    if fault != NO_FAULT and not victims:
        return None
    running_load = asyncio.create_task(load.run(num_clients), name=f"{fault.what} {fault.fault}")
    recovered: float | None = 0.0
    if victims:
        await load.third.wait()
        victim = min(victims)
        if strike is None:
            os.kill(victim, _SIGNALS[fault.fault])
        else:
            await asyncio.to_thread(strike, victim)
        recovered = await _recovery_s(fault, victim, 0 if fault.spare else len(victims), load)
    await running_load
    asked = load.asked
    return asdict(fault) | {
        "requests": len(asked),
        "failed_once": sum(one.num_attempts > 1 or not one.is_answered for one in asked.values()),
        "failed": sum(not one.is_answered for one in asked.values()),
        "recovery_s": recovered,
        "longest_stall_s": max(one.longest_gap_s for one in asked.values()),
        "different": sum(
            expected.get(number, one.text) != one.text for number, one in asked.items() if one.is_answered
        ),
    }


async def _recovery_s(fault: Fault, victim: int, needed: int, load: Load) -> float | None:
    """Seconds until `needed` processes are in the victim's place and the service is healthy; None after a long time."""
    began = time.monotonic()
    while time.monotonic() - began < RECOVERY_DEADLINE_S:
        present = await asyncio.to_thread(processes, fault.what)
        if victim not in present and len(present) >= needed and await _is_healthy(load.http, load.url):
            return time.monotonic() - began
        await asyncio.sleep(POLL_S)
    return None


async def _is_healthy(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/health", timeout=aiohttp.ClientTimeout(total=5)) as response:
            return bool((await response.json())["status"] == "ok")
    except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError):
        return False


# -- several nodes -----------------------------------------------------------------------------------------------------


@contextmanager
def several_nodes(config: Config) -> Iterator[tuple[Config, Callable[[int], None]]]:
    """A simulated cluster on this machine: the configuration for it, and a function that kills a process's node.

    The head has everything but the target, for which there are two nodes.
    """
    import ray
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "resources": {"rest": 1}, "_system_config": quick}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, resources={"target": 1}) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)

        def kill_node_of(pid: int) -> None:
            actors = ray._private.state.actors().values()
            place = next(actor["Address"]["NodeID"] for actor in actors if actor["Pid"] == pid)
            cluster.remove_node(next(node for node in nodes if node.node_id == place), allow_graceful=False)

        yield _with_target(config, {"custom_resources": {"target": 1}}), kill_node_of
    finally:
        ray.shutdown()
        cluster.shutdown()
