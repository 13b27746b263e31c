"""Measurements beside the methods: whether the target accepts its own steps, and what two actors cost each other."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Sequence

from dreamr.bench.duel import Run
from dreamr.config import PipelineSettings
from dreamr.errors import ActorLost
from dreamr.tasks.images import cold_copy
from dreamr.types import ROOT, Criterion, Prompt, Sampling, Step, Tokens
from pipelines import rule_of
from pipelines.handles import Handles, Writer
from pipelines.trace import CommittedStep

log = logging.getLogger(__name__)

CRITERIA: tuple[Criterion, ...] = ("rho", "digit")
NUM_ALTERNATIONS = 12


async def self_acceptance(
    handles: Handles, settings: PipelineSettings, answers: Sequence[tuple[Prompt, Run]]
) -> dict[str, float]:
    """The share of its own steps that the target accepts, by kind of verdict. No part of any measured time."""
    shares: dict[str, float] = {}
    for criterion in CRITERIA:
        rule = rule_of(PipelineSettings(verdict=criterion, alpha=settings.alpha))
        accepted: list[bool] = []
        try:
            for prompt, run in answers:
                chain = _chain(run.trace.steps)
                verdicts = await handles.verifier.score_chain(
                    f"self/{criterion}/{run.problem}", prompt, chain, criterion
                )
                accepted += [rule.accepts(verdict) for verdict in verdicts]
        except (ValueError, ActorLost) as error:  # an engine need not know every kind of verdict
            log.warning("no self-acceptance by %s: %s", criterion, error)
            continue
        if accepted:
            shares[criterion] = sum(accepted) / len(accepted)
    return shares


def _chain(steps: Sequence[CommittedStep]) -> list[Step]:
    chain: list[Step] = []
    prefix: Tokens = ()
    for step in steps:
        if step.tokens:
            chain.append(Step(prefix, step.tokens, step.text))
            prefix += step.tokens
    return chain


async def slowdown_together(handles: Handles, settings: PipelineSettings, prompt: Prompt) -> float | None:
    """How much longer a step of the target and one of the draft take when both are written at once.

    1 when each has cores of its own; above, they share something: cores, caches, memory. None when an actor is lost.
    """
    sampling = Sampling(max_tokens=settings.max_step_tokens)
    try:
        ratios = [
            await _slowdown(handles, str(number), cold_copy(prompt, f"together {number}"), sampling)
            for number in range(NUM_ALTERNATIONS)
        ]
    except ActorLost as error:
        log.warning("no measured latencies, since a control could not be measured: %s", error)
        return None
    return max(1.0, statistics.median(ratios))


async def _slowdown(handles: Handles, name: str, prompt: Prompt, sampling: Sampling) -> float:
    await asyncio.gather(handles.target.prefill(f"fill {name}", prompt), handles.draft.prefill(f"fill {name}", prompt))
    alone = await _write(handles.target, f"alone {name}", prompt, sampling)
    draft = asyncio.create_task(_keep_busy(handles.draft, f"busy {name}", prompt, sampling))
    try:
        beside = await _write(handles.target, f"beside {name}", prompt, sampling)
    finally:
        draft.cancel()
        (ended,) = await asyncio.gather(draft, return_exceptions=True)
    if isinstance(ended, Exception):  # then the target was not in company all the time
        raise ended
    return beside / alone


async def _write(writer: Writer, call_id: str, prompt: Prompt, sampling: Sampling) -> float:
    """Seconds of the first step, the prompt having been read."""
    began = time.time()
    await writer.next_step(call_id, prompt, ROOT, sampling)
    return time.time() - began


async def _keep_busy(writer: Writer, call_id: str, prompt: Prompt, sampling: Sampling) -> None:
    """Write the same step again and again, until cancelled."""
    number = 0
    while True:
        await writer.next_step(f"{call_id}/{number}", prompt, ROOT, sampling)
        number += 1
