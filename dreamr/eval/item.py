"""`Item`: one row of a benchmark, ready to be asked and scored."""

from __future__ import annotations

import string
from dataclasses import dataclass

from dreamr.types import Prompt

LETTERS = string.ascii_uppercase[:8]
ASK_FOR_LETTER = "Answer with the letter of the right option in \\boxed{}."
ASK_FOR_TEXT = "Put the final answer in \\boxed{}."


@dataclass(frozen=True, slots=True)
class Item:
    """A question with the answers that count as right."""

    id: str
    question: str
    images: tuple[bytes, ...]
    """Encoded image files, in the order in which they precede the question."""
    answers: tuple[str, ...]
    """Any of them is right: one letter, or texts."""
    category: str
    letters: str = ""
    """The options' letters, such as `ABCD`; empty when the answer is a text."""
    options: tuple[str, ...] = ()
    """The options' texts where the row has them apart from the question."""
    circle: str = ""
    """Rows with the same name ask the same with the options in another order; all have to be right."""

    def prompt(self, *, ask_for_text: bool) -> Prompt:
        """What the model is asked. The models of a pipeline are told by their own prompt configuration how to end, so
        `ask_for_text` is for others."""
        lines = [
            self.question,
            *(f"{letter}. {text}" for letter, text in zip(self.letters, self.options, strict=False)),
        ]
        if self.letters:
            lines.append(ASK_FOR_LETTER)
        elif ask_for_text:
            lines.append(ASK_FOR_TEXT)
        return Prompt("\n".join(lines), self.images)
