"""Measures the latencies of one model in one engine, alone on its device, for `tools.gpu_check`."""

from __future__ import annotations

import asyncio
import gc
import io
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from dreamr.config import ActorConfig, EngineConfig
from dreamr.types import ROOT, Prompt, Sampling

REPEATS = 5
CALLS = 200
STEP_TOKENS = 33
BATCH = 8


@dataclass(frozen=True, slots=True)
class Latencies:
    """Median times of one model in one engine, in seconds."""

    engine: str
    model: str
    load_s: float
    prompt_tokens: int
    prompt_s: float
    """Reading the question with its image for the first time."""
    first_token_s: float
    """A step of one token after a cached prompt."""
    token_s: float
    """Each further token."""
    verdict_s: float
    """A verdict on a step of `STEP_TOKENS` tokens after a cached prompt."""
    batch_tokens_per_s: float
    """Tokens per second of `BATCH` steps that are written together."""


def measure(config: EngineConfig, model: str, image_size: tuple[int, int]) -> Latencies:
    """Load the engine, measure it, close it; the memory of its device is free afterwards. Raises ValueError."""
    import torch

    from dreamr.engines.factory import build_engine

    began = time.perf_counter()
    engine: Any = build_engine(config).engine
    load_s = time.perf_counter() - began
    try:
        return asyncio.run(_measured(engine, config.kind, model, load_s, picture(image_size)))
    finally:
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


async def _measured(engine: Any, kind: str, model: str, load_s: float, image: bytes) -> Latencies:
    from dreamr.tasks.images import cold_copy

    prompt = Prompt("What does the picture show?", (image,))
    try:
        step = await engine.next_step("warm-up", prompt, ROOT, Sampling(max_tokens=STEP_TOKENS))
        await engine.score("warm-up", prompt, [step])
        new = [cold_copy(prompt, f"copy {number}") for number in range(REPEATS)]
        first_s = await _median(lambda _: engine.next_step("first", prompt, ROOT, Sampling(max_tokens=1)))
        step_s = await _median(lambda _: engine.next_step("step", prompt, ROOT, Sampling(max_tokens=STEP_TOKENS)))
        return Latencies(
            engine=kind,
            model=model,
            load_s=load_s,
            prompt_tokens=await engine.count_tokens(prompt),
            prompt_s=await _median(lambda number: engine.prefill(new[number])),
            first_token_s=first_s,
            token_s=max(0.0, step_s - first_s) / max(1, len(step.tokens) - 1),
            verdict_s=await _median(lambda _: engine.score("verdict", prompt, [step])),
            batch_tokens_per_s=await _batched(engine, prompt),
        )
    finally:
        await engine.close()


async def _batched(engine: Any, prompt: Prompt) -> float:
    samplings = [Sampling(temperature=1.0, seed=seed, max_tokens=STEP_TOKENS) for seed in range(BATCH)]
    began = time.perf_counter()
    steps = await asyncio.gather(*(engine.next_step(f"{one.seed}", prompt, ROOT, one) for one in samplings))
    return sum(len(step.tokens) for step in steps) / (time.perf_counter() - began)


async def _median(call: Callable[[int], Awaitable[object]], repeats: int = REPEATS) -> float:
    times = []
    for number in range(repeats):
        began = time.perf_counter()
        await call(number)
        times.append(time.perf_counter() - began)
    return median(times)


def picture(size: tuple[int, int]) -> bytes:
    """A PNG file of noise."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.effect_noise(size, 64).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


async def call_latency() -> float:
    """Median time of a call to an actor of a local Ray whose engine has no model."""
    import ray

    from actors.cluster import connected
    from actors.roles import DraftActor

    with connected():
        config = ActorConfig.model_validate({"engine": {"kind": "scripted"}})
        actor: Any = ray.remote(DraftActor).options(num_cpus=0).remote(config)
        await actor.start.remote()
        return await _median(lambda _: actor.check_health.remote(), CALLS)
