"""The metrics of the whole cluster as Prometheus text: a replica knows only itself, so Ray's agents are asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import aiohttp
import ray

from dreamr.serve.errors import ApiError

_OURS = re.compile(r"(?:# (?:HELP|TYPE) )?ray_(?:dreamr|serve)_")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_DEADLINE_S = 5.0


async def scrape() -> str:
    """This application's metrics of every node. Raises ApiError (503) when no agent answers."""
    nodes: list[dict[str, Any]] = ray.nodes() if ray.is_initialized() else []
    agents = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        texts = await asyncio.gather(*(_read(session, agent) for agent in agents))
    if not any(texts):
        raise ApiError(503, "no Ray node gives metrics: start Ray with its dashboard agent.", code="no_metrics")
    return ours(texts)


async def _read(session: aiohttp.ClientSession, agent: str) -> str:
    try:
        async with session.get(f"{agent}/metrics") as response:
            return await response.text() if response.status == 200 else ""
    except (TimeoutError, aiohttp.ClientError, OSError):
        return ""


def ours(texts: Sequence[str]) -> str:
    """The lines about this application, each family's head once."""
    heads: set[str] = set()
    lines = []
    for line in "\n".join(texts).splitlines():
        if not _OURS.match(line) or line in heads:
            continue
        if line.startswith("#"):
            heads.add(line)
        lines.append(line)
    return "\n".join(lines) + "\n"
