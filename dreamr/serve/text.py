"""Splits the text of an answer into chain of thought and answer while it is written, and finds stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreamr.types import END_OF_THOUGHT, START_OF_THOUGHT
from pipelines.trace import Phase


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be sent."""

    reasoning: str = ""
    content: str = ""


class AnswerSplitter:
    """Splits one answer into chain of thought and answer. Text that may begin a mark or a stop string is held back.

    `thinks`: the text begins inside the chain of thought. Stop strings end the answer where they begin, and are looked
    for after the chain of thought only.
    """

    def __init__(self, thinks: bool, stop: Sequence[str] = ()) -> None:
        self._in_thought = thinks
        self._stop = tuple(stop)
        self._held = ""
        self._has_content = False
        self._at_start = True
        self.stopped = False
        """True when a stop string was found: no text is sent after it."""

    @property
    def in_thought(self) -> bool:
        return self._in_thought

    def read(self, text: str, phase: Phase | None = None) -> Piece:
        """Add committed text; return the piece that can be sent now.

        A given phase decides what is reasoning, not the marks: an answer under a schema may contain them.
        """
        if self.stopped:
            return Piece()
        if phase == "reasoning":
            return Piece(reasoning=self._without_marks(text))
        if phase == "answer":
            self._in_thought = False
        self._held += text
        reasoning = self._read_thought() if self._in_thought else ""
        content = "" if self._in_thought else self._read_content()
        return Piece(reasoning, content)

    def finish(self) -> Piece:
        """The text that is still held back; call it once, at the end."""
        held, self._held = self._held, ""
        return Piece(reasoning=held) if self._in_thought else Piece(content=self._trimmed(held))

    def _without_marks(self, text: str) -> str:
        if self._at_start:
            self._at_start = False
            text = text.removeprefix(START_OF_THOUGHT)
        before, found, _ = text.rpartition(END_OF_THOUGHT)
        return before if found else text

    def _read_thought(self) -> str:
        if self._at_start:
            if START_OF_THOUGHT.startswith(self._held):
                return ""
            self._held = self._held.removeprefix(START_OF_THOUGHT)
            self._at_start = False
        thought, found, rest = self._held.partition(END_OF_THOUGHT)
        if found:
            self._in_thought, self._held = False, rest
            return thought
        return self._release([END_OF_THOUGHT])

    def _read_content(self) -> str:
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            content, self._held = self._held[: min(found)[0]], ""
            return self._trimmed(content)
        return self._trimmed(self._release(self._stop))

    def _release(self, marks: Sequence[str]) -> str:
        """Take from `_held` what cannot be the beginning of one of the marks."""
        longest = max((len(mark) - 1 for mark in marks), default=0)
        keep = next(
            (
                size
                for size in range(min(longest, len(self._held)), 0, -1)
                if any(mark.startswith(self._held[-size:]) for mark in marks)
            ),
            0,
        )
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def _trimmed(self, content: str) -> str:
        """Blank lines between the chain of thought and the answer belong to neither."""
        if not self._has_content:
            content = content.lstrip()
            self._has_content = bool(content)
        return content
