"""`BranchWriter`: the step behind every step of a chain, all in one batch over one set of keys and values.

    cached prefix │ trunk: d1 d2 d3 │ a0 b0 c0 │ a1 b1 c1 │ a2 c2 │ ...
    a, b, c       the steps behind the prefix, d1 and d2; each sees the trunk up to where it grows, and itself

One forward gives one token to every branch that is not at its end. The branches lie behind the trunk, so cropping
removes them and keeps the chain.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.engines.prefix_cache import CachedSequence, PrefixCache
from dreamr.engines.reader import Reader
from dreamr.engines.sampling import TokenChooser
from dreamr.engines.step_end import StepEnd
from dreamr.engines.turns import Turns
from dreamr.types import Finish, Sampling, Step, Tokens


@dataclass(slots=True, eq=False)
class _Branch:
    end: int
    """Length of the whole sequence at which it grows."""
    chooser: TokenChooser
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    """Where its own keys and values lie."""
    finish: Finish | None = None


class BranchWriter:
    """The caller holds the turn, which is passed on between two tokens."""

    def __init__(
        self, forward: ForwardPass, reader: Reader, cache: PrefixCache, step_end: StepEnd, turns: Turns
    ) -> None:
        self._forward, self._reader, self._cache = forward, reader, cache
        self._step_end, self._turns = step_end, turns

    def write(
        self,
        sequence: CachedSequence,
        placed: PlacedPrompt,
        whole: Tokens,
        chain: Sequence[Step],
        choosers: Sequence[TokenChooser],
        max_tokens: Sequence[int],
        stop: threading.Event,
    ) -> list[tuple[list[int], Finish]]:
        """Tokens and finish of each branch; leaves exactly `whole`, the prompt and the chain, in the sequence."""
        ends = [len(placed.tokens) + len(step.end) for step in chain]
        branches = [_Branch(*branch) for branch in zip(ends, choosers, max_tokens, strict=True)]
        hidden = self._reader.states_behind(sequence, placed, whole[: ends[0]], whole[ends[0] :])
        self._choose(branches, hidden[[end - ends[0] for end in ends]])
        while live := [branch for branch in branches if branch.finish is None]:
            self._turns.pass_on()
            if stop.is_set():
                break
            self._choose(live, self._advance(sequence, placed, live))
        self._cache.crop(sequence, len(whole))
        return [(branch.tokens, branch.finish or "stopped") for branch in branches]

    def _choose(self, branches: list[_Branch], hidden: Tensor) -> None:
        """One more token for each branch, from its hidden state (h)."""
        for branch, logits in zip(branches, self._forward.logits(hidden), strict=True):
            branch.tokens.append(branch.chooser.choose(logits))
            branch.finish = self._step_end.finish(branch.tokens, branch.max_tokens)

    def _advance(self, sequence: CachedSequence, placed: PlacedPrompt, live: list[_Branch]) -> Tensor:
        """Run the last token of each branch; hidden states (number of branches, h)."""
        start = sequence.kv.get_seq_length()
        mask = torch.zeros(len(live), start + len(live), dtype=torch.bool)
        for row, branch in enumerate(live):
            branch.columns.append(start + row)
            mask[row, : branch.end] = True
            mask[row, branch.columns] = True
        device = self._forward.device
        indices = [branch.end + len(branch.tokens) - 1 + placed.rope_delta for branch in live]
        return self._forward.text(
            sequence.kv,
            torch.tensor([[branch.tokens[-1] for branch in live]], device=device),
            torch.tensor(indices, device=device).expand(3, 1, -1),
            mask[None, None].to(device),
        )


def check_branches(chain: Sequence[Step], sampling: Sequence[Sampling]) -> None:
    """Raises ValueError unless the steps follow each other, none is closed, and each branch has its sampling."""
    if not chain or len(chain) != len(sampling):
        raise ValueError(f"{len(chain)} steps need as many samplings, and at least one, not {len(sampling)}")
    for before, step in pairwise(chain):
        if step.prefix != before.end:
            raise ValueError(f"a step of {len(step.tokens)} tokens does not follow the one before it in the chain")
    if chain[-1].closed:
        raise ValueError("nothing can follow the last step of the chain: it ends the answer")
