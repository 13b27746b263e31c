"""RealWorldQA: photographs, mostly from vehicles; the options, if there are any, stand in the question."""

from __future__ import annotations

import re

from dreamr.eval.benchmark import Benchmark, Row, images_of, text_of
from dreamr.eval.item import Item

_OPTION = re.compile(r"^\s*\(?([A-H])[.):]\s", re.MULTILINE)
_NO_REASONING = re.compile(r"\s*Please answer directly with .*$", re.DOTALL)
"""The rows' own instruction forbids the reasoning that is to be measured."""


def make_item(number: int, row: Row) -> Item:
    question = _NO_REASONING.sub("", text_of(row, "question"))
    answer = text_of(row, "answer")
    letters = "".join(dict.fromkeys(_OPTION.findall(question)))
    is_choice = len(answer) == 1 and answer in letters
    return Item(
        id=str(number),
        question=question,
        images=images_of(row, ("image",)),
        answers=(answer,),
        category="choice" if is_choice else "text",
        letters=letters if is_choice else "",
    )


REALWORLDQA = Benchmark(
    name="realworldqa",
    hub_id="xai-org/RealworldQA",
    split="test",
    columns=("image", "question", "answer"),
    images=("image",),
    make_item=make_item,
)
