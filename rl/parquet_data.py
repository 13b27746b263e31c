"""Geometry3K, ScienceQA and OCR-VQA as training data, from the hub or from local parquet files.

Rows are read when they are needed; images stay encoded files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamr.config import names_a_path
from dreamr.errors import ConfigError
from dreamr.types import Prompt
from rl.answers import AnswerKind
from rl.data import Example

if TYPE_CHECKING:
    from datasets import Dataset

    from rl.config import DataSettings


class RowReader(Protocol):
    """One problem of a row; sets with several questions per row number them from 0."""

    def __call__(self, row: Mapping[str, Any], question: int) -> Example: ...


@dataclass(frozen=True, slots=True)
class ParquetSet:
    """Where a set lives, and how its rows become problems."""

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
    kind: AnswerKind = "letter"
    return Example(Prompt("\n".join(lines), _files(row["image"])), letters[int(row["answer"])], kind)


def _ocr_vqa(row: Mapping[str, Any], question: int) -> Example:
    text = f"{str(row['questions'][question]).strip()}\nAnswer with as few words as you can."
    return Example(Prompt(text, _files(row["image"])), str(row["answers"][question]), "text")


SETS = {
    "geometry3k": ParquetSet("hiyouga/geometry3k", ("images", "problem", "answer"), "images", _geometry3k),
    "scienceqa": ParquetSet(
        "derek-thomas/ScienceQA", ("image", "question", "choices", "answer", "hint"), "image", _scienceqa
    ),
    "ocr_vqa": ParquetSet(
        "howard-hou/OCR-VQA", ("image", "questions", "answers"), "image", _ocr_vqa, many_per_row="questions"
    ),
}


class ParquetData:
    """The problems of one split, in the order of the files."""

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


def load_parquet_data(settings: DataSettings, split: str) -> ParquetData:
    """Raises ConfigError in one sentence: nothing there, no such split, a column missing."""
    kind = SETS[settings.name]
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
            f"data.source = '{source}': there is nothing; give a parquet file, a folder of them, or a hub id."
        )
    from datasets import load_dataset  # slow to import: only once it is known that there are files

    try:
        if not files:
            return load_dataset(source, split=split)
        return load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except Exception as error:  # the hub's client raises a dozen kinds, all of which mean the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"data.source = '{source}', split '{split}': cannot be read: {reason}") from error


def _files_of(folder: Path, split: str) -> list[Path]:
    """Files that begin with the split's name, as the hub names them (`train-00000-of-00002.parquet`); or the one."""
    if folder.is_file():
        return [folder]
    files = sorted(folder.rglob("*.parquet"))
    own = [file for file in files if file.name.startswith(split)]
    if not own:
        names = ", ".join(file.name for file in files[:4]) or "none"
        raise ConfigError(f"data.source = '{folder}': no parquet file begins with '{split}'; the files: {names}.")
    return own


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
