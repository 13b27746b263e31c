"""`GenerateContender`: transformers' own generate, plain or assisted by the draft, as one more way of answering."""

from __future__ import annotations

import time
from typing import Any

from dreamr.bench.contender import ASSISTED, Entry
from dreamr.bench.transformers_actor import Written
from dreamr.config import ActorConfig, PipelineSettings
from dreamr.types import Prompt
from pipelines import OnCommit, Trace
from pipelines.trace import CommittedStep, Span


class GenerateContender:
    """Asks a `TransformersActor`. Its trace has one step: the library does not say when it wrote which token."""

    def __init__(self, entry: Entry, actor: Any, target: ActorConfig) -> None:
        self.entry = entry
        self.actors = {"target": target}
        self._actor = actor

    async def run(self, prompt: Prompt, on_commit: OnCommit | None = None, max_tokens: int | None = None) -> Trace:
        settings = self.entry.settings
        if max_tokens is not None:
            settings = settings.model_copy(update={"max_tokens": max_tokens})
        began = time.time()
        written = await self._actor.generate.remote(prompt, settings, self.entry.base == ASSISTED)
        trace = _trace(self.entry.name, settings, written, began, time.time() - began)
        if on_commit:
            on_commit(trace.steps[0])
        return trace


def _trace(name: str, settings: PipelineSettings, written: Written, began: float, wall_s: float) -> Trace:
    busy = written.ended - written.started
    ended = len(written.tokens) < settings.max_tokens
    return Trace(
        request_id=name,
        method=name,
        steps=(CommittedStep(0, "target", written.tokens, written.text, None, wall_s),),
        end="answered" if ended else "budget",
        wall_s=wall_s,
        orchestration_s=wall_s - busy,
        spans=(Span("target", written.started - began, written.ended - began, "committed", 0, len(written.tokens)),),
        num_drafted=0,
        num_judged=0,
        num_accepted=0,
        coverage=0.0,
        drafted_tokens=0,
        wasted_draft_tokens=0,
        wasted_target_tokens=0,
    )
