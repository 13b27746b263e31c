"""Writes a trained model as a checkpoint folder that `from_pretrained` and the engine load: half precision on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from dreamr.tasks.prompts import PromptConfig, save_prompt_config
from tools.make_pair.corpus import SAME_TEMPLATE, SCORE_QUESTION, VERDICT_QUESTION
from tools.make_pair.images import image_processor

PROMPTS = PromptConfig(
    instruction="",
    generation_suffix="<think>",
    closing="</think>",
    verdict_question=VERDICT_QUESTION,
    score_question=SCORE_QUESTION,
    score_prefix="",
    same_template=SAME_TEMPLATE,
)


def load(folder: Path) -> Qwen3VLForConditionalGeneration:
    """A model to be trained further, in float32, its vision tower frozen."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    return model


def export(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save weights (float16 safetensors), tokenizer, image processor and prompt texts; `model` stays float32."""
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.half()
    half.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    half.config.dtype = torch.float16
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    save_prompt_config(PROMPTS, folder)
