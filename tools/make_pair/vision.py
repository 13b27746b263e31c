"""Trains the vision tower alone to read the shapes, then freezes it: the language part starts from readable images.

One tower serves both models; each has its own merger, as wide as its language model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import Qwen3VLForConditionalGeneration

from dreamr.tasks.ledger import COLORS, SHAPES, Split, make_problem
from dreamr.tasks.ledger_image import COLUMNS, ROWS, Cell
from tools.make_pair.images import image_processor

NUM_CELLS = COLUMNS * ROWS
GRID = (1, 2 * ROWS, 2 * COLUMNS)
"""(frames, rows, columns) of 16-pixel patches."""
FEATURE_SCALE = 0.2
"""Brings the merger's output to the size of word embeddings, which the language model expects."""


@dataclass(frozen=True, slots=True)
class ImageBank:
    """Rendered images and what they show."""

    cells: tuple[tuple[Cell, ...], ...]
    patches: Tensor
    """(num_images, num_patches, patch_dim) bfloat16"""

    @property
    def labels(self) -> Tensor:
        """(num_images, NUM_CELLS, 3): indices of color, shape and number."""
        rows = [[(COLORS.index(c.color), SHAPES.index(c.shape), c.number - 1) for c in cells] for cells in self.cells]
        return torch.tensor(rows)


def render_bank(split: Split, seed: int, num_images: int) -> ImageBank:
    """Images of the first `num_images` problems of a stream, preprocessed."""
    processor = image_processor()
    cells, patches = [], []
    for index in tqdm(range(num_images), desc=f"render {split}", mininterval=5):
        problem = make_problem(split, seed, index)
        cells.append(problem.cells)
        patches.append(processor(images=[problem.image], return_tensors="pt")["pixel_values"].bfloat16())
    return ImageBank(tuple(cells), torch.stack(patches))


def features(model: Qwen3VLForConditionalGeneration, patches: Tensor) -> Tensor:
    """Image tokens (batch, NUM_CELLS, hidden) for patches (batch, num_patches, patch_dim)."""
    grid = torch.tensor([GRID]).expand(len(patches), 3)
    output = model.model.visual(patches.flatten(0, 1).float(), grid_thw=grid)
    return output.pooler_output.view(len(patches), NUM_CELLS, -1)


def load_tower(model: Qwen3VLForConditionalGeneration, state: dict[str, Tensor]) -> None:
    """Put a trained tower into a model, and freeze it."""
    model.model.visual.load_state_dict(state)
    model.model.visual.requires_grad_(False)


class Readers(nn.Module):
    """Linear read-outs of color, shape and number from one image token; used in training only."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, classes) for classes in (len(COLORS), len(SHAPES), 9))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        normed = self.norm(tokens)
        return [head(normed) for head in self.heads]


def train_vision(
    models: list[Qwen3VLForConditionalGeneration], bank: ImageBank, held_out: ImageBank, num_steps: int, seed: int
) -> float:
    """Train the tower inside every model (shared while training, then copied). Returns the share of held-out cells that
    every model's image tokens show correctly in all three properties."""
    first = models[0].model.visual
    for other in models[1:]:
        _share_tower(first, other.model.visual)
    readers = [Readers(model.config.get_text_config().hidden_size) for model in models]
    modules = nn.ModuleList([*(model.model.visual for model in models), *readers])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    labels = bank.labels
    for _ in (bar := tqdm(range(num_steps), desc="vision", mininterval=5)):
        rows = torch.randint(len(labels), (64,), generator=generator)
        loss = torch.stack(
            [_loss(m, r, bank.patches[rows], labels[rows]) for m, r in zip(models, readers, strict=True)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    accuracy = min(_accuracy(m, r, held_out) for m, r in zip(models, readers, strict=True))
    for model in models:
        _finish(model)
    return accuracy


def _share_tower(first: nn.Module, other: nn.Module) -> None:
    for name, child in first.named_children():
        if name != "merger":
            setattr(other, name, child)


def _finish(model: Qwen3VLForConditionalGeneration) -> None:
    """Unshare, scale the output and freeze."""
    model.model.visual = copy.deepcopy(model.model.visual)
    last = model.model.visual.merger.linear_fc2
    with torch.no_grad():
        last.weight.mul_(FEATURE_SCALE)
        last.bias.mul_(FEATURE_SCALE)
    model.model.visual.requires_grad_(False)


def _loss(model: Qwen3VLForConditionalGeneration, readers: Readers, patches: Tensor, labels: Tensor) -> Tensor:
    logits = readers(features(model, patches))
    return torch.stack([cross_entropy(x.flatten(0, 1), labels[..., i].flatten()) for i, x in enumerate(logits)]).sum()


@torch.no_grad()
def _accuracy(model: Qwen3VLForConditionalGeneration, readers: Readers, bank: ImageBank) -> float:
    logits = readers(features(model, bank.patches))
    right = torch.stack([x.argmax(-1) == bank.labels[..., i] for i, x in enumerate(logits)])
    return right.all(0).float().mean().item()
