"""`Runner`: answers prompts by several contenders, none profiting from what another has cached."""

from __future__ import annotations

import itertools

from dreamr.bench.contender import Contender
from dreamr.tasks.images import cold_copy
from dreamr.types import Prompt
from pipelines import OnCommit, Trace

WARM_UP_TOKENS = 256
"""Enough for every kind of call to have been made; a whole answer of a large model would take minutes."""


class Runner:
    """Every run starts from cold prefix caches, as the first run of a prompt does, in actors that are warm."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    async def warm_up(self, contender: Contender, prompt: Prompt) -> None:
        """Run a prompt without looking at the result: whatever happens only once must not be measured."""
        most = min(contender.entry.settings.max_tokens, WARM_UP_TOKENS)
        await contender.run(self._cold(prompt), max_tokens=most)

    async def run(self, contender: Contender, prompt: Prompt, on_commit: OnCommit | None = None) -> Trace:
        """Answer one prompt; the copy is made before the request's clock starts."""
        return await contender.run(self._cold(prompt), on_commit)

    def _cold(self, prompt: Prompt) -> Prompt:
        return cold_copy(prompt, f"run {next(self._numbers)}")
