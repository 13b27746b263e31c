"""`PairJudge`: compares two steps by their texts alone, without the prompt and without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import DynamicCache

from dreamr.engines.forward import ForwardPass
from dreamr.engines.verdicts import contrast
from dreamr.tasks.processor import PromptEncoder
from dreamr.types import Step, Tokens


class PairJudge:
    """Criteria "same" and "embedding". Not thread-safe: the caller holds the turn and inference mode."""

    def __init__(self, forward: ForwardPass, encoder: PromptEncoder, new_kv: Callable[[], DynamicCache]) -> None:
        self._forward, self._encoder, self._new_kv = forward, encoder, new_kv

    def same(self, first: str, second: str) -> float:
        """rho of the question whether both mean the same."""
        hidden = self._read(self._encoder.same_chat(first, second))
        return contrast(self._forward.word_logits(hidden[-1:], self._encoder.verdict_words))[0]

    def similarity(self, first: str, second: str) -> float:
        """Cosine of the texts' mean hidden states; 0 when one is empty."""
        tokens = [self._encoder.ids(text) for text in (first, second)]
        if not all(tokens):
            return 0.0
        one, other = (self._read(text).mean(0) for text in tokens)
        return float(cosine_similarity(one, other, dim=0))

    def _read(self, tokens: Tokens) -> Tensor:
        """Hidden states (n, h) of tokens that follow nothing."""
        device = self._forward.device
        positions = torch.arange(len(tokens), device=device).expand(3, 1, -1)
        return self._forward.text(self._new_kv(), torch.tensor([tokens], device=device), positions)


def check_pairs(steps: Sequence[Step], references: Sequence[Step]) -> None:
    """Raises ValueError unless there is one reference per step."""
    if len(steps) != len(references):
        raise ValueError(f"{len(steps)} steps cannot be compared with {len(references)} references: give one per step")
