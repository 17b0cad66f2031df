"""Records: what stages read of one source, whether they lie in its collection as they are or are made of what does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import bson

from blocks.mongo import MongoSource, RawRecord
from tasks.domain.batches import batched
from tasks.domain.dead_letters import record_key
from tasks.domain.registry import find_source
from tasks.domain.shards import ShardRange
from tasks.domain.sources import Source, derived_id

_LOOKED_UP_AT_ONCE = 1_000


def open_records(source: MongoSource, name: str) -> Records:
    """Return the records of the source with this name."""
    key = source.pseudonym_key
    return Records(source, find_source(name, key.get_secret_value().encode() if key else b""))


@dataclass(frozen=True, slots=True)
class Records:
    """One source's records in one database.

    Where a record of the collection holds several (``Source.split``), they are read by going through the whole
    collection: it has a record a website. They have no order by which a range could be cut, so all of them are one.
    """

    source: MongoSource
    kind: Source

    @property
    def are_in_order(self) -> bool:
        """Return whether a range of ids holds just the records of a shard."""
        return self.kind.split is None

    def plan(self, criteria: Mapping[str, Any], *, rows: int, limit: int | None) -> list[ShardRange]:
        """Return the ranges that make up the shards, in order."""
        if self.kind.split is None:
            return self.source.plan_shards(self.kind.collection, criteria=criteria, rows=rows, limit=limit)
        count = sum(1 for _ in islice(self._parts(criteria), limit))
        return [ShardRange(0, None, None, count)] if count else []

    def read_raw(self, shard: ShardRange, criteria: Mapping[str, Any], *, limit: int | None) -> Iterator[RawRecord]:
        """Yield the records of a shard, each with its bytes. ``limit`` is the scope's: a range has it in its end."""
        if self.kind.split is None:
            yield from self.source.read_raw_range(
                self.kind.collection, shard, criteria=criteria, fields=self.kind.fields
            )
        else:
            for record in islice(self._parts(criteria), limit):
                yield bson.encode(record), record

    def read_raw_some(self, ids: Sequence[Any]) -> Iterator[RawRecord]:
        """Yield those of these records that are there now, in no order."""
        if self.kind.split is None:
            yield from self.source.read_raw_records(self.kind.collection, ids, self.kind.fields)
            return
        wanted = {record_key(record_id) for record_id in ids}
        for record in self._parts({}):
            if record_key(record["_id"]) in wanted:
                yield bson.encode(record), record

    def read_ids(
        self,
        shard: ShardRange,
        criteria: Mapping[str, Any],
        *,
        limit: int | None,
        holds: Callable[[Mapping[str, Any]], bool] | None,
    ) -> dict[bytes, Any]:
        """Return the ids of a shard's records by their ``record_key``; ``holds`` decides for each, None takes all."""
        records: Iterable[Mapping[str, Any]]
        if self.kind.split is not None:
            records = islice(self._parts(criteria), limit)
        else:
            fields = ("_id",) if holds is None or self.kind.time_field is None else (self.kind.time_field,)
            records = self.source.read_range(self.kind.collection, shard, criteria=criteria, fields=fields)
        return {record_key(row["_id"]): row["_id"] for row in records if holds is None or holds(row)}

    def find_existing(self, ids: Iterable[Any]) -> set[bytes]:
        """Return the ``record_key`` of those ids whose records are there now."""
        if self.kind.split is None:
            found: set[bytes] = set()
            for some in batched(ids, _LOOKED_UP_AT_ONCE):
                found |= self.source.find_existing(self.kind.collection, some)
            return found
        wanted = {record_key(record_id) for record_id in ids}
        return {record_key(record["_id"]) for record in self._parts({})} & wanted if wanted else set()

    def find_holders(self, ids: Sequence[Any]) -> dict[bytes, str]:
        """Return, by ``record_key``, the contract or website that each of these records names now."""
        named = ("contractId", "siteId")
        rows: Iterable[Mapping[str, Any]]
        if self.kind.split is None:
            rows = self.source.read_records(self.kind.collection, ids, named)
        else:
            rows = (record for _, record in self.read_raw_some(ids))
        return {record_key(row["_id"]): str(row.get(named[0]) or row.get(named[1])) for row in rows}

    def identify(self) -> str:
        """Return what tells the collection from every other, wherever its server answers."""
        return self.source.identify(self.kind.collection)

    def _parts(self, criteria: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        assert self.kind.split is not None
        everything = ShardRange(0, None, None, 0)
        rows = self.source.read_range(self.kind.collection, everything, criteria=criteria, fields=self.kind.fields)
        seen: set[bytes] = set()
        for row in rows:
            for record in self.kind.split(row):
                key = record_key(record["_id"])
                if key in seen:
                    # Within one row ``split`` sees to it; of two rows that hold the same, neither may be lost unseen.
                    record["_id"] = derived_id(self.kind.name, row.get("siteId"), record["_id"])
                seen.add(key)
                yield record
