"""`Reader`: brings a leased sequence to a prefix and reads the model there. The caller holds the turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.engines.prefix_cache import CachedSequence, PrefixCache
from dreamr.engines.questions import Question
from dreamr.engines.verdicts import plant, verdict_branch
from dreamr.types import Step, Tokens

LOGIT_ROWS = 256
"""Rows of logits that are computed at a time where there may be thousands."""


class Reader:
    """Shapes: h hidden size, v vocabulary. `whole` is always prompt and prefix, of which `sequence` holds a part."""

    def __init__(self, forward: ForwardPass, cache: PrefixCache) -> None:
        self._forward, self._cache = forward, cache

    def fill_prompt(self, sequence: CachedSequence, placed: PlacedPrompt) -> Tensor | None:
        """Last hidden state (h) of the prompt when it had to be run, else None."""
        if sequence.tokens:
            return None
        hidden = self._forward.prompt(placed, sequence.kv)[-1]
        self._cache.grew(sequence, placed.tokens)
        return hidden

    def catch_up(self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens) -> Tensor:
        """Hidden state (h) at the end of `whole`; runs only what the sequence lacks of it."""
        hidden = self.fill_prompt(sequence, placed)
        if hidden is not None and len(whole) == len(placed.tokens):
            return hidden
        return self._run(sequence, placed, whole, ())[-1]

    def logits_behind(self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, tokens: Tokens) -> Tensor:
        """float32 logits (len(tokens) + 1, v) at the end of `whole` and of each of the `tokens` behind it."""
        return self._forward.logits(self.states_behind(sequence, placed, whole, tokens))

    def states_behind(self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, tokens: Tokens) -> Tensor:
        """Hidden states (len(tokens) + 1, h) at the same places."""
        self.fill_prompt(sequence, placed)
        return self._run(sequence, placed, whole, tokens)[-len(tokens) - 1 :]

    def ask(
        self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, chain: Sequence[Step], question: Question
    ) -> list[float]:
        """Verdicts on the last steps of `whole`; leaves exactly `whole` in the sequence."""
        self.fill_prompt(sequence, placed)
        values, _ = self._ask(sequence, placed, whole, chain, question)
        return values

    def ask_and_read(
        self,
        sequence: CachedSequence,
        placed: PlacedPrompt,
        whole: Tokens,
        chain: Sequence[Step],
        question: Question,
        temperature: float,
    ) -> tuple[list[float], list[tuple[float, ...]]]:
        """Verdicts as by `ask`, and per step the log-probabilities of its tokens, from the same forward."""
        self.fill_prompt(sequence, placed)
        first = len(placed.tokens) + len(chain[0].prefix)
        # The token before the first one predicts it, and cached keys and values do not give back its hidden state.
        self._cache.crop(sequence, min(len(sequence.tokens), first - 1))
        start = len(sequence.tokens)
        values, hidden = self._ask(sequence, placed, whole, chain, question)
        logprobs = self._logprobs(hidden[first - 1 - start : -1], whole[first:], temperature)
        ends = [len(step.end) - len(chain[0].prefix) for step in chain]
        return values, [tuple(logprobs[end - len(step.tokens) : end]) for step, end in zip(chain, ends, strict=True)]

    def _logprobs(self, hidden: Tensor, tokens: Tokens, temperature: float) -> list[float]:
        """Log-probabilities of `tokens` (n) from the hidden states (n, h) before each.

        A few rows at a time: all logits of a long chain would take gigabytes at a vocabulary of 150,000.
        """
        wanted = torch.tensor(tokens, device=hidden.device)
        parts = []
        for rows, ids in zip(hidden.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
            distributions = (self._forward.logits(rows) / temperature).log_softmax(-1)
            parts.append(distributions.gather(-1, ids[:, None])[:, 0])
        logprobs: list[float] = torch.cat(parts).tolist()
        return logprobs

    def _ask(
        self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, chain: Sequence[Step], question: Question
    ) -> tuple[list[float], Tensor]:
        """Verdicts, and the hidden states (n, h) of the tokens that the sequence lacked of `whole`."""
        trunk = whole[len(sequence.tokens) :]
        step_ends = [len(placed.tokens) + len(step.end) for step in chain]
        branches = [verdict_branch(step, question.turn) for step in chain]
        tree = plant(len(sequence.tokens), trunk, step_ends, branches)
        device = self._forward.device
        hidden = self._forward.text(
            sequence.kv,
            torch.tensor([tree.tokens], device=device),
            (torch.tensor(tree.indices, device=device) + placed.rope_delta).expand(3, 1, -1),
            tree.mask.to(device),
        )
        self._cache.grew(sequence, trunk)
        self._cache.crop(sequence, len(whole))
        return question.read(hidden[tree.ends]), hidden[: len(trunk)]

    def _run(self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, tokens: Tokens) -> Tensor:
        """Hidden states of at least the last token of `whole` and of `tokens`, which the sequence holds then."""
        # Keys and values do not give back the hidden state: the last token has to run again.
        self._cache.crop(sequence, min(len(sequence.tokens), len(whole) - 1))
        start = len(sequence.tokens)
        missing = whole[start:] + tokens
        ids = torch.tensor([missing], device=self._forward.device)
        positions = self._forward.text_positions(placed, start, start + len(missing))
        hidden = self._forward.text(sequence.kv, ids, positions)
        self._cache.grew(sequence, missing)
        return hidden
