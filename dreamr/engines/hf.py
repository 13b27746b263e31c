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

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamr.actors.types import (
    COMPARING,
    Checked,
    Criterion,
    Finish,
    Prefill,
    Prompt,
    Proposal,
    Sampling,
    Step,
    Tokens,
    Verdict,
)
from dreamr.engines.batched import BatchedSequences
from dreamr.engines.calls import Calls
from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.engines.loading import eos_tokens, load_model, load_processor, new_kv, pick_device, pick_dtype
from dreamr.engines.pairs import PairJudge, check_pairs
from dreamr.engines.prefix_cache import CachedSequence, PrefixCache
from dreamr.engines.questions import questions
from dreamr.engines.reader import Reader
from dreamr.engines.sampling import TokenChooser
from dreamr.engines.step_end import StepEnd
from dreamr.engines.token_round import check_round, propose_round
from dreamr.engines.turns import Turns
from dreamr.engines.verdicts import check_chain
from dreamr.tasks.processor import PromptEncoder
from dreamr.tasks.prompts import PromptConfig, load_prompt_config

MAX_PROMPTS = 32
"""Encoded prompts, with their image features, that are kept."""
MAX_CALLS = 64
"""Calls that share the model token by token; more wait for one of these to end."""


class HFEngine:
    """One loaded model. Build it with `load`."""

    def __init__(self, model: Any, encoder: PromptEncoder, max_cached_tokens: int) -> None:
        self.model = model
        self._encoder = encoder
        self._forward = ForwardPass(model)
        self.cache = PrefixCache(max_cached_tokens, lambda: new_kv(model))
        self._prompts: OrderedDict[str, PlacedPrompt] = OrderedDict()
        self._prompts_lock = threading.Lock()
        self.step_end = StepEnd(encoder.decode, eos_tokens(model, encoder.tokenizer.eos_token_id))
        self._reader = Reader(self._forward, self.cache)
        self._questions = questions(self._forward, encoder)
        self._pairs = PairJudge(self._forward, encoder, lambda: new_kv(model))
        self._max_positions: int = model.config.text_config.max_position_embeddings
        self.turns = Turns()
        self._calls = Calls(MAX_CALLS, name="engine")

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

    async def next_step(self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling) -> Step:
        """Write the step that follows `after` (see `Engine`). Raises ValueError for sampling out of range."""
        chooser = TokenChooser(sampling)
        if after.closed:
            now = time.time()
            return Step(prefix=after.end, finish="eos", started=now, ended=now)
        return await self._calls.run(
            call_id,
            lambda stop: self._write(prompt, after.end, chooser, sampling.max_tokens, stop),
            background=sampling.background,
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
        if criterion in COMPARING:
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

    async def prefill(self, prompt: Prompt) -> Prefill:
        """Run the prompt alone, so that the first step does not pay for it."""
        return await self._calls.run(f"prefill {prompt.key}", lambda _: self._fill(prompt))

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`."""
        return await self._calls.run(f"count {prompt.key}", lambda _: len(self._placed(prompt).tokens))

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

    # What follows runs in threads.

    def _write(
        self, prompt: Prompt, prefix: Tokens, chooser: TokenChooser, max_tokens: int, stop: threading.Event
    ) -> Step:
        placed = self._placed(prompt)
        whole = self._whole(placed, prefix)
        room = min(max_tokens, self._max_positions - len(whole))
        tokens: list[int] = []
        finish: Finish = "stopped"
        with self.turns, torch.inference_mode():
            started = time.time()
            if not stop.is_set():
                with self.cache.lease(prompt.key, whole) as sequence:
                    hidden = self._reader.catch_up(sequence, placed, whole)
                    finish = self._decode(sequence, placed, hidden, tokens, chooser, room, stop)
            text = self.step_end.text(tokens)
            return Step(prefix, tuple(tokens), text, finish, started, time.time())

    def _decode(
        self,
        sequence: CachedSequence,
        placed: PlacedPrompt,
        hidden: Tensor,
        tokens: list[int],
        chooser: TokenChooser,
        max_tokens: int,
        stop: threading.Event,
    ) -> Finish:
        """Append to `tokens` until the step ends; the turn is passed on between two tokens."""
        start = len(sequence.tokens)
        positions = self._forward.text_positions(placed, start, start + max_tokens)
        ids = torch.empty(1, 1, dtype=torch.long, device=self._forward.device)
        while True:
            tokens.append(token := chooser.choose(self._forward.logits(hidden)))
            if finish := self.step_end.finish(tokens, max_tokens):
                return finish
            self.turns.pass_on()
            if stop.is_set():
                return "stopped"
            ids.fill_(token)
            index = len(tokens) - 1
            hidden = self._forward.text(sequence.kv, ids, positions[..., index : index + 1])[-1]
            self.cache.grew(sequence, (token,))

    def _propose(
        self, prompt: Prompt, prefix: Tokens, num_tokens: int, sampling: Sampling, stop: threading.Event
    ) -> Proposal:
        placed = self._placed(prompt)
        whole = self._whole(placed, prefix)
        room = min(num_tokens, self._max_positions - len(whole))
        with self.turns, torch.inference_mode():
            started = time.time()
            if stop.is_set():
                return Proposal(started=started, ended=started)
            with self.cache.lease(prompt.key, whole) as sequence:
                hidden = self._reader.catch_up(sequence, placed, whole)
                tokens, q = propose_round(
                    self._forward, placed, sequence.kv, hidden, len(whole), room, sampling, self.step_end.eos_tokens
                )
                # Most of them will be followed by a token of the target's: a crop is cheaper than a fork.
                self.cache.crop(sequence, len(whole))
            return Proposal(tokens, q, started, time.time())

    def _check(self, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling) -> Checked:
        placed = self._placed(prompt)
        whole = self._whole(placed, after.end)
        with self.turns, torch.inference_mode():
            started = time.time()
            with self.cache.lease(prompt.key, whole) as sequence:
                logits = self._reader.logits_behind(sequence, placed, whole, proposal.tokens)
                accepted, own = check_round(logits, proposal, sampling)
                self.cache.crop(sequence, len(whole) + accepted)
            steps = self.step_end.split(after, (*proposal.tokens[:accepted], own), sampling.max_tokens)
            return Checked(steps, accepted, started, time.time())

    def judge(self, prompt: Prompt, chain: Sequence[Step], criterion: Criterion = "rho") -> list[Verdict]:
        placed = self._placed(prompt)
        whole = self._whole(placed, chain[-1].end)
        with self.turns, torch.inference_mode():
            started = time.time()
            with self.cache.lease(prompt.key, whole) as sequence:
                values = self._reader.ask(sequence, placed, whole, chain, self._questions[criterion])
            ended = time.time()
        return [Verdict(value, started, ended) for value in values]

    def _compare(self, steps: Sequence[Step], references: Sequence[Step], criterion: Criterion) -> list[Verdict]:
        compare = self._pairs.same if criterion == "same" else self._pairs.similarity
        with self.turns, torch.inference_mode():
            started = time.time()
            values = [compare(reference.text, step.text) for reference, step in zip(references, steps, strict=True)]
            return [Verdict(value, started, time.time()) for value in values]

    def _fill(self, prompt: Prompt) -> Prefill:
        placed = self._placed(prompt)
        with self.turns, torch.inference_mode(), self.cache.lease(prompt.key, placed.tokens) as sequence:
            started = time.time()
            self._reader.fill_prompt(sequence, placed)
            return Prefill(started, time.time())

    def _replace_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        with self.turns, torch.no_grad():
            self.cache.clear()
            self._forward.weights += 1
            self.model.load_state_dict(state_dict)

    def _placed(self, prompt: Prompt) -> PlacedPrompt:
        """Outside of turns, so that decoding a large image holds up nobody who has it already."""
        with self._prompts_lock:
            placed = self._prompts.get(prompt.key)
            if placed is None:
                placed = self._prompts[prompt.key] = self._forward.place(self._encoder.encode(prompt))
                if len(self._prompts) > MAX_PROMPTS:
                    self._prompts.popitem(last=False)
            self._prompts.move_to_end(prompt.key)
            return placed

    def _whole(self, placed: PlacedPrompt, prefix: Tokens) -> Tokens:
        """Prompt and prefix. Raises ValueError when the model cannot go on from there."""
        whole = placed.tokens + prefix
        if len(whole) >= self._max_positions:
            raise ValueError(
                f"prompt and prefix have {len(placed.tokens)} + {len(prefix)} tokens, but the model takes fewer than "
                f"{self._max_positions}: shorten the question, shrink the images or lower max_tokens"
            )
        return whole
