"""Shard: rows that move together, the unit of retry. Tasks pass the reference; the rows stay in the shard store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

#: Six task runs a shard, each of which costs the Prefect server tens of milliseconds; the stages hold a part of it.
DEFAULT_SHARD_ROWS = 20_000
#: At most: one is embedded while one is written and one is read; memory holds no more than these.
DEFAULT_SHARDS_IN_FLIGHT = 3


@dataclass(frozen=True, slots=True)
class ShardRange:
    """One slice of the source by ``_id``, half-open: ``lower <= _id < upper`` in MongoDB's order of all types.

    ``None`` means unbounded. ``planned`` is how many records it held when the run was planned.
    """

    number: int
    lower: Any
    upper: Any
    planned: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file in the shard store, with what proves that it is whole."""

    name: str
    rows: int
    size_bytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Shard:
    """What one stage hands to the next.

    ``read`` is how many records the source gave for it. ``rows`` holds what is still on its way, ``refused`` the
    dead letters of each stage so far. ``chunks`` is set once ``rows`` are vectors. ``embedded`` and ``tokens`` are
    what this shard paid for, over all its attempts. ``gone`` are records that changed and are no longer in the
    source, as BSON: their vectors are taken away. ``unchanged`` holds the records that are stored as they are and go no
    further. ``untouched`` says that nothing is stored of all its range: there is nothing to compare with. ``observed``
    is what judging reads of the rows, in their order, and ``profile`` what its records are like, packed.
    """

    number: int
    read: int
    rows: ShardFile
    refused: tuple[ShardFile, ...] = ()
    chunks: ShardFile | None = None
    embedded: int = 0
    tokens: int = 0
    gone: bytes = b""
    leaving: bytes = b""
    unchanged: ShardFile | None = None
    untouched: bool = False
    observed: ShardFile | None = None
    profile: bytes = b""

    @property
    def is_stored(self) -> bool:
        """Return whether nothing of it is left to do: every record that was read is stored as it is."""
        return self.chunks is None and not (self.rows.rows or self.gone or any(file.rows for file in self.refused))

    def moved_on(self, rows: ShardFile, refused: ShardFile | None = None) -> Shard:
        """Return the shard after a stage that made ``rows`` and refused some."""
        return replace(self, rows=rows, refused=(*self.refused, refused) if refused else self.refused)
