"""`Journal`: finished items, one JSON line each, so that a killed run goes on where it was.

The first line says what the run is; a run that differs in it is refused, since its rows would not belong together.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TextIO

from dreamr.eval.outcome import Outcome
from dreamr.eval.reply import Reply


class JournalMismatch(ValueError):
    """The file holds rows of another run."""


class Journal:
    """Use as a context manager; every row is on disk when `add` returns."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        """`run`: whatever the rows depend on, as JSON takes it.

        Raises:
            JournalMismatch: the file belongs to another run, or is no journal.
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
        """Read what is there; the length of its whole lines in bytes."""
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
            raise JournalMismatch(f"{self.path}: is no journal of an evaluation; choose another --out.") from error
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
