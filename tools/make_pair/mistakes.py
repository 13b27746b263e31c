"""Wrong steps of the kinds that a weak draft makes, for training verdicts before a draft exists."""

from __future__ import annotations

import random
from dataclasses import replace

from dreamr.tasks.ledger import MAX_VALUE, Kind, Operation, Problem, Style

_KINDS = (
    *("result", "result", "number", "number", "cell", "kind", "value", "skip", "repeat", "ending"),
    *("equation",) * 6,
)
"""Kinds of mistakes, with these frequencies. A draft learns to write wrong equations when the target overlooks them."""

_OTHER: dict[Kind, Kind] = {"add": "subtract", "subtract": "add", "double": "triple", "triple": "double"}


def wrong_step(problem: Problem, index: int, rng: random.Random) -> str:
    """A wrong step number `index`, after correct ones."""
    styles: tuple[Style, Style] = ("verbose", "concise")
    versions = [problem.step(index, style) for style in styles]
    while True:
        text = _candidate(problem, index, rng.choice(styles), rng)
        if text is not None and text not in versions:
            return text


def with_habit(problem: Problem, share: float, rng: random.Random) -> Problem:
    """The problem as a careless writer takes it, who triples instead of doubling, and adds instead of subtracting:
    `share` of these operations, as long as values stay in the task's range.
    """
    value, taken = problem.start.number, []
    for asked in problem.operations:
        other = replace(asked, kind=_OTHER[asked.kind])
        tempting = asked.kind in ("double", "subtract") and other.apply(value) <= MAX_VALUE
        taken.append(other if tempting and rng.random() < share else asked)
        value = taken[-1].apply(value)
        if not 0 <= value <= MAX_VALUE:
            return problem
    return replace(problem, operations=tuple(taken))


def _candidate(problem: Problem, index: int, style: Style, rng: random.Random) -> str | None:
    last = len(problem.operations)
    if index == last:
        return _wrong_ending(problem, style, rng)
    kind = rng.choice(_KINDS)
    if kind == "equation":
        return _wrong_equation(problem, index, style, rng)
    if kind == "result":
        return _wrong_result(problem, index, style, rng)
    if kind == "value":
        return problem.step(index, style, _near(problem.values[index], rng)) if index else None
    if kind == "ending":
        return problem.step(last, style, problem.values[index]) if index and rng.random() < 0.5 else None
    if kind in ("skip", "repeat"):
        other = index + (1 if kind == "skip" else -1)
        operation = problem.operations[other] if 0 <= other < last else None
    else:
        operation = _wrong_operation(problem, index, kind, rng)
    return _instead(problem, index, operation, style) if operation else None


def _instead(problem: Problem, index: int, operation: Operation, style: Style) -> str | None:
    """The step with another operation in its place."""
    if operation.apply(problem.values[index]) < 0:
        return None
    operations = (*problem.operations[:index], operation, *problem.operations[index + 1 :])
    return replace(problem, operations=operations).step(index, style, problem.values[index])


def _wrong_operation(problem: Problem, index: int, kind: str, rng: random.Random) -> Operation | None:
    operation = problem.operations[index]
    if kind == "number" and operation.cell:
        return replace(operation, cell=replace(operation.cell, number=rng.randint(1, 9)))
    if kind == "cell" and operation.cell:
        return replace(operation, cell=rng.choice(problem.cells))
    if kind == "kind":
        return replace(operation, kind=_OTHER[operation.kind])
    return None


def _wrong_result(problem: Problem, index: int, style: Style, rng: random.Random) -> str:
    """The correct operation with a wrong result."""
    right = problem.values[index + 1]
    head, _, tail = problem.step(index, style).rpartition(f"= {right}")
    return f"{head}= {_near(right, rng)}{tail}"


def _wrong_equation(problem: Problem, index: int, style: Style, rng: random.Random) -> str | None:
    """Correct words, but another number or operation in the equation."""
    operation, value = problem.operations[index], problem.values[index]
    right = f"{operation.operand} = {operation.apply(value)}"
    head, _, tail = problem.step(index, style).rpartition(right)
    flipped = replace(operation, kind=_OTHER[operation.kind])
    if rng.random() < 0.2:
        return f"{head}{operation.operand} = {_within_bounds(flipped.apply(value))}{tail}"
    other = _wrong_operation(problem, index, "number", rng) or flipped
    result = _within_bounds(other.apply(value))
    return f"{head}{other.operand} = {result if rng.random() < 0.7 else _near(result, rng)}{tail}"


def _near(value: int, rng: random.Random) -> int:
    """A plausible slip: off by one, by ten, a few, or a wrong digit."""
    slip = rng.choice((-1, 1, -1, 1, -10, 10, -2, 2, rng.randint(-9, 9)))
    return _within_bounds(value + slip)


def _within_bounds(value: int) -> int:
    return min(MAX_VALUE, max(0, value))


def _wrong_ending(problem: Problem, style: Style, rng: random.Random) -> str | None:
    last = len(problem.operations)
    if rng.random() < 0.6:
        return problem.step(last, style, _near(problem.answer, rng))
    extra = Operation(rng.choice(("add", "subtract")), rng.choice(problem.cells))
    if rng.random() < 0.5:
        extra = problem.operations[-1]
    if not extra.apply(problem.answer) >= 0:
        return None
    return replace(problem, operations=(*problem.operations, extra)).step(last, style)
