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
        return question.read(hidden[tree.ends])

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
