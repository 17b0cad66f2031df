"""Upkeep of the store: whether what should expire does, and what is slow in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.errors import OperationFailure

from blocks.mongo import mongo_errors
from blocks.vector_store import VectorStore
from tasks.domain import collections as schema

#: The server looks for what expired once a minute; a day later it should be gone.
_OVERDUE = timedelta(days=1)


def find_unexpired(store: VectorStore) -> list[str]:
    """Return what is wrong with expiry: indexes that are missing, or by which nothing is deleted."""
    found = []
    with mongo_errors("looking at what expires", store.setting):
        database = store.open_database()
        there = set(database.list_collection_names())
        now = datetime.now(UTC)
        for collection in schema.COLLECTIONS:
            if collection.name not in there:
                continue
            known = {row["name"]: row for row in database[collection.name].list_indexes()}
            for index in collection.indexes:
                seconds = index.options.get("expireAfterSeconds")
                if seconds is None:
                    continue
                if "expireAfterSeconds" not in known.get(index.name, {}):
                    found.append(f"{collection.name} has no index {index.name}, so nothing of it expires")
                    continue
                field = index.keys[0][0]
                late = {field: {"$lt": now - timedelta(seconds=seconds) - _OVERDUE}}
                late |= index.options.get("partialFilterExpression", {})
                number = database[collection.name].count_documents(late, limit=10_000)
                if number:
                    found.append(f"{number:,} documents of {collection.name} should have expired by {field}")
    return found


def read_slow_queries(store: VectorStore, since: datetime, *, limit: int = 5) -> list[str] | None:
    """Return the slowest operations since then, or None where the server writes none down (profiling is off)."""
    with mongo_errors("reading slow queries", store.setting):
        database = store.open_database()
        try:
            if not database.command("profile", -1).get("was"):
                return None
            rows: list[dict[str, Any]] = list(
                database["system.profile"].find({"ts": {"$gte": since}}).sort("millis", -1).limit(limit)
            )
        except OperationFailure:
            return None
    return [
        f"{row.get('op')} on {row.get('ns')}: {row.get('millis'):,} ms ({row.get('planSummary', '')})" for row in rows
    ]
