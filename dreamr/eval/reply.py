"""`Reply`: what a model said to one item, and `Answerer`: whoever says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dreamr.types import Prompt


@dataclass(frozen=True, slots=True)
class Reply:
    """Counts that an endpoint does not tell are 0."""

    text: str
    truncated: bool
    """The budget of tokens ended it."""
    wall_s: float
    num_tokens: int = 0
    num_judged: int = 0
    num_accepted: int = 0
    num_steps: int = 0
    num_draft_steps: int = 0
    """Committed steps that the draft wrote."""
    refusal: str = ""
    """Why the model was not able to take this prompt, in one sentence; there is no text then."""


class Answerer(Protocol):
    """Answers prompts; several may be asked at the same time."""

    asks_for_text: bool
    """The prompt has to say how to end, since nobody else tells the model."""

    async def answer(self, prompt: Prompt) -> Reply:
        """Raises TooLong and other kinds of ValueError for what lies in this prompt; anything else means that the model
        was lost."""
        ...
