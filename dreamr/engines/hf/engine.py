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
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedTokenizerBase

from dreamr.engines.base import COMPARISONS
from dreamr.engines.grammar import Grammars
from dreamr.engines.hf.assistant import load_assistant
from dreamr.engines.hf.cache import PrefixCache
from dreamr.engines.hf.jobs import CheckJob, FillJob, Job, ProposeJob, WriteJob
from dreamr.engines.hf.loading import cache_bound, eos_tokens, load_model, load_processor, pick_device, pick_dtype
from dreamr.engines.hf.loop import EngineLoop
from dreamr.engines.hf.model import Checkpoint, PlacedPrompt
from dreamr.engines.hf.verdicts import JudgeJob, TextJob, chunks
from dreamr.engines.sampling import check_sampling
from dreamr.engines.steps import EarlyStops, StepEnd, check_branches, check_chain, check_pairs
from dreamr.engines.verdicts import mass, question, rho
from dreamr.errors import TooLong
from dreamr.tasks.processor import PromptEncoder
from dreamr.tasks.prompts import PromptConfig, load_prompt_config
from dreamr.types import (
    NO_VERDICT,
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

MAX_TREE_TOKENS = 2048
"""Tokens of one verdict tree: longer chains are judged in several forwards."""

J = TypeVar("J", bound=Job)


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
        self._early_stops = EarlyStops()
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
        """The model itself, as transformers has it."""
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
        return (await self._run(job)).result()

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        """See `BranchWriting`: the chain is read once, and every branch continues a copy of its part."""
        check_branches(chain, sampling)
        placed = await self._placed(prompt)
        await self._run(FillJob(f"{call_id}/chain", prompt.key, placed, self._whole(placed, chain[-1].end)))
        jobs = [await self._write_job(call_id, prompt, step, one) for step, one in zip(chain, sampling, strict=True)]
        return tuple(job.result() for job in await asyncio.gather(*map(self._run, jobs)))

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
            pairs = zip(chain, references, strict=True)
            return [await self._compare(call_id, step, other, criterion) for step, other in pairs]
        fitting = await self._fitting(prompt, chain, criterion)
        judged = await self._judged(call_id, prompt, fitting, criterion)
        return [one.verdict for one in judged] + [NO_VERDICT] * (len(chain) - len(fitting))

    async def score_tokens(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], temperature: float = 1.0
    ) -> list[JudgedStep]:
        """See `TokenScoring`. Raises ValueError as `score` does."""
        return await self._judged(call_id, prompt, chain, "rho", temperature)

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        """See `TokenSpeculation`."""
        check_sampling(sampling)
        placed = await self._placed(prompt)
        self._whole(placed, after.end)
        eos = self.step_end.eos_tokens
        job = ProposeJob(call_id, prompt.key, placed, after.end, sampling, num_tokens, eos)
        return (await self._run(job)).result()

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        """See `TokenSpeculation`; one forward, which `stop` cannot shorten."""
        check_sampling(sampling)
        placed = await self._placed(prompt)
        self._whole(placed, after.end)
        probabilities = None
        if proposal.probabilities:
            rows = np.frombuffer(proposal.probabilities, np.float32).reshape(len(proposal.tokens), -1)
            probabilities = torch.from_numpy(rows.copy())
        job = CheckJob(call_id, prompt.key, placed, after.end, sampling, proposal.tokens, probabilities)
        accepted, own, started, ended = (await self._run(job)).result()
        steps = self.step_end.split(after, (*proposal.tokens[:accepted], own), sampling)
        return Checked(steps, accepted, started, ended)

    async def prefill(self, prompt: Prompt) -> Prefill:
        """Read the prompt ahead of the first step. Raises TooLong."""
        placed = await self._placed(prompt)
        job = FillJob(f"prefill {prompt.key}", prompt.key, placed, self._whole(placed, ()))
        return Prefill(*(await self._run(job)).result())

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`."""
        return len((await self._placed(prompt)).tokens)

    async def prompt_tokens(self, prompt: Prompt) -> Tokens:
        """See `Trainable`."""
        return (await self._placed(prompt)).tokens

    async def thought_end(self) -> ThoughtEnd:
        """See `Phases`."""
        return self.encoder.thought_end

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """See `Phases`."""
        return self.encoder.ids(text) if isinstance(text, str) else await self.prompt_tokens(text)

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place and drop all that the old ones computed.

        Raises RuntimeError while requests run, and for weights that do not fit the model.
        """

        def replace() -> None:
            self.cache.clear()
            self._model.replace_weights(state_dict)

        await asyncio.to_thread(self._loop.exclusively, replace)

    def stop(self, call_id: str) -> None:
        """End that call between two forwards; no error for one that is unknown or has ended."""
        if not self._loop.stop(call_id):
            self._early_stops.stop(call_id)

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

    async def _fitting(self, prompt: Prompt, chain: Sequence[Step], criterion: Criterion) -> Sequence[Step]:
        """The first steps of a chain, as many as leave space for their verdicts in the model's context."""
        check_chain(chain)
        asked = question(criterion, self.encoder)
        longest = self.max_positions - len(self._whole(await self._placed(prompt), ()))
        return list(takewhile(lambda step: len(step.end) + len(asked.after(step)) <= longest, chain))

    async def _judged(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion,
        temperature: float | None = None,
    ) -> list[JudgedStep]:
        check_chain(chain)
        asked = question(criterion, self.encoder)
        judged: list[JudgedStep] = []
        for part in chunks(chain, asked.turn, MAX_TREE_TOKENS):
            placed = await self._placed(prompt)
            self._whole(placed, part[-1].end)
            job = JudgeJob(f"{call_id}/verdict", prompt.key, placed, part, asked, self._model, temperature)
            judged += (await self._run(job)).result()
        return judged

    async def _write_job(self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling) -> WriteJob:
        placed = await self._placed(prompt)
        whole, mask = self._whole(placed, after.end), None
        if sampling.grammar:
            budget = min(sampling.max_tokens, self.max_positions - len(whole))
            mask = await asyncio.to_thread(self._grammars.mask_of, sampling.grammar, budget)
        job = WriteJob(call_id, prompt.key, placed, after.end, sampling, self.step_end, self.max_positions, mask)
        if self._assistant is not None and sampling.assisted:
            job.assistant_prompt = await self._assistant.placed(prompt)
        return job

    async def _compare(self, call_id: str, step: Step, reference: Step, criterion: Criterion) -> Verdict:
        encoder = self.encoder
        if criterion == "same":
            chat = encoder.same_chat(reference.text, step.text)
            output, started, ended = (await self._run(TextJob(f"{call_id}/same", chat, reads_all=False))).result()
            assert output.logits is not None
            with torch.inference_mode():
                logprobs = self._model.word_logprobs(output.hidden[0], output.logits[0], encoder.verdict_words)
            return Verdict(rho(logprobs), started, ended, mass=mass(logprobs))
        texts = [encoder.ids(text) for text in (reference.text, step.text)]
        if not all(texts):
            now = time.time()
            return Verdict(0.0, now, now)
        jobs = [TextJob(f"{call_id}/text {place}", text, reads_all=True) for place, text in enumerate(texts)]
        (one, started, _), (other, _, ended) = [(await self._run(job)).result() for job in jobs]
        return Verdict(float(cosine_similarity(one.hidden.mean(0), other.hidden.mean(0), dim=0)), started, ended)

    async def _run(self, job: J) -> J:
        """Return when the job has ended; a cancelled caller stops it and waits for its end first."""
        if self._early_stops.begin(job.call_id) and job.can_stop:
            job.end()
            self._early_stops.end(job.call_id)
            return job
        self._loop.submit(job)
        future = asyncio.wrap_future(job.future)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            self._loop.stop(job.call_id)
            while not future.done():  # also when the caller is cancelled again: it ends within one forward
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            future.exception()
            raise
        finally:
            self._early_stops.end(job.call_id)
        return job

    async def _placed(self, prompt: Prompt) -> PlacedPrompt:
        return await self._checkpoint.placed(prompt)

    def _whole(self, placed: PlacedPrompt, prefix: Tokens) -> Tokens:
        """Prompt and prefix. Raises TooLong when the model cannot continue from there."""
        whole = placed.tokens + prefix
        if len(whole) >= self._model.max_positions:
            raise TooLong(
                f"prompt and prefix have {len(placed.tokens)} + {len(prefix)} tokens, but the model takes fewer than "
                f"{self._model.max_positions}: shorten the question, shrink the images or lower max_tokens"
            )
        return whole
