"""Qwen3's real vocabulary in a random tiny Qwen3-VL: 151,669 tokens in 151,936 rows, and the two styles of its chats.

The vocabulary is read from the installed package `dashscope`, which carries it as `qwen.tiktoken`; without that package
the tests that need it are skipped. Control tokens and their ids are those of the released Qwen3-VL models, and so are
the eos tokens and the recommended sampling in `generation_config.json`.
"""

from __future__ import annotations

import base64
import importlib.util
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from support.tiny import Shape, save_checkpoint

ROWS = 151_936
"""Rows of the embedding: more than there are tokens."""
SHAPE = Shape(hidden=32, layers=2, heads=2, kv_heads=1, rows=ROWS)
CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
"""Tokens that no text may contain, from id 151,643 on."""
MARKS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
"""Tokens after those, which text may contain and decoding keeps."""
INSTRUCT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
THINKING = INSTRUCT.replace("assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif")
"""As of the Thinking models: the generation prompt opens the chain of thought."""
HYBRID = INSTRUCT.replace(
    "{%- endif %}",
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}",
)
"""As of models that open their chain of thought themselves, unless `enable_thinking` is false."""


def save_qwen(folder: Path, template: str = THINKING) -> Path:
    """Write a checkpoint folder with random weights. Skips the test when the vocabulary is not installed."""
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = template
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    generation |= {"eos_token_id": tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])}
    return save_checkpoint(folder, tokenizer=tokenizer, shape=SHAPE, generation=generation)


@lru_cache(maxsize=1)
def qwen_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer of the Qwen3 models, without a chat template."""
    names = bytes_to_unicode()
    lines = (line.split() for line in _vocabulary().read_bytes().splitlines() if line)
    vocabulary = {"".join(names[byte] for byte in base64.b64decode(token)): int(rank) for token, rank in lines}
    # Two neighbours merge whenever they make up a token, the one of lowest rank first: that is tiktoken's rule.
    merges = [
        (token[:place], token[place:])
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        for place in range(1, len(token))
        if token[:place] in vocabulary and token[place:] in vocabulary
    ]
    tokenizer = Qwen2Tokenizer(vocabulary, merges, clean_up_tokenization_spaces=False)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def _vocabulary() -> Path:
    package = importlib.util.find_spec("dashscope")
    if package is None or not package.submodule_search_locations:
        pytest.skip("Qwen's vocabulary is not here: pip install dashscope")
    return Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
