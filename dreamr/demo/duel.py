"""`Duel`: fresh ledger problems, each answered by every method, the methods interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dreamr.config import Method
from dreamr.demo.runner import Runner
from dreamr.pipelines.base import OnCommit
from dreamr.pipelines.trace import Trace
from dreamr.tasks.ledger import Problem, extract_answer, make_problem


@dataclass(frozen=True, slots=True)
class Run:
    """One problem answered by one method."""

    problem: int
    method: Method
    expected: int
    trace: Trace

    @property
    def answer(self) -> int | None:
        """None when the text has no answer line, which counts as wrong."""
        return extract_answer(self.trace.text)

    @property
    def right(self) -> bool:
        return self.answer == self.expected


class Duel:
    """Problems number 0, 1, ... of the test split by several methods."""

    def __init__(self, runner: Runner, methods: Sequence[Method], seed: int) -> None:
        self._runner, self._methods, self._seed = runner, tuple(methods), seed

    def problem(self, index: int) -> Problem:
        return make_problem("test", self._seed, index)

    async def warm_up(self) -> None:
        """One problem per method that is never measured."""
        prompt = make_problem("validation", self._seed, 0).prompt
        for method in self._methods:
            await self._runner.warm_up(method, prompt)

    async def run(self, index: int, on_commit: Callable[[Method], OnCommit] | None = None) -> list[Run]:
        """Answer problem number `index` by every method; whatever drifts in the machine meets them in turn."""
        problem = self.problem(index)
        prompt = problem.prompt
        methods = self._methods if index % 2 == 0 else self._methods[::-1]
        runs = []
        for method in methods:
            listener = on_commit(method) if on_commit else None
            trace = await self._runner.run(method, prompt, listener)
            runs.append(Run(index, method, problem.answer, trace))
        return runs
