"""The Ray cluster of the actors: a running one, or a local one that ends with this process."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from dreamr.config import ClusterSettings

CONNECT_DEADLINE_S = 5.0
NEWEST_CLUSTER = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray/ray_current_cluster"
"""Where Ray notes the address of the cluster that was started last; it stays when that cluster is killed."""

# Failure detection can only be configured when Ray starts; with Ray's defaults it takes 2 to 6 seconds.
_FAST_FAILURES = {
    "timeout_ms_task_wait_for_death_info": 0,  # fail the calls of a dead actor at once instead of after 1-2 s
    "core_worker_internal_heartbeat_ms": 100,
    "kill_worker_timeout_milliseconds": 200,  # SIGKILL for a process that ignores SIGTERM, instead of after 5 s
}


_started_here = threading.Event()
"""Set while this process is connected to a cluster that it has started."""


def connect(settings: ClusterSettings | None = None) -> None:
    """Connect to `settings.address`, else RAY_ADDRESS, else start a local cluster; nothing when already connected.

    The address `local` starts a local cluster in any case.

    Raises:
        ConnectionError: no cluster answers at that address.
    """
    settings = settings or ClusterSettings()
    if ray.is_initialized():
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address)
    else:
        _start_local(settings)


def disconnect() -> None:
    """Leave the cluster; a local one that was started here ends."""
    ray.shutdown()
    _started_here.clear()


def can_grow() -> bool:
    """Whether nodes may join: not a local cluster that was started here, which is this machine alone."""
    return not _started_here.is_set()


@contextmanager
def connected(settings: ClusterSettings | None = None) -> Iterator[None]:
    """Connect for the duration of a block; an existing connection is kept."""
    was_connected = ray.is_initialized()
    connect(settings)
    try:
        yield
    finally:
        if not was_connected:
            disconnect()


def _join(address: str) -> None:
    try:
        _check_that_the_port_answers(_of_newest_cluster() if address == "auto" else address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        if address == "auto" and NEWEST_CLUSTER.exists():
            raise ConnectionError(
                f"the cluster that {NEWEST_CLUSTER} names does not answer: run `ray stop` to remove what is left of "
                "it, then `ray start --head`, or use the address local."
            ) from error
        raise ConnectionError(
            f"no Ray cluster answers at '{address}' ({str(error).rstrip('.')}): correct cluster.address or "
            "RAY_ADDRESS, or leave both out to start a local one."
        ) from error


def _of_newest_cluster() -> str:
    return NEWEST_CLUSTER.read_text().strip() if NEWEST_CLUSTER.exists() else ""


def _check_that_the_port_answers(address: str) -> None:
    # Ray itself retries for minutes; it resolves `auto`, `local` and `ray://` addresses itself.
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_DEADLINE_S).close()


def _start_local(settings: ClusterSettings) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=settings.num_cpus or os.cpu_count(),
        include_dashboard=False,
        object_store_memory=settings.object_store_mb * 2**20,
        resources=settings.custom_resources,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config=_FAST_FAILURES,
    )
    _started_here.set()
