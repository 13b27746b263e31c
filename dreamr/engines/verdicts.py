"""Verdicts on a chain of steps in one forward: the chain is the trunk, each verdict question a branch behind its step.

    cached prefix │ trunk: uncached prefix, step 1, step 2 │ branch 1 │ branch 2
    branch 1 sees   everything up to the end of step 1, and itself
    branch 2 sees   everything up to the end of step 2, and itself

Branches lie behind the trunk, so cropping removes them and keeps the chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamr.engines.sampling import NumericalError
from dreamr.types import Step, Tokens


@dataclass(frozen=True, slots=True)
class VerdictTree:
    """Inputs of one forward over n new tokens behind c cached ones."""

    tokens: list[int]
    indices: list[int]
    """Per token its place in its own sequence: two branches may share indices."""
    mask: Tensor
    """Boolean (1, 1, n, c + n): True where a row may look."""
    ends: list[int]
    """Rows of the branches' last tokens, where the verdicts are read."""


def plant(num_cached: int, trunk: Sequence[int], step_ends: Sequence[int], branches: Sequence[Tokens]) -> VerdictTree:
    """Lay out `trunk` tokens behind `num_cached` ones, and each branch behind the trunk.

    `step_ends` are the lengths of the whole sequence (prompt included) at which the branches grow.
    """
    num_trunk = len(trunk)
    num_rows = num_trunk + sum(len(branch) for branch in branches)
    mask = torch.zeros(num_rows, num_cached + num_rows, dtype=torch.bool)
    mask[:num_trunk, :num_cached] = True
    mask[:num_trunk, num_cached : num_cached + num_trunk] = torch.ones(num_trunk, num_trunk, dtype=torch.bool).tril()
    tokens, indices, ends = list(trunk), list(range(num_cached, num_cached + num_trunk)), []
    for end, branch in zip(step_ends, branches, strict=True):
        first, size = len(tokens), len(branch)
        mask[first : first + size, :end] = True
        own = slice(num_cached + first, num_cached + first + size)
        mask[first : first + size, own] = torch.ones(size, size, dtype=torch.bool).tril()
        tokens.extend(branch)
        indices.extend(range(end, end + size))
        ends.append(len(tokens) - 1)
    return VerdictTree(tokens, indices, mask[None, None], ends)


def verdict_branch(step: Step, verdict_turn: Tokens) -> Tokens:
    """The verdict turn behind `step`; one that has ended its turn itself is not ended twice."""
    return verdict_turn[1:] if step.tokens[-1] == verdict_turn[0] else verdict_turn


def contrast(logits: Tensor) -> list[float]:
    """rho per row of float32 logits (n, 2) of the positive and the negative word (CPN, paper section on TBVM).

    Raises NumericalError when one is not a number.
    """
    rhos: list[float] = torch.softmax(logits, -1)[:, 0].tolist()
    if not all(map(math.isfinite, rhos)):
        raise NumericalError(f"verdict logits are not finite: {logits.tolist()}")
    return rhos


def check_chain(chain: Sequence[Step]) -> None:
    """Raises ValueError when a step is empty or does not follow the one before it."""
    for index, step in enumerate(chain):
        if not step.tokens:
            raise ValueError(f"step {index} of the chain is empty (finish {step.finish!r}): there is nothing to judge")
        if index and step.prefix != chain[index - 1].end:
            raise ValueError(
                f"step {index} of the chain does not follow step {index - 1}: its prefix has {len(step.prefix)} "
                f"tokens, but must be the {len(chain[index - 1].end)} tokens that end the step before"
            )
