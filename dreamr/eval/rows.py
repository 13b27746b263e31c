"""`Rows`: a benchmark's rows from a local parquet file or from the hub, checked before a model is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamr.errors import first_line
from dreamr.eval.benchmarks import BadRow, Benchmark, Item

if TYPE_CHECKING:
    from datasets import Dataset

HUB_DEADLINE_S = 10.0


class BadData(ValueError):
    """The data cannot be read, or belongs to another benchmark; one sentence with the way out."""


class Rows:
    """The first `limit` rows of a benchmark; images stay encoded."""

    def __init__(self, benchmark: Benchmark, path: Path | None = None, limit: int | None = None) -> None:
        """Raises BadData for the whole, BadRow for a row."""
        self._benchmark = benchmark
        self.source = str(path) if path else f"{benchmark.hub_id}, {benchmark.split}"
        rows = _local(path) if path else _from_hub(benchmark)
        _check_columns(rows.column_names, benchmark, self.source)
        self._rows = _with_encoded_images(rows, benchmark, self.source)
        if limit is not None:
            self._rows = self._rows.select(range(min(limit, len(self._rows))))
        if not len(self._rows):
            raise BadData(f"{self.source}: there are no rows in it.")
        self._check_rows()

    def __len__(self) -> int:
        return len(self._rows)

    def item(self, number: int) -> Item:
        """One row, by its place in the data set."""
        return self._benchmark.make_item(number, _images_as_bytes(self._rows[number], self._benchmark.images))

    def items(self) -> Iterator[Item]:
        """In the order of the data set."""
        return map(self.item, range(len(self)))

    def _check_rows(self) -> None:
        """Everything except the content of the images."""
        images = [column for column in self._benchmark.images if column in self._rows.column_names]
        for number, row in enumerate(self._rows.remove_columns(images)):
            self._benchmark.make_item(number, row)
        first = self._benchmark.images[0]
        for number, has_image in enumerate(_has_image(self._rows, first)):
            if not has_image:
                raise BadRow(f"row {number}: {first} is empty, but the question is about it: remove the row.")


def _local(path: Path) -> Dataset:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()  # they are for downloads
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise BadData(f"--data {path}: there is no such file or folder; give a parquet file, or a folder of them.")
    try:
        rows: Dataset = load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except Exception as error:  # the reader raises many kinds for files of another format
        raise BadData(f"--data {path}: is not a readable parquet file ({first_line(error).rstrip('.')}).") from error
    return rows


def _from_hub(benchmark: Benchmark) -> Dataset:
    from datasets import concatenate_datasets, load_dataset

    try:
        _check_hub(benchmark.hub_id)
        parts = [load_dataset(benchmark.hub_id, name, split=benchmark.split) for name in benchmark.parts or (None,)]
    except Exception as error:  # no network, no such data set, no permission: each library below raises its own kinds
        raise BadData(
            f"{benchmark.hub_id}: cannot be read from the hub ({first_line(error).rstrip('.')}); check the network, "
            "or give a parquet file with the same columns by --data."
        ) from error
    return concatenate_datasets(parts)


def _check_hub(hub_id: str) -> None:
    """One short request: the libraries themselves retry for minutes."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(hub_id, timeout=HUB_DEADLINE_S)


def _check_columns(found: Sequence[str], benchmark: Benchmark, source: str) -> None:
    for column in benchmark.columns:
        if column not in found:
            close = difflib.get_close_matches(column, found, n=1, cutoff=0.5)
            hint = f"rename '{close[0]}'?" if close else f"it has {', '.join(found)}."
            raise BadData(f"{source}: {benchmark.name} needs a column '{column}', which is missing: {hint}")


def _with_encoded_images(rows: Dataset, benchmark: Benchmark, source: str) -> Dataset:
    from datasets import Image

    for column in benchmark.images:
        feature = rows.features.get(column)
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
        elif feature is not None and not _may_hold_images(feature):
            kind = getattr(feature, "dtype", feature)
            raise BadData(
                f"{source}: the column '{column}' holds {kind} values, not images: store image files as bytes, or as "
                "the data sets library does."
            )
    return rows


def _may_hold_images(feature: Any) -> bool:
    """Bytes, a struct with bytes or a path, or nothing at all."""
    if isinstance(feature, dict):
        return not {"bytes", "path"}.isdisjoint(feature)
    return getattr(feature, "dtype", None) in {"binary", "large_binary", "null"}


def _has_image(rows: Dataset, column: str) -> list[bool]:
    """For each row, whether there is an image; the images themselves, most of the data, are not read."""
    import pyarrow
    from pyarrow import compute

    values = rows.data.column(column)
    if pyarrow.types.is_struct(values.type):
        parts = [compute.struct_field(values, field.name) for field in values.type if field.name in ("bytes", "path")]
    else:
        parts = [values]
    lengths = [
        compute.fill_null(compute.binary_length(part), 0).to_pylist()
        for part in parts
        if not pyarrow.types.is_null(part.type)
    ]
    return [any(row) for row in zip(*lengths, strict=True)] if lengths else [False] * len(rows)


def _images_as_bytes(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return row | {column: _encoded(row.get(column)) for column in columns}


def _encoded(value: object) -> bytes | None:
    """An image in a data set: None, bytes, or a mapping with bytes or a path."""
    match value:
        case {"bytes": bytes(data)} | bytes(data):
            return data
        case {"path": str(path)}:
            return Path(path).read_bytes()
        case _:
            return None
