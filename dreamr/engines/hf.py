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
from transformers import PreTrainedTokenizerBase

from dreamr.actors.types import Finish, Prompt, Sampling, Step, Tokens, Verdict
from dreamr.engines.calls import Calls
from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.engines.loading import eos_tokens, load_model, load_processor, new_kv, pick_device, pick_dtype
from dreamr.engines.prefix_cache import CachedSequence, PrefixCache
from dreamr.engines.sampling import TokenChooser
from dreamr.engines.step_end import StepEnd
from dreamr.engines.turns import Turns
from dreamr.engines.verdicts import check_chain, contrast, plant, verdict_branch
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
        self._step_end = StepEnd(encoder.decode, eos_tokens(model, encoder.tokenizer.eos_token_id))
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
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def device(self) -> str:
        return str(self._forward.device)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._encoder.tokenizer

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

    async def score(self, call_id: str, prompt: Prompt, chain: Sequence[Step]) -> list[Verdict]:
        """Judge a chain in one forward (see `Engine`), which `stop` cannot shorten.

        Raises ValueError when a step is empty or the steps do not follow each other.
        """
        check_chain(chain)
        if not chain:
            return []
        return await self._calls.run(call_id, lambda _: self.judge(prompt, chain))

    async def prefill(self, prompt: Prompt) -> None:
        """Run the prompt alone, so that the first step does not pay for it."""
        await self._calls.run(f"prefill {prompt.key}", lambda _: self._fill(prompt))

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place and forget all that the old ones computed.

        Raises RuntimeError while a step is being written, and for weights that do not fit the model.
        """
        await self._calls.run("update_weights", lambda _: self._replace_weights(state_dict))

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
                    hidden = self._catch_up(sequence, placed, whole)
                    finish = self._decode(sequence, placed, hidden, tokens, chooser, room, stop)
            text = self._step_end.text(tokens)
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
            if finish := self._step_end.finish(tokens, max_tokens):
                return finish
            self.turns.pass_on()
            if stop.is_set():
                return "stopped"
            ids.fill_(token)
            index = len(tokens) - 1
            hidden = self._forward.text(sequence.kv, ids, positions[..., index : index + 1])[-1]
            self.cache.grew(sequence, (token,))

    def judge(self, prompt: Prompt, chain: Sequence[Step]) -> list[Verdict]:
        placed = self._placed(prompt)
        whole = self._whole(placed, chain[-1].end)
        with self.turns, torch.inference_mode():
            started = time.time()
            with self.cache.lease(prompt.key, whole) as sequence:
                rhos = self._rhos(sequence, placed, whole, chain)
            ended = time.time()
        return [Verdict(rho, started, ended) for rho in rhos]

    def _rhos(
        self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens, chain: Sequence[Step]
    ) -> list[float]:
        """Verdicts on the last steps of `whole`; leaves exactly `whole` in the sequence."""
        self._fill_prompt(sequence, placed)
        trunk = whole[len(sequence.tokens) :]
        step_ends = [len(placed.tokens) + len(step.end) for step in chain]
        branches = [verdict_branch(step, self._encoder.verdict_turn) for step in chain]
        tree = plant(len(sequence.tokens), trunk, step_ends, branches)
        device = self._forward.device
        hidden = self._forward.text(
            sequence.kv,
            torch.tensor([tree.tokens], device=device),
            (torch.tensor(tree.indices, device=device) + placed.rope_delta).expand(3, 1, -1),
            tree.mask.to(device),
        )
        self.cache.grew(sequence, trunk)
        self.cache.crop(sequence, len(whole))
        return contrast(self._forward.word_logits(hidden[tree.ends], self._encoder.verdict_words))

    def _fill(self, prompt: Prompt) -> None:
        placed = self._placed(prompt)
        with self.turns, torch.inference_mode(), self.cache.lease(prompt.key, placed.tokens) as sequence:
            self._fill_prompt(sequence, placed)

    def _replace_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        with self.turns, torch.no_grad():
            self.cache.clear()
            self._forward.weights += 1
            self.model.load_state_dict(state_dict)

    def _fill_prompt(self, sequence: CachedSequence, placed: PlacedPrompt) -> Tensor | None:
        """Last hidden state (h) of the prompt when it had to be run, else None."""
        if sequence.tokens:
            return None
        hidden = self._forward.prompt(placed, sequence.kv)[-1]
        self.cache.grew(sequence, placed.tokens)
        return hidden

    def _catch_up(self, sequence: CachedSequence, placed: PlacedPrompt, whole: Tokens) -> Tensor:
        """Hidden state (h) at the end of `whole`; runs only what the sequence lacks of it."""
        hidden = self._fill_prompt(sequence, placed)
        if hidden is not None and len(whole) == len(placed.tokens):
            return hidden
        if len(sequence.tokens) == len(whole):
            # Keys and values do not give back the hidden state: the last token has to run again.
            self.cache.crop(sequence, len(whole) - 1)
        start = len(sequence.tokens)
        missing = whole[start:]
        ids = torch.tensor([missing], device=self._forward.device)
        positions = self._forward.text_positions(placed, start, len(whole))
        hidden = self._forward.text(sequence.kv, ids, positions)[-1]
        self.cache.grew(sequence, missing)
        return hidden

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
