"""Which engine an actor runs, and with which model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from dreamr.config.base import Strict

EMBEDDED_PREFIX = "embedded:"
_EMBEDDED_NAMES = ("target", "draft", "draft-untrained")


def names_a_path(name: str) -> bool:
    """Whether `name` can only mean a path, existing or not: a hub id has exactly one slash."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1


def is_missing_folder(model: str) -> bool:
    """Whether `model` can only mean a folder, and this machine has none there."""
    return not model.startswith(EMBEDDED_PREFIX) and not Path(model).exists() and names_a_path(model)


class CheckpointConfig(Strict):
    """Settings of every engine that loads a checkpoint."""

    model: str
    """Checkpoint folder, hub id, or a built-in model: `embedded:target`, `embedded:draft`, or
    `embedded:draft-untrained`, the draft before reinforcement learning."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto`: float32 on CPU, the checkpoint's own type on a GPU."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Texts around the question and the verdict, in place of the checkpoint's: keys of `dreamr_prompt.json`."""

    @field_validator("model")
    @classmethod
    def _embedded_name_exists(cls, model: str) -> str:
        if model.startswith(EMBEDDED_PREFIX) and model.removeprefix(EMBEDDED_PREFIX) not in _EMBEDDED_NAMES:
            known = ", ".join(f"'{EMBEDDED_PREFIX}{name}'" for name in _EMBEDDED_NAMES)
            raise ValueError(f"the built-in models are {known}, not '{model}'.")
        if not model.strip():
            raise ValueError("name a checkpoint folder, a hub id or a built-in model.")
        return model


class HFEngineConfig(CheckpointConfig):
    """A Qwen3-VL checkpoint run by transformers."""

    kind: Literal["hf"] = "hf"
    device: str = "cpu"
    max_cached_tokens: PositiveInt | None = None
    """Bound of the prefix KV cache, over all sequences together; None: half of the memory that the weights leave on a
    GPU, 65,536 on a CPU."""
    assistant: str | None = None
    """Checkpoint of a small model with the same tokenizer, which proposes tokens that this model checks several at a
    time: every step that this engine writes is then written by token-level speculation."""
    proposed_tokens: PositiveInt = 16
    """Most tokens that the assistant proposes at a time; the actual number follows from measured costs."""
    background: bool = False
    """Forwards with only speculative steps get only the core time that other threads and processes leave (Linux). For a
    target that shares its cores with draft and verifier: its step is only needed when the draft's is rejected, and then
    those two are idle. Not for cores that other programs keep busy, and not with `verifier: shared`."""


class VLLMEngineConfig(CheckpointConfig):
    """A checkpoint run by vLLM: Qwen3-VL, or any other vision-language model that vLLM supports and whose chats are
    ChatML."""

    kind: Literal["vllm"]
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share the model; the actor needs as many (`num_gpus`)."""
    quantization: Literal["awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "fp8"] | None = None
    """None: as the checkpoint says."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU that weights and KV cache may take together."""
    kv_cache_mb: PositiveInt | None = None
    """Size of the KV cache, MiB, in place of what `gpu_memory_utilization` leaves; set it on a CPU."""
    max_model_len: PositiveInt | None = None
    """Longest prompt with its answer, in tokens; None: as long as the checkpoint allows, if the KV cache holds it."""
    max_images: PositiveInt = 8
    """Most images in one prompt."""
    speculative: dict[str, Any] | None = None
    """vLLM's own speculative decoding (its `speculative_config`), such as `{method: ngram, num_speculative_tokens: 4,
    prompt_lookup_max: 4}`. Greedy tokens stay the same. Such an engine gives no verdicts."""
    enforce_eager: bool = False
    """No compilation and no CUDA graphs: a start within seconds, slower tokens."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint; some architectures (R-4B, say) need it."""

    @field_validator("speculative")
    @classmethod
    def _method_is_known_to_work(cls, speculative: dict[str, Any] | None) -> dict[str, Any] | None:
        if speculative is None:
            return None
        method = speculative.get("method")
        if method is None:
            raise ValueError("name a method, such as {method: ngram, num_speculative_tokens: 4}.")
        if method == "draft_model":
            raise ValueError(
                "vLLM has no draft models for vision-language models with multimodal rope positions: use method ngram, "
                "or eagle3 with a head that was trained for this checkpoint."
            )
        return speculative


class ImportedEngineConfig(Strict):
    """Any class or function that returns an `Engine`, by import path."""

    kind: Literal["import"]
    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """`package.module:name`, called with `settings` as keyword arguments."""
    settings: dict[str, Any] = Field(default_factory=dict)


class ScriptedEngineConfig(Strict):
    """An engine without a model: made-up steps that depend on their whole prefix, and latencies as given."""

    kind: Literal["scripted"]
    seed: int = 0
    num_steps: tuple[PositiveInt, PositiveInt] = (3, 7)
    """Fewest and most steps of an answer."""
    step_tokens: tuple[PositiveInt, PositiveInt] = (8, 24)
    """Fewest and most tokens of a step."""
    thought_steps: tuple[PositiveInt, PositiveInt] | None = None
    """Fewest and most steps of the chain of thought; the next step begins with `</think>`. None: there is none."""
    acceptance: float = Field(default=0.7, ge=0, le=1)
    """Share of steps that get a rho of 0.99; the others get 0.01."""
    imitates: int | None = None
    """Seed of the scripted engine, with steps of the same lengths, whose tokens this one proposes."""
    token_acceptance: float = Field(default=0.8, ge=0, le=1)
    """Share of proposed tokens that equal those of the imitated engine."""
    first_token_s: float = Field(default=0.0, ge=0)
    """Time to read the prefix before the first token of a step."""
    token_s: float = Field(default=0.0, ge=0)
    verdict_s: float = Field(default=0.0, ge=0)
    """Time of one verdict forward over one step."""
    verdict_step_s: float = Field(default=0.0, ge=0)
    """Time of each further step in the same verdict forward."""
    read_step_s: float = Field(default=0.0, ge=0)
    """Time to read one step that another engine has written, before the next one or its verdict."""
    check_s: float | None = Field(default=None, ge=0)
    """Time of the forward that checks proposed tokens; None: as long as one token."""
    compare_s: float | None = Field(default=None, ge=0)
    """Time of a verdict that compares two steps; None: as long as one over one step."""
    max_positions: int = Field(default=0, ge=0)
    """Most words of a prompt, and tokens of its answer, together; 0: no limit."""
    prompt_s: float = Field(default=0.0, ge=0)
    """Time to read a prompt that was not read before."""
    call_s: float = Field(default=0.0, ge=0)
    """Time of a call besides the model's work."""
    background: bool = False
    """As for kind `hf`, on simulated cores."""
    max_batch: PositiveInt = 1
    """Calls that are computed at the same time: without slowing each other down, unless `row_s` is given."""
    row_s: float | None = Field(default=None, ge=0)
    """Tokens of several steps, or several comparisons, share one forward, which each of them makes so much longer."""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Every latency is multiplied by a random factor within 1 - jitter .. 1 + jitter."""


EngineConfig = Annotated[
    HFEngineConfig | VLLMEngineConfig | ImportedEngineConfig | ScriptedEngineConfig, Field(discriminator="kind")
]
