"""The kinds of work that the engine does, each as a small state machine over forwards.

    start(cache) ─▶ row() ─▶ [forward of all rows together] ─▶ take(output) ─▶ row() ─▶ ... ─▶ result
                     └─ None: nothing to compute

    WriteJob     a step, token by token, or several tokens per forward where some are proposed
    FillJob      the prompt, before the first step
    ProposeJob, CheckJob   tokens for another model, and from it (`dreamr.engines.hf.token_jobs`)
    JudgeJob, TextJob      verdicts (`dreamr.engines.hf.verdicts`)

A job owns its sequence from `start` until the loop releases it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamr.engines.grammar import TokenMask
from dreamr.engines.hf.cache import CachedSequence, PrefixCache
from dreamr.engines.hf.model import PlacedPrompt, Row
from dreamr.engines.sampling import accept_greedy, accept_sampled, distribution, stream
from dreamr.engines.steps import StepEnd
from dreamr.types import Finish, Priority, Sampling, Step, Tokens


@dataclass(frozen=True, slots=True)
class Output:
    """The output of one forward for a job, at the places that its row reads."""

    hidden: Tensor
    """(k, h)"""
    logits: Tensor | None
    """float32 (k, v); None for jobs that do not read them."""
    tokens: Sequence[int]
    """The token chosen at each place: greedy, or drawn by the job's own numbers."""


class Job(ABC):
    """One unit of work in the engine."""

    reads_logits = True
    reruns_last = True
    """The last cached token has to run again for its hidden state, which the cache does not hold."""
    can_stop = False
    """Whether the job has a result when it ends early."""
    keeps_sequence = True
    """False: the sequence is dropped afterwards, since no other request can use it."""

    def __init__(self, call_id: str, key: str, prompt: PlacedPrompt | None, whole: Tokens) -> None:
        self.call_id, self.key, self.prompt, self.whole = call_id, key, prompt, whole
        """`whole`: prompt and prefix."""
        self.priority: Priority = "needed"
        self.is_stopped = False
        self.future: Future[Any] = Future()
        self.sequence: CachedSequence | None = None
        self.started = self.ended = 0.0
        self.done = False
        self.error: Exception | None = None

    def start(self, cache: PrefixCache) -> None:
        """Claim a sequence with the longest cached part of `whole`."""
        self.started = time.time()
        self._cache = cache
        self.sequence = cache.claim(self.key, self.whole)
        if self.reruns_last and len(self.sequence.tokens) >= len(self.whole):
            cache.crop(self.sequence, len(self.whole) - 1)

    def end(self) -> None:
        """Note when the job ended, with a result or an error."""
        self.ended = time.time()
        self.started = self.started or self.ended

    @abstractmethod
    def row(self) -> Row | None:
        """The next forward's tokens; None when the job has its result without one."""

    @abstractmethod
    def take(self, output: Output) -> None:
        """Use a forward's output; sets `done` when there is a result."""

    @abstractmethod
    def result(self) -> Any:
        """The result once `done` or stopped."""

    @property
    def num_cached(self) -> int:
        assert self.sequence is not None
        return len(self.sequence.tokens)

    def _row(self, tokens: Tokens, **options: Any) -> Row:
        assert self.sequence is not None
        self._cache.reserve(self.sequence, len(tokens))
        return Row(self.sequence, tokens, self.prompt, **options)

    def _grew(self, tokens: Tokens, keep: int) -> None:
        """Note that `tokens` were written; keep the first `keep` tokens of the sequence."""
        assert self.sequence is not None
        self._cache.grew(self.sequence, tokens)
        self._cache.crop(self.sequence, keep)


class DecodeJob(Job):
    """A job that appends tokens: the common part of writing, proposing and checking."""

    def __init__(self, call_id: str, key: str, prompt: PlacedPrompt, prefix: Tokens, sampling: Sampling) -> None:
        super().__init__(call_id, key, prompt, prompt.tokens + prefix)
        self.sampling = sampling
        self.number = stream(sampling)
        self.tokens: list[int] = []
        self.allowed: Tensor | None = None
        """Booleans (v): the tokens that the next forward may choose; None: all."""

    @property
    def is_sampled(self) -> bool:
        return self.sampling.temperature > 0

    def _row_with(self, proposal: Tokens) -> Row:
        """A row with the tokens that are not in the sequence yet and a proposal, read where a token is chosen."""
        new = self._new_tokens() + proposal
        return self._row(new, reads=range(len(new) - 1 - len(proposal), len(new)))

    def _accepted(self, output: Output, proposal: Tokens, probabilities: Tensor | None) -> tuple[int, int]:
        """How many tokens of a proposal are accepted, and the token after them.

        `probabilities` (len(proposal), v): the distributions that a sampled proposal was drawn from.
        """
        assert output.logits is not None
        if not (self.is_sampled and proposal):
            return accept_greedy(output.tokens, proposal)
        assert probabilities is not None
        p = distribution(output.logits, [self.sampling] * len(output.logits))
        return accept_sampled(p, probabilities.to(p.device), proposal, self.number)

    def _new_tokens(self) -> Tokens:
        """Tokens that are not in the sequence yet; at least the last one."""
        return (self.whole + tuple(self.tokens))[self.num_cached :]


class WriteJob(DecodeJob):
    """Writes one step. A proposal that is set before `row` is checked by the same forward."""

    can_stop = True

    def __init__(
        self,
        call_id: str,
        key: str,
        prompt: PlacedPrompt,
        prefix: Tokens,
        sampling: Sampling,
        step_end: StepEnd,
        max_positions: int,
        mask: TokenMask | None = None,
    ) -> None:
        """`mask`: of a step that follows a grammar; it is written token by token, without proposals."""
        super().__init__(call_id, key, prompt, prefix, sampling)
        self._mask = mask
        self._prefix, self._step_end = prefix, step_end
        self._max_tokens = min(sampling.max_tokens, max_positions - len(self.whole))
        self.finish: Finish = "stopped"
        self.assistant_prompt: PlacedPrompt | None = None
        """The prompt encoded for the assistant; None without one."""
        self.proposal: Tokens = ()
        self.probabilities: Tensor | None = None
        """(len(proposal), v): what the proposal was sampled from; None for greedy ones."""
        self.rounds: list[tuple[int, int]] = []
        self.num_salvaged = 0
        self.logprobs: list[float] = []
        self._hint: Tokens = () if self.is_sampled or mask else sampling.hint
        self._is_hint = False

    def hint(self, tokens: Tokens) -> None:
        """Tokens that the step may begin with, such as a rejected drafted step: checked like a proposal."""
        if not self.is_sampled and self._mask is None:
            self._hint = tokens

    @property
    def has_hint(self) -> bool:
        return bool(self._hint)

    @property
    def most_proposed(self) -> int:
        """Most proposed tokens that still fit into the step."""
        if self._mask is not None:
            return 0
        return max(0, self._max_tokens - len(self.tokens) - 1)

    def row(self) -> Row | None:
        self._use_hint()
        if self._mask is not None:
            self.allowed = self._mask.allowed(self.tokens)
        return self._row_with(self.proposal)

    def take(self, output: Output) -> None:
        assert output.logits is not None
        written = self._new_tokens() + self.proposal
        accepted, own = self._accepted(output, self.proposal, self.probabilities)
        num_used = self._append((*self.proposal[:accepted], own), output.logits)
        if self._is_hint:
            self.num_salvaged += min(num_used, accepted)
        elif self.proposal:
            self.rounds.append((len(self.proposal), min(num_used, accepted)))
        self._grew(written, len(self.whole) + len(self.tokens) - 1)
        self.proposal, self.probabilities, self._is_hint = (), None, False

    def result(self) -> Step:
        return Step(
            self._prefix,
            tuple(self.tokens),
            self._step_end.text(self.tokens),
            self.finish,
            self.started,
            self.ended,
            rounds=tuple(self.rounds),
            num_salvaged=self.num_salvaged,
            logprobs=tuple(self.logprobs),
            token_texts=self._step_end.token_texts(self.tokens) if self.sampling.logprobs else (),
        )

    def _use_hint(self) -> None:
        """Propose the rest of the hint, if the step agrees with it so far."""
        hint, written = self._hint, tuple(self.tokens)
        if hint and hint[: len(written)] == written and len(hint) > len(written):
            self.proposal = hint[len(written) :][: self.most_proposed]
            self.probabilities, self._is_hint = None, bool(self.proposal)
        self._hint = ()

    def _append(self, tokens: Tokens, logits: Tensor) -> int:
        """Append tokens up to the end of the step; return how many were appended."""
        for place, token in enumerate(tokens):
            self.tokens.append(token)
            if self.sampling.logprobs:
                scaled = logits[place] / (self.sampling.temperature or 1.0)
                self.logprobs.append(float(scaled[token] - torch.logsumexp(scaled, -1)))
            if finish := self._step_end.finish(self.tokens, self._max_tokens):
                self.finish, self.done = finish, True
                return place + 1
        return len(tokens)


class FillJob(Job):
    """Runs the tokens of `whole` that are not cached."""

    reads_logits = False
    reruns_last = False

    def row(self) -> Row | None:
        if self.num_cached >= len(self.whole):
            return None
        return self._row(self.whole[self.num_cached :], reads=())

    def take(self, output: Output) -> None:
        self._grew(self.whole[self.num_cached :], len(self.whole))
        self.done = True

    def result(self) -> tuple[float, float]:
        """Begin and end."""
        return self.started, self.ended
