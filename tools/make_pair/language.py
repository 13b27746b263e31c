"""Trains the language part on packed problems, with the vision tower's image tokens computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Qwen3VLForConditionalGeneration

from dreamr.tasks.ledger_image import COLUMNS, ROWS, Cell
from tools.make_pair.packing import CHAIN, IGNORE, IMAGE_START, SAMENESS, SCORE, VERDICT, Batch

CHAIN_WEIGHT = 5.0
"""Weight of the chain's loss: it falls far below the verdicts' loss long before every look-up is correct."""
HIGH_SCORE = 7
"""SpecReason accepts a step from this score on."""
EXTRA_WEIGHT = 0.5
"""Scores and sameness serve the baselines: they must not cost the verdicts anything."""
_IMAGE = slice(IMAGE_START, IMAGE_START + ROWS * COLUMNS)


@dataclass(frozen=True, slots=True)
class Images:
    """The image tokens of a bank of images for one language model."""

    cells: tuple[tuple[Cell, ...], ...]
    tokens: Tensor
    """(num_images, NUM_CELLS, hidden)"""


@dataclass(frozen=True, slots=True)
class Losses:
    """One batch's losses and accuracies; scalars."""

    total: Tensor
    digits: float
    """Share of digits of the chains that are predicted correctly."""
    verdicts: float
    """Balanced accuracy of the verdicts; nan without verdicts."""
    scores: float = float("nan")
    """Share of scores on the correct side of HIGH_SCORE."""
    sameness: float = float("nan")
    """Share of correct answers about two steps."""


def hidden_states(model: Qwen3VLForConditionalGeneration, batch: Batch, images: Images) -> Tensor:
    """Last hidden states (B, L, hidden) under the batch's tree mask."""
    text = model.model.language_model
    embeds = text.embed_tokens(batch.tokens).clone()
    embeds[:, _IMAGE] = images.tokens[batch.image_rows]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = text(inputs_embeds=embeds, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False)
    return output.last_hidden_state.float()


class Loss(nn.Module):
    """Next-token loss, the three questions' losses and (for training only) a per-token mistake loss."""

    digit_ids: Tensor
    high_ids: Tensor

    def __init__(self, model: Qwen3VLForConditionalGeneration, digit_ids: list[int]) -> None:
        """`digit_ids`: from 0 to 9, each digit's two tokens, without and with a space before it."""
        super().__init__()
        self.mistake_head = nn.Linear(model.config.get_text_config().hidden_size, 1)
        self.register_buffer("digit_ids", torch.tensor(digit_ids))
        self.register_buffer("high_ids", torch.tensor(digit_ids[2 * HIGH_SCORE :]))

    def forward(self, model: Qwen3VLForConditionalGeneration, batch: Batch, images: Images) -> Losses:
        hidden = hidden_states(model, batch, images)
        wanted = batch.labels != IGNORE
        labels, weights, task = batch.labels[wanted], batch.weights[wanted], batch.task[wanted]
        logits = model.lm_head(hidden[wanted])
        losses = cross_entropy(logits, labels, reduction="none") * weights
        total = CHAIN_WEIGHT * losses[task == CHAIN].mean()
        right = logits.argmax(-1) == labels
        is_digit = torch.isin(labels, self.digit_ids) & (task == CHAIN)
        verdict = task == VERDICT
        if not verdict.any():
            return Losses(total, right[is_digit].float().mean().item(), float("nan"))
        known = batch.mistake >= 0
        total = total + losses[verdict].mean()
        total = total + binary_cross_entropy_with_logits(self.mistake_head(hidden[known])[:, 0], batch.mistake[known])
        words = labels[verdict]
        balanced = torch.stack([right[verdict][words == word].float().mean() for word in words.unique()]).mean()
        for question in (SCORE, SAMENESS):
            if (task == question).any():
                total = total + EXTRA_WEIGHT * losses[task == question].mean()
        above = torch.isin(logits.argmax(-1), self.high_ids) == torch.isin(labels, self.high_ids)
        return Losses(
            total,
            digits=right[is_digit].float().mean().item(),
            verdicts=balanced.item(),
            scores=above[task == SCORE].float().mean().item(),
            sameness=right[task == SAMENESS].float().mean().item(),
        )


class Optimizers:
    """Muon for the matrices, AdamW for embeddings, norms and heads; one learning-rate factor for both."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, loss: Loss, lr: float) -> None:
        named = [(n, p) for n, p in model.model.language_model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([*others, *loss.parameters()], lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self._base = lr
        self._parameters = [*matrices, *others]

    def step(self, factor: float) -> None:
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = self._base * factor
            optimizer.step()
            optimizer.zero_grad()
