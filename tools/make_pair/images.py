"""The embedded pair's image processor: Qwen's, without a lower bound that would enlarge the small ledger images."""

from __future__ import annotations

from transformers import Qwen2VLImageProcessorPil

_PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}


def image_processor() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=dict(_PIXELS))
