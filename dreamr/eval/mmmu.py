"""MMMU, validation: college questions of 30 subjects, up to seven images each."""

from __future__ import annotations

import ast
import re

from dreamr.eval.benchmark import BadRow, Benchmark, Row, images_of, text_of
from dreamr.eval.item import LETTERS, Item

IMAGES = tuple(f"image_{number}" for number in range(1, 8))
SUBJECTS = (
    *("Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science"),
    *("Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine"),
    *("Economics", "Electronics", "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage"),
    *("Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology"),
    *("Public_Health", "Sociology"),
)
_ID = re.compile(r"^[a-z]+_(?P<subject>\w+)_\d+$")


def make_item(number: int, row: Row) -> Item:
    name = text_of(row, "id")
    subject = _ID.match(name)
    options = _list(number, "options", text_of(row, "options"))
    is_choice = text_of(row, "question_type") == "multiple-choice"
    if is_choice and not 2 <= len(options) <= len(LETTERS):
        raise BadRow(f"row {number}: options holds {len(options)} options; 2 to {len(LETTERS)} can be asked.")
    return Item(
        id=name or str(number),
        question=text_of(row, "question"),
        images=images_of(row, IMAGES),
        answers=_answers(number, text_of(row, "answer")),
        category=subject["subject"] if subject else "all",
        letters=LETTERS[: len(options)] if is_choice else "",
        options=options if is_choice else (),
    )


def _answers(number: int, answer: str) -> tuple[str, ...]:
    """Some open questions have several right answers, written as a list."""
    return _list(number, "answer", answer) if answer.startswith("[") else (answer,)


def _list(number: int, column: str, text: str) -> tuple[str, ...]:
    try:
        values = ast.literal_eval(text or "[]")
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list):
        raise BadRow(f"row {number}: {column} = {text!r} is not a list written as Python does.")
    return tuple(str(value).strip() for value in values)


MMMU = Benchmark(
    name="mmmu",
    hub_id="MMMU/MMMU",
    split="validation",
    columns=("question", "options", "image_1", "answer", "question_type"),
    images=IMAGES,
    make_item=make_item,
    parts=SUBJECTS,
)
