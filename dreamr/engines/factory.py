"""Builds the engine that a configuration names; each kind is imported only when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dreamr.config import (
    EMBEDDED_PREFIX,
    EngineConfig,
    HFEngineConfig,
    ImportedEngineConfig,
    ScriptedEngineConfig,
    VLLMEngineConfig,
)
from dreamr.engines.base import Engine
from dreamr.tasks.prompts import load_prompt_config

_MODELS = Path(__file__).parent.parent / "embedded"


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """A loaded engine and its description."""

    engine: Engine
    model: str
    device: str
    num_parameters: int
    max_positions: int = 0
    """Most tokens of a prompt and its answer together; 0 when unknown."""
    recommended: Mapping[str, float] = field(default_factory=dict)
    """Sampling settings that the checkpoint recommends."""
    warm_up: Callable[[], Awaitable[None]] | None = None
    """To be awaited once, before the first call."""
    died: Callable[[], Awaitable[None]] | None = None
    """Raises EngineDied when the engine's own process ends, else never returns; None: it has no process."""


def build_engine(config: EngineConfig, ids_of: str | None = None) -> LoadedEngine:
    """Load the engine; blocks until its weights are in place.

    `ids_of` names the model whose token ids steps carry: an engine with another tokenizer translates.

    Raises:
        ValueError: the model or the factory cannot be loaded, in one sentence.
    """
    loaded = _build(config)
    if ids_of is not None and (own := getattr(loaded.engine, "tokenizer", None)) is not None:
        from dreamr.engines.hf.loading import load_tokenizer
        from dreamr.engines.retokenize import TextCrossing, same_ids

        target = load_tokenizer(model_location(ids_of))
        if not same_ids(own, target):
            return replace(loaded, engine=TextCrossing(loaded.engine, own, target))
    return loaded


def _build(config: EngineConfig) -> LoadedEngine:
    match config:
        case HFEngineConfig():
            return _build_hf(config)
        case VLLMEngineConfig():
            return _build_vllm(config)
        case ImportedEngineConfig():
            return _build_imported(config)
        case ScriptedEngineConfig():
            from dreamr.engines.scripted import ScriptedEngine

            return LoadedEngine(
                ScriptedEngine(config),
                model="scripted",
                device="none",
                num_parameters=0,
                max_positions=config.max_positions,
            )


def model_location(model: str) -> str:
    """Folder of a built-in model, or the folder or hub id itself."""
    if model.startswith(EMBEDDED_PREFIX):
        return str(_MODELS / model.removeprefix(EMBEDDED_PREFIX))
    return model


def checkpoint_bytes(model: str) -> int:
    """Size of a model's weights on this machine; 0 for a hub id that has not been downloaded."""
    folder = Path(model_location(model))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=["*.safetensors"]))
        except LocalEntryNotFoundError:
            return 0
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _build_hf(config: HFEngineConfig) -> LoadedEngine:
    from dreamr.engines.hf.engine import HFEngine

    location = model_location(config.model)
    engine = HFEngine.load(
        location,
        device=config.device,
        dtype=config.dtype,
        max_cached_tokens=config.max_cached_tokens,
        prompts=load_prompt_config(Path(location), config.prompts),
        assistant=model_location(config.assistant) if config.assistant else None,
        proposed_tokens=config.proposed_tokens,
        background=config.background,
    )
    return LoadedEngine(
        engine, config.model, engine.device, engine.num_parameters, engine.max_positions, engine.recommended
    )


def _build_vllm(config: VLLMEngineConfig) -> LoadedEngine:
    from dreamr.engines.vllm.engine import VLLMEngine

    engine = VLLMEngine.load(config, model_location(config.model))
    return LoadedEngine(
        engine,
        config.model,
        engine.device,
        engine.num_parameters,
        engine.max_positions,
        engine.recommended,
        warm_up=engine.warm_up,
        died=engine.died,
    )


def _build_imported(config: ImportedEngineConfig) -> LoadedEngine:
    module_name, _, attribute = config.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"engine.factory '{config.factory}' cannot be imported: {error}.") from error
    engine: Engine = factory(**config.settings)
    return LoadedEngine(engine, model=config.factory, device="cpu", num_parameters=0)
