"""Packs the branches of one problem into one sequence, and sequences into a batch.

A token attends to its own branch and the ancestors of that branch (tree mask), at its position without other branches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamr.tasks.ledger_image import COLUMNS, ROWS

IGNORE = -100
UNKNOWN = -1.0
CHAIN, VERDICT, SCORE, SAMENESS = range(4)
"""Kinds of labels: a chain of thought, or the answer to one of three questions about a step."""
IMAGE_START = 4
"""Tokens before the image: <|im_start|>, user, newline, <|vision_start|>."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded sequences; B problems, L tokens."""

    tokens: Tensor  # (B, L) long
    positions: Tensor  # (3, B, L) long
    mask: Tensor  # (B, 1, L, L) bool, True where attention is allowed
    labels: Tensor  # (B, L) long, the token that follows, or IGNORE
    weights: Tensor  # (B, L) loss weight of the label
    task: Tensor  # (B, L) long: CHAIN, VERDICT, SCORE or SAMENESS
    mistake: Tensor  # (B, L) float: 1 from a step's first wrong token on, 0 before it, UNKNOWN outside judged steps
    image_rows: Tensor  # (B,) long, row of the image bank


@dataclass(slots=True)
class Tree:
    """One packed sequence under construction."""

    tokens: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    task: list[int] = field(default_factory=list)
    mistake: list[float] = field(default_factory=list)
    ancestors: list[set[int]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """For each branch, the place that follows its last token."""

    def add(
        self, parent: int | None, ids: list[int], labelled: bool, mistake_from: int | None = None, root_place: int = 0
    ) -> int:
        """Append a branch after `parent`; returns its number. None: a root, which begins at `root_place`.

        `labelled` tokens predict the next one of their branch; `mistake_from` is a judged step's first wrong token.
        """
        branch = len(self.ancestors)
        start = self.ends[parent] if parent is not None else root_place
        self.ancestors.append({branch} | (self.ancestors[parent] if parent is not None else set()))
        self.ends.append(start + len(ids))
        self.tokens += ids
        self.places += range(start, start + len(ids))
        self.branch += [branch] * len(ids)
        self.labels += [*ids[1:], IGNORE] if labelled else [IGNORE] * len(ids)
        self.weights += [1.0] * len(ids)
        self.task += [CHAIN] * len(ids)
        self.mistake += [UNKNOWN if mistake_from is None else float(i >= mistake_from) for i in range(len(ids))]
        return branch

    def answer(self, task: int, token: int) -> None:
        """The last token's label: the answer to a question about a step."""
        self.labels[-1], self.task[-1] = token, task

    @property
    def last(self) -> int:
        return len(self.tokens) - 1

    def mask(self) -> Tensor:
        """(length, length) bool."""
        branch = torch.tensor(self.branch)
        lineage = torch.zeros(len(self.ancestors), len(self.ancestors), dtype=torch.bool)
        for child, ancestors in enumerate(self.ancestors):
            lineage[child, list(ancestors)] = True
        return lineage[branch][:, branch].tril()


def positions_of(places: Tensor) -> Tensor:
    """Multimodal rope positions (3, ...) for places in a sequence whose one image stands at the beginning."""
    cell = places - IMAGE_START
    in_image = (cell >= 0) & (cell < ROWS * COLUMNS)
    # Positions of text continue after the longest side of the image, not after its last token.
    text = torch.where(cell >= ROWS * COLUMNS, places - ROWS * COLUMNS + max(ROWS, COLUMNS), places)
    start = torch.full_like(places, IMAGE_START)
    row, column = start + cell.clamp(min=0) // COLUMNS, start + cell.clamp(min=0) % COLUMNS
    return torch.stack([torch.where(in_image, axis, text) for axis in (start, row, column)])


def pad(trees: list[Tree], image_rows: list[int]) -> Batch:
    """One batch of all trees, padded to the longest."""
    longest = max(len(tree.tokens) for tree in trees)

    def padded(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        rows = [getattr(tree, name) for tree in trees]
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows], dtype=dtype)

    # Padding attends to itself: a mask row without any True would give NaN.
    mask = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    for row, tree in enumerate(trees):
        mask[row, 0, : len(tree.tokens), : len(tree.tokens)] = tree.mask()
    return Batch(
        tokens=padded("tokens", 0, torch.long),
        positions=positions_of(padded("places", 0, torch.long)),
        mask=mask,
        labels=padded("labels", IGNORE, torch.long),
        weights=padded("weights", 0.0, torch.float),
        task=padded("task", CHAIN, torch.long),
        mistake=padded("mistake", UNKNOWN, torch.float),
        image_rows=torch.tensor(image_rows),
    )
