"""Predicted speedups: the schedules themselves, on scripted engines under a virtual clock.

Scenario ──▶ three scripted engines (and the cores that they share) ──▶ the same pipelines ──▶ wall times on a
                                                                       clock that jumps from event to event
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import async_solipsism

from actors.local import local_handles
from dreamr.bench.report import Speedup
from dreamr.bench.scenario import Scenario, Writing
from dreamr.bench.summary import speedup
from dreamr.config import PipelineSettings, ScriptedEngineConfig
from dreamr.engines.cores import Cores
from dreamr.engines.scripted import ScriptedEngine
from dreamr.errors import ConfigError
from dreamr.types import Prompt, Role
from pipelines import BASELINE, Request, Trace, check, rule_of, run
from pipelines.costs import Costs
from pipelines.handles import Handles
from pipelines.trace import acceptance_rate

T = TypeVar("T")

DRAFT, TARGET = 1, 2
"""Seeds of the two scripted models."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One method in a scenario."""

    method: str
    speedup: Speedup
    ideal: Speedup
    """The same if calls took no time and every actor had a separate device."""
    acceptance_rate: float | None
    coverage: float


def predict(
    scenario: Scenario, settings: PipelineSettings, methods: Sequence[str], num_problems: int
) -> Iterator[Prediction | None]:
    """A prediction per method; None for one that the settings do not allow, or whose kind of verdict has no acceptance
    rate in the scenario."""
    free = scenario.model_copy(update={"call_s": 0.0, "cores": None})
    plain, plain_free = (_walls(_runs(one, settings, BASELINE, num_problems)) for one in (scenario, free))
    for method in methods:
        if not _predictable(scenario, settings, method):
            yield None
            continue
        traces = _runs(scenario, settings, method, num_problems)
        ideal = _walls(_runs(free, settings, method, num_problems))
        yield Prediction(
            method,
            speedup(plain, _walls(traces)),
            speedup(plain_free, ideal),
            acceptance_rate(traces),
            sum(trace.coverage for trace in traces) / len(traces),
        )


def _predictable(scenario: Scenario, settings: PipelineSettings, method: str) -> bool:
    if method in (BASELINE, "token_speculative"):
        return True
    chosen = settings.model_copy(update={"method": method})
    try:
        check(chosen)
    except ConfigError:  # the method cannot use this kind of verdict
        return False
    return rule_of(chosen).kind in scenario.acceptance


def _walls(traces: Sequence[Trace]) -> list[float]:
    return [trace.wall_s for trace in traces]


def _runs(scenario: Scenario, settings: PipelineSettings, method: str, num_problems: int) -> list[Trace]:
    chosen = settings.model_copy(update={"method": method})
    costs = Costs()  # shared, as by the requests of real actors: `auto` begins without any
    return [virtual(_run(scenario, chosen, Prompt(f"problem {number}"), costs)) for number in range(num_problems)]


def virtual(work: Coroutine[Any, Any, T]) -> T:
    """Run on an event loop whose clock jumps from timer to timer: seconds of waiting take no time."""
    with asyncio.Runner(loop_factory=async_solipsism.EventLoop) as runner:
        return runner.run(work)


async def _run(scenario: Scenario, settings: PipelineSettings, prompt: Prompt, costs: Costs) -> Trace:
    clock = asyncio.get_running_loop().time
    handles = replace(simulated_handles(scenario, settings), costs=costs)
    return await run(Request(prompt, settings), handles, clock=clock)


def simulated_handles(scenario: Scenario, settings: PipelineSettings) -> Handles:
    """Draft, target and verifier of a scenario; use them in the running event loop."""
    loop = asyncio.get_running_loop()
    cores = Cores(scenario.cores, scenario.together, scenario.slowdown) if scenario.cores else None
    acceptance = scenario.acceptance.get(rule_of(settings).kind, 0.0)

    def engine(role: Role, seed: int, writing: Writing, max_batch: int = 1) -> ScriptedEngine:
        config = ScriptedEngineConfig(
            kind="scripted",
            seed=seed,
            imitates=TARGET,
            num_steps=scenario.num_steps,
            acceptance=acceptance,
            token_acceptance=scenario.token_acceptance,
            verdict_s=scenario.verdict_s,
            verdict_step_s=scenario.verdict_step_s,
            read_step_s=0.0 if role == "draft" else scenario.read_step_s,
            check_s=scenario.check_s,
            compare_s=scenario.compare_s,
            row_s=scenario.row_s,
            call_s=scenario.call_s,
            background=scenario.background,
            max_batch=max_batch,
            **writing.model_dump(),
        )
        return ScriptedEngine(config, loop.time, cores, role)

    draft = scenario.draft
    if settings.method == "token_speculative":  # it proposes the target's tokens, and so steps of the target's lengths
        draft = draft.model_copy(update={"step_tokens": scenario.target.step_tokens})
    target = engine("target", TARGET, scenario.target, scenario.max_batch)
    verifier = engine("verifier", TARGET, scenario.target, 1 if scenario.row_s is None else scenario.max_batch)
    return local_handles(engine("draft", DRAFT, draft), target, verifier)
