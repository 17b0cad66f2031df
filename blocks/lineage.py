"""Lineage: what both databases hold of a record, looked up from whichever end of it is known. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blocks.mongo import MongoSource, Record, mongo_errors
from blocks.vector_store import VectorStore


def read_rows(vectors: VectorStore, criteria: Mapping[str, Any], *, limit: int) -> list[Record]:
    """Return vector documents of one generation, whole but for their vectors, by document id."""
    with mongo_errors("reading vector documents", vectors.setting):
        rows = vectors.open_database()[vectors.vectors_name].find(dict(criteria), {"embedding": 0})
        return list(rows.sort("documentId", 1).limit(limit))


def read_letters(vectors: VectorStore, sources: Sequence[str], ids: Sequence[Any]) -> list[Record]:
    """Return the dead letters, open or closed, that one generation has of these ids in these sources."""
    with mongo_errors("reading dead letters", vectors.setting):
        box = vectors.open_database()[vectors.letters_name]
        criteria = {"sourceType": {"$in": list(sources)}, "sourceId": {"$in": list(ids)}}
        return list(box.find(criteria).sort("sourceType", 1))


def find_ids(source: MongoSource, collection: str, criteria: Mapping[str, Any], *, limit: int) -> list[Any]:
    """Return the ids of a collection's records that match."""
    with mongo_errors(f"looking up {collection}", source.setting):
        return [row["_id"] for row in source.open_database()[collection].find(dict(criteria), {"_id": 1}).limit(limit)]
