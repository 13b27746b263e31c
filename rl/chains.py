"""Rollouts as plain data: requests from the learner to the workers, and judged chains on the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamr.tasks.prompts import is_thinking
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
    """The drafted step at this place: this step, or the rejected one that it replaces."""
    target_logprobs: tuple[float, ...] = ()
    """The target's log-probabilities of the draft's tokens, where requested; zeros for its own tokens."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One answer, from the first step to the last."""

    steps: tuple[ChainStep, ...]
    end: ChainEnd
    opening: str = ""
    """`<think>` when the prompt ends with it: the chain then begins within the reasoning."""

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def reply(self) -> str:
        """The text with the opening of its reasoning: the answer is searched in it."""
        return self.opening + self.text

    @property
    def truncated(self) -> bool:
        """Whether the chain ended before its answer: by the budget, or by a loop within the reasoning."""
        return self.end == "budget" or (self.end == "loop" and is_thinking(self.reply))

    @property
    def tokens(self) -> Tokens:
        return tuple(token for step in self.steps for token in step.tokens)

    @property
    def logprobs(self) -> tuple[float, ...]:
        return tuple(logprob for step in self.steps for logprob in step.logprobs)

    @property
    def target_logprobs(self) -> tuple[float, ...]:
        return tuple(logprob for step in self.steps for logprob in step.target_logprobs)

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
    """The common part of all requests of one rollout."""

    mode: RolloutMode
    rule: Rule
    """Which verdicts accept a drafted step."""
    target_logprobs: bool = False
    """Whether the target's log-probabilities of the draft's tokens are wanted."""


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """One prompt and the seeds of the chains that are wanted for it."""

    prompt: Prompt
    seeds: tuple[int, ...]
    """One per chain. A chain depends on its seed, weights and kind of device, not on the worker or its batch."""
    temperature: float
    count_target_steps: bool = False
    """Whether the number of steps of the target's answer is wanted."""


@dataclass(frozen=True, slots=True)
class Group:
    """The chains of one request, in the order of its seeds."""

    prompt_tokens: Tokens
    chains: tuple[Chain, ...]
    version: int
    """The optimizer step whose weights wrote them."""
    target_steps: int | None = None
    """Steps of the target's greedy answer; None when it was not asked for, or has no end within `max_tokens`."""
