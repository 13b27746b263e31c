"""`Outcome`: one item with its reply, scored."""

from __future__ import annotations

from dataclasses import dataclass

from dreamr.eval.equality import same_text
from dreamr.eval.extraction import after_reasoning, extract_letter, extract_text
from dreamr.eval.item import Item
from dreamr.eval.reply import Reply


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of an answered item; the columns of `rows.jsonl`."""

    id: str
    category: str
    circle: str
    answers: tuple[str, ...]
    extracted: str | None
    """None: no answer was found in the reply, which counts as wrong."""
    right: bool
    reply: Reply


def judge(item: Item, reply: Reply) -> Outcome:
    """Extract the answer and compare it."""
    text = after_reasoning(reply.text, truncated=reply.truncated)
    if item.letters:
        extracted = extract_letter(text, item.letters, item.options)
        right = extracted in item.answers
    else:
        extracted = extract_text(text)
        right = extracted is not None and any(same_text(extracted, answer) for answer in item.answers)
    return Outcome(item.id, item.category, item.circle, item.answers, extracted, right, reply)
