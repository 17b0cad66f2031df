"""MongoDB: connections, the errors they raise in our words, and the source of records."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, SecretStr
from pymongo import MongoClient
from pymongo import errors as mongo
from pymongo.cursor import Cursor
from pymongo.database import Database

from tasks.domain.batches import batched
from tasks.domain.changes import ChangeBatch
from tasks.domain.dead_letters import record_key
from tasks.domain.errors import HistoryLostError, TerminalError, TransientError
from tasks.domain.owners import Owners
from tasks.domain.shards import ShardRange

Record = dict[str, Any]
#: A record as BSON and decoded.
RawRecord = tuple[bytes, Record]

#: Dates beyond the year 9999 come as DatetimeMS and broken UTF-8 with marks, so one bad record stops no batch.
_DECODING: dict[str, Any] = {
    "tz_aware": True,
    "datetime_conversion": DatetimeConversion.DATETIME_AUTO.name,
    "unicode_decode_error_handler": "replace",
}
_BATCH = 2_000
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_SERVER_SELECTION_MS = 10_000
_TIMEOUTS = ("serverSelectionTimeoutMS", "connectTimeoutMS")
_UNAUTHORIZED, _AUTHENTICATION_FAILED = 13, 18
#: Server errors that pass by themselves: elections, shutdowns, lost cursors, conflicts, time limits.
_PASSING_CODES = frozenset(
    {6, 7, 24, 43, 50, 64, 89, 91, 112, 136, 189, 262, 317, 9001, 10107, 11600, 11601, 11602, 13435, 13436}
)
_DISK_FULL_CODES = frozenset({14031, 28})  # OutOfDiskSpace, and the errno some versions pass through
_CHANGES = frozenset({"insert", "update", "replace", "delete"})
#: Lost history, a position that is none, a capped position that was overwritten, a stream that can't go on.
_HISTORY_LOST_CODES = frozenset({136, 260, 280, 286})
#: What a query reads of a transaction: call data stays out of nothing, because staking is read from it.
_OWNER_FIELDS = {
    "smartcontracts": ("contractId", "name", "blockchain", "tokenSymbol", "contractType", "team"),
    "teams": ("websites",),
    "websites": ("siteId", "team", "Name", "Domain"),
}


@contextmanager
def mongo_errors(doing: str, setting: str) -> Iterator[None]:
    """Turn the driver's errors into ours. ``setting`` is the variable a person would change, named in the message."""
    try:
        yield
    except mongo.InvalidURI as error:
        # The driver's own words may repeat a part of the URI, and with it a password.
        raise TerminalError(
            f"{setting} is not a MongoDB URI ({type(error).__name__}): mongodb://user:password@host/, where the signs "
            "/ : @ % of user and password are written as %2F %3A %40 %25"
        ) from None
    except mongo.ConfigurationError as error:
        raise TerminalError(f"{setting} can't be used while {doing}: {error}") from None
    except mongo.OperationFailure as error:
        if error.code in (_UNAUTHORIZED, _AUTHENTICATION_FAILED):
            raise TerminalError(
                f"MongoDB refuses the user of {setting} while {doing}: check user, password and roles"
            ) from None
        if error.code in _DISK_FULL_CODES:
            raise TerminalError(f"MongoDB has no disk space left while {doing}: free some and run it again") from None
        if _passes(error):
            raise TransientError(f"MongoDB failed while {doing}: {_brief(error)}") from error
        raise TerminalError(f"MongoDB refused while {doing}: {_brief(error)}") from error
    except (mongo.ConnectionFailure, mongo.WaitQueueTimeoutError) as error:
        raise TransientError(f"MongoDB of {setting} does not answer while {doing}: {_brief(error)}") from error
    except InvalidBSON as error:
        raise TerminalError(f"MongoDB sent a document that can't be read while {doing}: {_brief(error)}") from error
    except mongo.PyMongoError as error:
        raise TerminalError(f"MongoDB failed while {doing}: {_brief(error)}") from error


def _event_ms(event: Mapping[str, Any]) -> int:
    """Return when a change was made; servers before 6.0 tell only the second."""
    moment = event.get("wallTime")
    return int(moment.timestamp() * 1000) if isinstance(moment, datetime) else int(event["clusterTime"].time * 1000)


def _passes(error: mongo.OperationFailure) -> bool:
    """Return whether the same command may work in a moment; a bulk write is as bad as its worst part."""
    if isinstance(error, mongo.BulkWriteError):
        details = error.details or {}
        parts = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())]
        return bool(parts) and all(part.get("code") in _PASSING_CODES for part in parts)
    return (
        error.code in _PASSING_CODES
        or isinstance(error, mongo.ExecutionTimeout | mongo.WTimeoutError)
        or error.has_error_label("RetryableWriteError")
        or error.has_error_label("TransientTransactionError")
    )


def is_history_lost(error: mongo.OperationFailure) -> bool:
    """Return whether a change stream can't go on, or can't begin, because the server forgot what it asks for."""
    return error.code in _HISTORY_LOST_CODES or error.has_error_label("NonResumableChangeStreamError")


def _brief(error: Exception) -> str:
    if isinstance(error, mongo.BulkWriteError):
        details = error.details or {}
        parts = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())]
        return "; ".join(str(part.get("errmsg"))[:200] for part in parts[:2])
    return str(error).partition(", Timeout:")[0].partition(", full error:")[0][:300]


def _within(cursor: Cursor[Any], shard: ShardRange) -> Cursor[Any]:
    """Return the cursor bounded to a range, in ``_id`` order."""
    cursor = cursor.hint([("_id", 1)])
    if shard.lower is not None:
        cursor = cursor.min([("_id", shard.lower)])
    if shard.upper is not None:
        cursor = cursor.max([("_id", shard.upper)])
    return cursor.sort("_id", 1).batch_size(_BATCH)


def _with_bytes(cursor: Cursor[Any], options: CodecOptions[Record]) -> Iterator[RawRecord]:
    """Yield each document of a cursor, as it came and decoded; decoded together, they cost half as much."""
    for some in batched((document.raw for document in cursor), _BATCH):
        yield from zip(some, bson.decode_all(b"".join(some), options), strict=True)


def _made_again(block_type: type[MongoDatabase], fields: Record) -> MongoDatabase:
    return block_type(**fields)


class MongoDatabase(Block):
    """One database; the base of the source's and the vectors' blocks."""

    uri: SecretStr = Field(description="MongoDB URI with user and password; never shown.")
    database: str = Field(min_length=1, description="Name of the database.")
    setting: ClassVar[str] = "the MongoDB URI"

    _client: MongoClient[Record] | None = PrivateAttr(default=None)
    _client_lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Leave the connections behind: a copy in another process opens its own."""
        return (_made_again, (type(self), {name: getattr(self, name) for name in type(self).model_fields}))

    def open_database(self) -> Database[Record]:
        """Return the database; the client is made once and shared by threads. No call leaves the process yet."""
        with self._client_lock:
            if self._client is None:
                uri = self.uri.get_secret_value()
                # What the URI says itself is left to it: an argument would be stronger.
                timeouts: dict[str, Any] = {
                    name: _SERVER_SELECTION_MS for name in _TIMEOUTS if f"{name}=".lower() not in uri.lower()
                }
                with mongo_errors("connecting", self.setting):
                    try:
                        self._client = MongoClient(uri, appname="cryptique-rag", **timeouts, **_DECODING)
                    except ValueError as error:
                        # A password with an unquoted / or : is taken for a port, and the driver may quote it.
                        raise mongo.InvalidURI(type(error).__name__) from None
        return self._client[self.database]

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        with self._client_lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def check(self) -> str:
        """Return the server's version. Raises what ``mongo_errors`` makes of a failure."""
        with mongo_errors("asking for its version", self.setting):
            database = self.open_database()
            database.command("ping")
            return str(database.client.server_info()["version"])

    def read_operation_time(self) -> Timestamp | None:
        """Return the moment of the newest write, or None where the server keeps no history (no replica set)."""
        with mongo_errors("reading the operation time", self.setting):
            answer = self.open_database().command("ping")
        return answer.get("operationTime")

    def follow_changes(
        self,
        collection: str,
        position: Mapping[str, Any],
        *,
        batch_records: int,
        stop: Callable[[], bool],
        wait_s: float = 0.5,
    ) -> Iterator[ChangeBatch]:
        """Yield what changed since the position, in batches, until ``stop`` says so; empty ones while nothing does.

        ``position`` holds ``token`` (of an earlier batch) or ``operationTime``. Raises ``HistoryLostError`` if the
        source no longer reaches back that far, or the collection was dropped or renamed.
        """
        since: dict[str, Any] = (
            {"resume_after": position["token"]}
            if "token" in position
            else {"start_at_operation_time": position["operationTime"]}
        )
        wanted = [{"$project": {"operationType": 1, "documentKey._id": 1, "clusterTime": 1, "wallTime": 1}}]
        number = 0
        opened = False
        with mongo_errors(f"following {collection}", self.setting):
            try:
                with self.open_database()[collection].watch(
                    wanted, max_await_time_ms=int(wait_s * 1000), batch_size=batch_records, **since
                ) as stream:
                    opened = True
                    while not stop():
                        ids: dict[bytes, Any] = {}
                        times: list[int] = []
                        while len(times) < batch_records and (event := stream.try_next()) is not None:
                            if event["operationType"] not in _CHANGES:
                                raise HistoryLostError(f"{collection} was dropped or renamed")
                            record_id = event["documentKey"]["_id"]
                            ids[record_key(record_id)] = record_id
                            times.append(_event_ms(event))
                        token = stream.resume_token
                        yield ChangeBatch(number, tuple(ids.values()), tuple(times), {"token": token} if token else {})
                        number += 1
            except mongo.OperationFailure as error:
                lost = is_history_lost(error)
                # A stream that can't even be opened has a position that the server makes nothing of.
                refused = error.code in (_UNAUTHORIZED, _AUTHENTICATION_FAILED) or _passes(error)
                if lost or not (opened or refused):
                    raise HistoryLostError(f"the source no longer knows what changed: {_brief(error)}") from error
                raise

    def identify(self, collection: str) -> str:
        """Return what tells this collection from every other, wherever its server answers: its own uuid."""
        with mongo_errors(f"identifying {collection}", self.setting):
            rows = list(self.open_database().list_collections(filter={"name": collection}))
        uuid = rows[0].get("info", {}).get("uuid") if rows else None
        return f"{self.database}.{collection}:{uuid}"


class MongoSource(MongoDatabase):
    """The application's database, read only: what was tracked, and what decides its owner."""

    _block_type_name: ClassVar[str | None] = "Cryptique source"
    _block_type_slug: ClassVar[str | None] = "cryptique-source"
    _description: ClassVar[str | None] = "The application's MongoDB; the pipeline only reads it."
    setting: ClassVar[str] = "CRYPTIQUE_SOURCE_URI"

    pseudonym_key: SecretStr | None = Field(
        default=None, description="By which the ids of users become pseudonyms. Another key gives other pseudonyms."
    )

    def load_owners(self) -> Owners:
        """Return the contracts with their teams and sites. Some hundred bytes a contract stay in memory."""
        with mongo_errors("reading smartcontracts, teams and websites", self.setting):
            database = self.open_database()
            contracts, teams, websites = (
                list(database[name].find({}, dict.fromkeys(fields, 1))) for name, fields in _OWNER_FIELDS.items()
            )
        return Owners.from_records(contracts, teams, websites)

    def plan_shards(
        self, collection: str, *, criteria: Mapping[str, Any], rows: int, limit: int | None = None
    ) -> list[ShardRange]:
        """Return half-open ranges of ``_id`` that cover the matching records, ``rows`` in each but the last.

        Walks the covered ``_id`` index once (4 s for 871,781) and is exact at that moment. The first and the last
        range are unbounded, unless ``limit`` ends the last one.
        """
        bounds: list[Any] = []
        count = 0
        end: Any = None
        with mongo_errors(f"walking {collection}", self.setting):
            cursor = self.open_database()[collection].find(criteria, {"_id": 1}).sort("_id", 1).batch_size(50_000)
            if not criteria:
                cursor = cursor.hint("_id_")
            for record in cursor:
                if limit is not None and count == limit:
                    end = record["_id"]
                    break
                if count and count % rows == 0:
                    bounds.append(record["_id"])
                count += 1
        if count == 0:
            return []
        lowers = [None, *bounds]
        uppers = [*bounds, end]
        return [
            ShardRange(number, lower, upper, min(rows, count - number * rows))
            for number, (lower, upper) in enumerate(zip(lowers, uppers, strict=True))
        ]

    def read_range(
        self,
        collection: str,
        shard: ShardRange,
        *,
        criteria: Mapping[str, Any],
        fields: Iterable[str] | None = None,
    ) -> Iterator[Record]:
        """Yield the records of a range in ``_id`` order. ``fields`` limits what is read; ``_id`` is always there.

        The bounds are index bounds, so ids of every BSON type are inside some range.
        """
        with mongo_errors(f"reading {collection}", self.setting):
            projection = dict.fromkeys(fields, 1) if fields is not None else None
            yield from _within(self.open_database()[collection].find(criteria, projection), shard)

    def read_raw_range(
        self, collection: str, shard: ShardRange, *, criteria: Mapping[str, Any], fields: Iterable[str]
    ) -> Iterator[RawRecord]:
        """Yield the same records with their bytes: BSON of the given fields, in the order that the record has them."""
        with mongo_errors(f"reading {collection}", self.setting):
            database = self.open_database()
            rows = database.get_collection(collection, codec_options=_RAW)
            yield from _with_bytes(
                _within(rows.find(criteria, dict.fromkeys(fields, 1)), shard), database.codec_options
            )

    def read_records(self, collection: str, ids: Sequence[Any], fields: Iterable[str]) -> Iterator[Record]:
        """Yield those of the records that the collection holds now, in no order."""
        with mongo_errors(f"reading {collection}", self.setting):
            for some in batched(ids, _BATCH):
                yield from self.open_database()[collection].find({"_id": {"$in": some}}, dict.fromkeys(fields, 1))

    def read_raw_records(self, collection: str, ids: Sequence[Any], fields: Iterable[str]) -> Iterator[RawRecord]:
        """Yield the same records with their bytes, as ``read_raw_range`` does."""
        with mongo_errors(f"reading {collection}", self.setting):
            database, projection = self.open_database(), dict.fromkeys(fields, 1)
            rows = database.get_collection(collection, codec_options=_RAW)
            for some in batched(ids, _BATCH):
                yield from _with_bytes(rows.find({"_id": {"$in": some}}, projection), database.codec_options)

    def find_newer(
        self, collection: str, field: str, since: datetime, *, known_until: datetime, batch_records: int
    ) -> Iterator[ChangeBatch]:
        """Yield the records whose ``field`` (a date) is not before ``since``, oldest first, in batches.

        Only what lies after ``known_until`` counts as a change of its time; the rest was probably seen before.
        For sources that keep no history. What was changed without touching the field, or deleted, is not found.
        """
        with mongo_errors(f"reading the newest of {collection}", self.setting):
            rows = self.open_database()[collection].find({field: {"$gte": since}}, {field: 1}).sort(field, 1)
            for number, some in enumerate(batched(rows, batch_records)):
                moments = [row[field] for row in some if isinstance(row[field], datetime)]
                position = {"watermark": max(moments)} if moments else {}
                times = tuple(int(moment.timestamp() * 1000) for moment in moments if moment > known_until)
                yield ChangeBatch(number, tuple(row["_id"] for row in some), times, position)

    def find_existing(self, collection: str, ids: Iterable[Any]) -> set[bytes]:
        """Return the ``record_key`` of those ids that the collection still holds."""
        with mongo_errors(f"looking up {collection}", self.setting):
            rows = self.open_database()[collection].find({"_id": {"$in": list(ids)}}, {"_id": 1})
            return {record_key(row["_id"]) for row in rows}

    def find_missing_collections(self, names: Iterable[str]) -> list[str]:
        """Return those of the collections that the database doesn't have."""
        with mongo_errors("listing collections", self.setting):
            found = set(self.open_database().list_collection_names())
        return [name for name in names if name not in found]

    def count(self, collection: str) -> int:
        """Return the number of records, from the collection's metadata."""
        with mongo_errors(f"counting {collection}", self.setting):
            return self.open_database()[collection].estimated_document_count()
