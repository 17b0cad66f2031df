"""What the store's books add up to: jobs, statistics, requests and dead letters, by time, team and reason.

Each function is one bounded read. Errors are those of ``mongo_errors``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId

from blocks.mongo import MongoDatabase, MongoSource, mongo_errors
from blocks.vector_store import VectorStore
from tasks.domain import collections as schema

Record = dict[str, Any]
#: A load's partitions have jobs of their own; what they did is in the load's too.
_NO_PARTITION: Record = {"metadata.tags": {"$ne": "partition"}}
#: Of so many reasons some records are shown, and so many of each.
_SAMPLED, _SAMPLES = 12, 3


@dataclass(frozen=True, slots=True)
class Work:
    """What jobs did that ended, or said something last, in one step of time. ``team_id`` None: of no one team."""

    began: datetime
    team_id: str | None
    documents: int
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class Requests:
    """What requests of one kind did in one step of time; ``texts`` were embedded, of ``tokens``, for ``usd``.

    ``reused`` texts had a vector already.
    """

    began: datetime
    kind: str
    calls: int
    failed: int
    texts: int
    reused: int
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class LetterReason:
    """Open dead letters of one source, stage and code: how many, how many of them lately, and the newest of them.

    ``samples`` are pairs of a record's ``_id``, of any type, and the reason; nothing else of a record.
    """

    source: str
    stage: str
    code: str
    count: int
    lately: int
    newest: datetime
    samples: tuple[tuple[Any, str], ...]


def read_work(store: MongoDatabase, since: datetime, step: timedelta) -> list[Work]:
    """Return what ``embeddingjobs`` tells, by step and team, the oldest first; a job counts where it ended."""
    when = {"$ifNull": ["$completedAt", "$updatedAt"]}
    pipeline: list[Record] = [
        {"$match": {"updatedAt": {"$gte": since}, **_NO_PARTITION}},
        {"$group": {"_id": {"at": _step_of(when, step), "team": "$teamId"}, **_WORK_SUMS}},
        {"$match": {"_id.at": {"$gte": since}}},
        {"$sort": {"_id.at": 1, "_id.team": 1}},
    ]
    rows = _aggregate(store, schema.JOBS, pipeline, "adding up jobs")
    return [
        Work(
            began=row["_id"]["at"],
            team_id=_text(row["_id"].get("team")),
            documents=int(row["documents"]),
            tokens=int(row["tokens"]),
            usd=float(row["usd"]),
        )
        for row in rows
    ]


def read_stats(store: MongoDatabase, period: str, since: datetime) -> list[Record]:
    """Return the rows of ``embeddingstats`` of a period since then, of every team and of all, the oldest first."""
    fields = {"_id": 0, "startDate": 1, "teamId": 1, "processing": 1, "apiUsage": 1}
    with mongo_errors("reading statistics", store.setting):
        rows = store.open_database()[schema.STATS].find({"period": period, "startDate": {"$gte": since}}, fields)
        return list(rows.sort([("startDate", 1), ("teamId", 1)]))


def read_requests(store: MongoDatabase, since: datetime, step: timedelta) -> list[Requests]:
    """Return what requests did, by step and kind, the oldest first."""
    key = {"at": _step_of("$minute", step), "kind": "$kind"}
    pipeline: list[Record] = [
        {"$match": {"minute": {"$gte": since}}},
        {"$group": {"_id": key, **{name: {"$sum": f"${name}"} for name in _REQUEST_SUMS}}},
        {"$sort": {"_id.at": 1, "_id.kind": 1}},
    ]
    rows = _aggregate(store, schema.MEASURES, pipeline, "adding up requests")
    return [
        Requests(
            began=row["_id"]["at"],
            kind=str(row["_id"]["kind"]),
            calls=int(row["calls"]),
            failed=int(row["failed"]),
            texts=int(row["texts"]),
            reused=int(row["reused"]),
            tokens=int(row["tokens"]),
            usd=float(row["usd"]),
        )
        for row in rows
    ]


def count_request_errors(store: MongoDatabase, since: datetime, lately: datetime) -> list[Record]:
    """Return failed requests since then by ``stage`` (their kind) and ``code``, and how many of them were lately."""
    error = {"stage": "$kind", "code": {"$arrayElemAt": ["$errors", 0]}}
    number = {"$arrayElemAt": ["$errors", 1]}
    pipeline: list[Record] = [
        {"$match": {"minute": {"$gte": since}, "failed": {"$gt": 0}}},
        {"$unwind": "$errors"},
        {"$group": {"_id": error, **_counts(number, "$minute", lately)}},
    ]
    return _flat(_aggregate(store, schema.MEASURES, pipeline, "counting failed requests"))


def count_run_errors(store: MongoDatabase, since: datetime, lately: datetime) -> list[Record]:
    """Return why runs ended or paused since then, by ``stage`` (their kind) and ``code``, and how many lately.

    What a job tells of single records is left out: dead letters tell it themselves.
    """
    error = {"stage": {"$ifNull": [{"$arrayElemAt": ["$metadata.tags", 0]}, "$jobType"]}, "code": "$errors.errorCode"}
    pipeline: list[Record] = [
        {"$match": {"updatedAt": {"$gte": since}, **_NO_PARTITION}},
        {"$unwind": "$errors"},
        {"$match": {"errors.timestamp": {"$gte": since}, "errors.sourceId": None}},
        {"$group": {"_id": error, **_counts(1, "$errors.timestamp", lately)}},
    ]
    return _flat(_aggregate(store, schema.JOBS, pipeline, "counting runs' errors"))


def count_letter_errors(store: VectorStore, since: datetime, lately: datetime) -> list[Record]:
    """Return the records refused since then, replayed or not, by ``stage`` and ``code``, and how many lately."""
    pipeline: list[Record] = [
        {"$match": {"time": {"$gte": since}}},
        {"$group": {"_id": {"stage": "$stage", "code": "$code"}, **_counts(1, "$time", lately)}},
    ]
    return _flat(_aggregate(store, store.letters_name, pipeline, "counting dead letters"))


def count_letters(store: VectorStore, lately: datetime) -> list[LetterReason]:
    """Return the open dead letters of the generation that the store is at, the most frequent reason first."""
    group = {"_id": {"source": "$sourceType", "stage": "$stage", "code": "$code"}, **_counts(1, "$time", lately)}
    pipeline: list[Record] = [{"$match": {"status": "open"}}, {"$group": group}, {"$sort": {"count": -1, "_id": 1}}]
    rows = _flat(_aggregate(store, store.letters_name, pipeline, "counting dead letters"))
    return [
        LetterReason(
            source=str(row["source"]),
            stage=str(row["stage"]),
            code=str(row["code"]),
            count=int(row["count"]),
            lately=int(row["lately"]),
            newest=row["newest"],
            samples=_samples(store, row) if place < _SAMPLED else (),
        )
        for place, row in enumerate(rows)
    ]


def _samples(store: VectorStore, row: Record) -> tuple[tuple[Any, str], ...]:
    # By the index of status, code and time; what is kept of the record stays where it is.
    wanted = {"status": "open", "code": row["code"], "sourceType": row["source"], "stage": row["stage"]}
    with mongo_errors("reading dead letters", store.setting):
        found = store.open_database()[store.letters_name].find(wanted, {"_id": 0, "sourceId": 1, "reason": 1})
        return tuple((one["sourceId"], str(one["reason"])) for one in found.sort("time", -1).limit(_SAMPLES))


def count_jobs(store: MongoDatabase) -> dict[str, int]:
    """Return how many jobs there are by status."""
    rows = _aggregate(store, schema.JOBS, [{"$sortByCount": "$status"}], "counting jobs")
    return {str(row["_id"]): int(row["count"]) for row in rows}


def read_team_names(source: MongoSource, team_ids: Iterable[str]) -> dict[str, str]:
    """Return the names of teams by id; one that is gone, or has none, is missing."""
    wanted = [ObjectId(one) for one in team_ids if ObjectId.is_valid(one)]
    with mongo_errors("reading the names of teams", source.setting):
        rows = source.open_database()["teams"].find({"_id": {"$in": wanted}}, {"name": 1})
        return {str(row["_id"]): str(row["name"]) for row in rows if row.get("name")}


def _aggregate(store: MongoDatabase, name: str, pipeline: Sequence[Mapping[str, Any]], doing: str) -> list[Record]:
    with mongo_errors(doing, store.setting):
        return list(store.open_database()[name].aggregate(list(pipeline), allowDiskUse=True))


def _step_of(when: Any, step: timedelta) -> Record:
    """Return the expression of the beginning of the step that a date lies in."""
    ms = {"$toLong": when}
    return {"$toDate": {"$subtract": [ms, {"$mod": [ms, int(step.total_seconds() * 1000)]}]}}


def _counts(number: Any, when: str, lately: datetime) -> Record:
    return {
        "count": {"$sum": number},
        "lately": {"$sum": {"$cond": [{"$gte": [when, lately]}, number, 0]}},
        "newest": {"$max": when},
    }


def _flat(rows: Iterable[Record]) -> list[Record]:
    return [{**row.pop("_id"), **row} for row in rows]


def _sum_of(*paths: str) -> Record:
    return {"$sum": {"$add": [{"$ifNull": [path, 0]} for path in paths]}}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


_REQUEST_SUMS = ("calls", "failed", "texts", "reused", "tokens", "usd")
_WORK_SUMS = {
    "documents": _sum_of("$results.documentsCreated", "$results.documentsUpdated"),
    "tokens": _sum_of("$results.totalTokensUsed"),
    "usd": _sum_of("$results.totalCost"),
}
