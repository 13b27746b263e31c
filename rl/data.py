"""Problems to train on: `load_data` gives a set by name, `data[i]` is one `Example`.

    ledger                              seeded, endless, drawn when they are read
    geometry3k, scienceqa, ocr_vqa      parquet files of the hub or of this machine; images stay encoded files

Nothing heavy is imported before it is certain that there are files to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from dreamr.config import names_a_path
from dreamr.errors import ConfigError, first_line
from dreamr.tasks.answers import AnswerKind, given_answer, is_correct
from dreamr.tasks.ledger import Split, make_problem
from dreamr.types import Prompt

if TYPE_CHECKING:
    from datasets import Dataset

    from rl.config import DataSettings

Purpose = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Example:
    """One problem, and how to check its answer."""

    prompt: Prompt
    answer: str
    kind: AnswerKind
    needed_steps: int | None = None
    """Steps that an answer needs, the answer line included; None if the set does not say."""

    def is_correct(self, text: str) -> bool:
        """Whether the text of a chain ends in the expected answer; False when it gives none."""
        return is_correct(self.kind, self.answer, text)

    def is_parsed(self, text: str) -> bool:
        """Whether an answer, correct or not, was found in the text of a chain."""
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
    return LedgerData(split, settings.seed, size) if settings.name == "ledger" else load_parquet(settings, split)


class LedgerData:
    """Problems number 0 to `size` - 1 of one split and seed."""

    def __init__(self, split: str, seed: int, size: int) -> None:
        if split not in get_args(Split):
            raise ConfigError(f"data: the ledger task has no split '{split}'; choose {', '.join(get_args(Split))}.")
        self._split, self._seed, self._size = cast(Split, split), seed, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        problem = make_problem(self._split, self._seed, index)
        return Example(problem.prompt, str(problem.answer), "ledger", needed_steps=len(problem.operations) + 1)


# -- parquet files ---------------------------------------------------------------------------------------------------


class RowReader(Protocol):
    """One problem of a row; sets with several questions per row number them from 0."""

    def __call__(self, row: Mapping[str, Any], question: int) -> Example: ...


@dataclass(frozen=True, slots=True)
class ParquetSet:
    """Hub id and columns of a set, and how its rows become problems."""

    hub_id: str
    columns: tuple[str, ...]
    image_column: str
    read: RowReader
    many_per_row: str | None = None
    """Column that holds a list with one question per entry."""


def _geometry3k(row: Mapping[str, Any], question: int) -> Example:
    text = str(row["problem"]).replace("<image>", "").strip()
    return Example(Prompt(text, _files(row["images"])), str(row["answer"]), "value")


def _scienceqa(row: Mapping[str, Any], question: int) -> Example:
    letters = [chr(ord("A") + place) for place in range(len(row["choices"]))]
    options = [f"({letter}) {choice}" for letter, choice in zip(letters, row["choices"], strict=True)]
    hint = [str(row["hint"]).strip()] if row["hint"] else []
    lines = [*hint, str(row["question"]).strip(), *options, "Answer with the letter of one option."]
    return Example(Prompt("\n".join(lines), _files(row["image"])), letters[int(row["answer"])], "letter")


def _ocr_vqa(row: Mapping[str, Any], question: int) -> Example:
    text = f"{str(row['questions'][question]).strip()}\nAnswer with as few words as you can."
    return Example(Prompt(text, _files(row["image"])), str(row["answers"][question]), "text")


PARQUET_SETS = {
    "geometry3k": ParquetSet("hiyouga/geometry3k", ("images", "problem", "answer"), "images", _geometry3k),
    "scienceqa": ParquetSet(
        "derek-thomas/ScienceQA", ("image", "question", "choices", "answer", "hint"), "image", _scienceqa
    ),
    "ocr_vqa": ParquetSet(
        "howard-hou/OCR-VQA", ("image", "questions", "answers"), "image", _ocr_vqa, many_per_row="questions"
    ),
}


class ParquetData:
    """The problems of one split, in the order of the files; rows are read when they are needed."""

    def __init__(self, kind: ParquetSet, rows: Dataset) -> None:
        self._kind, self._rows = kind, rows
        self._places = [(row, 0) for row in range(len(rows))]
        if kind.many_per_row:
            counts = [len(questions) for questions in rows[kind.many_per_row]]
            self._places = [(row, question) for row, count in enumerate(counts) for question in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        row, question = self._places[index]
        return self._kind.read(self._rows[row], question)


def load_parquet(settings: DataSettings, split: str) -> ParquetData:
    """Raises ConfigError in one sentence: nothing there, no such split, a column missing."""
    kind = PARQUET_SETS[settings.name]
    rows = _load(settings.source or kind.hub_id, split)
    if absent := [column for column in kind.columns if column not in rows.column_names]:
        raise ConfigError(
            f"data.source = '{settings.source or kind.hub_id}': {settings.name} needs the column '{absent[0]}'; it has "
            f"{', '.join(rows.column_names)}."
        )
    return ParquetData(kind, _undecoded(rows, kind.image_column))


def _load(source: str, split: str) -> Dataset:
    path = Path(source)
    files = _files_of(path, split) if path.exists() else []
    if not files and names_a_path(source):
        raise ConfigError(
            f"data.source = '{source}': there is no such file or folder; give a parquet file, a folder of them, or a "
            "hub id."
        )
    from datasets import load_dataset  # slow to import

    try:
        if not files:
            return load_dataset(source, split=split)
        return load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except Exception as error:  # the hub's client raises a dozen kinds, all of which mean the same here
        raise ConfigError(f"data.source = '{source}', split '{split}': cannot be read: {first_line(error)}") from error


def _files_of(folder: Path, split: str) -> list[Path]:
    """Files that begin with the split's name, as the hub names them (`train-00000-of-00002.parquet`); or the one."""
    if folder.is_file():
        return [folder]
    files = sorted(folder.rglob("*.parquet"))
    wanted = [file for file in files if file.name.startswith(split)]
    if not wanted:
        names = ", ".join(file.name for file in files[:4]) or "none"
        raise ConfigError(f"data.source = '{folder}': no parquet file begins with '{split}'; the files: {names}.")
    return wanted


def _undecoded(rows: Dataset, column: str) -> Dataset:
    """Images as `{bytes, path}` instead of decoded pictures."""
    from datasets import Image, List

    feature = rows.features[column]
    if isinstance(feature, Image):
        return rows.cast_column(column, Image(decode=False))
    if isinstance(feature, List) and isinstance(feature.feature, Image):
        return rows.cast_column(column, List(Image(decode=False)))
    return rows


def _files(images: Any) -> tuple[bytes, ...]:
    """Encoded image files of one cell: one image, a list of them, or none."""
    if images is None:
        return ()
    several: Sequence[Any] = images if isinstance(images, Sequence) and not isinstance(images, bytes) else [images]
    return tuple(_file(image) for image in several)


def _file(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    data = image["bytes"]
    return bytes(data) if data is not None else Path(image["path"]).read_bytes()
