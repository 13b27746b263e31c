"""Loading a Qwen3-VL checkpoint, from a folder or by its hub id, with one-sentence errors."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from dreamr.config import is_missing_folder
from dreamr.engines.hf.cache import KVShape
from dreamr.engines.hf.model import Model, PlacedPrompt
from dreamr.errors import first_line
from dreamr.tasks.processor import ImageTextProcessor, PromptEncoder
from dreamr.types import Prompt

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
HUB_DEADLINE_S = 10.0
MAX_PROMPTS = 64
"""Encoded prompts that are kept, least recently used first out."""


class Checkpoint:
    """One loaded model with its prompt encoder and the prompts that were placed last."""

    def __init__(self, model: Any, encoder: PromptEncoder) -> None:
        self.model, self.encoder = Model(model), encoder
        self._placed: LRUCache[str, PlacedPrompt] = LRUCache(MAX_PROMPTS)

    async def placed(self, prompt: Prompt) -> PlacedPrompt:
        """The prompt as this model reads it, encoded once, in a thread: decoding large images takes a while.

        Raises ValueError for control tokens in the question and unreadable images.
        """
        placed = self._placed.get(prompt.key)
        if placed is None:
            placed = await asyncio.to_thread(lambda: self.model.place(self.encoder.encode(prompt)))
        # When two calls encode the same prompt at once, the first result is kept, with its image features.
        return self._placed.setdefault(prompt.key, placed)


def load_model(model: str, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """The checkpoint in evaluation mode on `device`, with scaled-dot-product attention.

    `dtype` None keeps the type on disk on a GPU, and is float32 on a CPU. Raises ValueError in one sentence when
    the checkpoint cannot be found, is no Qwen3-VL model, or lacks weights.
    """
    model_type = find_config(model).model_type
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{model!r} is a {model_type!r} model; this engine runs {' and '.join(MODEL_TYPES)}: "
            f"use engine kind 'vllm' for others"
        )
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    auto: Any = AutoModelForImageTextToText
    try:
        # sdpa: eager attention adds a boolean tree mask as 0/1, which is silently wrong.
        loaded, report = auto.from_pretrained(
            model,
            dtype=dtype or "auto",
            attn_implementation="sdpa",
            output_loading_info=True,
            # Straight to the device: a large model need not fit into the machine's memory first.
            **({"device_map": {"": device}} if device.type != "cpu" else {}),
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {model!r} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"the checkpoint {model!r} lacks {len(missing)} weights, among them {missing[0]}")
    module: nn.Module = loaded.to(device).eval().requires_grad_(False)
    _fuse_norms(module)
    return module


def load_processor(model: str) -> ImageTextProcessor:
    """Tokenizer, image processor and chat template. Raises ValueError in one sentence when one is missing."""
    try:
        processor: ImageTextProcessor = ImageTextProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model!r} has no usable tokenizer or image processor: {first_line(error)}") from error
    check_template(processor, model)
    return processor


def check_template(processor: Any, model: str) -> None:
    """Raises ValueError in one sentence when there is no chat template."""
    if not processor.chat_template:
        raise ValueError(f"{model!r} has no chat template: add chat_template.jinja to the checkpoint")


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone. Raises ValueError in one sentence when there is none."""
    auto: Any = AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = auto.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model!r} has no usable tokenizer: {first_line(error)}") from error
    return tokenizer


def pick_device(name: str) -> torch.device:
    """Raises ValueError for a device that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} does not exist: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def pick_dtype(name: str) -> torch.dtype | None:
    """None for "auto". Raises ValueError for an unknown name."""
    dtypes: Mapping[str, torch.dtype | None] = {
        "auto": None,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name not in dtypes:
        raise ValueError(f"unknown dtype {name!r}: use one of {', '.join(dtypes)}")
    return dtypes[name]


def eos_tokens(configured: int | list[int] | None, tokenizer_eos: int | None) -> frozenset[int]:
    """Ids that end an answer: those of the generation config, else the tokenizer's. Raises ValueError for none."""
    ids = tokenizer_eos if configured is None else configured
    if ids is None:
        raise ValueError("the checkpoint names no eos token: set eos_token_id in its generation_config.json")
    return frozenset([ids] if isinstance(ids, int) else ids)


def recommended_sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """Temperature, top_p, top_k and min_p as far as a generation config sets them; empty when it does not sample."""
    if not generation.get("do_sample"):
        return {}
    names = ("temperature", "top_p", "top_k", "min_p")
    return {name: generation[name] for name in names if generation.get(name) is not None}


CPU_CACHED_TOKENS = 65_536
GPU_SHARE = 0.5
"""Share of the memory that the weights leave on a GPU which the prefix cache may take; activations need the rest."""


def cache_bound(shape: KVShape) -> int:
    """Default bound of the prefix cache in tokens, from the memory that is free once the weights are loaded."""
    if shape.device.type != "cuda":
        return CPU_CACHED_TOKENS
    free, _ = torch.cuda.mem_get_info(shape.device)
    return max(4096, int(GPU_SHARE * free) // shape.bytes_per_token)


def _fuse_norms(model: nn.Module) -> None:
    """Fuse each RMS norm of a float32 language model into one kernel: saves some 5 % of a token's time in small models.

    In narrower types the two round differently, and the checkpoint's own rounding is kept.
    """
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("TextRMSNorm") and next(norm.parameters()).dtype == torch.float32:
                setattr(parent, name, _fused(norm))


def _fused(norm: Any) -> nn.RMSNorm:
    fused = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
    fused.weight = norm.weight
    return fused


def find_config(model: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model configuration, before anything large is loaded. Raises ValueError when there is none."""
    if is_missing_folder(model):
        raise ValueError(f"model folder {model!r} does not exist: give a checkpoint folder or a hub id like org/name")
    if not Path(model).exists():
        _check_hub(model)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"no model configuration found for {model!r}: {first_line(error)}") from error
    return config


def _check_hub(model: str) -> None:
    """One short request for a model that is not in the cache: the libraries themselves retry for minutes."""
    if constants.is_offline_mode() or try_to_load_from_cache(model, "config.json") is not None:
        return
    try:
        HfApi().model_info(model, timeout=HUB_DEADLINE_S)
    except Exception as error:  # no network, no such model, no permission: libraries raise different types
        raise ValueError(
            f"model {model!r} is not on this machine and cannot be loaded from the hub "
            f"({first_line(error).rstrip('.')}): correct the name, check the network, or give a checkpoint folder"
        ) from error
