"""What an operator asks of the store: refused records by reason, errors of runs by code, and what teams cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blocks.mongo import mongo_errors
from blocks.vector_store import VectorStore
from tasks.domain import collections as schema

_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Refused:
    """Open dead letters of one reason code, with a few of their records and the words of the newest."""

    code: str
    stage: str
    number: int
    newest: datetime
    reason: str
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How often runs failed with a code, and what the last one said."""

    code: str
    kind: str
    number: int
    newest: datetime
    says: str


@dataclass(frozen=True, slots=True)
class TeamDay:
    """A row of ``embeddingstats``: what a team's documents cost on a day. The team None is all together."""

    day: datetime
    team_id: str | None
    documents: int
    tokens: int
    usd: float


def read_refused(store: VectorStore) -> list[Refused]:
    """Return the open dead letters by reason code and stage, the most frequent first."""
    pipeline: list[dict[str, Any]] = [
        {"$match": {"status": "open"}},
        {"$sort": {"time": -1}},
        {
            "$group": {
                "_id": {"code": "$code", "stage": "$stage"},
                "number": {"$sum": 1},
                "newest": {"$first": "$time"},
                "reason": {"$first": "$reason"},
                "samples": {
                    "$firstN": {"input": {"$concat": ["$sourceType", ":", {"$toString": "$sourceId"}]}, "n": _SAMPLES}
                },
            }
        },
        {"$sort": {"number": -1, "_id": 1}},
    ]
    with mongo_errors("reading dead letters", store.setting):
        rows = list(store.open_database()[store.letters_name].aggregate(pipeline, allowDiskUse=True))
    return [
        Refused(
            code=str(row["_id"].get("code")),
            stage=str(row["_id"].get("stage")),
            number=int(row["number"]),
            newest=row["newest"],
            reason=str(row["reason"]),
            samples=tuple(str(one) for one in row["samples"]),
        )
        for row in rows
    ]


def read_errors(store: VectorStore, since: datetime) -> list[ErrorCount]:
    """Return the errors of runs since then by code and kind of run; dead letters are counted elsewhere."""
    pipeline: list[dict[str, Any]] = [
        {"$match": {"updatedAt": {"$gte": since}, "errors.0": {"$exists": True}}},
        {"$unwind": "$errors"},
        {"$match": {"errors.timestamp": {"$gte": since}, "errors.sourceId": None}},
        {"$sort": {"errors.timestamp": -1}},
        {
            "$group": {
                "_id": {"code": "$errors.errorCode", "kind": "$jobType"},
                "number": {"$sum": 1},
                "newest": {"$first": "$errors.timestamp"},
                "says": {"$first": "$errors.error"},
            }
        },
        {"$sort": {"number": -1, "_id": 1}},
    ]
    with mongo_errors("reading errors of runs", store.setting):
        rows = list(store.open_database()[schema.JOBS].aggregate(pipeline))
    return [
        ErrorCount(
            str(row["_id"].get("code")),
            str(row["_id"].get("kind")),
            int(row["number"]),
            row["newest"],
            str(row["says"]),
        )
        for row in rows
    ]


def read_team_days(store: VectorStore, since: datetime) -> list[TeamDay]:
    """Return the daily rows of ``embeddingstats`` since then, the newest first."""
    wanted = {"period": "daily", "startDate": {"$gte": since}}
    with mongo_errors("reading embeddingstats", store.setting):
        rows = list(store.open_database()[schema.STATS].find(wanted).sort([("startDate", -1), ("teamId", 1)]))
    return [_team_day(row) for row in rows]


def _team_day(row: Mapping[str, Any]) -> TeamDay:
    usage, processing = row.get("apiUsage") or {}, row.get("processing") or {}
    team = row.get("teamId")
    return TeamDay(
        day=row["startDate"],
        team_id=None if team is None else str(team),
        documents=int(processing.get("documentsProcessed") or 0),
        tokens=int(usage.get("totalTokensUsed") or 0),
        usd=float(usage.get("totalCost") or 0.0),
    )
