"""Parquet files as the hub's benchmarks are: images as files inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from support.tiny import picture


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One file with these rows; columns whose name starts with `image` are images."""
    table = datasets.Dataset.from_list(rows)
    for column in table.column_names:
        if column.startswith("image"):
            table = table.cast_column(column, datasets.Image())
    table.to_parquet(path)
    return path


def numbers(path: Path) -> str:
    """Four rows in the format of realworldqa, whose questions contain their answers."""
    image = {"bytes": picture(32, 32), "path": None}
    rows = [{"image": image, "question": f"How many are {one}?", "answer": str(one)} for one in range(4)]
    return str(write_parquet(path, rows))
