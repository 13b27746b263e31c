"""`Duel`: fresh ledger problems, each answered by every contender, the contenders interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dreamr.bench.contender import Contender
from dreamr.bench.runner import Runner
from dreamr.tasks.ledger import Problem, extract_answer, make_problem
from pipelines import OnCommit, Trace


@dataclass(frozen=True, slots=True)
class Run:
    """One problem answered by one contender."""

    problem: int
    name: str
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
    """Problems number 0, 1, ... of the test split by several contenders."""

    def __init__(self, contenders: Sequence[Contender], seed: int) -> None:
        self.contenders, self._seed = tuple(contenders), seed
        self.failed: dict[str, str] = {}
        """Contenders that could not answer a problem, and why; they take no further part."""
        self._runner = Runner()

    def problem(self, index: int) -> Problem:
        return make_problem("test", self._seed, index)

    async def warm_up(self) -> None:
        """One problem per contender that is never measured: whatever happens only once must not be.

        Raises what the last contender raised when none is left.
        """
        prompt = make_problem("validation", self._seed, 0).prompt
        for contender in self.contenders:
            try:
                await self._runner.warm_up(contender, prompt)
            except Exception as error:
                # A library that does not support this pair, an engine without token speculation: the others go on.
                self._drop(contender, error)
                if not self.contenders:
                    raise

    async def run(self, index: int, on_commit: Callable[[str], OnCommit] | None = None) -> list[Run]:
        """Answer problem number `index` by every contender; whatever drifts in the machine meets them in turn.

        A contender that fails drops out. Raises what the last one raised when none is left.
        """
        problem = self.problem(index)
        prompt = problem.prompt
        contenders = self.contenders if index % 2 == 0 else self.contenders[::-1]
        runs = []
        for contender in contenders:
            name = contender.entry.name
            listener = on_commit(name) if on_commit else None
            try:
                trace = await self._runner.run(contender, prompt, listener)
            except Exception as error:
                self._drop(contender, error)
                if not self.contenders:
                    raise
            else:
                runs.append(Run(index, name, problem.answer, trace))
        return runs

    def _drop(self, contender: Contender, error: Exception) -> None:
        self.failed[contender.entry.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.contenders = tuple(one for one in self.contenders if one is not contender)
