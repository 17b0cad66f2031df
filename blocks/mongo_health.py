"""How a MongoDB is: whether it answers, and what it says of its replicas, connections and slow operations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pymongo
from bson import Timestamp
from pymongo.errors import OperationFailure

from blocks.mongo import MongoDatabase, mongo_errors
from tasks.domain import collections as schema

#: An operation that has been at work for longer is slow. Change streams and the server's own are at work for ever.
SLOW_OPERATION_S = 10
_SECONDARY = 2


@dataclass(frozen=True, slots=True)
class MongoHealth:
    """What a server said: ``figures`` by name with the unit at the end; ``untold`` names what the user may not see."""

    version: str
    figures: Mapping[str, float] = field(default_factory=dict)
    untold: tuple[str, ...] = ()


def read_health(database: MongoDatabase, *, within_s: float) -> MongoHealth:
    """Return how the server is, within so many seconds; a server that hangs counts as one that is gone.

    What the user may not see is left out and named. Raises what ``mongo_errors`` makes of a failure.
    """
    figures: dict[str, float] = {}
    untold: list[str] = []
    with mongo_errors("asking how it is", database.setting), pymongo.timeout(within_s):
        opened = database.open_database()
        opened.command("ping")
        version = str(opened.client.server_info()["version"])
        for name, read in (("replicas", _replicas), ("connections", _connections), ("operations", _slow_operations)):
            try:
                figures |= read(opened.client.admin)
            except OperationFailure:
                untold.append(name)
        with suppress(OperationFailure):
            figures |= _disk(opened.command("dbStats"))
    return MongoHealth(version, figures, tuple(untold))


def _replicas(admin: Any) -> dict[str, float]:
    """Return how far the slowest secondary is behind the newest member; a single server has no such figure."""
    status = admin.command("replSetGetStatus")
    dates: list[datetime] = [member["optimeDate"] for member in status["members"] if "optimeDate" in member]
    behind = [
        max(dates) - member["optimeDate"] for member in status["members"] if member.get("state") == _SECONDARY and dates
    ]
    away = sum(member.get("health") == 0 for member in status["members"])
    figures = {"members_away": float(away)}
    if behind:
        figures["replication_lag_s"] = max(lag.total_seconds() for lag in behind)
    return figures


def _connections(admin: Any) -> dict[str, float]:
    found = admin.command("serverStatus", metrics=0, wiredTiger=0, locks=0)["connections"]
    taken, free = float(found["current"]), float(found["available"])
    return {"connections": taken, "connections_used": taken / (taken + free) if taken + free else 0.0}


def _slow_operations(admin: Any) -> dict[str, float]:
    wanted = {
        "active": True,
        "secs_running": {"$gte": SLOW_OPERATION_S},
        "op": {"$in": ["query", "getmore", "update", "insert", "remove", "command"]},
        # Whoever waits for the next change isn't slow, and neither is a member that asks whether we live.
        "cursor.tailable": {"$ne": True},
        "command.hello": {"$exists": False},
        "command.isMaster": {"$exists": False},
        "command.ismaster": {"$exists": False},
        "client": {"$exists": True},
    }
    pipeline: list[dict[str, Any]] = [{"$currentOp": {"allUsers": True}}, {"$match": wanted}, {"$count": "slow"}]
    found = list(admin.aggregate(pipeline))
    return {"slow_operations": float(found[0]["slow"] if found else 0)}


def _disk(stats: Mapping[str, Any]) -> dict[str, float]:
    total = float(stats.get("fsTotalSize") or 0)
    figures = {"data_bytes": float(stats.get("storageSize", 0)), "index_bytes": float(stats.get("indexSize", 0))}
    if total:
        figures["disk_used"] = float(stats["fsUsedSize"]) / total
    return figures


def token_time(position: Mapping[str, Any]) -> datetime | None:
    """Return until when a position in a change stream has everything; None where it can't be told.

    A resume token begins with the cluster's time, as the server's keystring writes a timestamp: ``82`` and eight
    hexadecimal digits of seconds. (Format since MongoDB 4.0.7; drivers treat tokens as opaque, so what looks otherwise
    is not guessed at.)
    """
    moment = position.get("operationTime")
    if isinstance(moment, Timestamp):
        return moment.as_datetime()
    watermark = position.get("watermark")
    if isinstance(watermark, datetime):
        return watermark
    data = str((position.get("token") or {}).get("_data", ""))
    try:
        return Timestamp(int(data[2:10], 16), 1).as_datetime() if data.startswith("82") and len(data) > 10 else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Refusals:
    """How much of what a run read it refused."""

    job_id: str
    source: str
    read: int
    refused: int

    @property
    def share(self) -> float:
        """Return the refused share, 0 to 1."""
        return self.refused / self.read


def read_refusals(store: MongoDatabase, *, since: datetime, sample: int) -> list[Refusals]:
    """Return what the last run of each source since then refused, of runs that read at least ``sample`` records."""
    wanted = {"updatedAt": {"$gte": since}, "progress.processed": {"$gte": max(1, sample)}}
    newest = {name: {"$first": f"${path}"} for name, path in _OF_A_JOB.items()}
    pipeline: list[dict[str, Any]] = [
        {"$match": wanted},
        {"$sort": {"createdAt": -1, "_id": -1}},
        {"$group": {"_id": "$sourceType", **newest}},
        {"$sort": {"_id": 1}},
    ]
    with mongo_errors("reading what runs refused", store.setting):
        found = list(store.open_database()[schema.JOBS].aggregate(pipeline))
    return [Refusals(row["job"], str(row["_id"]), int(row["read"]), int(row["refused"])) for row in found]


_OF_A_JOB = {"job": "jobId", "read": "progress.processed", "refused": "progress.failed"}


def count_pending(store: MongoDatabase) -> int:
    """Return how many jobs wait in ``embeddingjobs``; the application may put some there too."""
    with mongo_errors("counting jobs", store.setting):
        return store.open_database()[schema.JOBS].count_documents({"status": "pending"})
