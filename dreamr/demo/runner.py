"""`Runner`: answers prompts by several methods over the same actors, none profiting from what another has cached."""

from __future__ import annotations

import itertools

from dreamr.actors.types import Prompt
from dreamr.config import Method, PipelineSettings
from dreamr.demo.cold import cold_copy
from dreamr.pipelines.base import OnCommit
from dreamr.pipelines.handles import Actors
from dreamr.pipelines.registry import build_pipeline
from dreamr.pipelines.request import Request
from dreamr.pipelines.trace import Trace

WARM_UP_TOKENS = 256
"""Enough for every kind of call to have been made; a whole answer of a large model would take minutes."""


class Runner:
    """Every run starts from cold prefix caches, as the first run of a prompt does, in actors that are warm."""

    def __init__(self, actors: Actors, settings: PipelineSettings) -> None:
        self._actors, self._settings = actors, settings
        self._numbers = itertools.count()

    async def warm_up(self, method: Method, prompt: Prompt) -> None:
        """Run a prompt without looking at the result: whatever happens only once must not be measured."""
        most = min(self._settings.max_tokens, WARM_UP_TOKENS)
        await self._run(prompt, self._settings.model_copy(update={"method": method, "max_tokens": most}), None)

    async def run(self, method: Method, prompt: Prompt, on_commit: OnCommit | None = None) -> Trace:
        """Answer one prompt; the copy is made before the request's clock starts."""
        return await self._run(prompt, self._settings.model_copy(update={"method": method}), on_commit)

    async def _run(self, prompt: Prompt, settings: PipelineSettings, on_commit: OnCommit | None) -> Trace:
        pipeline = build_pipeline(settings.method, self._actors)
        return await pipeline.run(Request(cold_copy(prompt, f"run {next(self._numbers)}"), settings), on_commit)
