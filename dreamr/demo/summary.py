"""`Summary`: what one method did over all problems."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dreamr.config import GroupConfig, Method
from dreamr.demo.duel import Run
from dreamr.demo.speedup import Speedup, speedup

BASELINE: Method = "autoregressive"


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums and means over the problems of a run; rates are sums over sums, never means of rates."""

    method: Method
    num_problems: int
    right: int
    unparsed: int
    mean_wall_s: float
    speedup: Speedup | None
    """Against the autoregressive method on the same problems; None for itself, or when it did not run."""
    acceptance_rate: float | None
    """Accepted drafted steps / drafted steps that got a verdict which decided something."""
    coverage: float
    """Committed steps that came from the draft / all committed steps."""
    committed_tokens: int
    wasted_draft_tokens: int
    wasted_target_tokens: int
    orchestration_share: float
    num_losses: int
    actors: tuple[str, ...]
    """The actors that worked for it."""
    threads: int
    """Compute threads of these actors together."""
    gpus: float


def summarise(runs: Sequence[Run], group: GroupConfig, seed: int = 0) -> list[Summary]:
    """One summary per method, in the order in which the methods first ran."""
    by_method: dict[Method, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.problem):
        by_method.setdefault(run.method, []).append(run)
    baseline = [run.trace.wall_s for run in by_method.get(BASELINE, [])]
    return [_summary(method, own, group, _speedup(method, own, baseline, seed)) for method, own in by_method.items()]


def _speedup(method: Method, runs: list[Run], baseline: list[float], seed: int) -> Speedup | None:
    if method == BASELINE or not baseline:
        return None
    return speedup(baseline, [run.trace.wall_s for run in runs], seed)


def _summary(method: Method, runs: list[Run], group: GroupConfig, faster: Speedup | None) -> Summary:
    traces = [run.trace for run in runs]
    steps = [step for trace in traces for step in trace.steps]
    judged = sum(trace.num_judged for trace in traces)
    wall = sum(trace.wall_s for trace in traces)
    lanes = {span.lane for trace in traces for span in trace.spans}
    # A shared verifier has a lane of its own in the timeline, but works in the target's actor.
    actors = {role: actor for role, actor in group.actors().items() if role in lanes}
    return Summary(
        method=method,
        num_problems=len(runs),
        right=sum(run.right for run in runs),
        unparsed=sum(run.answer is None for run in runs),
        mean_wall_s=statistics.mean(trace.wall_s for trace in traces),
        speedup=faster,
        acceptance_rate=sum(trace.num_accepted for trace in traces) / judged if judged else None,
        coverage=sum(step.source == "draft" for step in steps) / len(steps),
        committed_tokens=sum(len(step.tokens) for step in steps),
        wasted_draft_tokens=sum(trace.wasted_draft_tokens for trace in traces),
        wasted_target_tokens=sum(trace.wasted_target_tokens for trace in traces),
        orchestration_share=sum(trace.orchestration_s for trace in traces) / wall,
        num_losses=sum(trace.num_losses for trace in traces),
        actors=tuple(actors),
        threads=sum(actor.num_threads for actor in actors.values()),
        gpus=sum(actor.num_gpus for actor in actors.values()),
    )
