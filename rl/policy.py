"""The draft as the learner holds it: float32 weights, and a processor that reads prompts as the engine does."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from dreamr.engines.hf.loading import load_processor
from dreamr.tasks.processor import ImageTextProcessor, PromptEncoder
from dreamr.tasks.prompts import PromptConfig
from rl.config import LearnerSettings


def load_policy(
    source: str, prompts: PromptConfig, settings: LearnerSettings
) -> tuple[Any, ImageTextProcessor, PromptEncoder]:
    """Model, processor and encoder of a checkpoint folder or hub id."""
    auto: Any = AutoModelForImageTextToText
    model = auto.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
    if settings.freeze_vision:
        model.model.visual.requires_grad_(False)
    processor = load_processor(source)
    encoder = PromptEncoder(processor, prompts)
    # TRL renders the prompt once more, for the image tokens' places: it has to come out as long as the engine's.
    suffix = encoder.config.generation_suffix
    processor.chat_template = (
        f"{processor.chat_template}{{%- if add_generation_prompt -%}}{{{{ {suffix!r} }}}}{{%- endif -%}}"
    )
    processor.tokenizer.padding_side = "left"
    return model, processor, encoder
