"""Verdicts on a chain of steps in one forward: the chain is the trunk, each verdict question a branch after its step.

    cached prefix │ trunk: uncached prefix, step 1, step 2 │ branch 1 │ branch 2
    branch 1 sees   everything up to the end of step 1, and itself
    branch 2 sees   everything up to the end of step 2, and itself

Branches lie after the trunk, so cropping removes them and keeps the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamr.types import Step, Tokens


@dataclass(frozen=True, slots=True)
class VerdictTree:
    """Inputs of one forward over n new tokens after c cached ones."""

    tokens: list[int]
    indices: list[int]
    """Per token its place in its own sequence: two branches may share indices."""
    mask: Tensor
    """Boolean (n, c + n): True where a token may look."""
    ends: list[int]
    """The branches' last tokens, where the verdicts are read."""


def plant(num_cached: int, trunk: Sequence[int], step_ends: Sequence[int], branches: Sequence[Tokens]) -> VerdictTree:
    """Lay out `trunk` tokens after `num_cached` ones, and each branch after the trunk.

    `step_ends` are the lengths of the whole sequence (prompt included) at which the branches grow.
    """
    num_trunk = len(trunk)
    num_rows = num_trunk + sum(len(branch) for branch in branches)
    mask = torch.zeros(num_rows, num_cached + num_rows, dtype=torch.bool)
    mask[:num_trunk, : num_cached + num_trunk] = torch.ones(num_trunk, num_cached + num_trunk, dtype=torch.bool).tril(
        num_cached
    )
    tokens, indices, ends = list(trunk), list(range(num_cached, num_cached + num_trunk)), []
    for end, branch in zip(step_ends, branches, strict=True):
        first, size = len(tokens), len(branch)
        mask[first : first + size, :end] = True
        own = slice(num_cached + first, num_cached + first + size)
        mask[first : first + size, own] = torch.ones(size, size, dtype=torch.bool).tril()
        tokens.extend(branch)
        indices.extend(range(end, end + size))
        ends.append(len(tokens) - 1)
    return VerdictTree(tokens, indices, mask, ends)


def chunks(chain: Sequence[Step], turn: Tokens, max_tokens: int) -> list[Sequence[Step]]:
    """Parts of a chain whose verdict trees have about `max_tokens` tokens each: a tree's mask grows with its square."""
    parts: list[list[Step]] = []
    size = 0
    for step in chain:
        own = len(step.tokens) + len(turn)
        if not parts or size + own > max_tokens:
            parts.append([])
            size = 0
        parts[-1].append(step)
        size += own
    return [tuple(part) for part in parts]
