"""Snapshots: what is read at a moment is what was there at that moment, whoever writes meanwhile and however long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database

from blocks.mongo import MongoDatabase
from blocks.snapshots import (
    MomentForgottenError,
    StoredCollection,
    count_at,
    describe_collections,
    find_changed,
    plan_ranges,
    read_changes,
    read_range,
    take_moment,
)
from tasks.domain.dead_letters import record_key
from tasks.domain.errors import TerminalError

PART_BYTES = 20_000


class _AnyDatabase(MongoDatabase):
    """A database as a block."""


@pytest.fixture
def block(mongo_uri: str, database: Database[dict[str, Any]]) -> Iterator[MongoDatabase]:
    block = _AnyDatabase(uri=SecretStr(mongo_uri), database=database.name)
    yield block
    block.close()


def read_all(
    block: MongoDatabase, moment: Timestamp, name: str = "rows", *, part_bytes: int = PART_BYTES
) -> list[bytes]:
    """Return every document of a collection at the moment, read range by range."""
    collection = described(block, name)
    found: list[bytes] = []
    for shard in plan_ranges(block, collection, moment, part_bytes=part_bytes):
        for some in read_range(block, name, shard, moment, document_bytes=collection.document_bytes):
            documents = split(some.content)
            assert len(documents) == some.documents
            found += documents
    return found


def described(block: MongoDatabase, name: str = "rows") -> StoredCollection:
    (collection,), _ = describe_collections(block, [name])
    return collection


def split(content: bytes) -> list[bytes]:
    return [document.raw for document in bson.decode_all(content, bson.CodecOptions(document_class=RawBSONDocument))]


def keys_of(documents: Sequence[bytes]) -> list[bytes]:
    return [record_key(bson.decode(one)["_id"]) for one in documents]


def test_a_moment_stays_as_it_was_while_others_insert_change_and_delete(
    block: MongoDatabase, database: Database[dict[str, Any]]
) -> None:
    database.rows.insert_many({"_id": number, "value": "x" * 50, "version": 0} for number in range(2_000))
    moment = take_moment(block, "rows")
    expected = split(b"".join(one.raw for one in _raw(database).rows.find().sort("_id", 1)))
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            database.rows.update_many({"_id": {"$mod": [7, number % 7]}}, {"$inc": {"version": 1}})
            database.rows.delete_one({"_id": number})
            database.rows.insert_one({"_id": number + 0.5, "value": "new"})
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.3)
        with ThreadPoolExecutor(3) as pool:
            reads = [pool.submit(read_all, block, moment) for _ in range(3)]
            assert all(read.result() == expected for read in reads)
        assert count_at(block, "rows", moment) == 2_000
    finally:
        stop.set()
        writer.join()
    assert read_all(block, take_moment(block, "rows")) != expected


def _raw(database: Database[dict[str, Any]]) -> Database[RawBSONDocument]:
    return database.with_options(codec_options=bson.CodecOptions(document_class=RawBSONDocument))


def test_ids_of_every_type_lie_in_one_range_each(block: MongoDatabase, database: Database[dict[str, Any]]) -> None:
    ids = [
        *(None, -1.5, Int64(2**60), Decimal128("7.25"), "", "text", {}, {"b": 1, "a": None}, b"", b"\x00\xff"),
        *(ObjectId(), False, True, datetime(2026, 1, 1, tzinfo=UTC), Timestamp(1, 2), float("inf"), bson.MinKey()),
        *(bson.MaxKey(), bson.DatetimeMS(2**60), *range(300)),
    ]
    database.rows.insert_many({"_id": one, "value": "y" * 90} for one in ids)
    moment = take_moment(block, "rows")
    ranges = plan_ranges(block, described(block), moment, part_bytes=2_000)
    assert len(ranges) > 10
    assert (ranges[0].lower, ranges[-1].upper) == (None, None)
    expected = [one.raw for one in _raw(database).rows.find().sort("_id", 1)]
    assert read_all(block, moment, part_bytes=2_000) == expected
    assert sum(shard.planned for shard in ranges) == len(ids)


def test_what_was_written_between_two_moments_makes_of_the_first_the_last(
    block: MongoDatabase, database: Database[dict[str, Any]]
) -> None:
    rows = database.rows
    rows.insert_many({"_id": number, "value": "z" * 100} for number in range(0, 2_000, 2))
    first = take_moment(block, "rows")
    collection = described(block)
    ranges = plan_ranges(block, collection, first, part_bytes=PART_BYTES)
    half = len(ranges) // 2

    def read(shards: Sequence[Any], moment: Timestamp) -> list[bytes]:
        return [
            one
            for shard in shards
            for some in read_range(block, "rows", shard, moment, document_bytes=collection.document_bytes)
            for one in split(some.content)
        ]

    parts = read(ranges[:half], first)
    for place in (10, 1_900):  # in what was read, and in what was not
        rows.update_one({"_id": place}, {"$set": {"value": "changed"}})
        rows.delete_one({"_id": place + 2})
        rows.insert_one({"_id": place + 1, "value": "new"})
        rows.delete_one({"_id": place + 4})
        rows.insert_one({"_id": place + 4, "value": "again"})
        rows.insert_one({"_id": place + 3, "value": "gone at once"})
        rows.delete_one({"_id": place + 3})
    database.other.insert_one({"_id": 1})
    second = take_moment(block, "rows")
    rows.update_one({"_id": 10}, {"$set": {"value": "too late"}})
    parts += read(ranges[half:], second)
    changed = find_changed(block, ["rows"], first=first, last=second)
    # The last write before the first moment counts too: nothing is lost by looking at it again.
    assert set(changed["rows"].values()) - {1_998} == {place + off for place in (10, 1_900) for off in range(5)}
    kept = dict(zip(keys_of(parts), parts, strict=True))
    for some in read_changes(block, "rows", list(changed["rows"].values()), second):
        for one in split(some.content):
            row = RawBSONDocument(one)
            kept.pop(record_key(row["_id"]), None)
            if "document" in row:
                kept[record_key(row["_id"])] = row["document"].raw
    expected = read_all(block, second)
    assert kept == dict(zip(keys_of(expected), expected, strict=True))
    assert count_at(block, "rows", second) == len(expected)


def test_a_moment_that_the_server_forgot_is_told_apart_from_every_other_trouble(
    block: MongoDatabase, database: Database[dict[str, Any]], mongo_client: MongoClient[dict[str, Any]]
) -> None:
    database.rows.insert_many({"_id": number} for number in range(100))
    name = "minSnapshotHistoryWindowInSeconds"
    before = mongo_client.admin.command("getParameter", 1, **{name: 1})[name]
    mongo_client.admin.command("setParameter", 1, **{name: 1})
    try:
        moment = take_moment(block, "rows")
        with pytest.raises(MomentForgottenError):
            _read_while_written(block, database, moment, seconds=60)
    finally:
        mongo_client.admin.command("setParameter", 1, **{name: before})


def _read_while_written(
    block: MongoDatabase, database: Database[dict[str, Any]], moment: Timestamp, *, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        database.rows.update_one({"_id": 1}, {"$inc": {"seen": 1}})
        read_all(block, moment)
        time.sleep(0.2)


@pytest.mark.parametrize("fate", ["dropped", "renamed", "replaced", "database dropped"])
def test_a_collection_that_goes_while_it_is_read_is_told(
    block: MongoDatabase, database: Database[dict[str, Any]], fate: str
) -> None:
    database.rows.insert_one({"_id": 1})
    first = take_moment(block, "rows")
    if fate == "dropped":
        database.rows.drop()
    elif fate == "renamed":
        database.rows.rename("others")
    elif fate == "replaced":
        database.others.insert_one({"_id": 2})
        database.others.rename("rows", dropTarget=True)
    else:
        database.client.drop_database(database.name)
    database.later.insert_one({"_id": 1})
    with pytest.raises(TerminalError, match="dropped or renamed"):
        find_changed(block, ["rows"], first=first, last=take_moment(block, "later"))


def test_collections_are_described_as_the_server_does_and_what_is_none_is_named(
    block: MongoDatabase, database: Database[dict[str, Any]]
) -> None:
    database.create_collection("rows", validator={"a": {"$gte": 0}}, validationLevel="moderate")
    database.rows.create_index([("b", -1), ("a", 1)], unique=True, partialFilterExpression={"a": {"$exists": True}})
    database.rows.create_index([("text", "text")], weights={"text": 5}, default_language="german")
    database.create_collection("series", timeseries={"timeField": "at"})
    database.create_collection("seen", viewOn="rows", pipeline=[])
    found, left_out = describe_collections(block, ["rows", "series", "seen", "nowhere"])
    assert [one.name for one in found] == ["rows"]
    assert left_out == ["seen", "series"]
    assert found[0].options == {
        "validator": {"a": {"$gte": 0}},
        "validationLevel": "moderate",
        "validationAction": "error",
    } or (found[0].options["validator"] == {"a": {"$gte": 0}})
    by_name = {index["name"]: index for index in found[0].indexes}
    assert list(by_name["b_-1_a_1"]["key"].items()) == [("b", -1), ("a", 1)]
    assert by_name["b_-1_a_1"]["partialFilterExpression"] == {"a": {"$exists": True}}
    assert (by_name["text_text"]["weights"], by_name["text_text"]["default_language"]) == ({"text": 5}, "german")


def test_an_empty_collection_and_one_of_large_documents_are_read_too(
    block: MongoDatabase, database: Database[dict[str, Any]]
) -> None:
    database.create_collection("rows")
    assert read_all(block, take_moment(block, "rows")) == []
    database.rows.insert_many({"_id": number, "value": "w" * (15 << 20)} for number in range(3))
    read = read_all(block, take_moment(block, "rows"))
    assert [len(one) for one in read] == [len(bson.encode({"_id": 0, "value": "w" * (15 << 20)}))] * 3
