"""`ChainBatch`: chains of several groups, written in one batch by one engine.

    write_chains    every row goes on from step to step until its chain ends
    write_steps     every row writes one step, which may be replaced (`replace`) before the next one is written

On a CPU a row is what the pipelines would draft for a request with its seed: the same prompt, the same seed per step,
the same stop rules. The other rows of the batch change nothing but rounding. Only tokens that stand for images are
never chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamr.config import PipelineSettings
from dreamr.engines.hf import HFEngine
from dreamr.engines.sampling import nucleus
from dreamr.types import ROOT, Role, Sampling, Step, Tokens
from pipelines import Request
from rl.chains import ChainEnd, GroupRequest


@dataclass(frozen=True, slots=True)
class ChainLimits:
    """Longest chain and step, and how tokens are chosen besides the temperature."""

    max_tokens: int
    max_step_tokens: int
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class WrittenStep:
    """A step of the draft with the log-probabilities of its tokens."""

    step: Step
    logprobs: tuple[float, ...]


@dataclass(slots=True, eq=False)
class Row:
    """One chain while it is written."""

    group: int
    request: Request
    role: Role
    frontier: Step = ROOT
    num_steps: int = 0
    end: ChainEnd | None = None
    unread: Tokens = ()
    """Tokens that the model has not read yet: they are appended before the next token is chosen."""
    _tokens: list[int] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _generator: torch.Generator | None = None

    def next_sampling(self) -> Sampling:
        return self.request.sampling(self.num_steps, self.role)

    def start_after(self, frontier: Step, num_steps: int) -> None:
        """Go on from a frontier that was not written by this row."""
        self.frontier, self.unread, self.num_steps = frontier, frontier.end, num_steps


class ChainBatch:
    """Blocks while it computes; one thread at a time."""

    def __init__(
        self, engine: HFEngine, requests: Sequence[GroupRequest], limits: ChainLimits, role: Role = "draft"
    ) -> None:
        self._engine, self._limits = engine, limits
        self._images = torch.tensor(engine.image_tokens, device=engine.device)
        """Never chosen: the learner would take such a token for one more image."""
        self.rows = [
            Row(group, _request(request, seed, limits), role)
            for group, request in enumerate(requests)
            for seed in request.seeds
        ]
        with engine.turns, torch.inference_mode():
            self._sequences = engine.batch([request.prompt for request in requests], [row.group for row in self.rows])

    @property
    def num_tokens(self) -> int:
        """Tokens in the rows so far; may be read while they are written."""
        return sum(len(row.frontier.end) + len(row._tokens) for row in self.rows)

    def write_chains(self) -> list[list[WrittenStep]]:
        """Per row, all steps to the end of its chain."""
        return self._write(one_step=False)

    def write_steps(self) -> list[WrittenStep | None]:
        """Per row its next step, None where the chain has ended."""
        return [steps[0] if steps else None for steps in self._write(one_step=True)]

    def replace(self, row: Row, before: Step, by: Step) -> None:
        """Put `by` in place of the step that the row wrote last, which followed `before`."""
        with self._engine.turns, torch.inference_mode():
            # Its last token has not been appended yet.
            self._sequences.drop(self.rows.index(row), len(row.frontier.tokens) - 1)
        row.unread = by.tokens
        row.frontier = by
        row.end = _end(by, before, self._limits)

    def _write(self, *, one_step: bool) -> list[list[WrittenStep]]:
        written: list[list[WrittenStep]] = [[] for _ in self.rows]
        writing = {index for index, row in enumerate(self.rows) if row.end is None}
        with self._engine.turns, torch.inference_mode():
            while writing:
                self._append_unread(writing)
                tokens, logprobs = self._choose(sorted(writing))
                for index, token, logprob in zip(sorted(writing), tokens, logprobs, strict=True):
                    step = self._take(self.rows[index], token, logprob)
                    if step is not None:
                        written[index].append(step)
                        if one_step or self.rows[index].end:
                            writing.remove(index)
        return written

    def _append_unread(self, writing: set[int]) -> None:
        self._sequences.append([row.unread if index in writing else () for index, row in enumerate(self.rows)])
        for index in writing:
            self.rows[index].unread = ()

    def _choose(self, indices: list[int]) -> tuple[list[int], list[float]]:
        """The next token of each row, and its log-probability."""
        logits = self._engine.logits(self._sequences.hidden[indices])
        temperature = self.rows[indices[0]].request.settings.temperature
        if temperature == 0:
            chosen = logits.index_fill(-1, self._images, -torch.inf).argmax(-1)
            logprobs = logits.log_softmax(-1)
        else:
            logprobs = (logits / temperature).log_softmax(-1)
            chosen = self._sample(indices, logprobs.exp())
        return chosen.tolist(), logprobs.gather(-1, chosen[:, None])[:, 0].tolist()

    def _sample(self, indices: list[int], probabilities: Tensor) -> Tensor:
        """What `torch.multinomial` draws from the generator of each row: the largest of p / exponential noise.

        On the device of the model: at a vocabulary of 150,000 the transfer and the noise would take longer than the
        forward. Generators of a GPU draw other numbers than those of a CPU, which the pipelines use everywhere.
        """
        if self._limits.top_p < 1:
            probabilities = torch.stack([nucleus(row, self._limits.top_p) for row in probabilities])
        probabilities = probabilities.index_fill(-1, self._images, 0.0)
        noise = torch.empty_like(probabilities)
        for place, index in enumerate(indices):
            row = self.rows[index]
            if row._generator is None:
                row._generator = torch.Generator(probabilities.device).manual_seed(row.next_sampling().seed)
            noise[place].exponential_(generator=row._generator)
        return (probabilities / noise).argmax(-1)

    def _take(self, row: Row, token: int, logprob: float) -> WrittenStep | None:
        """Add a token to the row; the step that it ends, if it ends one."""
        row._tokens.append(token)
        row._logprobs.append(logprob)
        row.unread = (token,)
        finish = self._engine.step_end.finish(row._tokens, self._limits.max_step_tokens)
        if finish is None:
            return None
        text = self._engine.step_end.text(row._tokens)
        step = Step(row.frontier.end, tuple(row._tokens), text, finish)
        written = WrittenStep(step, tuple(row._logprobs))
        row.end = _end(step, row.frontier, self._limits)
        row.frontier, row.num_steps = step, row.num_steps + 1
        row._tokens, row._logprobs, row._generator = [], [], None
        return written


def _request(group: GroupRequest, seed: int, limits: ChainLimits) -> Request:
    settings = PipelineSettings(
        temperature=group.temperature,
        top_p=limits.top_p,
        seed=seed,
        max_tokens=limits.max_tokens,
        max_step_tokens=limits.max_step_tokens,
    )
    return Request(group.prompt, settings, id="rollout")


def _end(step: Step, before: Step, limits: ChainLimits) -> ChainEnd | None:
    """The pipelines' stop rules."""
    if step.closed:
        return "answered"
    if len(step.end) >= limits.max_tokens:
        return "budget"
    if step.tokens == before.tokens:
        return "loop"
    return None
