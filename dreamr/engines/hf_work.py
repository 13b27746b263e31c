"""`HFWork`: what the threads of an `HFEngine` do with its model, its prefix cache and its turns.

Every method blocks, takes its turn and gives it back; `stop` events are looked at between two tokens.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from dreamr.engines.branches import BranchWriter
from dreamr.engines.forward import ForwardPass, PlacedPrompt
from dreamr.engines.loading import eos_tokens, new_kv
from dreamr.engines.pairs import PairJudge
from dreamr.engines.prefix_cache import CachedSequence, PrefixCache
from dreamr.engines.questions import questions
from dreamr.engines.reader import Reader
from dreamr.engines.sampling import TokenChooser
from dreamr.engines.step_end import StepEnd
from dreamr.engines.token_round import TokenRounds
from dreamr.engines.turns import Turns
from dreamr.errors import TooLong
from dreamr.tasks.processor import PromptEncoder
from dreamr.types import (
    NO_VERDICT,
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

T = TypeVar("T")

MAX_PROMPTS = 32
"""Encoded prompts, with their image features, that are kept."""


class HFWork:
    """The blocking half of the engine."""

    def __init__(self, model: Any, encoder: PromptEncoder, max_cached_tokens: int) -> None:
        self.model = model
        self._encoder = encoder
        self._forward = ForwardPass(model)
        self.cache = PrefixCache(max_cached_tokens, lambda: new_kv(model))
        self._prompts: OrderedDict[str, PlacedPrompt] = OrderedDict()
        self._prompts_lock = threading.Lock()
        self.step_end = StepEnd(
            encoder.decode, eos_tokens(model.generation_config.eos_token_id, encoder.tokenizer.eos_token_id)
        )
        self.turns = Turns()
        self._reader = Reader(self._forward, self.cache)
        self._rounds = TokenRounds(self._forward, self._reader, self.cache, self.step_end)
        self._branches = BranchWriter(self._forward, self._reader, self.cache, self.step_end, self.turns)
        self._questions = questions(self._forward, encoder)
        self._pairs = PairJudge(self._forward, encoder, lambda: new_kv(model))
        self.max_positions: int = model.config.text_config.max_position_embeddings
        """Most tokens of a prompt and its answer together."""

    def _write(
        self, prompt: Prompt, prefix: Tokens, chooser: TokenChooser, max_tokens: int, stop: threading.Event
    ) -> Step:
        placed = self._placed(prompt)
        whole = self._whole(placed, prefix)
        room = min(max_tokens, self.max_positions - len(whole))
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
        (tokens, q), started, ended = self._read(
            prompt,
            prefix,
            lambda sequence, placed, whole: (
                ((), b"") if stop.is_set() else self._rounds.propose(sequence, placed, whole, num_tokens, sampling)
            ),
        )
        return Proposal(tokens, q, started, ended)

    def _check(self, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling) -> Checked:
        (accepted, own), started, ended = self._read(
            prompt,
            after.end,
            lambda sequence, placed, whole: self._rounds.check(sequence, placed, whole, proposal, sampling),
        )
        steps = self.step_end.split(after, (*proposal.tokens[:accepted], own), sampling)
        return Checked(steps, accepted, started, ended)

    def _write_branches(
        self, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling], stop: threading.Event
    ) -> tuple[Step, ...]:
        choosers = [TokenChooser(one) for one in sampling]
        written, started, ended = self._read(
            prompt,
            chain[-1].end,
            lambda sequence, placed, whole: self._branches.write(
                sequence, placed, whole, chain, choosers, [one.max_tokens for one in sampling], stop
            ),
        )
        return tuple(
            Step(step.end, tuple(tokens), self.step_end.text(tokens), finish, started, ended)
            for step, (tokens, finish) in zip(chain, written, strict=True)
        )

    def judge(self, prompt: Prompt, chain: Sequence[Step], criterion: Criterion = "rho") -> list[Verdict]:
        question = self._questions[criterion]
        longest = self.max_positions - len(question.turn) - len(self._whole(self._placed(prompt), ()))
        fitting = [step for step in chain if len(step.end) <= longest]
        if not fitting:
            return [NO_VERDICT] * len(chain)
        values, started, ended = self._read(
            prompt,
            fitting[-1].end,
            lambda sequence, placed, whole: self._reader.ask(sequence, placed, whole, fitting, question),
        )
        verdicts = [Verdict(value, started, ended) for value in values]
        return verdicts + [NO_VERDICT] * (len(chain) - len(fitting))

    def _read(
        self, prompt: Prompt, prefix: Tokens, work: Callable[[CachedSequence, PlacedPrompt, Tokens], T]
    ) -> tuple[T, float, float]:
        """What `work` makes of a sequence that holds as much of prompt and prefix as is cached; its begin and end."""
        placed = self._placed(prompt)
        whole = self._whole(placed, prefix)
        with self.turns, torch.inference_mode():
            started = time.time()
            with self.cache.lease(prompt.key, whole) as sequence:
                return work(sequence, placed, whole), started, time.time()

    def _compare(self, steps: Sequence[Step], references: Sequence[Step], criterion: Criterion) -> list[Verdict]:
        compare = self._pairs.same if criterion == "same" else self._pairs.similarity
        with self.turns, torch.inference_mode():
            started = time.time()
            values = [compare(reference.text, step.text) for reference, step in zip(references, steps, strict=True)]
            return [Verdict(value, started, time.time()) for value in values]

    def _fill(self, prompt: Prompt) -> Prefill:
        placed = self._placed(prompt)
        whole = self._whole(placed, ())
        with self.turns, torch.inference_mode(), self.cache.lease(prompt.key, whole) as sequence:
            started = time.time()
            self._reader.fill_prompt(sequence, placed)
            return Prefill(started, time.time())

    def _replace_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        with self.turns, torch.no_grad():
            self.cache.clear()
            self._forward.weights += 1
            self.model.load_state_dict(state_dict)

    def _placed(self, prompt: Prompt) -> PlacedPrompt:
        """Outside of turns and of the lock, so that decoding a large image holds up nobody else.

        Two calls that come at once with a new prompt may both encode it; the first one's is kept, with its features.
        """
        with self._prompts_lock:
            placed = self._prompts.get(prompt.key)
        if placed is None:
            placed = self._forward.place(self._encoder.encode(prompt))
        with self._prompts_lock:
            placed = self._prompts.setdefault(prompt.key, placed)
            self._prompts.move_to_end(prompt.key)
            if len(self._prompts) > MAX_PROMPTS:
                self._prompts.popitem(last=False)
            return placed

    def _whole(self, placed: PlacedPrompt, prefix: Tokens) -> Tokens:
        """Prompt and prefix. Raises TooLong when the model cannot go on from there."""
        whole = placed.tokens + prefix
        if len(whole) >= self.max_positions:
            raise TooLong(
                f"prompt and prefix have {len(placed.tokens)} + {len(prefix)} tokens, but the model takes fewer than "
                f"{self.max_positions}: shorten the question, shrink the images or lower max_tokens"
            )
        return whole
