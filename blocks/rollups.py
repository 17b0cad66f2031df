"""The rows of ``embeddingstats``, and what they are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from pymongo import ReplaceOne

from blocks.mongo import MongoDatabase, mongo_errors
from blocks.vector_store import VectorStore
from tasks.domain import collections as schema
from tasks.domain.stats import Bucket, Period, Tally

_FIELDS = (
    *("status", "sourceType", "teamId", "progress", "results", "errors.errorCode", "retryConfig.retryCount"),
    *("createdAt", "updatedAt", "startedAt", "completedAt", "metadata.teams"),
)


def read_jobs(store: MongoDatabase, since: datetime) -> list[dict[str, Any]]:
    """Return the jobs that were heard of since then, but for partitions, whose loads count them."""
    with mongo_errors("reading jobs", store.setting):
        wanted = {"updatedAt": {"$gte": since}, "metadata.tags": {"$ne": "partition"}}
        return list(store.open_database()[schema.JOBS].find(wanted, dict.fromkeys(_FIELDS, 1)))


def read_tallies(
    store: MongoDatabase, period: Period, since: datetime, until: datetime
) -> list[tuple[ObjectId | None, Tally]]:
    """Return the tallies of a period's rows that begin in ``[since, until)``; rows of others have none."""
    wanted = {"period": period, "startDate": {"$gte": since, "$lt": until}, "tally": {"$exists": True}}
    with mongo_errors("reading embeddingstats", store.setting):
        rows = store.open_database()[schema.STATS].find(wanted, {"teamId": 1, "tally": 1})
        return [(row["teamId"], Tally.from_record(row["tally"])) for row in rows]


def save_stats(store: MongoDatabase, bucket: Bucket, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a bucket's rows in the place of those that are there, and return how many. Twice equals once.

    A team that is in none of them any more keeps no row.
    """
    now = datetime.now(UTC)
    rows = list(rows)
    key = {"period": bucket.period, "startDate": bucket.start}
    with mongo_errors("writing embeddingstats", store.setting):
        box = store.open_database()[schema.STATS]
        # A row's age counts from when it was first made: it expires a year after that.
        known = {row["teamId"]: row.get("createdAt", now) for row in box.find(key, {"teamId": 1, "createdAt": 1})}
        writes = [
            ReplaceOne(
                {**key, "teamId": row["teamId"]},
                {**row, "createdAt": known.get(row["teamId"], now), "updatedAt": now},
                upsert=True,
            )
            for row in rows
        ]
        if writes:
            box.bulk_write(writes, ordered=False)
        box.delete_many({**key, "teamId": {"$nin": [row["teamId"] for row in rows]}, "tally": {"$exists": True}})
    return len(rows)


def measure_storage(store: VectorStore) -> dict[str, float]:
    """Return how large the live vectors are now."""
    with mongo_errors("measuring the store", store.setting):
        database = store.open_database()
        found = database.command("collStats", store.vectors_name)
    documents = float(found.get("count", 0))
    figures = {
        "totalVectorDocuments": documents,
        "totalStorageSize": float(found.get("storageSize", 0)),
        "indexSize": float(found.get("totalIndexSize", 0)),
    }
    if documents:
        figures["averageDocumentSize"] = float(found.get("avgObjSize", 0))
    return figures
