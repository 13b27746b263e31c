"""`HFEngine`: one Qwen3-VL checkpoint run by transformers, on a CPU or a GPU, behind the `Engine` protocol.

    event loop        next_step / score / prefill / update_weights      stop(id)
                          │ one thread each (calls.py)                     │ event
                          ▼                                                ▼
    threads           [ wait for a turn ▶ forward ▶ choose token ▶ pass the turn on ] … ▶ Step
                          └─ the turn (turns.py) guards the model and the prefix cache

The event loop never waits for the model. A thread waits for its turn only: at most one token, or one prefill or
verdict forward, of each call in line before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dreamr.engines.base import COMPARISONS
from dreamr.engines.batched import BatchedSequences
from dreamr.engines.branches import check_branches
from dreamr.engines.calls import Calls
from dreamr.engines.grammar import Grammars
from dreamr.engines.hf_work import HFWork
from dreamr.engines.loading import load_model, load_processor, new_kv, pick_device, pick_dtype
from dreamr.engines.pairs import check_pairs
from dreamr.engines.sampling import TokenChooser
from dreamr.engines.verdicts import check_chain
from dreamr.tasks.processor import PromptEncoder
from dreamr.tasks.prompts import PromptConfig, load_prompt_config
from dreamr.types import (
    Checked,
    Criterion,
    Prefill,
    Priority,
    Prompt,
    Proposal,
    Sampling,
    Step,
    ThoughtEnd,
    Tokens,
    Verdict,
)

MAX_CALLS = 64
"""Calls that share the model token by token; more wait for one of these to end."""


class HFEngine(HFWork):
    """One loaded model. Build it with `load`."""

    def __init__(self, model: Any, encoder: PromptEncoder, max_cached_tokens: int) -> None:
        super().__init__(model, encoder, max_cached_tokens)
        self._calls = Calls(MAX_CALLS, name="engine")
        self._grammars = Grammars(encoder.tokenizer, self.step_end.eos_tokens)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        max_cached_tokens: int = 16384,
        prompts: PromptConfig | None = None,
    ) -> HFEngine:
        """Load a checkpoint folder or hub id.

        `dtype` "auto" is the type on disk on a GPU and float32 on a CPU. `prompts` defaults to the folder's own
        `dreamr_prompt.json`. Raises ValueError in one sentence for anything that is missing or does not fit.
        """
        target, number_type = pick_device(device), pick_dtype(dtype)
        loaded = load_model(model, target, number_type)
        encoder = PromptEncoder(load_processor(model), prompts or load_prompt_config(Path(model)))
        return cls(loaded, encoder, max_cached_tokens)

    @property
    def image_tokens(self) -> list[int]:
        """Tokens that stand for images and videos, which no text may contain."""
        return [self.model.config.image_token_id, self.model.config.video_token_id]

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def device(self) -> str:
        return str(self._forward.device)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._encoder.tokenizer

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """Write the step that follows `after` (see `Engine`). Raises ValueError for sampling out of range."""
        mask = None
        if sampling.grammar:
            mask = await asyncio.to_thread(self._grammars.mask_of, sampling.grammar, sampling.max_tokens)
        chooser = TokenChooser(sampling, mask)
        if after.closed:
            now = time.time()
            return Step(prefix=after.end, finish="eos", started=now, ended=now)
        return await self._calls.run(
            call_id,
            lambda stop: self._write(prompt, after.end, chooser, sampling.max_tokens, stop),
            background=priority == "speculative",
        )

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        """Judge a chain in one forward, or compare pairs in one each (see `Engine`); `stop` cannot shorten that.

        Raises ValueError when a step is empty, the steps do not follow each other, or references are missing.
        """
        if criterion in COMPARISONS:
            check_pairs(chain, references)
            return await self._calls.run(call_id, lambda _: self._compare(chain, references, criterion))
        check_chain(chain)
        if not chain:
            return []
        return await self._calls.run(call_id, lambda _: self.judge(prompt, chain, criterion))

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        """See `TokenSpeculation`."""
        return await self._calls.run(call_id, lambda stop: self._propose(prompt, after.end, num_tokens, sampling, stop))

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        """See `TokenSpeculation`; one forward, which `stop` cannot shorten."""
        return await self._calls.run(call_id, lambda _: self._check(prompt, after, proposal, sampling))

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        """See `BranchWriting`."""
        check_branches(chain, sampling)
        return await self._calls.run(call_id, lambda stop: self._write_branches(prompt, chain, sampling, stop))

    async def prefill(self, prompt: Prompt) -> Prefill:
        """Run the prompt alone, so that the first step does not pay for it."""
        return await self._calls.run(f"prefill {prompt.key}", lambda _: self._fill(prompt))

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`."""
        return await self._calls.run(f"count {prompt.key}", lambda _: len(self._placed(prompt).tokens))

    async def thought_end(self) -> ThoughtEnd:
        """See `Phases`."""
        return self._encoder.thought_end

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """See `Phases`."""
        if isinstance(text, str):
            return self._encoder.ids(text)
        return await self._calls.run(f"tokenize {text.key}", lambda _: self._placed(text).tokens)

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place and forget all that the old ones computed.

        Raises RuntimeError while a step is being written, and for weights that do not fit the model.
        """
        await self._calls.run("update_weights", lambda _: self._replace_weights(state_dict))

    def batch(self, prompts: Sequence[Prompt], rows: Sequence[int]) -> BatchedSequences:
        """Sequences that grow together, row i behind prompt number `rows[i]`; outside of the prefix cache.

        Blocks for the prompts' forward passes. The caller holds `turns` and inference mode, now and in using them.
        """
        placed = [self._placed(prompt) for prompt in prompts]
        return BatchedSequences(self._forward, placed, rows, lambda: new_kv(self.model))

    def prompt_tokens(self, prompt: Prompt) -> Tokens:
        """The prompt as this model reads it."""
        return self._placed(prompt).tokens

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (b, v) of hidden states (b, h)."""
        return self._forward.logits(hidden)

    def stop(self, call_id: str) -> None:
        """End that call between two tokens; an unknown or ended one is no error."""
        self._calls.stop(call_id)

    async def close(self) -> None:
        """Stop all calls and end the threads; the engine is of no use afterwards."""
        await self._calls.close()
