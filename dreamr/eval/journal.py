"""`Journal`: finished items, one JSON line each, so that a killed run continues where it ended.

The first line describes the run. A run that differs in it is refused: rows of both would be mixed in one file.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from dreamr.eval.answerers import Reply


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answered and scored item; its fields are the columns of `rows.jsonl`."""

    id: str
    category: str
    circle: str
    answers: tuple[str, ...]
    given: str | None
    """The answer that was found in the reply; None: none was found, which counts as wrong."""
    correct: bool
    reply: Reply


class JournalMismatch(ValueError):
    """The file holds rows of another run."""


class Journal:
    """Use as a context manager; every row is on disk when `add` returns."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        """`run`: everything that the rows depend on, as JSON data.

        Raises:
            JournalMismatch: the file belongs to another run, or is not a journal.
        """
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        """By item id, in the order in which they were finished."""
        self._run = json.loads(json.dumps(run))
        self._file: TextIO | None = None
        self._size = self._read() if path.exists() else 0

    def __enter__(self) -> Self:
        self._file = self.path.open("a", encoding="utf-8")
        self._file.truncate(self._size)  # a line that was being written when the run was killed
        if self._size == 0:
            self._write({"run": self._run})
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.id] = outcome
        self._write(asdict(outcome))

    def _write(self, document: dict[str, Any]) -> None:
        assert self._file is not None, "used outside of its `with` block"
        self._file.write(json.dumps(document, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> int:
        """Read the finished items; the length of the whole lines in bytes."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return 0
        try:
            # Not splitlines: U+2028 and its like may stand within a line of JSON.
            first, *lines = whole.decode("utf-8").removesuffix("\n").split("\n")
            self._check(json.loads(first)["run"])
            for line in lines:
                outcome = _outcome(json.loads(line))
                self.outcomes[outcome.id] = outcome
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise JournalMismatch(f"{self.path}: is not a journal of an evaluation; choose another --out.") from error
        return len(whole)

    def _check(self, found: dict[str, Any]) -> None:
        for key in self._run:
            if found.get(key) != self._run[key]:
                raise JournalMismatch(
                    f"{self.path}: holds rows of a run with another '{key}' ({_short(found.get(key))}, not "
                    f"{_short(self._run[key])}); choose another --out, or delete the file."
                )


def _outcome(row: dict[str, Any]) -> Outcome:
    reply = Reply(**row.pop("reply"))
    return Outcome(**row | {"answers": tuple(row["answers"]), "reply": reply})


def _short(value: object, most: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}..."
