"""Counts and times of answers: usage, speculation, steps, and metrics under vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dreamr.serve.questions import Question
from dreamr.serve.replies import (
    CompletionTokensDetails,
    FinishReason,
    RequestMetrics,
    RunInfo,
    Speculation,
    SpeculativeDecoding,
    StepInfo,
    Usage,
)
from dreamr.serve.service import Answered
from dreamr.types import Verdict
from pipelines import Trace, rule_of, window_of
from pipelines.trace import CommittedStep, Span, acceptance_rate
from pipelines.verification import Rule

_FINISH: dict[str, FinishReason] = {"answered": "stop", "enough": "stop", "budget": "length", "loop": "length"}
"""`loop`, an answer that repeats itself, is incomplete: to OpenAI's clients that is `length`."""


def finish_reason(answered: Answered) -> FinishReason:
    """Why an answer ended."""
    return _FINISH[answered.trace.end]


def run_info(answered: Answered, question: Question) -> RunInfo:
    """The whole run of one answer."""
    trace, rule = answered.trace, rule_of(question.settings)
    return RunInfo(
        method=trace.method,
        alpha=question.settings.alpha,
        window=window_of(question.settings),
        end=trace.end,
        wall_s=trace.wall_s,
        queued_s=answered.queued_s,
        orchestration_s=trace.orchestration_s,
        steps=[step_info(step, rule) for step in trace.steps],
        timeline=[_span_info(span, trace, rule) for span in trace.spans] if question.timeline else None,
    )


def step_info(step: CommittedStep, rule: Rule) -> StepInfo:
    """Author, verdict and time of a step."""
    return StepInfo(
        index=step.index,
        source=step.source,
        rho=_rho(step.score, rule),
        accepted=None if step.score is None else step.source == "draft",
        at=step.at,
        num_tokens=len(step.tokens),
    )


def _span_info(span: Span, trace: Trace, rule: Rule) -> dict[str, Any]:
    info = asdict(span) | {"rho": _rho(span.score, rule)}
    if span.outcome != "verdict":
        return info
    if span.score is not None:
        return info | {"accepted": rule.accepts(Verdict(span.score))}
    # The verdicts on a whole chain: whether the first of them, at the frontier, accepted.
    return info | {"accepted": trace.steps[span.step].source == "draft" if span.step < len(trace.steps) else None}


def _rho(value: float | None, rule: Rule) -> float | None:
    """The score where it is a rho, and not a digit or a similarity."""
    return value if rule.kind == "rho" else None


def usage_of(prompt_tokens: int, answered: Sequence[Answered], rule: Rule) -> Usage:
    """Sums over the choices of one request, whose drafted steps were judged by `rule`."""
    traces = [one.trace for one in answered]
    counts = _speculation(traces, rule)
    completion = sum(len(trace.tokens) for trace in traces)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion,
        total_tokens=prompt_tokens + completion,
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=sum(one.reasoning_tokens for one in answered),
            accepted_prediction_tokens=counts.num_accepted_tokens,
            rejected_prediction_tokens=counts.wasted_draft_tokens,
        ),
        speculation=counts,
    )


def _speculation(traces: Sequence[Trace], rule: Rule) -> Speculation:
    rhos = [step.score for trace in traces for step in trace.steps if step.score is not None and rule.kind == "rho"]
    drafted, wasted = sum(trace.drafted_tokens for trace in traces), sum(trace.wasted_draft_tokens for trace in traces)
    lengths = [len(trace.tokens if trace.method == "token_speculative" else trace.steps) for trace in traces]
    return Speculation(
        num_drafts=sum(trace.num_drafted for trace in traces),
        num_judged=sum(trace.num_judged for trace in traces),
        num_accepted=sum(trace.num_accepted for trace in traces),
        num_draft_tokens=drafted,
        num_accepted_tokens=drafted - wasted,
        wasted_draft_tokens=wasted,
        wasted_target_tokens=sum(trace.wasted_target_tokens for trace in traces),
        acceptance_rate=acceptance_rate(traces),
        coverage=sum(trace.coverage * length for trace, length in zip(traces, lengths, strict=True)) / sum(lengths),
        mean_rho=sum(rhos) / len(rhos) if rhos else None,
        num_losses=sum(trace.num_losses for trace in traces),
    )


def metrics_of(answered: Sequence[Answered]) -> RequestMetrics | None:
    """Times and acceptance of a request with one choice; None for several."""
    if len(answered) != 1:
        return None
    [one] = answered
    trace, num_tokens = one.trace, len(one.trace.tokens)
    first, whole = trace.steps[0].at, trace.wall_s
    num_later = num_tokens - len(trace.steps[0].tokens)
    return RequestMetrics(
        time_to_first_token_ms=1000 * first,
        generation_time_ms=1000 * (whole - first),
        queue_time_ms=1000 * one.queued_s,
        mean_itl_ms=1000 * (whole - first) / num_later if num_later else None,
        tokens_per_second=num_tokens / whole if whole else None,
        speculative_decoding=_acceptance(trace),
    )


def _acceptance(trace: Trace) -> SpeculativeDecoding | None:
    decided = [span for span in trace.spans if span.lane == "draft" and span.outcome in ("committed", "rejected")]
    if not decided:
        return None
    accepted, drafted = [span.num_kept for span in decided], [span.num_tokens for span in decided]
    total = sum(accepted)
    return SpeculativeDecoding(
        mean_acceptance_length=1 + total / len(decided),
        draft_acceptance_rate=total / trace.drafted_tokens,
        acceptance_histogram=[accepted.count(number) for number in range(max(drafted) + 1)],
        num_spec_steps=len(decided),
        num_accepted_draft_tokens=total,
        num_draft_tokens=trace.drafted_tokens,
        num_spec_tokens=max(drafted),
        per_step_accepted=accepted,
        per_step_drafted=drafted,
    )
