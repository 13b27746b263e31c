"""The `Engine` protocol: one loaded model behind stateless calls.

Stateless for the caller: every call names its whole prefix, and the engine finds what it has cached of it. A
rollback is therefore just a call with a shorter prefix, and a restarted engine needs no repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dreamr.actors.types import Prompt, Sampling, Step, Verdict

DELIMITER = "\n\n"
"""Ends a reasoning step; kept at the end of the step's tokens."""


class EngineDied(RuntimeError):
    """The process behind an engine is gone for good: only a new engine helps."""


class Engine(Protocol):
    """One model. Calls may run at the same time; the engine shares itself between them fairly."""

    async def next_step(self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling) -> Step:
        """Write the step that follows `after`, i.e. from the prefix `after.end`.

        After a closed step (`after.closed`) nothing can follow: the result is an empty step with finish "eos".
        A call stopped by `stop(call_id)` returns what it has, with finish "stopped".
        """
        ...

    async def score(self, call_id: str, prompt: Prompt, chain: Sequence[Step]) -> list[Verdict]:
        """Judge steps that follow each other (`chain[i+1].prefix == chain[i].end`), each on its own prefix.

        One verdict per step. Verdict tokens never become part of a prefix. Raises ValueError when the steps do
        not follow each other.
        """
        ...

    async def prefill(self, prompt: Prompt) -> None:
        """Run the prompt alone, so that the first step does not pay for it."""
        ...

    def stop(self, call_id: str) -> None:
        """End that call between two tokens. A call that is unknown or has already ended is not an error."""
        ...
