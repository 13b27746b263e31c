"""The public benchmarks: where their rows come from, which columns they have, and how a row becomes an `Item`."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dreamr.tasks.answers import LETTERS, AnswerKey
from dreamr.types import Prompt

Row = Mapping[str, Any]
ASK_FOR_LETTER = "Answer with the letter of the correct option in \\boxed{}."
ASK_FOR_TEXT = "Put the final answer in \\boxed{}."


class BadRow(ValueError):
    """A row that does not fit its benchmark; the sentence names the column and the value."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row, ready to be asked and scored."""

    id: str
    question: str
    images: tuple[bytes, ...]
    """Encoded image files, in the order in which they precede the question."""
    key: AnswerKey
    category: str
    circle: str = ""
    """Rows with the same name ask the same with the options in another order; all have to be correct."""

    def prompt(self, *, ask_for_text: bool) -> Prompt:
        """The question with its options. `ask_for_text`: add how to give an answer in words, which the prompt
        configuration of a pipeline's models does already."""
        lines = [self.question]
        if self.key.kind == "letter":
            options = zip(self.key.letters, self.key.options, strict=False)
            lines += [*(f"{letter}. {text}" for letter, text in options), ASK_FOR_LETTER]
        elif ask_for_text:
            lines.append(ASK_FOR_TEXT)
        return Prompt("\n".join(lines), self.images)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One public data set."""

    name: str
    hub_id: str
    split: str
    columns: tuple[str, ...]
    """Those that `make_item` needs; further columns are ignored."""
    images: tuple[str, ...]
    """The columns with images; those after the first may be missing or empty."""
    make_item: Callable[[int, Row], Item]
    """Row number and row; raises BadRow. Images are bytes or None."""
    parts: tuple[str, ...] = ()
    """Names of the configurations that make up the whole on the hub; empty when there is only one."""


def _text(row: Row, column: str) -> str:
    """The text in a column, stripped; empty for nothing, which tables of text hold as "nan"."""
    value = row.get(column)
    text = "" if value is None else str(value).strip()
    return "" if text.lower() == "nan" else text


def _images(row: Row, columns: tuple[str, ...]) -> tuple[bytes, ...]:
    """The images of the row, in the order of the columns."""
    return tuple(row[column] for column in columns if row.get(column))


def _key(answers: tuple[str, ...], letters: str, options: tuple[str, ...] = ()) -> AnswerKey:
    """A choice where there are letters, else a number, an expression or words."""
    return AnswerKey("letter", answers, letters, options) if letters else AnswerKey("value", answers)


# -- MathVerse: geometry and functions, each problem in versions with more or less of it in the image ------------------

_MATHVERSE_OPTION = re.compile(r"^\s*\(?([A-H])\s*[:.)]", re.MULTILINE)
_IN_THE_IMAGE = "Answer the question that is shown in the image."
"""In the version "Vision Only" the text is empty."""


def _mathverse(number: int, row: Row) -> Item:
    question = _text(row, "question") or _IN_THE_IMAGE
    is_choice = _text(row, "question_type") == "multi-choice"
    letters = "".join(dict.fromkeys(_MATHVERSE_OPTION.findall(question))) or "ABCD"
    return Item(
        id=str(number),
        question=question,
        images=_images(row, ("image",)),
        key=_key((_text(row, "answer"),), letters if is_choice else ""),
        category=_text(row, "problem_version") or "all",
    )


# -- MMBench: one question in several rows with the options in another order; all have to be correct -------------------

MMBENCH_CIRCLE = 1_000_000
"""Rows whose `index` is the same modulo this are one question."""


def _mmbench(number: int, row: Row) -> Item:
    try:
        index = int(row["index"])
    except (TypeError, ValueError):
        raise BadRow(f"row {number}: index = {row['index']!r} is not a number.") from None
    options = [(letter, text) for letter in "ABCD" if (text := _text(row, letter))]
    letters, texts = "".join(letter for letter, _ in options), tuple(text for _, text in options)
    return Item(
        id=str(index),
        question="\n".join(filter(None, (_text(row, "hint"), _text(row, "question")))),
        images=_images(row, ("image",)),
        key=_key((_text(row, "answer"),), letters, texts),
        category=_text(row, "category") or "all",
        circle=str(index % MMBENCH_CIRCLE),
    )


# -- RealWorldQA: photographs, mostly from vehicles; the options, if any, are in the question --------------

_REALWORLDQA_OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s", re.MULTILINE)
_NO_REASONING = re.compile(r"\s*Please answer directly with .*$", re.DOTALL)
"""The rows' instruction that forbids reasoning, which is to be measured."""


def _realworldqa(number: int, row: Row) -> Item:
    question = _NO_REASONING.sub("", _text(row, "question"))
    answer = _text(row, "answer")
    letters = "".join(dict.fromkeys(_REALWORLDQA_OPTION.findall(question)))
    is_choice = len(answer) == 1 and answer in letters
    return Item(
        id=str(number),
        question=question,
        images=_images(row, ("image",)),
        key=_key((answer,), letters if is_choice else ""),
        category="choice" if is_choice else "text",
    )


# -- MMMU: college questions of 30 subjects, up to seven images each ---------------------------------------------------

_MMMU_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_MMMU_SUBJECTS = (
    *("Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science"),
    *("Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine"),
    *("Economics", "Electronics", "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage"),
    *("Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology"),
    *("Public_Health", "Sociology"),
)
_MMMU_ID = re.compile(r"^[a-z]+_(?P<subject>\w+)_\d+$")


def _mmmu(number: int, row: Row) -> Item:
    name = _text(row, "id")
    subject = _MMMU_ID.match(name)
    options = _list(number, "options", _text(row, "options"))
    is_choice = _text(row, "question_type") == "multiple-choice"
    if is_choice and not 2 <= len(options) <= len(LETTERS):
        raise BadRow(f"row {number}: options holds {len(options)} options; 2 to {len(LETTERS)} can be asked.")
    answer = _text(row, "answer")
    # Some open questions have several correct answers, written as a list.
    answers = _list(number, "answer", answer) if answer.startswith("[") else (answer,)
    return Item(
        id=name or str(number),
        question=_text(row, "question"),
        images=_images(row, _MMMU_IMAGES),
        key=_key(answers, LETTERS[: len(options)], options) if is_choice else _key(answers, ""),
        category=subject["subject"] if subject else "all",
    )


def _list(number: int, column: str, text: str) -> tuple[str, ...]:
    try:
        values = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list):
        raise BadRow(f"row {number}: {column} = {text!r} is not a list written as in Python.")
    return tuple(str(value).strip() for value in values)


BENCHMARKS: dict[str, Benchmark] = {
    "mathverse": Benchmark(
        name="mathverse",
        hub_id="AI4Math/MathVerse",
        split="testmini",
        columns=("question", "image", "answer", "question_type", "problem_version"),
        images=("image",),
        make_item=_mathverse,
        parts=("testmini",),
    ),
    "mmbench": Benchmark(
        name="mmbench",
        hub_id="lmms-lab/MMBench_EN",
        split="dev",
        columns=("index", "question", "hint", "A", "B", "C", "D", "answer", "image", "category"),
        images=("image",),
        make_item=_mmbench,
    ),
    "realworldqa": Benchmark(
        name="realworldqa",
        hub_id="xai-org/RealworldQA",
        split="test",
        columns=("image", "question", "answer"),
        images=("image",),
        make_item=_realworldqa,
    ),
    "mmmu": Benchmark(
        name="mmmu",
        hub_id="MMMU/MMMU",
        split="validation",
        columns=("question", "options", "image_1", "answer", "question_type"),
        images=_MMMU_IMAGES,
        make_item=_mmmu,
        parts=_MMMU_SUBJECTS,
    ),
}
