"""Makes a `Report` from measurements: a summary of each method over all questions, and the oracle."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from dreamr.bench.interleaved import Measurement
from dreamr.bench.methods import ASSISTANT, Method
from dreamr.bench.report import Latency, Machine, MethodReport, Model, Report, Row, Speedup, Tokens
from dreamr.config import Config
from dreamr.speedups import mean_with_interval
from dreamr.types import EngineInfo, Role
from pipelines import BASELINE, Trace
from pipelines.trace import acceptance_rate

ORACLE = "oracle"
ORACLE_SOURCES = ("sequential", "fpsr")
"""Methods from whose times the oracle is computed; in the first one, a single model works at a time."""


def make_report(
    config: Config,
    seed: int,
    machine: Machine,
    models: Mapping[Role, EngineInfo],
    methods: Sequence[Method],
    measurements: Sequence[Measurement],
    *,
    failed: Mapping[str, str],
    benchmark: str = "ledger",
    data: str = "",
) -> Report:
    """The report of measurements in the order in which they ran, without the controls."""
    return Report(
        command=shlex.join(["dreamr", *sys.argv[1:]]),
        seed=seed,
        benchmark=benchmark,
        data=data,
        config=config.model_dump(mode="json"),
        machine=machine,
        models=model_reports(models),
        problems=[row(one) for one in measurements],
        methods=summarise(measurements, methods, machine.cores, seed),
        failed=dict(failed),
    )


def model_reports(models: Mapping[Role, EngineInfo]) -> dict[str, Model]:
    """Name, device and size of the model in each actor."""
    return {
        role: Model(model=info.model, device=info.device, num_parameters=info.num_parameters)
        for role, info in models.items()
    }


def summarise(
    measurements: Sequence[Measurement], methods: Sequence[Method], cores: int, seed: int = 0
) -> list[MethodReport]:
    """One summary per method, in their order; `cores` is what the machine has.

    Measurements of other methods are left out: those that failed later have not answered every question.
    """
    by_name: dict[str, list[Measurement]] = {method.spec.name: [] for method in methods}
    for one in sorted(measurements, key=lambda one: one.index):
        if one.method in by_name:
            by_name[one.method].append(one)
    baseline = [one.trace.wall_s for one in by_name.get(BASELINE, [])]
    return [
        _summary(method, own, cores, speedup(baseline, _walls(own), seed) if baseline else None)
        for method in methods
        if (own := by_name[method.spec.name])
    ]


def with_oracle(report: Report, measurements: Sequence[Measurement]) -> Report:
    """Add a row with the shortest time that speculation by whole steps can reach with these models.

    In the oracle every verdict is known beforehand: no time goes into verdicts, and only committed steps are written.
    A target with an assistant writes faster and gets a second row. The report is unchanged when no measured method
    allows the computation.
    """
    rows = [_oracle_from(report, measurements, assistant) for assistant in ("", ASSISTANT)]
    return report.model_copy(update={"methods": [*report.methods, *(row for row in rows if row)]})


def _oracle_from(report: Report, measurements: Sequence[Measurement], assistant: str) -> MethodReport | None:
    for name in ORACLE_SOURCES:
        own = sorted((one for one in measurements if one.method == name + assistant), key=lambda one: one.index)
        walls = [_oracle_s(one.trace) for one in own]
        if (source := report.method(name + assistant)) and all(walls):
            return _oracle(ORACLE + assistant, source, walls, _oracle_speedup(report, walls))
    return None


def speedup(baseline_s: Sequence[float], method_s: Sequence[float], seed: int = 0) -> Speedup:
    """Geometric mean of baseline / method, with a bootstrap interval, over wall times of the same questions."""
    ratios = [base / own for base, own in zip(baseline_s, method_s, strict=True)]
    mean, interval = mean_with_interval(ratios, seed)
    low, high = interval or (None, None)
    return Speedup(geomean=mean, low=low, high=high)


def _walls(measurements: Sequence[Measurement]) -> list[float]:
    return [one.trace.wall_s for one in measurements]


def _summary(method: Method, measurements: list[Measurement], cores: int, faster: Speedup | None) -> MethodReport:
    traces, num = [one.trace for one in measurements], len(measurements)
    walls = _walls(measurements)
    steps = sum(len(trace.steps) for trace in traces)
    lanes = {span.lane for trace in traces for span in trace.spans}
    # A shared verifier has a separate lane in the timeline, but runs in the target's actor.
    actors = {role: actor for role, actor in method.actors.items() if role in lanes}
    threads = sum(actor.num_threads for actor in actors.values())
    return MethodReport(
        name=method.spec.name,
        accuracy=sum(one.correct for one in measurements) / num,
        unparsed_rate=sum(one.answer is None for one in measurements) / num,
        truncated_rate=sum(trace.truncated for trace in traces) / num,
        speedup=faster,
        wall_s=sum(walls),
        acceptance_rate=acceptance_rate(traces),
        coverage=sum(trace.coverage * len(trace.steps) for trace in traces) / steps,
        skipped_share=sum(trace.num_skipped for trace in traces) / steps,
        tokens=Tokens(
            committed=sum(len(trace.tokens) for trace in traces),
            drafted=sum(trace.drafted_tokens for trace in traces),
            wasted_draft=sum(trace.wasted_draft_tokens for trace in traces),
            wasted_target=sum(trace.wasted_target_tokens for trace in traces),
            salvaged=sum(trace.salvaged_tokens for trace in traces),
        ),
        token_acceptance=token_acceptance([check for trace in traces for check in trace.checks]),
        verdict_mass=_mean([mass for trace in traces for mass in trace.verdict_masses]),
        cores=min(threads, cores),
        latency_s=_latency(walls),
        num_problems=num,
        num_losses=sum(trace.num_losses for trace in traces),
        orchestration_share=sum(trace.orchestration_s for trace in traces) / sum(walls),
        busy_s=_busy_s(traces),
        actors=list(actors),
        threads=threads,
        gpus=sum(actor.num_gpus for actor in actors.values()),
    )


def token_acceptance(checks: Sequence[tuple[int, int]]) -> list[float]:
    """By position, how often a proposed token was accepted with all those before it, where there was one."""
    most = max((proposed for proposed, _ in checks), default=0)
    rates = []
    for place in range(1, most + 1):
        accepted = [num_accepted >= place for proposed, num_accepted in checks if proposed >= place]
        rates.append(sum(accepted) / len(accepted))
    return rates


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _oracle_s(trace: Trace) -> float:
    return sum(span.end - span.start for span in trace.spans if span.outcome == "committed")


def _oracle_speedup(report: Report, walls: Sequence[float]) -> Speedup | None:
    baseline = sorted((row for row in report.problems if row.method == BASELINE), key=lambda row: row.problem)
    return speedup([row.wall_s for row in baseline], walls, report.seed) if report.method(BASELINE) else None


def _oracle(name: str, source: MethodReport, walls: list[float], faster: Speedup | None) -> MethodReport:
    changes: dict[str, object] = {
        "name": name,
        "computed_from": source.name,
        "speedup": faster,
        "wall_s": sum(walls),
        "tokens": source.tokens.model_copy(update={"wasted_draft": 0, "wasted_target": 0}),
        "latency_s": _latency(walls),
        "num_losses": 0,
        "orchestration_share": 0.0,
        "busy_s": {},
    }
    return source.model_copy(update=changes)


def _latency(walls: list[float]) -> Latency:
    p95 = statistics.quantiles(walls, n=20, method="inclusive")[-1] if len(walls) > 1 else walls[0]
    return Latency(p50=statistics.median(walls), p95=p95)


def _busy_s(traces: Sequence[Trace]) -> dict[str, float]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for trace in traces:
        for span in trace.spans:
            seconds[span.lane] += span.end - span.start
    return dict(seconds)


def row(one: Measurement) -> Row:
    """The measurement as the report shows it."""
    trace = one.trace
    return Row(
        problem=one.index,
        id=one.question.id,
        method=one.method,
        expected=" | ".join(one.question.key.answers),
        answer=one.answer,
        correct=one.correct,
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
