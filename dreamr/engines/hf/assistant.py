"""`Assistant`: a small model in the target's process that proposes the target's next tokens.

    every step of the engine's loop, for the rows that write:
    assistant   p1 ─▶ p2 ─▶ ... ─▶ pk        k forwards of the small model, all rows together
    target      [ last p1 p2 ... pk ]        one forward: keeps the longest run it would have written, and adds a token

Greedy tokens stay the target's, and sampled ones stay distributed as the target's (Leviathan et al. 2023). How many
tokens to propose follows from measured costs and acceptance, by expected tokens per second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dreamr.engines.hf.cache import CachedSequence, PrefixCache
from dreamr.engines.hf.jobs import WriteJob
from dreamr.engines.hf.loading import Checkpoint, cache_bound
from dreamr.engines.hf.model import Model, PlacedPrompt, Row
from dreamr.engines.retokenize import same_ids
from dreamr.engines.sampling import distribution, draw, greedy
from dreamr.engines.steps import common_prefix
from dreamr.tasks.processor import PromptEncoder

FORGETTING = 0.98
"""Weight of older measurements at each new one."""
PLAIN_ROUNDS = 32
"""After so many rounds without a proposal, one token is proposed to measure the acceptance again."""


@dataclass(slots=True)
class LinearCost:
    """Seconds of a forward as `base + slope * tokens`, by least squares over recent forwards."""

    _count: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def measured(self, tokens: int, seconds: float) -> None:
        self._count = self._count * FORGETTING + 1
        self._x = self._x * FORGETTING + tokens
        self._y = self._y * FORGETTING + seconds
        self._xx = self._xx * FORGETTING + tokens**2
        self._xy = self._xy * FORGETTING + tokens * seconds

    def of(self, tokens: int) -> float:
        """Expected seconds; 0 before the first measurement."""
        if not self._count:
            return 0.0
        mean_x, mean_y = self._x / self._count, self._y / self._count
        spread = self._xx / self._count - mean_x**2
        slope = max(0.0, (self._xy / self._count - mean_x * mean_y) / spread) if spread > 1e-9 else 0.0
        return max(1e-6, mean_y + slope * (tokens - mean_x))


@dataclass(slots=True)
class Controller:
    """How many tokens to propose: the number with the most expected tokens per second."""

    most: int
    target: LinearCost = field(default_factory=LinearCost)
    assistant: LinearCost = field(default_factory=LinearCost)
    accepted: float = 8.0
    rejected: float = 2.0
    """Running counts of proposed tokens that were checked: those accepted, and rounds that ended in a rejection."""
    num_plain: int = 0
    """Rounds in a row for which it chose no proposal."""

    def observe(self, proposed: int, accepted: int) -> None:
        self.accepted = self.accepted * FORGETTING + accepted
        self.rejected = self.rejected * FORGETTING + (accepted < proposed)

    def choose(self, num_rows: int) -> int:
        """Tokens to propose for each of `num_rows` rows; called once per round."""
        rate = self.accepted / (self.accepted + self.rejected)
        best, best_speed = 0, 0.0
        for count in range(self.most + 1):
            expected = count + 1 if rate >= 1 else (1 - rate ** (count + 1)) / (1 - rate)
            seconds = count * self.assistant.of(num_rows) + self.target.of(num_rows * (count + 1))
            speed = expected / seconds if seconds else expected
            if speed > best_speed:
                best, best_speed = count, speed
        self.num_plain = 0 if best else self.num_plain + 1
        if self.num_plain == PLAIN_ROUNDS:
            self.num_plain = 0
            return min(1, self.most)
        return best


@dataclass(frozen=True, slots=True, eq=False)
class _Mirror:
    """The assistant's own sequence of one job."""

    prompt: PlacedPrompt
    """The job's prompt, encoded for the assistant."""
    sequence: CachedSequence


class Assistant:
    """Proposes tokens for write jobs. Use it from the engine's loop only."""

    def __init__(self, model: Model, max_cached_tokens: int, most: int) -> None:
        self.model = model
        self.cache = PrefixCache(max_cached_tokens, model.kv_shape)
        self.controller = Controller(most)
        self._mirrors: WeakKeyDictionary[WriteJob, _Mirror] = WeakKeyDictionary()

    def replace_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place and drop all cached results of the old ones. Raises RuntimeError."""
        self.cache.clear()
        self.model.replace_weights(state_dict)

    def accept(self, job: WriteJob, prompt: PlacedPrompt) -> None:
        """Propose tokens for a job from now on; `prompt` is the job's prompt, encoded for this model."""
        prefix = job.whole[len(job.prompt.tokens) :] if job.prompt else ()
        whole = prompt.tokens + prefix
        sequence = self.cache.claim(job.key, whole)
        if len(sequence.tokens) >= len(whole):
            self.cache.crop(sequence, len(whole) - 1)
        self._mirrors[job] = _Mirror(prompt, sequence)

    def release(self, job: WriteJob) -> None:
        """The job has ended."""
        mirror = self._mirrors.pop(job, None)
        if mirror is not None:
            self.cache.release(mirror.sequence)

    def forget(self, job: WriteJob) -> None:
        """Stop proposing for this job: a forward failed, and its sequence may be incomplete."""
        job.proposal, job.probabilities = (), None
        mirror = self._mirrors.pop(job, None)
        if mirror is not None:
            self.cache.drop(mirror.sequence)

    def propose(self, jobs: Sequence[WriteJob]) -> None:
        """Set a proposal for each accepted job, unless it has a hint or is almost complete."""
        rows = [job for job in jobs if job in self._mirrors and not job.has_hint and job.most_proposed > 0]
        if not rows:
            return
        # Sampled tokens depend on how many are proposed: with a fixed number, a step depends on its seed alone.
        is_fixed = any(job.is_sampled for job in rows)
        count = self.controller.most if is_fixed else self.controller.choose(len(rows))
        if count == 0:
            return
        counts = {job: min(count, job.most_proposed) for job in rows}
        tokens: dict[WriteJob, list[int]] = {job: [] for job in rows}
        sampled_from: dict[WriteJob, list[Tensor]] = {job: [] for job in rows}
        for _ in range(count):
            writing = [job for job in rows if len(tokens[job]) < counts[job]]
            if not writing:
                break
            self._extend(writing, tokens, sampled_from)
        for job in rows:
            job.proposal = tuple(tokens[job])
            job.probabilities = torch.stack(sampled_from[job]) if sampled_from[job] else None

    def _extend(
        self, jobs: Sequence[WriteJob], tokens: dict[WriteJob, list[int]], sampled_from: dict[WriteJob, list[Tensor]]
    ) -> None:
        """One more proposed token for each job."""
        began = time.perf_counter()
        rows = [self._row(job, tokens[job]) for job in jobs]
        hidden = torch.cat(self.model.run(rows))
        for job, row in zip(jobs, rows, strict=True):
            self.cache.grew(self._mirrors[job].sequence, row.tokens)
        logits = self.model.logits(hidden)
        chosen = greedy(logits)
        for place, job in enumerate(jobs):
            token = chosen[place]
            if job.is_sampled:
                q = distribution(logits[place : place + 1], [job.sampling])
                sampled_from[job].append(q[0])
                token = draw(q, [job.number()])[0]
            tokens[job].append(token)
        if all(len(row.tokens) == 1 for row in rows):  # rows that catch up would distort the cost of one token
            self.controller.assistant.measured(len(rows), time.perf_counter() - began)

    def _row(self, job: WriteJob, proposed: list[int]) -> Row:
        """The tokens of the job and of the proposal that the assistant's sequence lacks."""
        mirror = self._mirrors[job]
        assert job.prompt is not None
        wanted = mirror.prompt.tokens + job.whole[len(job.prompt.tokens) :] + tuple(job.tokens) + tuple(proposed)
        sequence = mirror.sequence
        # Tokens of a rejected proposal have to go, and the last token has to run again.
        self.cache.crop(sequence, min(common_prefix(sequence.tokens, wanted), len(wanted) - 1))
        new = wanted[len(sequence.tokens) :]
        self.cache.reserve(sequence, len(new))
        return Row(sequence, new, mirror.prompt)


def load_assistant(
    model: Any, own: PromptEncoder, most: int, target: PromptEncoder, max_cached_tokens: int | None
) -> tuple[Checkpoint, Assistant]:
    """An assistant that proposes up to `most` tokens. Raises ValueError when it has other token ids than the target."""
    if not same_ids(own.tokenizer, target.tokenizer):
        raise ValueError("the assistant's tokenizer has other token ids than the target's: choose another assistant")
    checkpoint = Checkpoint(model, own)
    bound = cache_bound(checkpoint.model.kv_shape) if max_cached_tokens is None else max_cached_tokens
    return checkpoint, Assistant(checkpoint.model, bound, most)
