"""`HFEngine`: one Qwen3-VL checkpoint run by transformers, on a CPU or a GPU, as an `Engine`.

    event loop        next_step / score / prefill / ...           stop(id), promote(id)
                          │ prompt encoded in a thread, once          │
                          ▼                                           ▼
    loop thread       [ jobs of all calls share one forward after the other (loop.py) ] ─▶ Step, Verdict, ...

The event loop never waits for the model. A call waits for at most one forward before its own tokens join the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dreamr.engines.base import COMPARISONS
from dreamr.engines.grammar import Grammars
from dreamr.engines.hf.assistant import load_assistant
from dreamr.engines.hf.cache import PrefixCache
from dreamr.engines.hf.jobs import FillJob, WriteJob
from dreamr.engines.hf.loading import (
    Checkpoint,
    cache_bound,
    eos_tokens,
    load_model,
    load_processor,
    pick_device,
    pick_dtype,
    recommended_sampling,
)
from dreamr.engines.hf.loop import EngineLoop
from dreamr.engines.hf.requests import Requests
from dreamr.engines.hf.token_jobs import CheckJob, ProposeJob
from dreamr.engines.hf.verdicts import Judge
from dreamr.engines.sampling import check_sampling
from dreamr.engines.steps import StepEnd, check_branches, check_pairs
from dreamr.tasks.processor import PromptEncoder
from dreamr.tasks.prompts import PromptConfig, load_prompt_config
from dreamr.types import (
    Checked,
    Criterion,
    JudgedStep,
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


class HFEngine:
    """One loaded model. Build it with `load`; all methods belong to one event loop."""

    def __init__(
        self,
        model: Any,
        encoder: PromptEncoder,
        max_cached_tokens: int | None = None,
        assistant: tuple[Any, PromptEncoder, int] | None = None,
        *,
        background: bool = False,
    ) -> None:
        """`assistant`: a small model, its encoder, and the most tokens that it proposes at a time.

        Raises ValueError when the assistant has other token ids than the model.
        """
        self._checkpoint = Checkpoint(model, encoder)
        self._model = self._checkpoint.model
        shape = self._model.kv_shape
        self._assistant = None
        helper = None
        if assistant is not None:
            self._assistant, helper = load_assistant(*assistant, encoder, max_cached_tokens)
        self.cache = PrefixCache(cache_bound(shape) if max_cached_tokens is None else max_cached_tokens, shape)
        self._loop = EngineLoop(self._model, self.cache, helper, background=background)
        self.step_end = StepEnd(
            encoder.decode, eos_tokens(model.generation_config.eos_token_id, encoder.tokenizer.eos_token_id)
        )
        self._requests = Requests(self._checkpoint, self._loop)
        self._judge = Judge(self._model, encoder, self._requests)
        self._grammars = Grammars(encoder.tokenizer, self.step_end.eos_tokens, self._model.num_logits)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        max_cached_tokens: int | None = None,
        prompts: PromptConfig | None = None,
        assistant: str | None = None,
        proposed_tokens: int = 16,
        background: bool = False,
    ) -> HFEngine:
        """Load a checkpoint folder or hub id, and that of an assistant.

        `dtype` "auto" is the type on disk on a GPU and float32 on a CPU. `prompts` defaults to the folder's own
        `dreamr_prompt.json`. Raises ValueError in one sentence for anything that is missing or does not fit.
        """
        target, number_type = pick_device(device), pick_dtype(dtype)
        loaded = load_model(model, target, number_type)
        encoder = PromptEncoder(load_processor(model), prompts or load_prompt_config(Path(model)))
        helper = None
        if assistant is not None:
            small = load_model(assistant, target, number_type)
            helper = (small, PromptEncoder(load_processor(assistant), encoder.config), proposed_tokens)
        return cls(loaded, encoder, max_cached_tokens, helper, background=background)

    @property
    def module(self) -> Any:
        """The transformers model."""
        return self._model.module

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def device(self) -> str:
        return str(self._model.device)

    @property
    def max_positions(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._model.max_positions

    @property
    def recommended(self) -> dict[str, float]:
        """See `recommended_sampling`."""
        return recommended_sampling(self.module.generation_config.to_diff_dict())

    @property
    def encoder(self) -> PromptEncoder:
        return self._checkpoint.encoder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.encoder.tokenizer

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """Write the step that follows `after` (see `Engine`). Raises ValueError for sampling out of range."""
        check_sampling(sampling)
        if after.closed:
            now = time.time()
            return Step(prefix=after.end, finish="eos", started=now, ended=now)
        job = await self._write_job(call_id, prompt, after, sampling)
        job.priority = priority
        return (await self._requests.run(job)).result()

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        """See `BranchWriting`: the chain is read once, and every branch continues a copy of its part."""
        check_branches(chain, sampling)
        placed = await self._requests.placed(prompt)
        await self._requests.run(
            FillJob(f"{call_id}/chain", prompt.key, placed, self._requests.whole(placed, chain[-1].end))
        )
        jobs = [await self._write_job(call_id, prompt, step, one) for step, one in zip(chain, sampling, strict=True)]
        return tuple(job.result() for job in await asyncio.gather(*map(self._requests.run, jobs)))

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        """Judge a chain in one forward, or compare pairs (see `Engine`); `stop` cannot shorten that.

        Raises ValueError when a step is empty, the steps do not follow each other, or references are missing.
        """
        if criterion in COMPARISONS:
            check_pairs(chain, references)
            compare = self._judge.same if criterion == "same" else self._judge.similarity
            return [await compare(call_id, *pair) for pair in zip(chain, references, strict=True)]
        return await self._judge.score(call_id, prompt, chain, criterion)

    async def score_tokens(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], temperature: float = 1.0
    ) -> list[JudgedStep]:
        """See `TokenScoring`. Raises ValueError as `score` does."""
        return await self._judge.judged(call_id, prompt, chain, "rho", temperature)

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        """See `TokenSpeculation`."""
        check_sampling(sampling)
        placed = await self._requests.placed(prompt)
        self._requests.whole(placed, after.end)
        eos = self.step_end.eos_tokens
        job = ProposeJob(call_id, prompt.key, placed, after.end, sampling, num_tokens, eos)
        return (await self._requests.run(job)).result()

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        """See `TokenSpeculation`; one forward, which `stop` cannot shorten."""
        check_sampling(sampling)
        placed = await self._requests.placed(prompt)
        self._requests.whole(placed, after.end)
        probabilities = None
        if proposal.probabilities:
            rows = np.frombuffer(proposal.probabilities, np.float32).reshape(len(proposal.tokens), -1)
            probabilities = torch.from_numpy(rows.copy())
        job = CheckJob(call_id, prompt.key, placed, after.end, sampling, proposal.tokens, probabilities)
        accepted, own, started, ended = (await self._requests.run(job)).result()
        steps = self.step_end.split(after, (*proposal.tokens[:accepted], own), sampling)
        return Checked(steps, accepted, started, ended)

    async def prefill(self, prompt: Prompt) -> Prefill:
        """Read the prompt ahead of the first step. Raises TooLong."""
        placed = await self._requests.placed(prompt)
        job = FillJob(f"prefill {prompt.key}", prompt.key, placed, self._requests.whole(placed, ()))
        return Prefill(*(await self._requests.run(job)).result())

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`."""
        return len(await self.tokenize(prompt))

    async def thought_end(self) -> ThoughtEnd:
        """See `Phases`."""
        return self.encoder.thought_end

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """See `Phases`."""
        return self.encoder.ids(text) if isinstance(text, str) else (await self._requests.placed(text)).tokens

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place and drop all cached results of the old ones.

        Raises RuntimeError while requests run, and for weights that do not fit the model.
        """

        def replace() -> None:
            self.cache.clear()
            self._model.replace_weights(state_dict)

        await asyncio.to_thread(self._loop.exclusively, replace)

    async def update_assistant(self, state_dict: Mapping[str, Tensor]) -> None:
        """`update_weights` for the assistant's model. Raises ValueError when there is none."""
        assistant = self._loop.assistant
        if assistant is None:
            raise ValueError("this engine has no assistant")
        await asyncio.to_thread(self._loop.exclusively, lambda: assistant.replace_weights(state_dict))

    def read_weights(self, model: str) -> dict[str, Tensor]:
        """See `Swappable`."""
        loaded: dict[str, Tensor] = load_model(model, torch.device("cpu"), self.module.dtype).state_dict()
        return loaded

    def stop(self, call_id: str) -> None:
        """End that call between two forwards; no error for one that is unknown or has ended."""
        self._requests.stop(call_id)

    def idle_s(self) -> float:
        """See `Engine`."""
        return time.monotonic() - self._loop.last_forward

    def promote(self, call_id: str, hint: Tokens = ()) -> None:
        """See `Engine`."""
        self._loop.promote(call_id, hint)

    async def close(self) -> None:
        """Stop all calls and end the loop; the engine cannot be used afterwards."""
        await asyncio.to_thread(self._loop.close)

    def check_integrity(self) -> None:
        """Raises AssertionError when an idle engine still holds work or sequences; for tests."""
        self._loop.check_integrity()

    async def _write_job(self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling) -> WriteJob:
        placed = await self._requests.placed(prompt)
        whole, mask = self._requests.whole(placed, after.end), None
        if sampling.grammar:
            budget = min(sampling.max_tokens, self.max_positions - len(whole))
            mask = await asyncio.to_thread(self._grammars.mask_of, sampling.grammar, budget)
        job = WriteJob(call_id, prompt.key, placed, after.end, sampling, self.step_end, self.max_positions, mask)
        if self._assistant is not None and sampling.assisted:
            job.assistant_prompt = await self._assistant.placed(prompt)
        return job
