"""Staging: what is restored is what was stored, to the byte and the index's option; the renames; one team's merge."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Binary, Code, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex
from bson.codec_options import DatetimeConversion
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.operations import IndexModel

from blocks.backups import BackupStore
from blocks.mongo import MongoDatabase
from blocks.snapshots import describe_collections
from blocks.staging import (
    RestoreBook,
    RestoreDiffersError,
    Staging,
    keep_team,
    list_collections,
    merge_team,
    put_in_place,
    read_changed_ids,
)
from tasks.domain.backups import (
    BackupDamagedError,
    BackupManifest,
    CollectionBackup,
    DatabaseBackup,
    Part,
    new_id,
    part_name,
)

Rows = Database[dict[str, Any]]
_RAW: bson.CodecOptions[RawBSONDocument] = bson.CodecOptions(
    document_class=RawBSONDocument, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
NAN_WITH_PAYLOAD = struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF)
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


class _AnyDatabase(MongoDatabase):
    """A database as a block."""


@pytest.fixture
def block(mongo_uri: str, database: Rows) -> Iterator[MongoDatabase]:
    block = _AnyDatabase(uri=SecretStr(mongo_uri), database=database.name)
    yield block
    block.close()


@pytest.fixture
def backups(tmp_path: Path) -> BackupStore:
    return BackupStore(folder=tmp_path / "backups")


@pytest.fixture
def staging(block: MongoDatabase) -> Staging:
    return Staging(block, "restoring_x_")


def raw(database: Rows, name: str) -> list[bytes]:
    return [row.raw for row in database.get_collection(name, codec_options=_RAW).find().hint("_id_").sort("_id", 1)]


def stored(
    block: MongoDatabase, backups: BackupStore, name: str, *, documents_per_part: int = 1_000
) -> tuple[str, CollectionBackup]:
    """Back a collection up as it lies there, in parts of some documents."""
    (described,), _ = describe_collections(block, [name])
    rows = raw(block.open_database(), name)
    backup_id = new_id(datetime.now(UTC))
    cut = [rows[at : at + documents_per_part] for at in range(0, len(rows), documents_per_part)] or [[]]
    ids = [RawBSONDocument(some[0], _RAW)["_id"] for some in cut[1:]]
    parts = [
        part_of(backups, backup_id, name, number, some, lower=lower, upper=upper)
        for number, (some, lower, upper) in enumerate(zip(cut, [None, *ids], [*ids, None], strict=True))
    ]
    collection = CollectionBackup(name, described.options, described.indexes, len(rows), tuple(parts))
    now = datetime(2026, 11, 23, tzinfo=UTC)
    database = DatabaseBackup("store", block.database, "6", Timestamp(1, 1), (collection,))
    manifest = BackupManifest(backup_id, ("manual",), now, now, (database,), "", {}, {})
    # Once through JSON, as every restore reads it.
    (read,) = BackupManifest.from_bytes(manifest.to_bytes()).store.collections
    return backup_id, read


def part_of(
    backups: BackupStore,
    backup_id: str,
    name: str,
    number: int,
    documents: Sequence[bytes],
    *,
    lower: Any = None,
    upper: Any = None,
) -> Part:
    object_name = part_name(name, number)
    written = backups.write_part(backup_id, object_name, [b"".join(documents)])
    return Part(
        name=object_name,
        collection=name,
        number=number,
        lower=lower,
        upper=upper,
        documents=len(documents),
        raw_bytes=written.raw_bytes,
        stored_bytes=written.stored_bytes,
        sha256=written.sha256,
        content_sha256=written.content_sha256,
        taken_at=Timestamp(1, 1),
    )


def restored(staging: Staging, backups: BackupStore, backup_id: str, collection: CollectionBackup) -> None:
    staging.create(collection)
    for part in collection.parts:
        loaded = staging.load(backup_id, part, backups)
        assert (loaded.documents, loaded.digest) == (part.documents, part.content_sha256)
        staging.require_same(backup_id, part, loaded, backups)
    for expiring in (False, True):
        staging.build_indexes(collection, expiring=expiring)


def nasty() -> list[dict[str, Any]]:
    """Return values of every BSON type, at the ends of what each can be."""
    values: list[Any] = [
        0.0, -0.0, float("inf"), float("nan"), 5e-324, 1, Int64(1), Int64(-(2**63)), True, False, None, "", "\x00",
        "ö🐍", Decimal128("1E-6176"), Decimal128("-0"), Decimal128("NaN"), Decimal128("1.10"), LONG_AGO,
        DatetimeMS(2**62), DatetimeMS(-(2**62)), ObjectId(), Regex("a/b", "imsx"), Code("f()"), Code("f()", {"a": 1}),
        Timestamp(1, 2), Timestamp(0, 0), MinKey(), MaxKey(), [], {}, [[], {}, None], {"b": 1, "a": {"z": 1, "y": [2]}},
        *[Binary(b"\x00\1", subtype) for subtype in (0, 1, 2, 3, 4, 5, 6, 7, 128, 255)], Binary(b""), "x" * 100_000,
    ]  # fmt: skip
    return [{"_id": number, "z": 1, "value": value, "a": {"value": value}} for number, value in enumerate(values)]


def of_every_kind_of_id() -> list[dict[str, Any]]:
    ids: list[Any] = [
        MinKey(), None, -1, 0.5, Int64(7), Decimal128("8"), "text", {"b": 1, "a": 2}, {"a": DatetimeMS(2**60)}, {},
        Binary(b"1"), Binary(b"0123456789abcdef", 4), ObjectId("0" * 24), False, True,
        LONG_AGO, DatetimeMS(2**60), DatetimeMS(-(2**60)), Timestamp(0, 0), Timestamp(3, 4), MaxKey(),
    ]  # fmt: skip
    return [{"_id": one, "number": number} for number, one in enumerate(ids)]


def test_every_type_and_kind_of_id_comes_back_to_the_byte(
    block: MongoDatabase, database: Rows, backups: BackupStore, staging: Staging
) -> None:
    database.rows.insert_many(nasty())
    number = len(nasty())
    payload = bson.encode({"_id": number, "value": 1.5}).replace(struct.pack("<d", 1.5), NAN_WITH_PAYLOAD)
    database.get_collection("rows", codec_options=_RAW).insert_one(RawBSONDocument(payload))
    database.rows.insert_one({"_id": number + 1, "z": 1, "never": "set", "a": 0})
    # As an update leaves them; an insert would fill them with the present.
    database.rows.update_one({"_id": number + 1}, {"$set": {"never": Timestamp(0, 0), "deep.never": Timestamp(0, 0)}})
    database.ids.insert_many(of_every_kind_of_id())
    for name in ("rows", "ids"):
        backup_id, collection = stored(block, backups, name, documents_per_part=7)
        restored(staging, backups, backup_id, collection)
        assert raw(database, staging.name_of(name)) == raw(database, name)
        # Half of a part may be there when an attempt begins again.
        for part in collection.parts:
            staging.load(backup_id, part, backups)
        assert raw(database, staging.name_of(name)) == raw(database, name)


def test_indexes_and_options_come_back_exactly(
    block: MongoDatabase, database: Rows, backups: BackupStore, staging: Staging
) -> None:
    database.create_collection(
        "rows",
        validator={
            "$or": [{"$jsonSchema": {"required": ["never there"]}}, {"name": {"$regex": "^a", "$options": "i"}}]
        },
        validationLevel="moderate",
        validationAction="warn",
        collation={"locale": "de", "strength": 2},
        storageEngine={"wiredTiger": {"configString": "block_compressor=zstd"}},
        changeStreamPreAndPostImages={"enabled": True},
    )
    simple = {"locale": "simple"}
    database.rows.create_indexes(
        [
            IndexModel([("b", 1), ("a", -1)], name="in that order", unique=True),
            IndexModel([("a", 1)], name="some", partialFilterExpression={"n": {"$gt": Int64(1)}, "a": {"$type": 2}}),
            IndexModel([("s", 1)], sparse=True, hidden=True),
            IndexModel([("t", "text"), ("u", "text")], weights={"u": 7}, default_language="german",
                       language_override="lang", collation=simple),
            IndexModel([("at", 1)], expireAfterSeconds=3_600),
            IndexModel([("$**", 1)], wildcardProjection={"w": 1, "v.x": 1}),
            IndexModel([("c", 1)], collation={"locale": "fr", "caseLevel": True}),
            IndexModel([("h", "hashed")], collation=simple),
            IndexModel([("g", "2dsphere")]),
        ]
    )  # fmt: skip
    database.rows.insert_one({"_id": 1, "b": 1})
    backup_id, collection = stored(block, backups, "rows")
    restored(staging, backups, backup_id, collection)
    assert staging.wrong_indexes(collection) == []
    assert staging.wrong_options(collection) == []
    name = staging.name_of("rows")

    def words(of: str) -> list[bytes]:
        return sorted(bson.encode(index) for index in database[of].list_indexes())

    assert words(name) == words("rows")
    options = {row["name"]: row["options"] for row in database.list_collections()}
    assert bson.encode(options[name]) == bson.encode(options["rows"])
    # What differs is named.
    database[name].drop_index("c_1")
    database[name].create_index("more")
    database.command("collMod", name, validationAction="error", index={"name": "at_1", "expireAfterSeconds": 7})
    assert staging.wrong_indexes(collection) == ["at_1", "c_1", "more_1"]
    assert staging.wrong_options(collection) == ["validationAction"]


@pytest.mark.long  # the server looks for what expired once a minute
def test_what_expired_long_ago_is_there_until_it_was_compared(
    block: MongoDatabase,
    database: Rows,
    mongo_client: MongoClient[dict[str, Any]],
    backups: BackupStore,
    staging: Staging,
) -> None:
    database.rows.insert_many({"_id": number, "at": LONG_AGO} for number in range(50))
    backup_id, collection = stored(block, backups, "rows")
    expiring = {"v": 2, "key": {"at": 1}, "name": "at_1", "expireAfterSeconds": 0}
    collection = replace(collection, indexes=[*collection.indexes, expiring])
    before = mongo_client.admin.command({"setParameter": 1, "ttlMonitorSleepSecs": 1})["was"]
    mongo_client.admin.command({"setParameter": 1, "ttlMonitorEnabled": True})
    try:
        staging.create(collection)
        loaded = staging.load(backup_id, collection.parts[0], backups)
        staging.build_indexes(collection, expiring=False)
        passes = mongo_client.admin.command("serverStatus")["metrics"]["ttl"]["passes"]
        pause = threading.Event()
        while mongo_client.admin.command("serverStatus")["metrics"]["ttl"]["passes"] < passes + 2:
            pause.wait(0.05)
        staging.require_same(backup_id, collection.parts[0], loaded, backups)
        staging.build_indexes(collection, expiring=True)
        assert staging.wrong_indexes(collection) == []
        while staging.count("rows"):
            pause.wait(0.05)
    finally:
        mongo_client.admin.command({"setParameter": 1, "ttlMonitorEnabled": False})
        mongo_client.admin.command({"setParameter": 1, "ttlMonitorSleepSecs": before})


def test_a_difference_is_told_with_the_first_id(
    block: MongoDatabase, database: Rows, backups: BackupStore, staging: Staging
) -> None:
    database.rows.insert_many({"_id": number, "a": 1, "b": 2} for number in range(30))
    backup_id, collection = stored(block, backups, "rows", documents_per_part=10)
    staging.create(collection)
    loaded = [staging.load(backup_id, part, backups) for part in collection.parts]
    rows = database[staging.name_of("rows")]
    rows.replace_one({"_id": 13}, {"b": 2, "a": 1})
    staging.require_same(backup_id, collection.parts[0], loaded[0], backups)
    with pytest.raises(RestoreDiffersError, match=r"store/rows/00001\S* .* the _id 13$"):
        staging.require_same(backup_id, collection.parts[1], loaded[1], backups)
    rows.delete_one({"_id": 29})
    with pytest.raises(RestoreDiffersError, match=r"9 documents of 10, .* the _id 29$"):
        staging.require_same(backup_id, collection.parts[2], loaded[2], backups)
    rows.insert_one({"_id": 4.5})
    with pytest.raises(RestoreDiffersError, match=r"11 documents of 10, .* the _id 5$"):
        staging.require_same(backup_id, collection.parts[0], loaded[0], backups)


def test_changes_are_laid_over_what_was_read_before(
    block: MongoDatabase, database: Rows, backups: BackupStore, staging: Staging
) -> None:
    ids: list[Any] = ["stays", "changes", "goes", {"b": 1, "a": 1}, DatetimeMS(2**60), MaxKey()]
    database.rows.insert_many({"_id": one, "n": 1} for one in ids)
    backup_id, collection = stored(block, backups, "rows", documents_per_part=2)
    database.rows.update_many({"_id": {"$nin": ["stays", "goes"]}}, {"$set": {"n": 2}})
    database.rows.delete_one({"_id": "goes"})
    database.rows.insert_one({"_id": "comes", "never": Timestamp(9, 9), "n": 1})
    changed = [one for one in [*ids, "comes"] if one != "stays"]
    now = {bson.encode({"_id": row["_id"]}): row for row in
           database.get_collection("rows", codec_options=_RAW).find()}  # fmt: skip
    told = [
        bson.encode(
            {"_id": one} if (row := now.get(bson.encode({"_id": one}))) is None else {"_id": one, "document": row}
        )
        for one in changed
    ]
    changes = part_of(backups, backup_id, "rows", 99, told)
    without = read_changed_ids(backup_id, changes, backups)
    staging.create(collection)
    for part in collection.parts:
        staging.require_same(
            backup_id, part, staging.load(backup_id, part, backups, without=without), backups, without=without
        )
    for _ in range(2):
        staging.load_changes(backup_id, changes, backups)
        staging.require_same_changes(backup_id, changes, backups)
        assert raw(database, staging.name_of("rows")) == raw(database, "rows")
    database[staging.name_of("rows")].update_one({"_id": "comes"}, {"$set": {"n": 3}})
    with pytest.raises(RestoreDiffersError, match="1 documents differ, the first has the _id 'comes'"):
        staging.require_same_changes(backup_id, changes, backups)


def test_a_part_that_is_not_what_was_written_ends_the_load(
    block: MongoDatabase, database: Rows, backups: BackupStore, staging: Staging
) -> None:
    database.rows.insert_many({"_id": number, "text": f"{number}" * 50} for number in range(3_000))
    backup_id, collection = stored(block, backups, "rows")
    assert backups.folder is not None
    path = backups.folder / backup_id / collection.parts[1].name
    content = path.read_bytes()
    staging.create(collection)
    half = len(content) // 2
    for damaged in (content[:half], content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :], b""):
        path.write_bytes(damaged)
        with pytest.raises(BackupDamagedError):
            staging.load(backup_id, collection.parts[1], backups)
    path.write_bytes(content)
    staging.load(backup_id, collection.parts[1], backups)
    assert raw(database, staging.name_of("rows")) == raw(database, "rows")[1_000:2_000]


# -- the renames ----------------------------------------------------------------------------------------------


class _KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [0, 1])
def test_two_renames_go_on_wherever_they_were_cut_off(
    block: MongoDatabase, database: Rows, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    database.rows.insert_one({"_id": "old"})
    database.staged.insert_one({"_id": "new"})
    rename = type(database.rows).rename
    done = 0

    def cut_off(self: Any, name: str, **options: Any) -> Any:
        nonlocal done
        if done == at:
            raise _KilledError
        done += 1
        return rename(self, name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(database.rows), "rename", cut_off)
        with pytest.raises(_KilledError):
            put_in_place(block, staged="staged", live="rows", kept="kept")
    if at:
        database.rows.insert_one({"_id": "written between the two"})
    for _ in range(2):
        put_in_place(block, staged="staged", live="rows", kept="kept")
        assert [row["_id"] for row in database.rows.find()] == ["new"]
        assert [row["_id"] for row in database.kept.find()] == ["old"]
    late = [row["_id"] for row in database.kept_2.find()]
    assert late == (["written between the two"] if at else [])


def test_one_restore_is_at_work_at_a_time(block: MongoDatabase) -> None:
    book = RestoreBook(block, "a")
    assert book.holder() is None
    assert book.take("one", instead_of=None)
    assert not book.take("two", instead_of=None)
    holder = book.holder()
    assert holder is not None
    assert holder["workerId"] == "one"
    book.leave("two")
    assert not book.take("two", instead_of="three")
    assert book.take("two", instead_of="one")
    book.touch("two")
    book.leave("two")
    assert book.holder() is None
    assert book.take("one", instead_of=None)
    assert book.others() == []


# -- one team -------------------------------------------------------------------------------------------------


def test_a_teams_merge_writes_no_other_teams_document(block: MongoDatabase, database: Rows) -> None:
    ours, other = ObjectId(), ObjectId()
    live, staged = database.rows, database.staged
    live.create_index("key", unique=True)
    staged.insert_many(
        [
            {"_id": 1, "teamId": ours, "key": "same"},
            {"_id": 2, "teamId": ours, "key": "changed since", "old": True},
            {"_id": 3, "teamId": str(ours), "key": "removed since"},
            {"_id": 4, "teamId": ours, "key": "moved to another team"},
            {"_id": 5, "teamId": ours, "key": "made again by another team"},
            {"_id": 6, "teamId": ours, "key": "b"},
            {"_id": 7, "teamId": ours, "key": "a"},
        ]
    )
    live.insert_many(
        [
            {"_id": 1, "teamId": ours, "key": "same"},
            {"_id": 2, "key": "changed since", "teamId": ours},
            {"_id": 4, "teamId": other, "key": "moved to another team"},
            {"_id": 50, "teamId": other, "key": "made again by another team"},
            {"_id": 60, "teamId": str(ours), "key": "made since"},
            {"_id": 6, "teamId": ours, "key": "a"},
            {"_id": 8, "teamId": other, "key": "of another"},
            {"_id": 9, "teamId": None, "key": "of nobody"},
        ]
    )
    not_ours = {"teamId": {"$nin": [ours, str(ours)]}}

    def others() -> list[bytes]:
        return [row.raw for row in database.get_collection("rows", codec_options=_RAW).find(not_ours).sort("_id", 1)]

    def of_the_team() -> list[bytes]:
        found = database.get_collection("rows", codec_options=_RAW).find({"teamId": {"$in": [ours, str(ours)]}})
        return [row.raw for row in found.sort("_id", 1)]

    theirs, before = others(), of_the_team()
    keep_team(block, str(ours), live="rows", kept="kept")
    assert raw(database, "kept") == before
    merged = merge_team(block, str(ours), staged="staged", live="rows")
    assert (merged.removed, merged.restored, merged.left_out) == (1, 5, 2)
    assert others() == theirs
    wanted = [one for one in raw(database, "staged") if bson.decode(one)["_id"] not in (4, 5)]
    assert of_the_team() == wanted
    again = merge_team(block, str(ours), staged="staged", live="rows")
    assert (again.removed, again.left_out) == (0, 2)
    assert of_the_team() == wanted
    # The way back.
    merge_team(block, str(ours), staged="kept", live="rows")
    assert of_the_team() == before
    assert others() == theirs
    assert {"rows", "kept", "staged"} <= list_collections(block)
