"""The `Engine` protocol: one loaded model behind stateless calls.

Stateless for the caller: every call names its whole prefix, and the engine finds what it has cached of it. A
rollback is therefore just a call with a shorter prefix, and a restarted engine needs no repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

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

COMPARISONS: frozenset[Criterion] = frozenset({"same", "embedding"})
"""Criteria that compare a step with a reference: another step after the same prefix. The others ask about one step
(`dreamr.engines.verdicts`)."""


class EngineDied(RuntimeError):
    """The process behind an engine is gone for good: only a new engine helps."""


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
        """Run the prompt alone, so that the first step does not pay for it. Raises TooLong as `next_step` does."""
        ...

    async def count_tokens(self, prompt: Prompt) -> int:
        """Length of the prompt as the model reads it. Raises ValueError when it cannot be read at all."""
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
        """Seconds since the model last finished a forward. A call of a busy engine waits for its turn; a call of one
        that has been idle for long is lost."""
        ...


@runtime_checkable
class TokenSpeculation(Protocol):
    """What an engine may offer besides: token-level speculation, the draft's side and the target's."""

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        """Write up to `num_tokens` tokens behind `after.end`, whatever steps they belong to; fewer at the end of the
        answer. `sampling.max_tokens` does not count here."""
        ...

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        """Check tokens proposed behind `after.end` in one forward, `after` being the open step (perhaps empty).

        Greedy: the longest run that the model would have written, and its own next token. Sampled: each is accepted
        with probability min(1, p/q), the first that is not is replaced by one from max(p - q, 0), and one from p
        follows when all are accepted: the tokens are distributed as if the model had sampled them. An empty proposal
        gives one token. `sampling.max_tokens` and `sampling.budget` bound each step.
        """
        ...


@runtime_checkable
class Phases(Protocol):
    """What an engine may offer besides: bounded reasoning, and answers that follow a JSON schema.

    It then follows `sampling.grammar` in `next_step`.
    """

    async def thought_end(self) -> ThoughtEnd:
        """How the model's chain of thought ends. Raises Unable when `END_OF_THOUGHT` is not one token."""
        ...

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """Token ids of a prompt as the model reads it, or of a text as it is."""
        ...


@runtime_checkable
class TokenScoring(Protocol):
    """What an engine may offer besides: the log-probabilities of the tokens that it judges, for distillation."""

    async def score_tokens(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], temperature: float = 1.0
    ) -> list[JudgedStep]:
        """`score` by the criterion rho, and this model's log-probabilities of the tokens, from the same forward.

        At `temperature`, as a draft that samples at it has its own.
        """
        ...


@runtime_checkable
class BranchWriting(Protocol):
    """What an engine may offer besides: several steps of one prompt in a batch of their own."""

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        """Write the step behind each step of a chain (`chain[i+1].prefix == chain[i].end`), token by token together.

        The same steps as `next_step` gives for each. `stop` ends all of them. Raises ValueError for a chain that has
        gaps or is closed.
        """
        ...
