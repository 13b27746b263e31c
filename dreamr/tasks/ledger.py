"""The ledger task: an image of coloured shapes that carry numbers, and a question that takes 3-6 arithmetic steps.

Problems are seeded and endless. A problem belongs to a split by the content of its image, so that no image (hence no
problem) of one split can occur in another, for any seeds.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from dreamr.tasks.ledger_image import COLUMNS, ROWS, Cell, draw
from dreamr.types import DELIMITER, Prompt

COLORS = ("red", "blue", "green", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "diamond", "star")
MIN_STEPS, MAX_STEPS = 3, 6
MAX_VALUE = 99

Split = Literal["train", "validation", "test"]
Style = Literal["verbose", "concise"]
Kind = Literal["add", "subtract", "double", "triple"]

_SYMBOL: dict[Kind, str] = {"add": "+", "subtract": "-", "double": "*", "triple": "*"}
_FACTOR = {"double": 2, "triple": 3}
_EQUATION = re.compile(r"(\d+) ([+*-]) (\d+) = (\d+)")
_ANSWER = re.compile(r"Answer: (\d+)")


@dataclass(frozen=True, slots=True)
class Operation:
    """One arithmetic step: what is done to the running value, and the shape it reads (None for double and triple)."""

    kind: Kind
    cell: Cell | None

    @property
    def operand(self) -> int:
        return self.cell.number if self.cell else _FACTOR[self.kind]

    def apply(self, value: int) -> int:
        if self.kind == "add":
            return value + self.operand
        if self.kind == "subtract":
            return value - self.operand
        return value * self.operand


@dataclass(frozen=True, slots=True)
class Problem:
    """One question about one image, with everything needed to check each step of an answer."""

    cells: tuple[Cell, ...]
    start: Cell
    operations: tuple[Operation, ...]
    render_seed: int

    @property
    def image(self) -> Image.Image:
        return draw(self.cells, self.render_seed)

    @property
    def prompt(self) -> Prompt:
        """The problem as a user would ask it: its question and a PNG file."""
        file = io.BytesIO()
        self.image.save(file, format="PNG")
        return Prompt(self.question, (file.getvalue(),))

    @property
    def question(self) -> str:
        asks = [f"Start with the {self.start.name}."]
        for operation in self.operations:
            if operation.cell:
                asks.append(f"{operation.kind.capitalize()} the {operation.cell.name}.")
            else:
                asks.append(f"{operation.kind.capitalize()} it.")
        return " ".join([*asks, "What is the result?"])

    @property
    def values(self) -> tuple[int, ...]:
        """The running value before each operation and after the last."""
        values = [self.start.number]
        for operation in self.operations:
            values.append(operation.apply(values[-1]))
        return tuple(values)

    @property
    def answer(self) -> int:
        return self.values[-1]

    def step(self, index: int, style: Style, value: int | None = None) -> str:
        """The correct text of one step; after the last operation it is the answer line.

        `value` is the running value that the step starts from: by default the correct one, else the one that an
        earlier, possibly wrong step has stated.
        """
        value = self.values[index] if value is None else value
        if index == len(self.operations):
            return f"</think>Answer: {value}"
        operation = self.operations[index]
        equation = f"{value} {_SYMBOL[operation.kind]} {operation.operand} = {operation.apply(value)}"
        return (_verbose if style == "verbose" else _concise)(self.start if index == 0 else None, operation, equation)

    def solution(self, styles: Sequence[Style]) -> list[str]:
        """All steps and the answer line; `styles` has one entry per operation."""
        steps = [self.step(index, style) for index, style in enumerate(styles)]
        return [*steps, self.step(len(self.operations), "concise")]

    def is_valid_step(self, index: int, previous: str, text: str) -> bool:
        """Whether `text` is a correct step number `index` after the step `previous` ("" for the first).

        A step is judged on its own prefix: it must continue from the value that the previous step stated.
        """
        if index > len(self.operations):
            return False
        value = self.values[0] if index == 0 else stated_value(previous)
        if value is None or (index < len(self.operations) and not self.operations[index].apply(value) >= 0):
            return False
        return text in (self.step(index, "verbose", value), self.step(index, "concise", value))


def _verbose(start: Cell | None, operation: Operation, equation: str) -> str:
    opening = f"First, the {start.name} shows {start.number}. Then" if start else "Next,"
    if operation.cell:
        action = f"we {operation.kind} the {operation.cell.name}, which shows {operation.cell.number}"
    else:
        action = f"we {operation.kind} the value that we have"
    return f"{opening} {action}. So the new value is {equation}.{DELIMITER}"


def _concise(start: Cell | None, operation: Operation, equation: str) -> str:
    opening = f"{start.name} {start.number}, " if start else ""
    action = f"{operation.cell.name} {operation.cell.number}" if operation.cell else operation.kind
    return f"{opening}{action}: {equation}{DELIMITER}"


def stated_value(step: str) -> int | None:
    """The value that a step's equation ends with; None when it states none."""
    equations = _EQUATION.findall(step)
    return int(equations[-1][3]) if equations else None


def extract_answer(text: str) -> int | None:
    """The number on the answer line; the last one wins. None when the text has no such line (which counts as wrong)."""
    answers = _ANSWER.findall(text)
    return int(answers[-1]) if answers else None


def make_problem(split: Split, seed: int, index: int, num_steps: int | None = None) -> Problem:
    """Problem number `index` of a seeded endless stream; `num_steps` fixes the number of operations (else 3-6)."""
    rng = random.Random(f"ledger/{split}/{seed}/{index}")
    cells = _layout(rng)
    while _split_of(cells) != split:
        cells = _layout(rng)
    return problem_on(cells, rng, num_steps)


def problem_on(cells: tuple[Cell, ...], rng: random.Random, num_steps: int | None = None) -> Problem:
    """A random question about a given image."""
    start, *unread = rng.sample(cells, len(cells))
    value = start.number
    operations: list[Operation] = []
    for _ in range(num_steps or rng.randint(MIN_STEPS, MAX_STEPS)):
        operation = _operation(rng, unread or list(cells), value)
        if operation.cell in unread:
            unread.remove(operation.cell)
        operations.append(operation)
        value = operation.apply(value)
    return Problem(cells, start, tuple(operations), rng.getrandbits(32))


def _operation(rng: random.Random, cells: Sequence[Cell], value: int) -> Operation:
    """A random operation on one of `cells` that keeps the running value within 0..99."""
    while True:
        kind: Kind = rng.choices(("add", "subtract", "double", "triple"), weights=(4, 3, 1, 1))[0]
        operation = Operation(kind, rng.choice(cells) if kind in ("add", "subtract") else None)
        if 0 <= operation.apply(value) <= MAX_VALUE:
            return operation


def _layout(rng: random.Random) -> tuple[Cell, ...]:
    looks = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], COLUMNS * ROWS)
    return tuple(Cell(color, shape, rng.randint(1, 9)) for color, shape in looks)


def _split_of(cells: tuple[Cell, ...]) -> Split:
    """80 % train, 10 % validation, 10 % test, by what the image shows."""
    bucket = hashlib.sha256(repr(cells).encode()).digest()[0] % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"
