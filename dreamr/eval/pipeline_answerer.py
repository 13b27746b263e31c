"""`PipelineAnswerer`: items answered by a schedule over actors of our own."""

from __future__ import annotations

from dreamr.config import PipelineSettings
from dreamr.eval.reply import Reply
from dreamr.types import Prompt
from pipelines import Request, run
from pipelines.handles import Handles


class PipelineAnswerer:
    """The models are told how to end by their own prompt configuration."""

    asks_for_text = False

    def __init__(self, handles: Handles, settings: PipelineSettings) -> None:
        self._handles, self._settings = handles, settings

    async def answer(self, prompt: Prompt) -> Reply:
        trace = await run(Request(prompt, self._settings), self._handles)
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
