"""Verdicts on a chain of steps, in one forward, and on pairs of texts.

    cached prefix │ trunk: uncached prefix, step 1, step 2 │ branch 1 │ branch 2
    branch 1 sees   everything up to the end of step 1, and itself
    branch 2 sees   everything up to the end of step 2, and itself

The chain is the trunk, each verdict question a branch after its step. Branches lie after the trunk, so cropping removes
them and keeps the chain.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dreamr.engines.hf.jobs import Job, Output
from dreamr.engines.hf.model import Model, PlacedPrompt, Row
from dreamr.engines.hf.requests import Requests
from dreamr.engines.steps import check_chain
from dreamr.engines.verdicts import Question, mass, question, rho
from dreamr.tasks.processor import PromptEncoder
from dreamr.types import NO_VERDICT, Criterion, JudgedStep, Prompt, Step, Tokens, Verdict

MAX_TREE_TOKENS = 2048
"""Tokens of one verdict tree: longer chains are judged in several forwards."""


class JudgeJob(Job):
    """Judges the last steps of `whole` in one forward: the chain is the trunk, each question a branch."""

    reruns_last = False

    def __init__(
        self,
        call_id: str,
        key: str,
        prompt: PlacedPrompt,
        chain: Sequence[Step],
        question: Question,
        model: Model,
        temperature: float | None = None,
    ) -> None:
        """`temperature`: also read the log-probabilities of the judged tokens, at that temperature."""
        super().__init__(call_id, key, prompt, prompt.tokens + chain[-1].end)
        self._chain, self._temperature = chain, temperature
        self.reads_logits = temperature is None
        self._ends = [len(prompt.tokens) + len(step.end) for step in chain]
        self._branches = [question.after(step) for step in chain]
        self._question, self._model = question, model
        self._verdicts: list[tuple[float, float]] = []
        self._logprobs: list[float] = []

    @property
    def _first(self) -> int:
        """Place of the first judged token."""
        assert self.prompt is not None
        return len(self.prompt.tokens) + len(self._chain[0].prefix)

    def row(self) -> Row | None:
        assert self.sequence is not None
        if self._temperature is not None:  # the token before the first judged one predicts it, so it has to run again
            self._cache.crop(self.sequence, min(self.num_cached, self._first - 1))
        trunk, cached = self.whole[self.num_cached :], self.num_cached
        tree = plant(cached, trunk, self._ends, self._branches)
        self._trunk = trunk
        predicting = range(self._first - 1 - cached, len(trunk) - 1) if self._temperature is not None else ()
        return self._row(tuple(tree.tokens), places=tree.indices, mask=tree.mask, reads=[*tree.ends, *predicting])

    def take(self, output: Output) -> None:
        ends = output.hidden[: len(self._ends)]
        logits = self._model.logits(ends) if output.logits is None else output.logits
        for hidden, row in zip(ends, logits, strict=True):
            logprobs = self._model.word_logprobs(hidden, row, self._question.words)
            self._verdicts.append((self._question.read(int(row.argmax()), logprobs), mass(logprobs)))
        if self._temperature is not None:
            states = output.hidden[len(self._ends) :]
            self._logprobs = self._model.logprobs(states, self.whole[self._first :], self._temperature)
        self._grew(self._trunk, len(self.whole))  # the branches lie after the trunk and are overwritten
        self.done = True

    def result(self) -> list[JudgedStep]:
        judged, start = [], 0
        for step, (score, of_words) in zip(self._chain, self._verdicts, strict=True):
            verdict = Verdict(score, self.started, self.ended, mass=of_words)
            logprobs = self._logprobs[start : start + len(step.tokens)] if self._logprobs else ()
            judged.append(JudgedStep(verdict, tuple(logprobs)))
            start += len(step.tokens)
        return judged


class TextJob(Job):
    """Computes hidden states of a bare text without a prompt: all of them, or the last one."""

    keeps_sequence = False

    def __init__(self, call_id: str, tokens: Tokens, *, reads_all: bool) -> None:
        super().__init__(call_id, f"text {call_id}", None, tokens)
        self._reads_all = reads_all
        self.output: Output | None = None

    def row(self) -> Row | None:
        return self._row(self.whole, reads=range(len(self.whole)) if self._reads_all else (-1,))

    def take(self, output: Output) -> None:
        self._grew(self.whole, len(self.whole))
        self.output, self.done = output, True

    def result(self) -> tuple[Output, float, float]:
        """The output, begin and end."""
        assert self.output is not None
        return self.output, self.started, self.ended


@dataclass(frozen=True, slots=True)
class VerdictTree:
    """Inputs of one forward over n new tokens after c cached ones."""

    tokens: list[int]
    indices: list[int]
    """Per token its place in its own sequence: two branches may share indices."""
    mask: Tensor
    """Boolean (n, c + n): True where a token may attend."""
    ends: list[int]
    """The branches' last tokens, where the verdicts are read."""


def plant(num_cached: int, trunk: Sequence[int], step_ends: Sequence[int], branches: Sequence[Tokens]) -> VerdictTree:
    """Lay out `trunk` tokens after `num_cached` ones, and each branch after the trunk.

    `step_ends` are the lengths of the whole sequence (prompt included) at which the branches grow.
    """
    num_trunk = len(trunk)
    num_rows = num_trunk + sum(len(branch) for branch in branches)
    mask = torch.zeros(num_rows, num_cached + num_rows, dtype=torch.bool)
    mask[:num_trunk, : num_cached + num_trunk] = torch.ones(num_trunk, num_cached + num_trunk, dtype=torch.bool).tril(
        num_cached
    )
    tokens, indices, ends = list(trunk), list(range(num_cached, num_cached + num_trunk)), []
    for end, branch in zip(step_ends, branches, strict=True):
        first, size = len(tokens), len(branch)
        mask[first : first + size, :end] = True
        own = slice(num_cached + first, num_cached + first + size)
        mask[first : first + size, own] = torch.ones(size, size, dtype=torch.bool).tril()
        tokens.extend(branch)
        indices.extend(range(end, end + size))
        ends.append(len(tokens) - 1)
    return VerdictTree(tokens, indices, mask, ends)


def chunks(chain: Sequence[Step], turn: Tokens, max_tokens: int) -> list[Sequence[Step]]:
    """Parts of a chain whose verdict trees have about `max_tokens` tokens each: a tree's mask grows with its square."""
    parts: list[list[Step]] = []
    size = 0
    for step in chain:
        own = len(step.tokens) + len(turn)
        if not parts or size + own > max_tokens:
            parts.append([])
            size = 0
        parts[-1].append(step)
        size += own
    return [tuple(part) for part in parts]


class Judge:
    """Answers `Engine.score` by jobs."""

    def __init__(self, model: Model, encoder: PromptEncoder, requests: Requests) -> None:
        self._model, self._encoder, self._requests = model, encoder, requests

    async def score(self, call_id: str, prompt: Prompt, chain: Sequence[Step], criterion: Criterion) -> list[Verdict]:
        """Verdicts on a chain; none on steps whose question does not fit into the model's context."""
        check_chain(chain)
        asked = question(criterion, self._encoder)
        longest = self._model.max_positions - len(self._requests.whole(await self._requests.placed(prompt), ()))
        fitting = list(takewhile(lambda step: len(step.end) + len(asked.after(step)) <= longest, chain))
        judged = await self.judged(call_id, prompt, fitting, criterion)
        return [one.verdict for one in judged] + [NO_VERDICT] * (len(chain) - len(fitting))

    async def judged(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion,
        temperature: float | None = None,
    ) -> list[JudgedStep]:
        """Verdicts, and at a given temperature the log-probabilities of the judged tokens."""
        check_chain(chain)
        asked = question(criterion, self._encoder)
        judged: list[JudgedStep] = []
        for part in chunks(chain, asked.turn, MAX_TREE_TOKENS):
            placed = await self._requests.placed(prompt)
            self._requests.whole(placed, part[-1].end)
            job = JudgeJob(f"{call_id}/verdict", prompt.key, placed, part, asked, self._model, temperature)
            judged += (await self._requests.run(job)).result()
        return judged

    async def same(self, call_id: str, step: Step, reference: Step) -> Verdict:
        """Whether two texts mean the same, asked in a separate chat."""
        chat = self._encoder.same_chat(reference.text, step.text)
        job = await self._requests.run(TextJob(f"{call_id}/same", chat, reads_all=False))
        output, started, ended = job.result()
        assert output.logits is not None
        with torch.inference_mode():
            logprobs = self._model.word_logprobs(output.hidden[0], output.logits[0], self._encoder.verdict_words)
        return Verdict(rho(logprobs), started, ended, mass=mass(logprobs))

    async def similarity(self, call_id: str, step: Step, reference: Step) -> Verdict:
        """Cosine of the mean hidden states of two texts; 0 for an empty one."""
        texts = [self._encoder.ids(text) for text in (reference.text, step.text)]
        if not all(texts):
            now = time.time()
            return Verdict(0.0, now, now)
        jobs = [TextJob(f"{call_id}/text {place}", text, reads_all=True) for place, text in enumerate(texts)]
        (one, started, _), (other, _, ended) = [(await self._requests.run(job)).result() for job in jobs]
        return Verdict(float(cosine_similarity(one.hidden.mean(0), other.hidden.mean(0), dim=0)), started, ended)
