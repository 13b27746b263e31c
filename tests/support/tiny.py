"""A random, tiny but not degenerate Qwen3-VL checkpoint folder, for tests that need a real model and no knowledge.

The tokenizer is byte-level like Qwen's own: the delimiter hides in tokens such as ".\\n\\n", or is split over two.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from dreamr.tasks.prompts import PROMPT_FILE
from dreamr.types import Prompt

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}{%- for part in message.content -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_SPLIT = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def make_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    rng = random.Random(0)
    words = [
        "positive",
        "negative",
        "user",
        "assistant",
        "how",
        "many",
        "red",
        "blue",
        "squares",
        "circles",
        "is",
        "the",
        "right",
    ]
    ends = ["", ".", "!", ")", ").", ":", "?", "\n", ".\n", "\n\n", ".\n\n", "!\n\n", ")\n\n", ":\n\n", "?\n\n", ")."]
    text = "".join(rng.choice(words) + rng.choice(ends) + " " + str(rng.randint(0, 99)) for _ in range(4000))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[1:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Shape:
    """Of the language model; the vision tower is always the same, but for its output."""

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    rows: int | None = None
    """Of the embedding; None: one per token."""
    experts: int = 0
    """With some, the architecture is Qwen3-VL-MoE."""


def make_config(tokenizer: PreTrainedTokenizerBase, shape: Shape) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    token, experts = tokenizer.convert_tokens_to_ids, shape.experts
    mixture = {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1}
    return (Qwen3VLMoeConfig if experts else Qwen3VLConfig)(
        text_config={
            "vocab_size": shape.rows or len(tokenizer),
            "hidden_size": shape.hidden,
            "intermediate_size": 96,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": 32,  # vLLM on a CPU knows no narrower one
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            **(mixture if experts else {}),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": shape.hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def save_checkpoint(
    folder: Path,
    seed: int = 0,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    shape: Shape | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint folder with weights wide enough that the logits depend on every earlier token.

    `generation` is the content of its generation_config.json.
    """
    tokenizer, shape = tokenizer or make_tokenizer(), shape or Shape()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(make_config(tokenizer, shape)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                gain = 0.5 if "embed_tokens" in name or "pos_embed" in name else 1.5 * parameter[0].numel() ** -0.5
                parameter.normal_(std=gain)
        _favour(model.lm_head.weight, tokenizer)
    if generation:
        model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}
    Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=pixels).save_pretrained(
        folder
    )
    prompts = {
        "instruction": "",
        "verdict_question": "is the step right?",
        "positive": "positive",
        "negative": "negative",
    }
    (folder / PROMPT_FILE).write_text(json.dumps(prompts))
    return folder


def _favour(head: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make line breaks and the end of the answer likelier, so that steps end in every possible way.

    The more tokens there are, the more they need. Image tokens, and rows without a token, get a logit of 0, which is
    never the largest: no model can go on from an image that is not there.
    """
    head[tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])] = 0
    head[len(tokenizer) :] = 0
    is_large = len(tokenizer) > 10_000
    for token, text in enumerate(tokenizer.batch_decode([[token] for token in range(len(tokenizer))])):
        if token == tokenizer.eos_token_id:
            head[token] *= 2.5 if is_large else 1.15
        elif "\n" in text:
            head[token] *= 1.35 if is_large else 1.15


def picture(width: int, height: int, seed: int = 0) -> bytes:
    """A PNG file of coarse random colours."""
    rng = random.Random(f"{width}x{height}/{seed}")
    coarse = Image.frombytes("RGB", (5, 5), rng.randbytes(75))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


PROMPTS = {
    "no image": Prompt("how many red circles?"),
    "one small image": Prompt("how many red circles?", (picture(32, 32),)),
    "one wide image": Prompt("how many blue squares?", (picture(160, 64),)),
    "one tall image": Prompt("how many blue squares?", (picture(64, 192),)),
    "two images": Prompt("is the red and the blue right?", (picture(96, 64), picture(64, 128, seed=1))),
}
"""Prompts that differ in their rope deltas."""
