"""Rows of the four benchmarks from parquet files of their schema, and data that is something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from support.parquet import write_parquet
from support.tiny import picture

from dreamr.eval.benchmarks import BENCHMARKS, BadRow
from dreamr.eval.rows import BadData, Rows

IMAGE = picture(32, 32)
OTHER = picture(48, 32)


def image(data: bytes = IMAGE) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def mathverse(**changes: object) -> dict[str, Any]:
    row = {"question": "How far?\nChoices:\nA:1\nB:2\nC:3", "image": image(), "answer": "C"}
    return row | {"question_type": "multi-choice", "problem_version": "Text Lite"} | changes


def mmbench(index: object, **changes: object) -> dict[str, Any]:
    row = {"index": index, "question": "What is it?", "hint": "nan", "A": "a cat", "B": "a dog", "C": None, "D": "nan"}
    return row | {"answer": "B", "image": image(), "category": "object"} | changes


def mmmu(**changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {"id": "validation_Art_Theory_3", "question": "Is <image 2> like <image 1>?"}
    row |= {"options": "['yes', \"no, it isn't\"]", "answer": "B", "question_type": "multiple-choice"}
    return row | {"image_1": image(), "image_2": image(OTHER), "image_3": None} | changes


def test_mathverse_choices_and_texts_by_problem_version(tmp_path: Path) -> None:
    open_row = mathverse(question="", answer="5\\sqrt{3}", question_type="free-form", problem_version="Vision Only")
    path = write_parquet(tmp_path / "m.parquet", [mathverse(), open_row])
    choice, text = Rows(BENCHMARKS["mathverse"], path).items()
    assert (choice.key.letters, choice.key.answers, choice.category) == ("ABC", ("C",), "Text Lite")
    assert choice.images == (IMAGE,)
    assert choice.prompt(ask_for_text=False).question.endswith("letter of the correct option in \\boxed{}.")
    assert (text.key.kind, text.key.answers, text.category) == ("value", ("5\\sqrt{3}",), "Vision Only")
    assert text.question == "Answer the question that is shown in the image."
    assert "boxed" not in text.prompt(ask_for_text=False).question
    assert "boxed" in text.prompt(ask_for_text=True).question


def test_mmbench_leaves_out_empty_options_and_knows_its_circles(tmp_path: Path) -> None:
    rows = [mmbench(7), mmbench(1_000_007, A="a dog", B="a cat", answer="A", hint="Look."), mmbench(8)]
    first, turned, other = Rows(BENCHMARKS["mmbench"], write_parquet(tmp_path / "m.parquet", rows)).items()
    assert (first.key.letters, first.key.options) == ("AB", ("a cat", "a dog"))
    assert first.prompt(ask_for_text=False).question.startswith("What is it?\nA. a cat\nB. a dog\nAnswer")
    assert turned.question == "Look.\nWhat is it?"
    assert first.circle == turned.circle != other.circle


def test_an_option_that_says_none_is_an_option(tmp_path: Path) -> None:
    [one] = Rows(BENCHMARKS["mmbench"], write_parquet(tmp_path / "m.parquet", [mmbench(7, C="None")])).items()
    assert one.key.options == ("a cat", "a dog", "None")


def test_realworldqa_drops_the_order_not_to_reason(tmp_path: Path) -> None:
    choice = "Which way?\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option."
    number = "How many cars?\nPlease answer directly with a single word or number."
    rows = [
        {"image": image(), "question": choice, "answer": "B"},
        {"image": image(), "question": number, "answer": "3"},
    ]
    first, second = Rows(BENCHMARKS["realworldqa"], write_parquet(tmp_path / "r.parquet", rows)).items()
    assert (first.key.letters, first.category, first.question) == ("AB", "choice", "Which way?\nA. Left\nB. Right")
    assert (second.key.kind, second.category, second.question) == ("value", "text", "How many cars?")


def test_mmmu_reads_options_and_lists_of_answers_and_all_images(tmp_path: Path) -> None:
    open_row = mmmu(id="validation_Math_1", options="[]", answer="['4', 'four']", question_type="open")
    choice, text = Rows(BENCHMARKS["mmmu"], write_parquet(tmp_path / "m.parquet", [mmmu(), open_row])).items()
    assert (choice.key.letters, choice.key.options, choice.category) == ("AB", ("yes", "no, it isn't"), "Art_Theory")
    assert choice.images == (IMAGE, OTHER)
    assert (text.key.kind, text.key.answers, text.category) == ("value", ("4", "four"), "Math")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("mmmu", mmmu(options="yes or no"), "options = 'yes or no' is not a list"),
        ("mmmu", mmmu(options="['yes']"), "options holds 1 options"),
        ("mmmu", mmmu(options="__import__('os').getcwd()"), "is not a list"),
        ("mmbench", mmbench("first"), "index = 'first' is not a number"),
        ("mathverse", mathverse(image=None), "image is empty"),
        ("mmmu", mmmu(image_1={"bytes": None, "path": None}), "image_1 is empty"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, name: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match="row 0") as raised:
        Rows(BENCHMARKS[name], write_parquet(tmp_path / "m.parquet", [row]))
    assert said in str(raised.value)


def test_images_may_be_plain_bytes_and_a_folder_holds_parts(tmp_path: Path) -> None:
    for part in range(2):
        rows = [{"image": IMAGE, "question": f"number {part}?", "answer": "3"}]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"part-{part}.parquet")
    items = list(Rows(BENCHMARKS["realworldqa"], tmp_path).items())
    assert [(item.id, item.question, item.images) for item in items] == [
        ("0", "number 0?", (IMAGE,)),
        ("1", "number 1?", (IMAGE,)),
    ]
    assert len(Rows(BENCHMARKS["realworldqa"], tmp_path, limit=1)) == 1


def test_data_that_is_something_else_is_one_sentence(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "m.parquet", [{"image": image(), "questions": "why?", "answer": "3"}])
    encoded = tmp_path / "encoded.parquet"
    datasets.Dataset.from_list([{"image": "/9j/4AAQ", "question": "why?", "answer": "3"}]).to_parquet(encoded)
    (tmp_path / "text.parquet").write_text("no parquet")
    for data, said in (
        (path, "needs a column 'question', which is missing: rename 'questions'?"),
        (encoded, "the column 'image' holds string values, not images"),
        (tmp_path / "text.parquet", "is not a readable parquet file"),
        (tmp_path / "none.parquet", "there is no such file"),
    ):
        with pytest.raises(BadData) as raised:
            Rows(BENCHMARKS["realworldqa"], data)
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
