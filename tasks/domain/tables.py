"""Columns of the shard files: rows of dataclasses to Arrow and back, without a dictionary per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar, get_type_hints

import pyarrow as pa

Row = TypeVar("Row")

_ARROW = {
    str: pa.large_string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.large_binary(),
}


@cache
def schema_of(row_type: type) -> pa.Schema:
    """Return the columns of a dataclass whose fields are text, int, float, bool or bytes, or None."""
    hints = get_type_hints(row_type)
    columns = []
    for field in fields(row_type):
        kinds = [
            kind for kind in getattr(hints[field.name], "__args__", (hints[field.name],)) if kind is not type(None)
        ]
        columns.append(pa.field(field.name, _ARROW[kinds[0]]))
    return pa.schema(columns)


def to_table(row_type: type[Row], rows: Sequence[Row]) -> pa.Table:
    """Return the rows as a table with the columns of ``schema_of``."""
    schema = schema_of(row_type)  # type: ignore[arg-type]  # a class is hashable
    if not rows:
        return schema.empty_table()
    columns = zip(*map(attrgetter(*schema.names), rows), strict=True)
    return pa.Table.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def from_table(row_type: type[Row], table: pa.Table) -> Iterator[Row]:
    """Yield the rows that ``to_table`` was given, in order."""
    columns: Iterable[Sequence[Any]] = [table.column(field.name).to_pylist() for field in fields(row_type)]  # type: ignore[arg-type]
    return (row_type(*values) for values in zip(*columns, strict=True))
