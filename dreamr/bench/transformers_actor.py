"""The library's own decoding, in an actor: one call of `generate` per answer, with or without an assistant."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamr.config import HFEngineConfig, PipelineSettings
from dreamr.types import Prompt, Tokens


@dataclass(frozen=True, slots=True)
class Written:
    """One whole answer, on the clock of `time.time`."""

    tokens: Tokens
    text: str
    started: float
    ended: float


class TransformersActor:
    """Plain Python: the contender makes a Ray actor of it. Loads the pair when it is made."""

    def __init__(self, target: HFEngineConfig, draft: HFEngineConfig, num_threads: int) -> None:
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

    def generate(self, prompt: Prompt, settings: PipelineSettings, assisted: bool) -> Written:
        """Answer one prompt. Raises whatever the library raises for a pair or a mode that it does not support."""
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
            # top_k: the library's default of 50 would cut off what the schedules may draw.
            **({"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if sampled else {}),
            **({"assistant_model": self._draft} if assisted else {}),
            **images,
        )
        tokens = tuple(output[0, len(encoded.tokens) :].tolist())
        return Written(tokens, self._encoder.decode(tokens), started, time.time())
