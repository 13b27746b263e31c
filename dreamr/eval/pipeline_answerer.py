"""`PipelineAnswerer`: items answered by a schedule over actors of our own."""

from __future__ import annotations

from dreamr.config import PipelineSettings
from dreamr.eval.reply import Reply
from dreamr.types import Prompt
from pipelines.handles import Actors
from pipelines.registry import build_pipeline
from pipelines.request import Request


class PipelineAnswerer:
    """The models are told how to end by their own prompt configuration."""

    asks_for_text = False

    def __init__(self, actors: Actors, settings: PipelineSettings) -> None:
        self._pipeline, self._settings = build_pipeline(settings.method, actors), settings

    async def answer(self, prompt: Prompt) -> Reply:
        trace = await self._pipeline.run(Request(prompt, self._settings))
        return Reply(
            text=trace.text,
            truncated=trace.end == "budget",
            wall_s=trace.wall_s,
            num_tokens=len(trace.tokens),
            num_judged=trace.num_judged,
            num_accepted=trace.num_accepted,
            num_steps=len(trace.steps),
            num_draft_steps=sum(step.source == "draft" for step in trace.steps),
        )
