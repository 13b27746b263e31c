"""How long the pair takes for what, from runs in which one model works at a time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from dreamr.bench.duel import Run
from dreamr.bench.schema import Measured, StepTime
from pipelines import BASELINE, Trace
from pipelines.trace import Span

SEQUENTIAL = "sequential"


def measured(runs: Sequence[Run], together: float) -> Measured | None:
    """From the runs of the autoregressive and the sequential method; None when one of them is missing."""
    alone = [run.trace for run in runs if run.name == BASELINE]
    taking_turns = [run.trace for run in runs if run.name == SEQUENTIAL]
    verdicts = [span.end - span.start for trace in taking_turns for span in trace.spans if _is_later_verdict(span)]
    if not alone or not verdicts:
        return None
    lengths = [len(trace.steps) for trace in alone]
    return Measured(
        target=step_time(alone, "target"),
        draft=step_time(taking_turns, "draft"),
        verdict_s=statistics.mean(verdicts),
        call_s=_call_s(alone),
        steps_low=min(lengths),
        steps_high=max(lengths),
        acceptance=_acceptance(runs),
        together=together,
    )


def _is_later_verdict(span: Span) -> bool:
    """The first one of a request also reads the prompt."""
    return span.outcome == "verdict" and span.step > 0


def _call_s(traces: Sequence[Trace]) -> float:
    return sum(trace.orchestration_s for trace in traces) / sum(len(trace.steps) for trace in traces)


def _acceptance(runs: Sequence[Run]) -> dict[str, float]:
    names = dict.fromkeys(run.name for run in runs)
    rates = {}
    for name in names:
        traces = [run.trace for run in runs if run.name == name]
        if judged := sum(trace.num_judged for trace in traces):
            rates[name] = sum(trace.num_accepted for trace in traces) / judged
    return rates


def step_time(traces: Sequence[Trace], lane: str) -> StepTime:
    """Of the actor with that lane, over all its steps that were not stopped."""
    spans = [span for trace in traces for span in trace.spans if span.lane == lane and span.outcome != "stopped"]
    later = [span for span in spans if span.step > 0]
    lengths = np.array([span.num_tokens for span in later], dtype=float)
    seconds = np.array([span.end - span.start for span in later])
    token_s, first_s = np.polyfit(lengths, seconds, 1) if len(set(lengths)) > 1 else (0.0, 0.0)
    if token_s <= 0:  # one length, or noise: a long step takes no less than a short one
        token_s, first_s = 0.0, seconds.mean()
    elif first_s < 0:  # a line through the origin then: no step takes less than nothing
        token_s, first_s = float((lengths * seconds).sum() / (lengths**2).sum()), 0.0
    first = [span.end - span.start - first_s - token_s * span.num_tokens for span in spans if span.step == 0]
    every = np.array([span.num_tokens for span in spans])
    return StepTime(
        prompt_s=max(0.0, statistics.mean(first)) if first else 0.0,
        first_s=float(first_s),
        token_s=float(token_s),
        num_steps=len(spans),
        tokens_low=int(np.quantile(every, 0.05)),
        tokens_mean=float(every.mean()),
        tokens_high=int(np.quantile(every, 0.95)),
    )
