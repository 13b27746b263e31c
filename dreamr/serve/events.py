"""What happens while a request is answered, in the order in which it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamr.config import PipelineSettings
from dreamr.serve.answer import Piece
from dreamr.types import Prompt
from pipelines import Trace
from pipelines.trace import CommittedStep


@dataclass(frozen=True, slots=True)
class Question:
    """A request in our own words."""

    id: str
    prompt: Prompt
    prompt_tokens: int
    settings: PipelineSettings
    """Of the first choice; each further one has the next seed."""
    num_choices: int = 1
    stop: tuple[str, ...] = ()
    watched: bool = False
    """Tell what the actors do as well."""


@dataclass(frozen=True, slots=True)
class StepCommitted:
    choice: int
    step: CommittedStep
    piece: Piece


@dataclass(frozen=True, slots=True)
class ActorWorked:
    choice: int
    what: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of one choice."""

    choice: int
    trace: Trace
    piece: Piece
    """What was held back until now."""
    queued_s: float
    reasoning_tokens: int


Event = StepCommitted | ActorWorked | Answered
