"""The engines that have to keep the contract, each with what a test needs to know about it."""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from dreamr.config import VLLMEngineConfig


class EngineKind(Protocol):
    """How an engine is loaded, and how it forgets what it has cached."""

    name: str
    rho_tolerance: float
    """How far rho may be from that of a fresh forward by transformers in float32."""
    logprob_tolerance: float
    """The same for log-probabilities of tokens."""

    async def load(self, checkpoint: Path) -> Any: ...

    async def forget(self, engine: Any) -> None: ...


@dataclass(frozen=True)
class HF:
    name: str = "hf"
    rho_tolerance: float = 1e-5
    logprob_tolerance: float = 1e-3

    async def load(self, checkpoint: Path) -> Any:
        from dreamr.engines.hf.engine import HFEngine

        return HFEngine.load(str(checkpoint))

    async def forget(self, engine: Any) -> None:
        engine.cache.clear()


@dataclass(frozen=True)
class VLLM:
    name: str = "vllm"
    rho_tolerance: float = 1e-4
    logprob_tolerance: float = 0.02  # image tokens do not count
    speculative: dict[str, Any] | None = None

    async def load(self, checkpoint: Path) -> Any:
        from dreamr.engines.vllm.engine import VLLMEngine

        config = VLLMEngineConfig(
            kind="vllm",
            model=str(checkpoint),
            max_model_len=2048,
            kv_cache_mb=256,
            enforce_eager=True,
            max_images=2,
            speculative=self.speculative,
        )
        return await asyncio.to_thread(VLLMEngine.load, config, str(checkpoint))

    async def forget(self, engine: Any) -> None:
        await engine._llm.reset_encoder_cache()
        await engine._llm.reset_prefix_cache()


KINDS: list[Any] = [pytest.param(HF(), id="hf")]
if importlib.util.find_spec("vllm") is not None:
    KINDS.append(pytest.param(VLLM(), id="vllm", marks=pytest.mark.vllm))
