"""Prometheus metrics: `Metrics` counts what one replica does, `scrape` collects the text of the whole cluster.

Ray exports each metric as `ray_<name>`. Names follow vLLM's where it has the same metric.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import aiohttp
import ray
from ray.util.metrics import Counter, Gauge, Histogram

from dreamr.serve.errors import ApiError
from dreamr.types import Role
from pipelines import Trace
from pipelines.verification import Rule

_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600]
_SHARES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OURS = re.compile(r"(?:# (?:HELP|TYPE) )?ray_(?:dreamr|serve)_")
_SCRAPE_DEADLINE_S = 5.0


class Metrics:
    """The metrics of one replica. Without Ray they are dropped."""

    def __init__(self) -> None:
        self._requests = Counter(
            "dreamr_requests_total", "Answers by outcome: an `End`, failed, or cancelled.", ("method", "outcome")
        )
        self._generated = Counter("dreamr_generation_tokens_total", "Committed tokens.", ("source",))
        self._wasted = Counter("dreamr_wasted_tokens_total", "Tokens written and not committed.", ("role",))
        self._drafts = Counter("dreamr_spec_decode_num_drafts_total", "Drafted steps.")
        self._judged = Counter("dreamr_spec_decode_num_judged_total", "Drafted steps that a verdict decided on.")
        self._accepted = Counter("dreamr_spec_decode_num_accepted_total", "Accepted drafted steps.")
        self._skipped = Counter("dreamr_spec_decode_num_skipped_total", "Drafted steps committed without a verdict.")
        self._draft_tokens = Counter("dreamr_spec_decode_num_draft_tokens_total", "Drafted tokens.")
        self._accepted_tokens = Counter("dreamr_spec_decode_num_accepted_tokens_total", "Accepted drafted tokens.")
        self._losses = Counter("dreamr_actor_losses_total", "Calls lost with their actor.")
        self._rho = Histogram("dreamr_verifier_rho", "Verdicts that decided on a step.", _SHARES)
        self._latency = Histogram(
            "dreamr_e2e_request_latency_seconds",
            "Wall time of an answer, queue time included.",
            _SECONDS,
            ("method",),
        )
        self._queued = Histogram("dreamr_request_queue_time_seconds", "Time in the queue.", _SECONDS)
        self._inference = Histogram(
            "dreamr_request_inference_time_seconds",
            "Wall time of an answer without its queue time.",
            _SECONDS,
            ("method",),
        )
        self._first = Histogram(
            "dreamr_time_to_first_step_seconds",
            "Until the first step is committed, queue time included.",
            _SECONDS,
        )
        self._refused = Counter("dreamr_refused_total", "Requests refused, by HTTP status.", ("status",))
        self._running = Gauge("dreamr_num_requests_running", "Answers that run.")
        self._waiting = Gauge("dreamr_num_requests_waiting", "Answers that wait in the queue.")
        self._up = Gauge("dreamr_actor_up", "1 when the actor answers.", ("role",))

    def load(self, running: int, waiting: int) -> None:
        self._running.set(running)
        self._waiting.set(waiting)

    def actors(self, up: dict[Role, bool]) -> None:
        for role, answers in up.items():
            self._up.set(float(answers), {"role": role})

    def refused(self, status: int) -> None:
        self._refused.inc(1, {"status": str(status)})

    def ended(self, method: str, outcome: str) -> None:
        """An answer that failed or was cancelled."""
        self._requests.inc(1, {"method": method, "outcome": outcome})

    def answered(self, trace: Trace, rule: Rule, queued_s: float) -> None:
        """A finished answer, whose drafted steps were judged by `rule`."""
        self.ended(trace.method, trace.end)
        self._queued.observe(queued_s)
        self._inference.observe(trace.wall_s, {"method": trace.method})
        self._latency.observe(queued_s + trace.wall_s, {"method": trace.method})
        self._first.observe(queued_s + trace.steps[0].at)
        from_draft = trace.drafted_tokens - trace.wasted_draft_tokens
        _add(self._accepted_tokens, from_draft)
        _add(self._generated, from_draft, {"source": "draft"})
        _add(self._generated, len(trace.tokens) - from_draft, {"source": "target"})
        _add(self._wasted, trace.wasted_draft_tokens, {"role": "draft"})
        _add(self._wasted, trace.wasted_target_tokens, {"role": "target"})
        _add(self._drafts, trace.num_drafted)
        _add(self._judged, trace.num_judged)
        _add(self._accepted, trace.num_accepted)
        _add(self._skipped, trace.num_skipped)
        _add(self._draft_tokens, trace.drafted_tokens)
        _add(self._losses, trace.num_losses)
        for step in trace.steps if rule.kind == "rho" else ():
            if step.score is not None:
                self._rho.observe(step.score)


def _add(counter: Counter, amount: float, tags: dict[str, str] | None = None) -> None:
    if amount:  # Ray raises for an increment of 0
        counter.inc(amount, tags or {})


async def scrape() -> str:
    """This application's metrics on every node: a replica has only its own, so Ray's agents are asked.

    Raises ApiError (503) when no agent answers.
    """
    nodes: list[dict[str, Any]] = ray.nodes() if ray.is_initialized() else []
    agents = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    timeout = aiohttp.ClientTimeout(total=_SCRAPE_DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        texts = await asyncio.gather(*(_read(session, agent) for agent in agents))
    if not any(texts):
        raise ApiError(503, "no Ray node gives metrics: start Ray with its dashboard agent.", code="no_metrics")
    return merge(texts)


async def _read(session: aiohttp.ClientSession, agent: str) -> str:
    try:
        async with session.get(f"{agent}/metrics") as response:
            return await response.text() if response.status == 200 else ""
    except (TimeoutError, aiohttp.ClientError, OSError):
        return ""


def merge(texts: Sequence[str]) -> str:
    """The lines about this application out of all texts, the head of each family once."""
    heads: set[str] = set()
    lines = []
    for line in "\n".join(texts).splitlines():
        if not _OURS.match(line) or line in heads:
            continue
        if line.startswith("#"):
            heads.add(line)
        lines.append(line)
    return "\n".join(lines) + "\n"
