"""Targets: the collection that every contestant writes into, and what lies on its disk."""

from __future__ import annotations

from typing import Any

from pymongo import IndexModel, MongoClient
from pymongo.collection import Collection

from tasks.domain.collections import VECTOR_DOCUMENTS

Record = dict[str, Any]


def build_indexes(collection: Collection[Record]) -> None:
    """Build the store's indexes on the collection: the same that ``initialise`` makes."""
    collection.create_indexes(
        [IndexModel(list(index.keys), name=index.name, **index.options) for index in VECTOR_DOCUMENTS.indexes]
    )


def missing_indexes(collection: Collection[Record]) -> list[str]:
    """Return the names of the store's indexes that the collection lacks."""
    present = {row["name"] for row in collection.list_indexes()}
    return [index.name for index in VECTOR_DOCUMENTS.indexes if index.name not in present]


def flush(client: MongoClient[Record]) -> None:
    """Return when all that was written so far lies in the data files: a checkpoint is part of a write's cost."""
    client.admin.command("fsync")


def bytes_on_disk(collection: Collection[Record]) -> Record:
    """Return what a document takes on disk without indexes, and what its vector and content are; after a flush."""
    flush(collection.database.client)
    stats = collection.database.command("collStats", collection.name)
    sums = next(
        collection.aggregate(
            [
                {
                    "$group": {
                        "_id": None,
                        "documents": {"$sum": 1},
                        "content": {"$sum": {"$strLenBytes": "$content"}},
                        "stored": {"$sum": {"$bsonSize": "$$ROOT"}},
                    }
                }
            ]
        )
    )
    number = sums["documents"]
    return {
        "documents": number,
        "bytes_a_document": round(stats["storageSize"] / number, 1),
        "reusable_bytes_a_document": round(stats.get("freeStorageSize", 0) / number, 1),
        "content_bytes": round(sums["content"] / number, 1),
        "bson_bytes": round(sums["stored"] / number, 1),
        "index_bytes_a_document": round(stats["totalIndexSize"] / number, 1),
        "compression": stats["wiredTiger"]["creationString"].partition("block_compressor=")[2].partition(",")[0],
    }
