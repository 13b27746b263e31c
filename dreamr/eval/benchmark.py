"""`Benchmark`: where its rows come from, which columns they have, and how a row becomes an `Item`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dreamr.eval.item import Item

Row = Mapping[str, Any]


class BadRow(ValueError):
    """A row that cannot be what its benchmark says; the sentence names the column and the value."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One public data set."""

    name: str
    hub_id: str
    split: str
    columns: tuple[str, ...]
    """What `make_item` needs; further columns are ignored."""
    images: tuple[str, ...]
    """The columns with images; those beyond the first may be missing or empty."""
    make_item: Callable[[int, Row], Item]
    """Row number and row; raises BadRow. Images are bytes or None."""
    parts: tuple[str, ...] = ()
    """Names of the configurations that make up the whole on the hub; empty when there is only one."""


def text_of(row: Row, column: str) -> str:
    """The text in a column, without the space around it; empty for nothing, which tables of text hold as "nan"."""
    value = row.get(column)
    text = "" if value is None else str(value).strip()
    return "" if text.lower() == "nan" else text


def images_of(row: Row, columns: tuple[str, ...]) -> tuple[bytes, ...]:
    """The images that the row has, in the order of the columns."""
    return tuple(row[column] for column in columns if row.get(column))
