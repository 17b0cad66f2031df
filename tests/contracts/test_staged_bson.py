"""Staging: whatever MongoDB stores comes back to the byte, with the options and the indexes that it had."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Binary, Code, DatetimeMS, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pydantic import SecretStr
from pymongo.database import Database

from blocks.backups import BackupStore
from blocks.snapshots import describe_collections
from blocks.staging import Loaded, Merged, RestoreDiffersError, Staging, StagingDatabase, merge_team
from tasks.domain.backups import BackupDamagedError, CollectionBackup, Part, new_id, part_name
from tasks.restore import of_team

Row = dict[str, Any]
BACKUP = new_id(datetime(2026, 11, 23, tzinfo=UTC))
EMPTY = Timestamp(0, 0)
NAN_WITH_A_MESSAGE = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
ANY_DATE: bson.CodecOptions[Row] = bson.CodecOptions(
    datetime_conversion=bson.codec_options.DatetimeConversion.DATETIME_MS
)
NASTY: list[Row] = [
    {"_id": MinKey(), "a": MaxKey()},
    {"_id": None, "z": 1, "a": 2, "": 3, "$set": 4, "b.c": 5},
    {"_id": -0.0, "double": -0.0, "nan": NAN_WITH_A_MESSAGE, "inf": float("-inf")},
    {"_id": 1, "int": 1, "long": Int64(1), "double": 1.0, "decimal": Decimal128("1.00"), "zero": Decimal128("-0E+3")},
    {
        "_id": "text",
        "nul": "a\x00b",
        "regex": Regex("^a.*", "imsx"),
        "code": Code("f()"),
        "scoped": Code("g()", {"x": 1}),
    },
    {"_id": {"b": 1, "a": [None]}, "ref": DBRef("teams", ObjectId()), "nested": {"z": {"y": [[], {}]}}},
    {"_id": b"\x00\xff", "user": Binary(b"1", 128), "uuid": Binary(b"2" * 16, 3), "vector": Binary(b"\x27\x00" * 9, 9)},
    {"_id": ObjectId(), "late": DatetimeMS(2**60), "early": DatetimeMS(-(2**60)), "teamId": ObjectId("a" * 24)},
    {"_id": True, "teamId": "a" * 24, "late": DatetimeMS(2**60)},
    {"_id": DatetimeMS(2**60), "at": Timestamp(5, 6), "old": datetime(1969, 1, 1, tzinfo=UTC)},
    {"_id": Timestamp(1, 2), "empty": {"deep": EMPTY}, "list": [EMPTY]},
    {"_id": MaxKey(), "last": True},
]


@pytest.fixture
def staging(mongo_uri: str, database: Database[Row]) -> Iterator[Staging]:
    block = StagingDatabase(uri=SecretStr(mongo_uri), database=database.name)
    yield Staging(block, "staged_")
    block.close()


@pytest.fixture
def backups(tmp_path: Path) -> BackupStore:
    return BackupStore(folder=tmp_path / "backups")


def write(
    backups: BackupStore, documents: Sequence[bytes], *, name: str = "rows", lower: Any = None, upper: Any = None
) -> Part:
    """Return a part with these documents, in this order."""
    stored = part_name(name, 0)
    written = backups.write_part(BACKUP, stored, iter([b"".join(documents)]))
    return Part(
        name=stored,
        collection=name,
        number=0,
        lower=lower,
        upper=upper,
        documents=len(documents),
        raw_bytes=written.raw_bytes,
        stored_bytes=written.stored_bytes,
        sha256=written.sha256,
        content_sha256=written.content_sha256,
        taken_at=Timestamp(1, 1),
    )


def read_raw(database: Database[Row], name: str) -> list[bytes]:
    """Return the documents in the order of their ids, read without our code."""
    batches: Any = database[name].find_raw_batches(sort=[("_id", 1)])
    options: bson.CodecOptions[RawBSONDocument] = bson.CodecOptions(document_class=RawBSONDocument)
    return [bytes(one.raw) for batch in batches for one in bson.decode_all(batch, options)]


def id_of(document: bytes) -> Any:
    return bson.decode(document, ANY_DATE)["_id"]


def described(database: StagingDatabase, name: str) -> CollectionBackup:
    (found,), _ = describe_collections(database, [name])
    return CollectionBackup(found.name, found.options, found.indexes, found.documents, ())


def with_empty_timestamps(database: Database[Row], name: str, *rows: Row) -> None:
    """Store documents as a pipeline does: an insert would fill their empty timestamps."""
    for row in rows:
        database[name].insert_one({"_id": row["_id"]})
        database[name].update_one({"_id": row["_id"]}, [{"$replaceWith": {"$literal": row}}])


def test_every_type_of_bson_comes_back_to_the_byte(
    staging: Staging, backups: BackupStore, database: Database[Row]
) -> None:
    database.rows.insert_many(NASTY)
    with_empty_timestamps(database, "rows", {"_id": 7, "a": 1, "at": EMPTY, "z": {"at": EMPTY}, "$b": -0.0})
    documents = read_raw(database, "rows")
    assert any(bson.decode(one, ANY_DATE).get("at") == EMPTY for one in documents)
    part = write(backups, documents)
    loaded = staging.load(BACKUP, part, backups)
    assert loaded == Loaded(len(documents), part.content_sha256)
    assert staging.digest(part) == loaded
    assert read_raw(database, "staged_rows") == documents


def test_a_field_that_comes_twice_stays_twice_and_ends_no_server(
    staging: Staging, backups: BackupStore, database: Database[Row]
) -> None:
    twice = bson.encode({"_id": 1, "x": 1})[:-1] + bson.encode({"x": 2})[4:]
    twice = len(twice).to_bytes(4, "little") + twice[4:]
    part = write(backups, [twice])
    staging.load(BACKUP, part, backups)
    assert read_raw(database, "staged_rows") == [twice]

    empty = bson.encode({"_id": 2, "x": 1})[:-1] + bson.encode({"x": 2, "at": EMPTY})[4:]
    empty = len(empty).to_bytes(4, "little") + empty[4:]
    part = write(backups, [empty], name="other")
    loaded = staging.load(BACKUP, part, backups)
    with pytest.raises(RestoreDiffersError, match="_id 2"):
        staging.require_same(BACKUP, part, loaded, backups)
    database.command("ping")


@pytest.mark.parametrize("seed", range(3))
def test_documents_of_chance_come_back_to_the_byte(
    staging: Staging, backups: BackupStore, database: Database[Row], seed: int
) -> None:
    chance = random.Random(seed)
    rows = [{"_id": number, **some_fields(chance, 3)} for number in range(300)]
    with_empty_timestamps(database, "rows", *rows[:20])
    database.rows.insert_many(rows[20:])
    documents = read_raw(database, "rows")
    part = write(backups, documents)
    staging.load(BACKUP, part, backups)
    assert read_raw(database, "staged_rows") == documents


def some_fields(chance: random.Random, depth: int) -> Row:
    return {chance.choice("abcdefgh$."): some_value(chance, depth) for _ in range(chance.randrange(6))}


def some_value(chance: random.Random, depth: int) -> Any:
    if depth and chance.random() < 0.3:
        children = [some_value(chance, depth - 1) for _ in range(chance.randrange(4))]
        return children if chance.random() < 0.5 else some_fields(chance, depth - 1)
    return chance.choice(
        (
            None,
            EMPTY,
            Timestamp(chance.randrange(2**32), chance.randrange(2**32)),
            Int64(chance.randrange(-(2**63), 2**63)),
            chance.randrange(-(2**31), 2**31),
            struct.unpack("<d", chance.randbytes(8))[0],
            DatetimeMS(chance.randrange(-(2**63), 2**63)),
            Decimal128.from_bid(chance.randbytes(16)),
            Binary(chance.randbytes(20), chance.choice((0, 1, 5, 6, 9, 128, 255))),
            ObjectId(chance.randbytes(12)),
            Regex("a" * chance.randrange(3), "mi"),
            bytes(chance.randrange(30)),
            MinKey(),
            "\x00ä" * chance.randrange(9),
        )
    )


def test_a_part_that_was_half_loaded_is_loaded_again_whatever_its_ids(
    staging: Staging, backups: BackupStore, database: Database[Row]
) -> None:
    database.rows.insert_many(NASTY)
    documents = read_raw(database, "rows")
    part = write(backups, documents)
    staging.load(BACKUP, part, backups)
    assert staging.load(BACKUP, part, backups) == staging.digest(part)
    last = write(backups, documents[-3:], name="last", lower=id_of(documents[-3]))
    staging.load(BACKUP, last, backups)
    assert staging.load(BACKUP, last, backups).documents == 3
    assert read_raw(database, "staged_last") == documents[-3:]


def test_dates_that_python_has_no_word_for_hide_no_team(
    staging: Staging, backups: BackupStore, database: Database[Row]
) -> None:
    database.rows.insert_many(NASTY)
    part = write(backups, read_raw(database, "rows"))
    loaded = staging.load(BACKUP, part, backups, wanted=of_team("a" * 24))
    assert loaded.documents == 2
    staging.require_same(BACKUP, part, loaded, backups, wanted=of_team("a" * 24))


def test_a_byte_that_differs_in_staging_is_told_by_its_id(
    staging: Staging, backups: BackupStore, database: Database[Row]
) -> None:
    database.rows.insert_many({"_id": number, "value": 0.0} for number in range(500))
    part = write(backups, read_raw(database, "rows"))
    loaded = staging.load(BACKUP, part, backups)
    database.staged_rows.update_one({"_id": 321}, {"$set": {"value": -0.0}})
    with pytest.raises(RestoreDiffersError, match="_id 321"):
        staging.require_same(BACKUP, part, loaded, backups)
    database.staged_rows.replace_one({"_id": 321}, {"value": 0.0})
    staging.require_same(BACKUP, part, loaded, backups)
    database.staged_rows.delete_one({"_id": 499})
    with pytest.raises(RestoreDiffersError, match=r"499 documents of 500.*_id 499"):
        staging.require_same(BACKUP, part, loaded, backups)


def test_documents_that_are_cut_otherwise_than_they_were_written_are_damage(
    staging: Staging, backups: BackupStore, database: Database[Row]
) -> None:
    part = write(backups, [b"\xff" * 40])
    with pytest.raises(BackupDamagedError, match="other documents"):
        staging.load(BACKUP, part, backups)
    assert database.staged_rows.count_documents({}) == 0


def test_options_and_indexes_of_every_kind_come_back_exactly(staging: Staging, database: Database[Row]) -> None:
    french = {"locale": "fr", "strength": 2}
    database.create_collection(
        "rows",
        collation=french,
        validator={"$jsonSchema": {"required": ["never"]}},
        validationLevel="moderate",
        validationAction="warn",
    )
    rows = database.rows
    rows.create_index("inherited")
    rows.create_index("simple", collation={"locale": "simple"}, unique=True, sparse=True)
    rows.create_index([("b", -1), ("a", 1)], name="order of keys", hidden=True)
    rows.create_index("part", partialFilterExpression={"part": {"$gt": 3}}, collation={"locale": "de"})
    rows.create_index(
        [("title", "text"), ("body", "text")],
        weights={"title": 7, "body": 2},
        default_language="german",
        language_override="tongue",
        collation={"locale": "simple"},
    )
    rows.create_index("at", expireAfterSeconds=60)
    rows.create_index([("$**", 1)], wildcardProjection={"secret": 0}, collation={"locale": "simple"})
    rows.create_index([("where", "2dsphere")], collation={"locale": "simple"})
    rows.create_index([("hashed", "hashed")], collation={"locale": "simple"})
    assert isinstance(staging.database, StagingDatabase)
    collection = described(staging.database, "rows")
    staging.create(collection)
    staging.build_indexes(collection, expiring=False)
    assert "at_1" in staging.wrong_indexes(collection)
    staging.build_indexes(collection, expiring=True)
    assert staging.wrong_indexes(collection) == []
    assert staging.wrong_options(collection) == []
    again = described(staging.database, "staged_rows")
    assert again.options == collection.options
    assert sorted(again.indexes, key=str) == sorted(collection.indexes, key=str)
    database.staged_rows.drop_index("simple_1")
    assert staging.wrong_indexes(collection) == ["simple_1"]


def test_what_a_clustered_collection_deletes_by_time_is_compared_first(
    staging: Staging, backups: BackupStore, database: Database[Row]
) -> None:
    clustered = {"key": {"_id": 1}, "unique": True, "name": "by day"}
    database.create_collection("rows", clusteredIndex=clustered, expireAfterSeconds=60)
    assert isinstance(staging.database, StagingDatabase)
    collection = described(staging.database, "rows")
    staging.create(collection)
    assert "expireAfterSeconds" not in described(staging.database, "staged_rows").options
    part = write(backups, [bson.encode({"_id": datetime(2020, 1, 1, tzinfo=UTC)})])
    assert staging.load(BACKUP, part, backups) == staging.digest(part)
    for expiring in (False, True):
        staging.build_indexes(collection, expiring=expiring)
    assert described(staging.database, "staged_rows").options == collection.options
    assert staging.wrong_indexes(collection) == []


def test_the_digest_of_a_part_is_that_of_its_content(staging: Staging, backups: BackupStore) -> None:
    documents = [bson.encode({"_id": number}) for number in range(2_500)]
    part = write(backups, documents)
    assert staging.load(BACKUP, part, backups).digest == sha256(b"".join(documents)).hexdigest()


def test_a_team_whose_staging_was_dropped_before_a_kill_keeps_its_documents(
    staging: Staging, database: Database[Row]
) -> None:
    team = "a" * 24
    database.rows.insert_many({"_id": number, "teamId": ObjectId(team)} for number in range(3))
    database.staged_rows.insert_many({"_id": number, "teamId": ObjectId(team)} for number in (1, 2, 3))
    assert merge_team(staging.database, team, staged="staged_rows", live="rows") == Merged(
        removed=1, restored=3, left_out=0
    )
    database.staged_rows.drop()
    assert merge_team(staging.database, team, staged="staged_rows", live="rows") == Merged(0, 0, 0)
    assert database.rows.distinct("_id") == [1, 2, 3]
