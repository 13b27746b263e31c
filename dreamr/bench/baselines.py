"""Decoding by other libraries as methods: one uninterrupted call per answer, in an actor that loads its own models."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamr.bench.methods import ASSISTED, MethodSpec
from dreamr.config import ActorConfig, HFEngineConfig, PipelineSettings
from dreamr.types import Prompt, Tokens
from pipelines import OnCommit, Trace
from pipelines.trace import CommittedStep, Span


@dataclass(frozen=True, slots=True)
class Generated:
    """One whole answer, on the clock of `time.time`."""

    tokens: Tokens
    text: str
    started: float
    ended: float


class TransformersActor:
    """transformers' own `generate`, with or without an assistant. Plain Python: `BenchActors` makes it a Ray actor."""

    def __init__(self, target: HFEngineConfig, draft: HFEngineConfig, num_threads: int) -> None:
        """Load both models."""
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        import torch

        from dreamr.engines.factory import model_location
        from dreamr.engines.hf.loading import load_model, load_processor, pick_device, pick_dtype
        from dreamr.tasks.processor import PromptEncoder
        from dreamr.tasks.prompts import load_prompt_config

        torch.set_num_threads(num_threads)
        folder = model_location(target.model)
        self._device = pick_device(target.device)
        self._target: Any = load_model(folder, self._device, pick_dtype(target.dtype))
        self._draft: Any = load_model(model_location(draft.model), self._device, pick_dtype(draft.dtype))
        self._encoder = PromptEncoder(load_processor(folder), load_prompt_config(Path(folder), target.prompts))

    def ready(self) -> None:
        """Answers when both models are loaded."""

    def generate(self, prompt: Prompt, settings: PipelineSettings, assisted: bool) -> Generated:
        """Answer one prompt. Raises what the library raises for a pair or a mode that it does not support."""
        import torch

        started = time.time()
        encoded = self._encoder.encode(prompt)
        ids = torch.tensor([encoded.tokens], device=self._device)
        images = {}
        if encoded.pixel_values is not None:
            images = {
                "pixel_values": encoded.pixel_values.to(self._device),
                "image_grid_thw": encoded.image_grid.to(self._device),  # type: ignore[union-attr]
                "mm_token_type_ids": encoded.token_types.to(self._device),
            }
        torch.manual_seed(settings.seed)
        sampled = settings.temperature > 0
        output = self._target.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.max_tokens,
            do_sample=sampled,
            # top_k: the library's default of 50 would exclude tokens that the schedules may draw.
            **({"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if sampled else {}),
            **({"assistant_model": self._draft} if assisted else {}),
            **images,
        )
        tokens = tuple(output[0, len(encoded.tokens) :].tolist())
        return Generated(tokens, self._encoder.decode(tokens), started, time.time())


class TransformersMethod:
    """Calls a `TransformersActor`."""

    def __init__(self, spec: MethodSpec, actor: Any, target: ActorConfig) -> None:
        self.spec = spec
        self.actors = {"target": target}
        self._actor = actor

    async def run(self, prompt: Prompt, on_commit: OnCommit | None = None, max_tokens: int | None = None) -> Trace:
        settings, began = self.spec.limited(max_tokens), time.time()
        generated = await self._actor.generate.remote(prompt, settings, self.spec.base == ASSISTED)
        trace = whole_answer(self.spec.name, settings, generated, began, time.time() - began)
        if on_commit:
            on_commit(trace.steps[0])
        return trace


def whole_answer(name: str, settings: PipelineSettings, generated: Generated, began: float, wall_s: float) -> Trace:
    """A trace with one step: such libraries do not report when they wrote which token."""
    span = Span("target", generated.started - began, generated.ended - began, "committed", 0, len(generated.tokens))
    ended = len(generated.tokens) < settings.max_tokens
    return Trace(
        request_id=name,
        method=name,
        steps=(CommittedStep(0, "target", generated.tokens, generated.text, None, wall_s),),
        end="answered" if ended else "budget",
        wall_s=wall_s,
        orchestration_s=wall_s - (generated.ended - generated.started),
        spans=(span,),
        num_drafted=0,
        num_judged=0,
        num_accepted=0,
        coverage=0.0,
        drafted_tokens=0,
        wasted_draft_tokens=0,
        wasted_target_tokens=0,
    )
