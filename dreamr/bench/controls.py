"""Control measurements: whether the target accepts its own steps, and the times that the simulator needs.

Step, verdict and call times come from the runs of two methods in which one model works at a time, so that
they are the times of each actor alone; forwards over several steps or tokens are measured separately, and so is the
slowdown of two actors at once (`dreamr.bench.side_by_side`).
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dreamr.bench.interleaved import Measurement
from dreamr.bench.report import Measured, StepTime
from dreamr.bench.side_by_side import Slowdown
from dreamr.config import PipelineSettings
from dreamr.errors import ActorLost
from dreamr.tasks.images import cold_copy
from dreamr.types import ROOT, Criterion, Proposal, Sampling, Step, Tokens
from pipelines import BASELINE, Trace, rule_of
from pipelines.handles import Handles
from pipelines.trace import CommittedStep, Span, acceptance_rate

log = logging.getLogger(__name__)

CRITERIA: tuple[Criterion, ...] = ("rho", "digit")
NUM_REPETITIONS = 12
NUM_ROWS = 4
SEQUENTIAL = "sequential"


async def self_acceptance(
    handles: Handles, settings: PipelineSettings, measurements: Sequence[Measurement]
) -> dict[str, float]:
    """The share of the target's own steps that it accepts, by kind of verdict. Not part of any measured time."""
    shares: dict[str, float] = {}
    for criterion in CRITERIA:
        rule = rule_of(PipelineSettings(verdict=criterion, alpha=settings.alpha))
        accepted: list[bool] = []
        try:
            for one in measurements:
                chain = _chain(one.trace.steps)
                verdicts = await handles.verifier.score_chain(
                    f"self/{criterion}/{one.index}", one.question.prompt, chain, criterion
                )
                accepted += [rule.accepts(verdict) for verdict in verdicts]
        except (ValueError, ActorLost) as error:  # an engine may lack a kind of verdict
            log.warning("no self-acceptance by %s: %s", criterion, error)
            continue
        if accepted:
            shares[criterion] = sum(accepted) / len(accepted)
    return shares


def _chain(steps: Sequence[CommittedStep]) -> tuple[Step, ...]:
    chain: list[Step] = []
    prefix: Tokens = ()
    for step in steps:
        if step.tokens:
            chain.append(Step(prefix, step.tokens, step.text))
            prefix += step.tokens
    return tuple(chain)


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """Seconds of the target's forwards over several steps or tokens."""

    verdict_step_s: float = 0.0
    check_s: float | None = None
    row_s: float | None = None


async def forward_times(
    handles: Handles, settings: PipelineSettings, measurements: Sequence[Measurement]
) -> ForwardTimes:
    """Judge one and several steps of the measured answers, check as many tokens as a proposal has, and write one and
    several steps at once.

    Each forward is measured on a copy of the prompt that was read, with no step cached.
    """
    further, checks, rows = [], [], []
    for number, one in enumerate(measurements[:NUM_REPETITIONS]):
        chain = _chain(one.trace.steps)
        try:
            if len(chain) > 1:
                alone_s = await _judged_s(handles, f"one/{number}", one, chain[:1])
                together_s = await _judged_s(handles, f"all/{number}", one, chain)
                further.append((together_s - alone_s) / (len(chain) - 1))
            checks.append(await _checked_s(handles, f"check/{number}", one, settings))
            rows.append(await _row_s(handles, f"rows/{number}", one, settings))
        except (ValueError, ActorLost) as error:  # an engine may lack token-level speculation
            log.warning("no measured times of forwards over several steps or tokens: %s", error)
            break
    return ForwardTimes(
        verdict_step_s=max(0.0, statistics.median(further)) if further else 0.0,
        check_s=statistics.median(checks) if checks else None,
        row_s=max(0.0, statistics.median(rows)) if rows else None,
    )


async def _judged_s(handles: Handles, name: str, one: Measurement, chain: tuple[Step, ...]) -> float:
    prompt = cold_copy(one.question.prompt, name)
    await handles.verifier.prefill(f"fill {name}", prompt)
    verdicts = await handles.verifier.score_chain(name, prompt, chain)
    return verdicts[0].ended - verdicts[0].started


async def _checked_s(handles: Handles, name: str, one: Measurement, settings: PipelineSettings) -> float:
    prompt = cold_copy(one.question.prompt, name)
    await handles.target.prefill(f"fill {name}", prompt)
    proposal = Proposal(one.trace.tokens[: settings.proposed_tokens])
    checked = await handles.target.check_tokens(name, prompt, ROOT, proposal, Sampling(max_tokens=settings.max_tokens))
    return checked.ended - checked.started


async def _row_s(handles: Handles, name: str, one: Measurement, settings: PipelineSettings) -> float:
    """Seconds that each further row adds to a forward of the target which writes several steps."""
    prompt = cold_copy(one.question.prompt, name)
    await handles.target.prefill(f"fill {name}", prompt)
    sampling = Sampling(max_tokens=settings.max_step_tokens)
    prefixes = [ROOT, *_chain(one.trace.steps)[: NUM_ROWS - 1]]
    (alone,) = await handles.target.next_steps(f"{name}/alone", prompt, prefixes[:1], [sampling])
    steps = await handles.target.next_steps(f"{name}/all", prompt, prefixes, [sampling] * len(prefixes))
    lengths = [len(step.tokens) for step in steps]
    token_s = (alone.ended - alone.started) / len(alone.tokens)
    together_s = max(step.ended for step in steps) - min(step.started for step in steps)
    return (together_s - max(lengths) * token_s) / max(1, sum(lengths) - max(lengths))


def measured(measurements: Sequence[Measurement], slowdown: Slowdown, forwards: ForwardTimes) -> Measured | None:
    """Times from the autoregressive and the sequential method; None when one of them was not measured."""
    alone = [one.trace for one in measurements if one.method == BASELINE]
    taking_turns = [one.trace for one in measurements if one.method == SEQUENTIAL]
    verdicts = [span.end - span.start for trace in taking_turns for span in trace.spans if _is_later_verdict(span)]
    if not alone or not verdicts:
        return None
    lengths = [len(trace.steps) for trace in alone]
    return Measured(
        target=step_time(alone, "target"),
        draft=step_time(taking_turns, "draft"),
        verdict_s=statistics.mean(verdicts),
        verdict_step_s=forwards.verdict_step_s,
        check_s=forwards.check_s,
        row_s=forwards.row_s,
        call_s=_call_s(alone),
        steps_low=min(lengths),
        steps_high=max(lengths),
        acceptance=_acceptance(measurements),
        together=slowdown.get("target", {}).get("draft", 1.0),
        slowdown=slowdown,
    )


def _is_later_verdict(span: Span) -> bool:
    """The first one of a request also reads the prompt."""
    return span.outcome == "verdict" and span.step > 0


def _call_s(traces: Sequence[Trace]) -> float:
    return sum(trace.orchestration_s for trace in traces) / sum(len(trace.steps) for trace in traces)


def _acceptance(measurements: Sequence[Measurement]) -> dict[str, float]:
    names = dict.fromkeys(one.method for one in measurements)
    rates = {}
    for name in names:
        rate = acceptance_rate(one.trace for one in measurements if one.method == name)
        if rate is not None:
            rates[name] = rate
    return rates


def step_time(traces: Sequence[Trace], lane: str) -> StepTime:
    """Step time of the actor with that lane, over all its steps that were not stopped."""
    spans = [span for trace in traces for span in trace.spans if span.lane == lane and span.outcome != "stopped"]
    later = [span for span in spans if span.step > 0]
    lengths = np.array([span.num_tokens for span in later], dtype=float)
    seconds = np.array([span.end - span.start for span in later])
    token_s, first_s = np.polyfit(lengths, seconds, 1) if len(set(lengths)) > 1 else (0.0, 0.0)
    if token_s <= 0:  # one length, or noise: a long step never takes less than a short one
        token_s, first_s = 0.0, seconds.mean()
    elif first_s < 0:  # then a line through the origin: times are not negative
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
