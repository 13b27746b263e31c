"""The `Engine` protocol: stateless calls to one loaded model.

Stateless for the caller: every call names its whole prefix, and the engine finds the cached part of it. So a rollback
is a call with a shorter prefix, and a restarted engine needs no repair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dreamr.types import (
    Checked,
    Criterion,
    JudgedStep,
    Prefill,
    Priority,
    Prompt,
    Proposal,
    Sampling,
    Step,
    ThoughtEnd,
    Tokens,
    Verdict,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

COMPARISONS: frozenset[Criterion] = frozenset({"same", "embedding"})
"""Criteria that compare a step with a reference: another step after the same prefix. The others ask about one step
(`dreamr.engines.verdicts`)."""


class EngineDied(RuntimeError):
    """The process of an engine has ended: only a new engine helps."""


class Engine(Protocol):
    """One model. Calls may run at the same time; the engine shares itself between them fairly."""

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """Write the step that follows `after`, i.e. from the prefix `after.end`.

        After a closed step (`after.closed`) nothing can follow: the result is an empty step with finish "eos".
        A call stopped by `stop(call_id)` returns what it has, with finish "stopped". Raises TooLong when prompt and
        prefix fill the model's context.
        """
        ...

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        """Judge steps that follow each other (`chain[i+1].prefix == chain[i].end`), each on its own prefix.

        One verdict per step; `NO_VERDICT` for one that leaves no space for the verdict in the model's context. Verdict
        tokens never become part of a prefix. Criteria that compare (`COMPARISONS`) look at the texts of a step and its
        reference alone; `references` holds one per step then, else none.
        Raises ValueError when the steps do not follow each other, and for a criterion that the engine lacks.
        """
        ...

    async def prefill(self, prompt: Prompt) -> Prefill:
        """Read the prompt ahead of the first step. Raises TooLong as `next_step` does."""
        ...

    async def count_tokens(self, prompt: Prompt) -> int:
        """Length of the prompt in the model's tokens. Raises ValueError when it cannot be read at all."""
        ...

    def promote(self, call_id: str, hint: Tokens = ()) -> None:
        """That call's speculative step is needed now.

        `hint` are tokens that the step may begin with, such as the rejected drafted step: an engine may check them in
        one forward instead of writing them again. An unknown or ended call is not an error.
        """
        ...

    def stop(self, call_id: str) -> None:
        """End that call between two tokens. A call that is unknown or has already ended is not an error."""
        ...

    def idle_s(self) -> float:
        """Seconds since the model last finished a forward: a call of a busy engine waits for its turn, a call of an
        idle one is lost."""
        ...


@runtime_checkable
class TokenSpeculation(Protocol):
    """Optional: token-level speculation, the draft's side and the target's."""

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        """Write up to `num_tokens` tokens after `after.end`, across the ends of steps; fewer at the end of the answer.
        `sampling.max_tokens` does not apply."""
        ...

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        """Check tokens proposed after `after.end` in one forward, `after` being the open step (perhaps empty).

        Greedy: the longest run that the model would have written, and its own next token. Sampled: each is accepted
        with probability min(1, p/q), the first that is not is replaced by one from max(p - q, 0), and one from p
        follows when all are accepted: the tokens are distributed as if the model had sampled them. An empty proposal
        gives one token. `sampling.max_tokens` and `sampling.budget` bound each step.
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """Optional: rollouts for a learner, which replaces the weights between two of them.

    `next_step` fills `Step.logprobs` then, where `Sampling.logprobs` asks for them.
    """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """See `Phases`."""
        ...

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place, named as in the checkpoint, and forget all that the old ones computed.

        Raises RuntimeError while requests run, and for weights that do not fit the model.
        """


@runtime_checkable
class Swappable(Protocol):
    """Optional: the weights of another checkpoint of the same architecture, while the engine stays."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def read_weights(self, model: str) -> Mapping[str, Tensor]:
        """The weights of a checkpoint folder or hub id, in main memory; blocks. Raises ValueError, OSError."""
        ...

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `Trainable`."""
        ...


@runtime_checkable
class Assisted(Protocol):
    """Optional: an assistant inside the engine, whose weights can be replaced."""

    async def update_assistant(self, state_dict: Mapping[str, Tensor]) -> None:
        """`update_weights` for the assistant. Raises ValueError when there is none, RuntimeError."""
        ...


@runtime_checkable
class Phases(Protocol):
    """Optional: bounded reasoning, and answers that follow a JSON schema.

    It then follows `sampling.grammar` in `next_step`.
    """

    async def thought_end(self) -> ThoughtEnd:
        """How the model's chain of thought ends. Raises Unable when `END_OF_THOUGHT` is not one token."""
        ...

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """Token ids of a prompt as the model reads it, with one per position of each image, or of a text as it is."""
        ...


@runtime_checkable
class TokenScoring(Protocol):
    """Optional: the log-probabilities of the judged tokens, for distillation."""

    async def score_tokens(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], temperature: float = 1.0
    ) -> list[JudgedStep]:
        """`score` by the criterion rho, and this model's log-probabilities of the tokens.

        At `temperature`, as a draft that samples at it has its own. Raises Unable for one that the engine cannot give.
        """
        ...


@runtime_checkable
class BranchWriting(Protocol):
    """Optional: several steps of one prompt in one call."""

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        """Write the step after each step of a chain (`chain[i+1].prefix == chain[i].end`), in one batch.

        The same steps as `next_step` gives for each. `stop` ends all of them. Raises ValueError for a chain that has
        gaps or is closed.
        """
        ...
