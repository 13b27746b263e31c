"""Problems to train on: the `TaskData` protocol and the sets by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from dreamr.types import Prompt
from rl.answers import AnswerKind, given_answer, is_right

if TYPE_CHECKING:
    from rl.config import DataSettings

Purpose = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Example:
    """One problem and what is needed to check its answer."""

    prompt: Prompt
    answer: str
    kind: AnswerKind
    needed_steps: int | None = None
    """Steps that an answer needs, the answer line included; None when nobody knows."""

    def is_right(self, text: str) -> bool:
        """Whether the text of a chain ends in the right answer; one without an answer is wrong."""
        return is_right(self.kind, self.answer, text)

    def is_parsed(self, text: str) -> bool:
        """Whether an answer, right or wrong, was found in the text of a chain."""
        return given_answer(self.kind, text) is not None


class TaskData(Protocol):
    """A set of problems. `data[i]` is the same problem every time and in every process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def load_data(settings: DataSettings, purpose: Purpose, size: int) -> TaskData:
    """The set's split for that purpose; an endless one gives `size` problems.

    Raises ConfigError in one sentence when the data is not there or lacks a column.
    """
    split = settings.train_split if purpose == "train" else settings.eval_split
    if settings.name == "ledger":
        from rl.ledger_data import LedgerData

        return LedgerData(split, settings.seed, size)
    from rl.parquet_data import load_parquet_data

    return load_parquet_data(settings, split)
