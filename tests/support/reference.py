"""The plainest way to run a Qwen3-VL checkpoint: one fresh forward of the whole outer model over all tokens.

No cache, eager attention, image tokens laid out by hand; shares nothing with the engine but the weights on disk.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from dreamr.tasks.prompts import load_prompt_config
from dreamr.types import Finish, Prompt, Step, Tokens


class Reference:
    """Fresh forwards over a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.images = AutoImageProcessor.from_pretrained(folder)
        self.config = load_prompt_config(folder)
        self.thinks = "<think>" in self.tokenizer.chat_template
        eos = self.model.generation_config.eos_token_id
        self.eos_tokens = [eos] if isinstance(eos, int) else eos
        self.step = lru_cache(maxsize=None)(self._step)

    def inputs(self, prompt: Prompt) -> dict[str, Tensor]:
        text = f"{prompt.question}{self.config.instruction}<|im_end|>\n<|im_start|>assistant\n"
        text += "<think>\n" if self.thinks else ""
        pads = ""
        images: dict[str, Tensor] = {}
        if prompt.images:
            opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in prompt.images]
            images = dict(self.images(images=opened, return_tensors="pt"))
            counts = [int(grid.prod()) // 4 for grid in images["image_grid_thw"]]
            pads = "".join(f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in counts)
        text = f"<|im_start|>user\n{pads}{text}{self.config.generation_suffix}"
        return {"input_ids": self.tokenizer(text, return_tensors="pt")["input_ids"], **images}

    def logits(self, prompt: Prompt, prefix: Tokens) -> Tensor:
        """float32 logits (v) after the prefix."""
        return self.logits_at_each(prompt, prefix, ())[-1]

    @torch.no_grad()
    def logits_at_each(self, prompt: Prompt, prefix: Tokens, tokens: Tokens) -> Tensor:
        """float32 logits (n + 1, v) after the prefix and after each of the n tokens that follow it."""
        inputs = self.inputs(prompt)
        ids = torch.cat([inputs.pop("input_ids"), torch.tensor([prefix + tokens], dtype=torch.long)], 1)
        types = (ids == self.model.config.image_token_id).int()
        kinds = {"mm_token_type_ids": types} if inputs else {}
        kept = len(tokens) + 1
        logits: Tensor = self.model(input_ids=ids, use_cache=False, logits_to_keep=kept, **inputs, **kinds).logits[0]
        return logits.float()

    def logprobs(self, prompt: Prompt, step: Step, temperature: float = 1.0) -> list[float]:
        """Log-probabilities of a step's tokens at that temperature."""
        rows = (self.logits_at_each(prompt, step.prefix, step.tokens)[:-1] / temperature).log_softmax(-1)
        return [float(row[token]) for row, token in zip(rows, step.tokens, strict=True)]

    def _step(self, prompt: Prompt, prefix: Tokens, max_tokens: int) -> tuple[Tokens, Finish]:
        """The greedy step by one forward per token, and why it ends."""
        tokens: Tokens = ()
        while True:
            tokens += (int(self.logits(prompt, prefix + tokens).argmax()),)
            if finish := self._end_of(tokens, max_tokens):
                return tokens, finish

    def greedy_along(
        self, prompt: Prompt, prefix: Tokens, tokens: Tokens, max_tokens: int
    ) -> tuple[Tokens, Finish | None]:
        """The greedy token at the place of each of `tokens`, up to the end of the step, and why it ends there.

        These are `tokens` if, and only if, they are the greedy step or its beginning (None): by induction over the
        places. One forward for all of them.
        """
        choices = tuple(self.logits_at_each(prompt, prefix, tokens[:-1]).argmax(-1).tolist())
        for count in range(1, len(choices) + 1):
            if finish := self._end_of(choices[:count], max_tokens):
                return choices[:count], finish
        return choices, None

    def _end_of(self, tokens: Tokens, max_tokens: int) -> Finish | None:
        """Why a step ends after these tokens; None when it goes on."""
        if tokens[-1] in self.eos_tokens:
            return "eos"
        if "\n\n" in self.tokenizer.decode(tokens, skip_special_tokens=True):
            return "delimiter"
        return "length" if len(tokens) == max_tokens else None

    def rho(self, prompt: Prompt, end: Tokens) -> float:
        return self.verdict(prompt, end)[0]

    def verdict(self, prompt: Prompt, end: Tokens) -> tuple[float, float]:
        """rho, and the probability of both verdict words together."""
        ask = f"\n<|im_start|>user\n{self.config.verdict_question}<|im_end|>\n<|im_start|>assistant\n"
        if self.thinks:
            ask += "<think>\n\n</think>\n\n"
        if end[-1] != self.tokenizer.convert_tokens_to_ids("<|im_end|>"):
            ask = "<|im_end|>" + ask
        text = self.tokenizer.decode(end)
        if self.thinks and end[-1] not in self.eos_tokens and "</think>" not in text:
            ask = ("</think>\n\n" if text.endswith("\n") else "\n</think>\n\n") + ask
        words = self.tokenizer.convert_tokens_to_ids([self.config.positive, self.config.negative])
        logits = self.logits(prompt, end + tuple(self.tokenizer(ask)["input_ids"]))
        shares = torch.softmax(logits, -1)[words]
        return float(torch.softmax(logits[words], -1)[0]), float(shares.sum())
