"""Rollouts as plain data: requests from the learner to the workers, and judged chains on the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamr.types import Prompt, Tokens
from pipelines.verification import Rule

RolloutMode = Literal["free", "in_pipeline"]

ChainEnd = Literal["answered", "budget", "loop"]
"""As in `pipelines.trace`."""


@dataclass(frozen=True, slots=True)
class DraftedStep:
    """One step that the draft wrote, and whether the target accepts it."""

    num_tokens: int
    """The delimiter included."""
    accepted: bool


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One step of a chain: the draft's, or the target's in place of a rejected one."""

    source: Literal["draft", "target"]
    tokens: Tokens
    text: str
    logprobs: tuple[float, ...]
    """Per token under the distribution it was sampled from; zeros for the target's tokens."""
    score: float | None
    """Verdict on the drafted step at this place; None when there was nothing to judge."""
    drafted: DraftedStep
    """What the draft wrote at this place: this step, or the rejected one that it replaces."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One answer, from the first step to the last."""

    steps: tuple[ChainStep, ...]
    end: ChainEnd

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def tokens(self) -> Tokens:
        return tuple(token for step in self.steps for token in step.tokens)

    @property
    def logprobs(self) -> tuple[float, ...]:
        return tuple(logprob for step in self.steps for logprob in step.logprobs)

    @property
    def drafted(self) -> list[DraftedStep]:
        return [step.drafted for step in self.steps]

    @property
    def loss_mask(self) -> tuple[int, ...]:
        """Per token 1 where the draft wrote it, else 0."""
        return tuple(int(step.source == "draft") for step in self.steps for _ in step.tokens)

    @property
    def scores(self) -> list[float]:
        """Verdicts on the drafted steps that were judged."""
        return [step.score for step in self.steps if step.score is not None]


@dataclass(frozen=True, slots=True)
class RolloutTask:
    """What all requests of one rollout share."""

    mode: RolloutMode
    rule: Rule
    """Which verdicts accept a drafted step."""


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """One prompt and the seeds of the chains that are wanted for it."""

    prompt: Prompt
    seeds: tuple[int, ...]
    """One per chain. A chain depends on its seed and the weights alone: not on the worker, nor on its batch."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Group:
    """The chains of one request, in the order of its seeds."""

    prompt_tokens: Tokens
    chains: tuple[Chain, ...]
    version: int
    """The optimizer step whose weights wrote them."""
