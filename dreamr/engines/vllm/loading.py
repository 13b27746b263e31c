"""Starting vLLM on a checkpoint, with errors in one sentence before minutes of loading. Imports vLLM when called."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor

from dreamr.config import VLLMEngineConfig
from dreamr.engines.hf.loading import (
    check_template,
    eos_tokens,
    find_config,
    recommended_sampling,
)
from dreamr.engines.vllm.guardian import guard
from dreamr.engines.vllm.weights import num_parameters
from dreamr.engines.weights import checkpoint_shapes
from dreamr.errors import first_line
from dreamr.tasks.chat import ChatEncoder
from dreamr.tasks.prompts import load_prompt_config

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(frozen=True, slots=True)
class LoadedVLLM:
    """A started vLLM and facts about its checkpoint."""

    llm: AsyncLLM
    chat: ChatEncoder
    device: str
    num_parameters: int
    eos_tokens: frozenset[int]
    shapes: dict[str, tuple[int, ...]]
    """Shape of every weight on disk, by name."""
    image_tokens: frozenset[int]
    """Placeholder ids of images and videos."""
    speculates: bool
    """Whether vLLM decodes speculatively: it then gives no probabilities of chosen words."""
    recommended: dict[str, float]
    """See `recommended_sampling`."""


def start(config: VLLMEngineConfig, model: str) -> LoadedVLLM:
    """Load the folder or hub id `model`; blocks until vLLM answers, and needs no event loop.

    Raises ValueError in one sentence for anything that is missing or does not fit.
    """
    device = _check_platform(config)
    find_config(model, trust_remote_code=config.trust_remote_code)
    chat = ChatEncoder(_processor(config, model), load_prompt_config(Path(model), config.prompts))
    llm = _start_engine(config, model, device)
    try:
        shapes = checkpoint_shapes(model)
        generation = llm.model_config.try_get_generation_config()
        eos = eos_tokens(generation.get("eos_token_id"), chat.tokenizer.eos_token_id)
    except BaseException:
        llm.shutdown()  # else it would keep the GPUs' memory
        raise
    ids = (getattr(llm.model_config.hf_config, name, None) for name in ("image_token_id", "video_token_id"))
    images = frozenset(token for token in ids if token is not None)
    speculates, recommended = config.speculative is not None, recommended_sampling(generation)
    return LoadedVLLM(llm, chat, device, num_parameters(shapes), eos, shapes, images, speculates, recommended)


def _processor(config: VLLMEngineConfig, model: str) -> Any:
    try:
        processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{model!r} has no usable tokenizer or image processor: {first_line(error)}") from error
    if not processor.chat_template:  # in some checkpoints the tokenizer alone has it
        processor.chat_template = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    check_template(processor, model)
    return processor


def _check_platform(config: VLLMEngineConfig) -> str:
    """Kind of device. Raises ValueError when vLLM, or a GPU that it needs, is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "engine kind 'vllm' needs vLLM, which is not installed in this environment: "
            "pip install -e '.[vllm]', or use engine kind 'hf'"
        )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm.platforms import current_platform

    device: str = current_platform.device_type
    if not device:
        raise ValueError(
            "vLLM is built for GPUs, but this process sees none: set num_gpus of the actor and start it on a node "
            "with GPUs"
        )
    if device != "cpu" and current_platform.device_count() < config.tensor_parallel_size:
        raise ValueError(
            f"engine.tensor_parallel_size = {config.tensor_parallel_size}, but this process sees "
            f"{current_platform.device_count()} GPUs: set num_gpus of the actor to {config.tensor_parallel_size}"
        )
    return device


def _start_engine(config: VLLMEngineConfig, model: str, device: str) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=model,
        dtype="float32" if config.dtype == "auto" and device == "cpu" else config.dtype,
        quantization=config.quantization,
        tensor_parallel_size=config.tensor_parallel_size,
        # Inside a Ray actor vLLM would look for its own placement group.
        distributed_executor_backend="mp" if config.tensor_parallel_size > 1 or device == "cpu" else "uni",
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.kv_cache_mb * 2**20 if config.kv_cache_mb else None,
        # The default on a CPU, 128 tokens, is longer than most steps, so few prefixes would be found.
        block_size=32 if device == "cpu" else None,
        max_model_len=config.max_model_len or -1,
        limit_mm_per_prompt={"image": config.max_images, "video": 0},
        enforce_eager=config.enforce_eager,
        trust_remote_code=config.trust_remote_code,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        speculative_config=config.speculative,
        # At the request's own temperature, as a learner needs them. Verdicts are greedy: theirs are the model's own.
        logprobs_mode="processed_logprobs",
        # In bfloat16 a logit near 20 is rounded to 1/8, which would move rho by several hundredths.
        hf_overrides={"head_dtype": "float32"},
        disable_log_stats=True,
    )
    # Forked processes would lack the guardian's mark; vLLM spawns anyway where CUDA or Ray is in use.
    os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"
    guard()
    try:
        llm = AsyncLLM.from_engine_args(arguments)
    except Exception as error:
        raise ValueError(
            f"vLLM could not start on {model!r}: {first_line(error)}; its own messages above name the cause"
        ) from error
    return llm


def core_pids(llm: AsyncLLM) -> list[int]:
    """The processes that hold the model; their own workers end with them."""
    manager: Any = llm.engine_core.resources.engine_manager
    return [process.pid for process in manager.processes]
