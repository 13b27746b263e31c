"""An interleaved run: every question is answered by each method in turn.

question 0: method A, method B, method C      drift of the machine affects all methods alike
question 1: method C, method B, method A
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from dreamr.bench.methods import Method
from dreamr.tasks.answers import AnswerKey
from dreamr.tasks.images import cold_copy
from dreamr.tasks.ledger import Problem, make_problem
from dreamr.types import Prompt
from pipelines import OnCommit, Trace


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its correct answer."""

    prompt: Prompt
    key: AnswerKey
    id: str = ""
    """Its name in the data set."""


class Questions(Protocol):
    """Questions by number."""

    @property
    def warm_up(self) -> Prompt:
        """A prompt that is answered before anything is measured."""
        ...

    def __getitem__(self, index: int) -> Question: ...


class LedgerQuestions:
    """Fresh problems of the ledger task's test split."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @property
    def warm_up(self) -> Prompt:
        return make_problem("validation", self._seed, 0).prompt

    def __getitem__(self, index: int) -> Question:
        problem = self.problem(index)
        return Question(problem.prompt, AnswerKey("ledger", (str(problem.answer),)))

    def problem(self, index: int) -> Problem:
        return make_problem("test", self._seed, index)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One question answered by one method."""

    index: int
    """Number of the question."""
    question: Question
    method: str
    trace: Trace
    answer: str | None
    """None when no answer was found, which counts as wrong."""
    correct: bool

    @classmethod
    def of(cls, index: int, question: Question, method: str, trace: Trace) -> Self:
        """Find the answer and compare it; may take seconds for expressions."""
        answer = question.key.given(trace.text, truncated=trace.truncated)
        return cls(index, question, method, trace, answer, question.key.accepts(answer))


class InterleavedRun:
    """Every answer starts from cold prefix caches, in actors that are warm."""

    def __init__(self, methods: Sequence[Method], questions: Questions) -> None:
        self.methods, self.questions = tuple(methods), questions
        self.failed: dict[str, str] = {}
        """Methods that could not answer a question, and why; the run continues without them."""
        self._numbers = itertools.count()

    async def warm_up(self) -> None:
        """Have each method answer a question that is not measured, so that start-up costs are not measured either.

        Raises what the last method raised when none is left.
        """
        for method in self.methods:
            try:
                most = method.spec.settings.warm_up_tokens
                await method.run(self._cold(self.questions.warm_up), max_tokens=most)
            except Exception as error:
                # A library that does not support this pair, an engine without token speculation.
                self._drop(method, error)
                if not self.methods:
                    raise

    async def answer(self, index: int, on_commit: Callable[[str], OnCommit] | None = None) -> list[Measurement]:
        """Have each method answer question number `index`; `on_commit` makes the listener of a method.

        A method that fails is dropped. Raises what the last one raised when none is left.
        """
        question = await asyncio.to_thread(self.questions.__getitem__, index)
        measurements = []
        for method in self.methods if index % 2 == 0 else self.methods[::-1]:
            name = method.spec.name
            # The copy is made before the request's clock starts.
            prompt, listener = self._cold(question.prompt), on_commit(name) if on_commit else None
            try:
                trace = await method.run(prompt, listener)
            except Exception as error:
                self._drop(method, error)
                if not self.methods:
                    raise
            else:
                measurements.append(await asyncio.to_thread(Measurement.of, index, question, name, trace))
        return measurements

    def _cold(self, prompt: Prompt) -> Prompt:
        return cold_copy(prompt, f"run {next(self._numbers)}")

    def _drop(self, method: Method, error: Exception) -> None:
        self.failed[method.spec.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.methods = tuple(one for one in self.methods if one is not method)
