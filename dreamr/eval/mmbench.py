"""MMBench, English, dev: one question in several rows with the options in another order; all have to be right."""

from __future__ import annotations

from dreamr.eval.benchmark import BadRow, Benchmark, Row, images_of, text_of
from dreamr.eval.item import Item

CIRCLE = 1_000_000
"""Rows whose `index` is the same modulo this are one question."""


def make_item(number: int, row: Row) -> Item:
    try:
        index = int(row["index"])
    except (TypeError, ValueError):
        raise BadRow(f"row {number}: index = {row['index']!r} is not a number.") from None
    options = [(letter, text) for letter in "ABCD" if (text := text_of(row, letter))]
    hint = text_of(row, "hint")
    return Item(
        id=str(index),
        question="\n".join(filter(None, (hint, text_of(row, "question")))),
        images=images_of(row, ("image",)),
        answers=(text_of(row, "answer"),),
        category=text_of(row, "category") or "all",
        letters="".join(letter for letter, _ in options),
        options=tuple(text for _, text in options),
        circle=str(index % CIRCLE),
    )


MMBENCH = Benchmark(
    name="mmbench",
    hub_id="lmms-lab/MMBench_EN",
    split="dev",
    columns=("index", "question", "hint", "A", "B", "C", "D", "answer", "image", "category"),
    images=("image",),
    make_item=make_item,
)
