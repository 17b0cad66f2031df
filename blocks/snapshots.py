"""Snapshots: a database as it was at one moment, read in ranges by several threads while others write to it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import bson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import errors as mongo

from blocks.mongo import MongoDatabase, Record, is_history_lost, mongo_errors
from tasks.domain.batches import batched
from tasks.domain.dead_letters import record_key
from tasks.domain.errors import PipelineError, TerminalError, TransientError
from tasks.domain.shards import ShardRange

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
#: Bytes of one answer of the server, of which each thread holds two or three.
_ANSWER_BYTES = 2 << 20
_IDS_PER_ANSWER = 50_000
_IDS_PER_LOOKUP = 200
_FORGOTTEN, _NOT_YET = frozenset({239}), frozenset({246, 134})
#: What a server that is no member of a replica set answers: no history, no cluster time.
_NO_HISTORY_CODES = frozenset({20, 72, 123, 148})
_WRITES = frozenset({"insert", "update", "replace", "delete"})
#: An idle server writes its no-op every ten seconds; only then a stream knows that nothing came before it.
_STREAM_PATIENCE_S = 60.0
_OF_A_TIME = "82"


class MomentForgottenError(PipelineError):
    """The server no longer remembers this moment: what is left is read at a later one."""


@dataclass(frozen=True, slots=True)
class StoredCollection:
    """A collection as the server describes it now; the figures are estimates, for planning."""

    name: str
    options: dict[str, Any]
    indexes: list[dict[str, Any]]
    documents: int
    raw_bytes: int

    @property
    def document_bytes(self) -> int:
        """Return the average size of a document, at least 1."""
        return max(1, self.raw_bytes // max(1, self.documents))


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole documents, one behind the other."""

    content: bytes
    documents: int


@contextmanager
def _errors(doing: str, setting: str) -> Iterator[None]:
    with mongo_errors(doing, setting):
        try:
            yield
        except mongo.OperationFailure as error:
            if error.code in _FORGOTTEN:
                raise MomentForgottenError(f"the server forgot the moment of the snapshot while {doing}") from None
            if error.code in _NOT_YET:
                raise TransientError(f"the server can't read that moment yet while {doing}") from error
            if error.code in _NO_HISTORY_CODES and "replica set" in str(error).lower():
                raise TerminalError(
                    f"the server of {setting} is no member of a replica set, so it can't be read as it was at one "
                    "moment: start it with --replSet and initiate the set; one member is enough"
                ) from None
            raise


def take_moment(database: MongoDatabase, collection: str) -> Timestamp:
    """Return a moment that a majority has stored, at which this database can be read from now on.

    Raises ``TerminalError`` where the server is no member of a replica set.
    """
    with _errors("taking a snapshot", database.setting):
        answer = database.open_database().command(
            {"find": collection, "limit": 1, "singleBatch": True, "readConcern": {"level": "snapshot"}}
        )
    moment = answer["cursor"].get("atClusterTime") or answer.get("atClusterTime")
    if not isinstance(moment, Timestamp):
        raise TerminalError(f"the server of {database.setting} says no moment of a snapshot: MongoDB 5.0 or later does")
    return moment


def identify_collections(database: MongoDatabase, names: Collection[str]) -> dict[str, Any]:
    """Return what tells each of the collections from every other, by name: one that was made anew has another."""
    with _errors("listing collections", database.setting):
        found = database.open_database().list_collections(filter={"name": {"$in": list(names)}})
        return {str(one["name"]): one.get("info", {}).get("uuid") for one in found}


def describe_collections(database: MongoDatabase, names: Collection[str]) -> tuple[list[StoredCollection], list[str]]:
    """Return those of the collections that exist, by name, and the names of what is none: views and time series."""
    found: list[StoredCollection] = []
    left_out: list[str] = []
    with _errors("listing collections", database.setting):
        opened = database.open_database()
        for info in sorted(opened.list_collections(filter={"name": {"$in": list(names)}}), key=lambda one: one["name"]):
            name = str(info["name"])
            if info["type"] != "collection":
                left_out.append(name)
                continue
            sizes = next(opened[name].aggregate([{"$collStats": {"storageStats": {}}}]))["storageStats"]
            indexes = [_plain(index) for index in opened[name].list_indexes()]
            found.append(
                StoredCollection(name, dict(info["options"]), indexes, int(sizes["count"]), int(sizes["size"]))
            )
    return found, left_out


def _plain(index: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in index.items() if name != "ns"}


def plan_ranges(
    database: MongoDatabase, collection: StoredCollection, moment: Timestamp, *, part_bytes: int
) -> list[ShardRange]:
    """Return half-open ranges of ``_id`` that cover every document, of about ``part_bytes`` each.

    The first begins and the last ends nowhere, so that what was written since the figures were taken lies in one too.
    """
    rows = max(1, part_bytes // collection.document_bytes)
    if collection.documents <= rows * 5 // 4:
        return [ShardRange(0, None, None, collection.documents)]
    bounds: list[Any] = []
    count = 0
    command = {"projection": {"_id": 1}, "sort": {"_id": 1}, "hint": {"_id": 1}}
    for answer in _answers(database, collection.name, moment, command, _IDS_PER_ANSWER):
        # Only each first of a range is decoded.
        first = -count % rows
        bounds += [_id_of(answer[at]) for at in range(first, len(answer), rows) if count + at]
        count += len(answer)
    edges = list(zip([None, *bounds], [*bounds, None], strict=True))
    return [
        ShardRange(number, lower, upper, min(rows, count - number * rows))
        for number, (lower, upper) in enumerate(edges)
    ]


def read_range(
    database: MongoDatabase, collection: str, shard: ShardRange, moment: Timestamp, *, document_bytes: int
) -> Iterator[Block]:
    """Yield the documents of a range in the order of their ``_id``, undecoded, some megabytes at a time.

    Raises ``MomentForgottenError`` when the server's window (300 s as it comes) is over.
    """
    command: dict[str, Any] = {"sort": {"_id": 1}, "hint": {"_id": 1}}
    if shard.lower is not None:
        command["min"] = {"_id": shard.lower}
    if shard.upper is not None:
        command["max"] = {"_id": shard.upper}
    for answer in _answers(database, collection, moment, command, max(1, _ANSWER_BYTES // document_bytes)):
        yield Block(b"".join(document.raw for document in answer), len(answer))
    if shard.lower is not None and shard.upper is None:
        # An index that is read from a bound on ends before the greatest key of all.
        for answer in _answers(database, collection, moment, {"filter": {"_id": bson.MaxKey()}}, 1):
            yield Block(b"".join(document.raw for document in answer), len(answer))


def count_at(database: MongoDatabase, collection: str, moment: Timestamp) -> int:
    """Return how many documents the collection held at that moment."""
    with _errors(f"counting {collection}", database.setting):
        answer = database.open_database().command(
            {
                "aggregate": collection,
                "pipeline": [{"$group": {"_id": None, "count": {"$sum": 1}}}],
                "hint": {"_id": 1},
                "cursor": {},
                "readConcern": {"level": "snapshot", "atClusterTime": moment},
            }
        )
    rows = answer["cursor"]["firstBatch"]
    return int(rows[0]["count"]) if rows else 0


def find_changed(
    database: MongoDatabase, collections: Collection[str], *, first: Timestamp, last: Timestamp
) -> dict[str, dict[bytes, Any]]:
    """Return the ids that were written in each collection between two moments, by their ``record_key``.

    Raises ``TerminalError`` where one of them was dropped or renamed meanwhile, or the server's history doesn't reach
    back to the first moment.
    """
    changed: dict[str, dict[bytes, Any]] = {name: {} for name in collections}
    wanted = [{"$project": {"operationType": 1, "documentKey._id": 1, "clusterTime": 1, "ns": 1, "to": 1}}]
    deadline = time.monotonic() + _STREAM_PATIENCE_S
    with _errors("reading what changed meanwhile", database.setting):
        try:
            with database.open_database().watch(
                wanted, start_at_operation_time=first, max_await_time_ms=500, batch_size=10_000
            ) as stream:
                while True:
                    event = stream.try_next()
                    if event is None:
                        reached = _time_of(stream.resume_token)
                        if reached is not None and reached >= last:
                            return changed
                        if time.monotonic() > deadline:
                            raise TransientError("the change stream does not say how far it is")
                        continue
                    deadline = time.monotonic() + _STREAM_PATIENCE_S
                    if event["clusterTime"] > last:
                        return changed
                    _note(event, changed)
        except mongo.OperationFailure as error:
            if is_history_lost(error):
                raise TerminalError(
                    "the server no longer knows what changed since the backup began: its oplog is too small for a "
                    "backup of this length. Enlarge it, raise minSnapshotHistoryWindowInSeconds, or choose a quieter "
                    "hour"
                ) from error
            raise


def _note(event: Mapping[str, Any], changed: dict[str, dict[bytes, Any]]) -> None:
    kind = event["operationType"]
    name = event.get("ns", {}).get("coll")
    if kind in _WRITES:
        if name in changed:
            document_id = event["documentKey"]["_id"]
            changed[name][record_key(document_id)] = document_id
    elif name is None or name in changed or event.get("to", {}).get("coll") in changed:
        raise TerminalError(
            f"{name or 'the database'} was dropped or renamed while it was backed up ({kind}): run the backup again"
        )


def read_changes(database: MongoDatabase, collection: str, ids: Sequence[Any], moment: Timestamp) -> Iterator[Block]:
    """Yield these documents as they were at that moment, each as ``{_id, document}``, or ``{_id}`` if it was gone."""
    for some in batched(ids, _IDS_PER_LOOKUP):
        gone = {record_key(one): one for one in some}
        for answer in _answers(database, collection, moment, {"filter": {"_id": {"$in": some}}}, _IDS_PER_LOOKUP):
            rows = []
            for document in answer:
                one = _id_of(document)
                gone.pop(record_key(one), None)
                rows.append(bson.encode({"_id": one, "document": document}))
            yield Block(b"".join(rows), len(rows))
        if gone:
            yield Block(b"".join(bson.encode({"_id": one}) for one in gone.values()), len(gone))


def _id_of(document: RawBSONDocument) -> Any:
    # With times that know their zone and dates that Python has no word for, as all ids are read here.
    return bson.decode(document.raw, _ID_OPTIONS)["_id"]


_ID_OPTIONS: CodecOptions[Record] = CodecOptions(
    tz_aware=True, datetime_conversion=bson.codec_options.DatetimeConversion.DATETIME_AUTO
)


def _answers(
    database: MongoDatabase, collection: str, moment: Timestamp, command: Mapping[str, Any], batch: int
) -> Iterator[list[RawBSONDocument]]:
    """Yield the server's answers to a find at that moment, each a list of undecoded documents."""
    opened = database.open_database()
    concern = {"level": "snapshot", "atClusterTime": moment}
    find = {"find": collection, **command, "batchSize": batch, "noCursorTimeout": False, "readConcern": concern}
    with (
        _errors(f"reading {collection}", database.setting),
        opened.client.start_session(causal_consistency=False) as session,
    ):
        cursor: Any = opened.command(find, codec_options=_RAW, session=session)["cursor"]
        documents = cursor["firstBatch"]
        left = int(cursor["id"])
        try:
            while True:
                if documents:
                    yield documents
                if not left:
                    return
                more = {"getMore": bson.Int64(left), "collection": collection, "batchSize": batch}
                cursor = opened.command(more, codec_options=_RAW, session=session)["cursor"]
                documents, left = cursor["nextBatch"], int(cursor["id"])
        finally:
            if left:
                _kill(opened, collection, left, session)


def _kill(opened: Any, collection: str, cursor: int, session: Any) -> None:
    """End a cursor that nobody reads on; one that is gone is no matter."""
    try:
        opened.command({"killCursors": collection, "cursors": [bson.Int64(cursor)]}, session=session)
    except mongo.PyMongoError:
        return


def _time_of(token: Mapping[str, Any] | None) -> Timestamp | None:
    """Return the moment that a resume token stands for: it begins with its seconds and its counter."""
    data = str((token or {}).get("_data", ""))
    if not data.startswith(_OF_A_TIME) or len(data) < 18:
        return None
    return Timestamp(int(data[2:10], 16), int(data[10:18], 16))
