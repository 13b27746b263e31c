"""Token-level speculation between two engines, as jobs: one proposes tokens, the other checks them in one forward."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamr.engines.hf.jobs import DecodeJob, Output
from dreamr.engines.hf.model import PlacedPrompt, Row
from dreamr.engines.sampling import distribution
from dreamr.types import Proposal, Sampling, Tokens


class ProposeJob(DecodeJob):
    """Proposes tokens after a prefix, across the ends of steps; fewer at the end of the answer."""

    can_stop = True

    def __init__(
        self,
        call_id: str,
        key: str,
        prompt: PlacedPrompt,
        prefix: Tokens,
        sampling: Sampling,
        num_tokens: int,
        eos_tokens: frozenset[int],
    ) -> None:
        super().__init__(call_id, key, prompt, prefix, sampling)
        self._num_tokens, self._eos_tokens = num_tokens, eos_tokens
        self._rows: list[Tensor] = []

    def row(self) -> Row | None:
        return self._row(self._new_tokens())

    def take(self, output: Output) -> None:
        assert output.logits is not None
        written = self._new_tokens()
        self.tokens.append(output.tokens[0])
        if self.is_sampled:
            self._rows.append(distribution(output.logits, [self.sampling])[0].cpu())
        self.done = len(self.tokens) >= self._num_tokens or self.tokens[-1] in self._eos_tokens
        # The target's own token follows most proposals, so the proposed ones are cropped, which copies nothing.
        self._grew(written, len(self.whole) if self.done else len(self.whole) + len(self.tokens) - 1)

    def result(self) -> Proposal:
        probabilities = torch.stack(self._rows).numpy().tobytes() if self._rows else b""
        return Proposal(tuple(self.tokens), probabilities, self.started, self.ended)


class CheckJob(DecodeJob):
    """Checks another model's tokens in one forward: how many are accepted, and the token after them."""

    def __init__(
        self,
        call_id: str,
        key: str,
        prompt: PlacedPrompt,
        prefix: Tokens,
        sampling: Sampling,
        proposal: Tokens,
        probabilities: Tensor | None,
    ) -> None:
        super().__init__(call_id, key, prompt, prefix, sampling)
        self._proposal, self._probabilities = proposal, probabilities
        self._decision: tuple[int, int] = (0, 0)

    def row(self) -> Row | None:
        return self._row_with(self._proposal)

    def take(self, output: Output) -> None:
        self._decision = self._accepted(output, self._proposal, self._probabilities)
        self._grew(self._new_tokens() + self._proposal, len(self.whole) + self._decision[0])
        self.done = True

    def result(self) -> tuple[int, int, float, float]:
        """Accepted tokens, the token after them, begin and end."""
        return (*self._decision, self.started, self.ended)
