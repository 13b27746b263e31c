"""MathVerse, testmini: geometry and functions, each problem in versions with more or less of it in the image."""

from __future__ import annotations

import re

from dreamr.eval.benchmark import Benchmark, Row, images_of, text_of
from dreamr.eval.item import Item

_CHOICE = re.compile(r"^\s*\(?([A-H])\s*[:.)]", re.MULTILINE)
_IN_THE_IMAGE = "Answer the question that is shown in the image."
"""In the version "Vision Only" the text is empty."""


def make_item(number: int, row: Row) -> Item:
    question = text_of(row, "question") or _IN_THE_IMAGE
    is_choice = text_of(row, "question_type") == "multi-choice"
    letters = "".join(dict.fromkeys(_CHOICE.findall(question))) or "ABCD"
    return Item(
        id=str(number),
        question=question,
        images=images_of(row, ("image",)),
        answers=(text_of(row, "answer"),),
        category=text_of(row, "problem_version") or "all",
        letters=letters if is_choice else "",
    )


MATHVERSE = Benchmark(
    name="mathverse",
    hub_id="AI4Math/MathVerse",
    split="testmini",
    columns=("question", "image", "answer", "question_type", "problem_version"),
    images=("image",),
    make_item=make_item,
    parts=("testmini",),
)
