"""The trained draft in Hugging Face form: loads wherever a model is named, `--draft` included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from dreamr.engines.hf.loading import load_processor
from dreamr.tasks.prompts import PromptConfig, save_prompt_config


def export(weights: Mapping[str, Tensor], source: str, prompts: PromptConfig, folder: Path) -> Path:
    """Write `weights`, and the prompts that they learnt from, with everything else of the checkpoint `source`; in its
    number type. Returns `folder`.

    For the end of a run: this process trains no more by DeepSpeed.
    """
    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would load the model split over ranks that do not call
    model = AutoModelForImageTextToText.from_pretrained(source, dtype="auto")
    model.load_state_dict({name: weight.to(model.dtype) for name, weight in weights.items()})
    model.save_pretrained(folder)
    processor = load_processor(source)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    save_prompt_config(prompts, folder)
    return folder
