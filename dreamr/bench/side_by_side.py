"""Control measurement: how much longer each role's work takes while another role works as well.

alone     target [ step ]                     1 when they share nothing; more when they share cores, caches or memory
beside    target [   step   ]
          draft  [step][step][step]...
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

from dreamr.config import PipelineSettings
from dreamr.errors import ActorLost
from dreamr.tasks.images import cold_copy
from dreamr.types import ROOT, Prompt, Role, Sampling
from pipelines.handles import Handle, Handles

log = logging.getLogger(__name__)

NUM_ALTERNATIONS = 12

Slowdown = dict[Role, dict[Role, float]]
_Work = Callable[[str], Coroutine[Any, Any, Any]]


async def slowdown(handles: Handles, settings: PipelineSettings, prompt: Prompt) -> Slowdown | None:
    """By role, then by the role beside it: the time of a step, or of a verdict, / its time alone.

    Roles that share an actor are left out. None when an actor is lost.
    """
    ratios: defaultdict[tuple[Role, Role], list[float]] = defaultdict(list)
    try:
        for number in range(NUM_ALTERNATIONS):
            copy = cold_copy(prompt, f"side by side {number}")
            for pair, ratio in (await _ratios(handles, str(number), copy, settings)).items():
                ratios[pair].append(ratio)
    except (ActorLost, ValueError) as error:
        log.warning("no measured latencies, since a control could not be measured: %s", error)
        return None
    found: Slowdown = defaultdict(dict)
    for (role, beside), several in ratios.items():
        found[role][beside] = max(1.0, statistics.median(several))
    return dict(found)


async def _ratios(
    handles: Handles, name: str, prompt: Prompt, settings: PipelineSettings
) -> dict[tuple[Role, Role], float]:
    sampling = Sampling(max_tokens=settings.max_step_tokens)
    parts: dict[Role, Handle] = {"draft": handles.draft, "target": handles.target, "verifier": handles.verifier}
    await asyncio.gather(*(part.prefill(f"fill {role} {name}", prompt) for role, part in parts.items()))
    step = await handles.draft.next_step(f"step {name}", prompt, ROOT, sampling)

    async def draft(call_id: str) -> None:
        await handles.draft.next_step(call_id, prompt, ROOT, sampling)

    async def target(call_id: str) -> None:
        await handles.target.next_step(call_id, prompt, ROOT, sampling)

    async def verifier(call_id: str) -> None:
        await handles.verifier.score(call_id, prompt, step)

    works: dict[Role, _Work] = {"draft": draft, "target": target, "verifier": verifier}
    alone = {role: await _seconds(work, f"alone {role} {name}") for role, work in works.items()}
    ratios: dict[tuple[Role, Role], float] = {}
    for other, busy in works.items():
        beside = [role for role in works if parts[role].transport is not parts[other].transport]
        repeating = asyncio.create_task(_repeat(busy, f"busy {other} {name}"))
        try:
            for role in beside:
                ratios[role, other] = await _seconds(works[role], f"{role} beside {other} {name}") / alone[role]
        finally:
            repeating.cancel()
            (ended,) = await asyncio.gather(repeating, return_exceptions=True)
        if isinstance(ended, Exception):  # it did not work throughout
            raise ended
    return ratios


async def _seconds(work: _Work, call_id: str) -> float:
    began = time.time()
    await work(call_id)
    return time.time() - began


async def _repeat(work: _Work, call_id: str) -> None:
    """Do the same work until cancelled."""
    number = 0
    while True:
        await work(f"{call_id}/{number}")
        number += 1
