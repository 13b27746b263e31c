"""`Requests`: submits jobs to the engine loop, awaits them, and encodes their prompts for the model.

caller ── run(job) ──▶ EngineLoop ── one forward after the other ──▶ job.future ──▶ caller
           └─ cancelled: stop the job, await its end, then raise
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from dreamr.engines.hf.jobs import Job
from dreamr.engines.hf.loading import Checkpoint
from dreamr.engines.hf.loop import EngineLoop
from dreamr.engines.hf.model import PlacedPrompt
from dreamr.engines.steps import EarlyStops
from dreamr.errors import TooLong
from dreamr.types import Prompt, Tokens

J = TypeVar("J", bound=Job)


class Requests:
    """The part of one engine that runs on the event loop."""

    def __init__(self, checkpoint: Checkpoint, loop: EngineLoop) -> None:
        self._checkpoint, self._loop = checkpoint, loop
        self._early_stops = EarlyStops()

    def stop(self, call_id: str) -> None:
        """End that call between two forwards; no error for one that is unknown or has ended."""
        if not self._loop.stop(call_id):
            self._early_stops.stop(call_id)

    async def run(self, job: J) -> J:
        """Return when the job has ended; a cancelled caller stops it and waits for its end first."""
        if self._early_stops.begin(job.call_id) and job.can_stop:
            job.end()
            self._early_stops.end(job.call_id)
            return job
        self._loop.submit(job)
        future = asyncio.wrap_future(job.future)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            self._loop.stop(job.call_id)
            while not future.done():  # also when the caller is cancelled again: it ends within one forward
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            future.exception()
            raise
        finally:
            self._early_stops.end(job.call_id)
        return job

    async def placed(self, prompt: Prompt) -> PlacedPrompt:
        return await self._checkpoint.placed(prompt)

    def whole(self, placed: PlacedPrompt, prefix: Tokens) -> Tokens:
        """Prompt and prefix. Raises TooLong when the model cannot continue from there."""
        whole = placed.tokens + prefix
        if len(whole) >= self._checkpoint.model.max_positions:
            raise TooLong(
                f"prompt and prefix have {len(placed.tokens)} + {len(prefix)} tokens, but the model takes fewer than "
                f"{self._checkpoint.model.max_positions}: shorten the question, shrink the images or lower max_tokens"
            )
        return whole
