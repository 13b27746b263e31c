"""What each method did over all problems."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from dreamr.bench.contender import Contender
from dreamr.bench.duel import Run
from dreamr.bench.schema import Latency, MethodReport, Row, Speedup, Tokens
from dreamr.bench.speedup import speedup
from pipelines import BASELINE


def summarise(runs: Sequence[Run], contenders: Sequence[Contender], cores: int, seed: int = 0) -> list[MethodReport]:
    """One summary per contender, in their order; `cores` is what the machine has.

    Runs of contenders that are not given are left out: those that failed later have not answered every problem.
    """
    by_name: dict[str, list[Run]] = {contender.entry.name: [] for contender in contenders}
    for run in sorted(runs, key=lambda run: run.problem):
        if run.name in by_name:
            by_name[run.name].append(run)
    baseline = [run.trace.wall_s for run in by_name.get(BASELINE, [])]

    def against_baseline(own: list[Run]) -> Speedup | None:
        return speedup(baseline, [run.trace.wall_s for run in own], seed) if baseline else None

    return [
        _summary(contender, own, cores, against_baseline(own))
        for contender in contenders
        if (own := by_name[contender.entry.name])
    ]


def _summary(contender: Contender, runs: list[Run], cores: int, faster: Speedup | None) -> MethodReport:
    traces = [run.trace for run in runs]
    walls = [trace.wall_s for trace in traces]
    judged = sum(trace.num_judged for trace in traces)
    steps = sum(len(trace.steps) for trace in traces)
    lanes = {span.lane for trace in traces for span in trace.spans}
    # A shared verifier has a lane of its own in the timeline, but works in the target's actor.
    actors = {role: actor for role, actor in contender.actors.items() if role in lanes}
    threads = sum(actor.num_threads for actor in actors.values())
    return MethodReport(
        name=contender.entry.name,
        accuracy=sum(run.right for run in runs) / len(runs),
        unparsed_rate=sum(run.answer is None for run in runs) / len(runs),
        speedup=faster,
        wall_s=sum(walls),
        acceptance_rate=sum(trace.num_accepted for trace in traces) / judged if judged else None,
        coverage=sum(trace.coverage * len(trace.steps) for trace in traces) / steps,
        tokens=Tokens(
            committed=sum(len(trace.tokens) for trace in traces),
            drafted=sum(trace.drafted_tokens for trace in traces),
            wasted_draft=sum(trace.wasted_draft_tokens for trace in traces),
            wasted_target=sum(trace.wasted_target_tokens for trace in traces),
        ),
        cores=min(threads, cores),
        latency_s=Latency(p50=statistics.median(walls), p95=_p95(walls)),
        num_problems=len(runs),
        num_losses=sum(trace.num_losses for trace in traces),
        orchestration_share=sum(trace.orchestration_s for trace in traces) / sum(walls),
        busy_s=_busy_s(runs),
        actors=list(actors),
        threads=threads,
        gpus=sum(actor.num_gpus for actor in actors.values()),
    )


def _busy_s(runs: list[Run]) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        for span in run.trace.spans:
            seconds[span.lane] += span.end - span.start
    return dict(seconds)


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def row(run: Run) -> Row:
    """The run as the report shows it."""
    trace = run.trace
    return Row(
        problem=run.problem,
        method=run.name,
        expected=run.expected,
        answer=run.answer,
        right=run.right,
        end=trace.end,
        wall_s=trace.wall_s,
        orchestration_s=trace.orchestration_s,
        num_steps=len(trace.steps),
        num_drafted=trace.num_drafted,
        num_judged=trace.num_judged,
        num_accepted=trace.num_accepted,
        committed_tokens=len(trace.tokens),
        drafted_tokens=trace.drafted_tokens,
        wasted_draft_tokens=trace.wasted_draft_tokens,
        wasted_target_tokens=trace.wasted_target_tokens,
        num_losses=trace.num_losses,
    )


def pictured(runs: Sequence[Run]) -> Run:
    """The run that a picture is made of: the first problem by the method that speculates, if one did."""
    first = [run for run in runs if run.problem == runs[0].problem]
    return max(first, key=lambda run: run.trace.num_drafted)
