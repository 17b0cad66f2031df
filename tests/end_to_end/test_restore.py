"""Backup and restore through the flows: proved, damaged, killed, put in place, undone; one team; what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pytest
import zstandard
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from blocks.backups import BackupStore
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from deployments.register_blocks import make_blocks
from flows.backup import backup
from flows.ingest import ingest
from flows.restore import drop_kept, restore, undo_restore
from flows.verify import verify_backups
from tasks.domain.backups import BackupManifest
from tasks.domain.errors import InputError
from tasks.domain.retrieval.tenants import Tenant
from tasks.retrieve import search
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, open_pipeline, wait_for

ROWS = 300
QUESTION = "who claimed rewards from staking"
ROOT = Path(__file__).resolve().parents[2]
#: Two megabytes of documents make several parts of a store of hundreds.
SMALL = {"part_mb": 1}


@pytest.fixture(scope="module")
def filled(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pipeline]:
    """A pipeline whose source is migrated; each test leaves the store as it found it, or brings it back."""
    with open_pipeline(mongo_uri, mongo_client, tmp_path_factory.mktemp("home"), separate_store=True) as opened:
        opened.load(source_data, source_data.some(ROWS))
        opened.migrate()
        opened.store.vectordocuments.update_many({}, {"$set": {"padding": "s" * 9_000}})
        # What expired long ago must be compared before it is deleted again.
        opened.store.create_collection("embeddingstats_old")
        yield opened


@pytest.fixture
def backups(filled: Pipeline) -> BackupStore:
    return make_blocks(filled.settings).backups


@pytest.fixture
def vectors(filled: Pipeline) -> Iterator[VectorStore]:
    opened = make_blocks(filled.settings).vectors
    yield opened
    opened.close()


def raw(pipeline: Pipeline, name: str, database: str | None = None) -> list[bytes]:
    """Return every document of a collection as bytes, in the order of their ids."""
    opened = pipeline.store.client[database or pipeline.store.name]
    options = bson.CodecOptions(document_class=RawBSONDocument)
    return [row.raw for row in opened.get_collection(name, codec_options=options).find().sort("_id", 1)]


def everything(pipeline: Pipeline, database: str | None = None) -> dict[str, list[bytes]]:
    opened = pipeline.store.client[database or pipeline.store.name]
    names = [
        name for name in opened.list_collection_names() if not name.startswith(("before_", "undone_", "ragrestores"))
    ]
    return {name: raw(pipeline, name, database) for name in names if name not in ("embeddingstats_old",)}


def indexes(pipeline: Pipeline, database: str | None = None) -> dict[str, Any]:
    opened = pipeline.store.client[database or pipeline.store.name]
    names = [
        name for name in opened.list_collection_names() if not name.startswith(("before_", "undone_", "ragrestores"))
    ]
    return {
        name: {index["name"]: {**index, "key": list(index["key"].items())} for index in opened[name].list_indexes()}
        for name in names
        if name not in ("embeddingstats_old",)
    }


def answers(vectors: VectorStore) -> list[tuple[Any, float]]:
    (hits,) = search([QUESTION], Tenant(None), limit=10, vectors=vectors.at(), embedder=LocalEmbedder())
    return [(hit.document_id, round(hit.score, 6)) for hit in hits]


def unpacked(store: BackupStore, manifest: BackupManifest) -> dict[str, list[bytes]]:
    """Return what a backup holds, read without our code: zstd and BSON."""
    assert store.folder is not None
    found: dict[str, list[bytes]] = {}
    for part in manifest.parts:
        packed = (store.folder / manifest.id / part.name).read_bytes()
        content = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
        rows = bson.decode_all(content, bson.CodecOptions(document_class=RawBSONDocument))
        found.setdefault(part.collection, []).extend(row.raw for row in rows)
    return found


# -- the way there and back -----------------------------------------------------------------------------------


def test_a_store_that_was_wiped_is_what_it_was_to_the_byte_and_can_be_wiped_again(
    filled: Pipeline, backups: BackupStore, vectors: VectorStore
) -> None:
    before, shape, told = everything(filled), indexes(filled), answers(vectors)
    report = filled.complete(backup, **SMALL)
    assert report["moments"] == 1
    assert report["collections"]["vectordocuments"]["parts"] > 1
    (found,) = backups.list_backups()
    assert (found.id, found.state) == (report["backup"], "good")
    assert found.manifest is not None
    assert unpacked(backups, found.manifest) == before
    assert found.verification is not None
    assert 0 < found.verification.restored <= found.manifest.documents

    filled.store.client.drop_database(filled.store.name)
    done = filled.complete(restore, swap=True)
    assert done["in_place"]
    assert done["documents"] == found.manifest.documents
    assert everything(filled) == before
    assert indexes(filled) == shape
    assert answers(vectors) == told
    assert done["kept"] == []
    # It goes on from the backup's moment: nothing is paid again.
    assert filled.migrate()["embedded"] == 0
    assert drop_kept(vectors) == []
    filled.store.create_collection("embeddingstats_old")


@pytest.mark.long
def test_what_was_written_since_is_replaced_kept_beside_and_brought_back_by_an_undo(
    filled: Pipeline, backups: BackupStore, vectors: VectorStore
) -> None:
    before = everything(filled)
    report = filled.complete(backup, rotate=False)
    filled.store.vectordocuments.delete_many({"sourceType": "transaction"})
    filled.store.ragstore.insert_one({"_id": "since"})
    since = everything(filled)
    said = filled.run(restore, swap=True).message
    assert said is not None
    assert f"`overwrite` the database's name, {filled.store.name}" in said
    assert everything(filled) == since
    done = filled.complete(restore, backup=report["backup"], swap=True, overwrite=filled.store.name)
    assert everything(filled) == before
    assert len(done["kept"]) == len(before)
    assert "was put in place already" in str(
        filled.run(restore, backup=report["backup"], swap=True, overwrite=filled.store.name).message
    )
    filled.complete(undo_restore)
    assert everything(filled) == since
    assert "nothing can be undone" in str(filled.run(undo_restore).message)
    dropped = drop_kept(vectors)
    assert dropped
    assert not set(dropped) & set(filled.store.list_collection_names())
    filled.complete(restore, backup=report["backup"], swap=True, overwrite=filled.store.name)
    assert everything(filled) == before
    drop_kept(vectors)


def test_one_team_gets_its_documents_back_and_no_other_team_is_touched(
    filled: Pipeline, backups: BackupStore, vectors: VectorStore
) -> None:
    rows = filled.store.vectordocuments
    first, second, *_ = sorted(rows.distinct("teamId"))
    report = filled.complete(backup, rotate=False)
    before = everything(filled)
    moved, *others_of_it = rows.find({"teamId": first})
    rows.delete_many({"_id": {"$in": [row["_id"] for row in others_of_it[::2]]}})
    rows.update_one({"_id": moved["_id"]}, {"$set": {"teamId": second}})
    rows.update_many({"teamId": second}, {"$set": {"version": 99}})
    made_since = {**moved, "_id": ObjectId(), "documentId": "made since", "teamId": first}
    rows.insert_one(made_since)
    others = [one for one in raw(filled, "vectordocuments") if RawBSONDocument(one)["teamId"] != first]
    done = filled.complete(restore, backup=report["backup"], team=str(first), swap=True, overwrite=filled.store.name)
    assert done["merged"]["vectordocuments"]["left_out"] == 1
    now = raw(filled, "vectordocuments")
    assert [one for one in now if RawBSONDocument(one)["teamId"] != first] == others
    theirs = [one for one in before["vectordocuments"] if RawBSONDocument(one)["teamId"] == first]
    expected = [one for one in theirs if RawBSONDocument(one)["_id"] != moved["_id"]]
    assert [one for one in now if RawBSONDocument(one)["teamId"] == first] == expected
    assert "reconcile" in done["next_steps"][0]
    filled.complete(undo_restore)
    assert rows.find_one({"documentId": "made since"}) is not None
    drop_kept(vectors)
    filled.complete(restore, backup=report["backup"], swap=True, overwrite=filled.store.name)
    drop_kept(vectors)
    assert everything(filled) == before


@pytest.mark.long
def test_a_backup_is_restored_beside_the_store_by_time_and_by_collection(
    filled: Pipeline, backups: BackupStore, mongo_client: MongoClient[Record]
) -> None:
    report = filled.complete(backup, rotate=False, source_collections=True)
    taken = report["taken"]
    before = everything(filled)
    done = filled.complete(restore, backup=(taken + timedelta(seconds=1)).isoformat(), collections=["vectordocuments"])
    try:
        assert done["backup"] == report["backup"]
        assert done["database"] != filled.store.name
        assert raw(filled, "vectordocuments", done["database"]) == before["vectordocuments"]
        assert everything(filled) == before
        assert "lies in" in str(filled.run(restore, collections=["vectordocuments"]).message)
        # Another restore does not write beside it.
        assert "not of this restore" in str(filled.run(restore, into=done["database"]).message)
        assert "in use" in str(filled.run(restore, into=filled.store.name).message)
        assert "holds no nothing" in str(filled.run(restore, collections=["nothing"]).message)
        of_source = filled.complete(
            restore, into=f"{filled.store.name}_s", source_collections=True, collections=["transactions", "teams"]
        )
        for name in ("transactions", "teams"):
            assert raw(filled, name, of_source["database"]) == raw(filled, name, filled.source.name)
        mongo_client.drop_database(of_source["database"])
        long_ago = datetime(2020, 1, 1, tzinfo=UTC).isoformat()
        assert "no good backup of 2020-01-01" in str(filled.run(restore, backup=long_ago).message)
    finally:
        mongo_client.drop_database(done["database"])


# -- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "harm",
    [
        "flipped byte",
        "deleted",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("truncated", "swapped", "manifest edited")),
    ],
)
def test_a_damaged_backup_is_told_never_good_and_never_restored(
    filled: Pipeline, backups: BackupStore, harm: str
) -> None:
    made = filled.complete(backup, rotate=False, **SMALL)["backup"]
    assert backups.folder is not None
    folder = backups.folder / made
    parts = sorted((folder / "store" / "vectordocuments").iterdir())
    if harm == "flipped byte":
        content = bytearray(parts[0].read_bytes())
        content[len(content) // 2] ^= 1
        parts[0].write_bytes(content)
    elif harm == "truncated":
        parts[0].write_bytes(parts[0].read_bytes()[:-1])
    elif harm == "deleted":
        parts[1].unlink()
    elif harm == "swapped":
        first, second = parts[0].read_bytes(), parts[1].read_bytes()
        parts[0].write_bytes(second)
        parts[1].write_bytes(first)
    else:
        manifest = folder / "manifest.json"
        manifest.write_bytes(manifest.read_bytes().replace(b'"documents"', b'"Documents"', 1))
    before = everything(filled)
    said = str(filled.run(verify_backups, backups=[made]).message)
    assert made in said
    assert "damaged" in said
    found = backups.find(made)
    assert found is not None
    assert found.state == "damaged"
    refused = str(filled.run(restore, backup=made, swap=True, overwrite=filled.store.name).message)
    assert "damaged" in refused
    assert everything(filled) == before
    assert all(one.id != made for one in backups.list_backups() if one.state == "good")
    backups.remove(made)


def test_a_part_that_decays_under_a_restore_ends_it_and_nothing_live_is_touched(
    filled: Pipeline, backups: BackupStore, vectors: VectorStore
) -> None:
    made = filled.complete(backup, rotate=False, **SMALL)["backup"]
    assert backups.folder is not None
    part = sorted((backups.folder / made / "store" / "vectordocuments").iterdir())[1]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)  # of the same size: nobody has looked since
    before = everything(filled)
    said = str(filled.run(restore, backup=made, swap=True, overwrite=filled.store.name, retries=0).message)
    assert part.name in said
    live = {name: rows for name, rows in everything(filled).items() if not name.startswith("restoring_")}
    assert live == before
    assert drop_kept(vectors)
    backups.remove(made)


# -- kills ----------------------------------------------------------------------------------------------------

_RUN = """
import json, sys
from flows.restore import restore
from flows.backup import backup
flow, parameters = json.loads(sys.argv[1])
{"restore": restore, "backup": backup}[flow](**parameters)
"""
#: Stops the process for ever in the middle of its work, at a line that the test chose.
_HOLD = """
import importlib, sys, time
from pathlib import Path
module = importlib.import_module({module!r})
real = module.{name}
calls = 0
def held(*given, **named):
    global calls
    calls += 1
    if calls == {call}:
        Path({sign!r}).touch()
        time.sleep(600)
    return real(*given, **named)
module.{name} = held
"""


def killed_in(
    filled: Pipeline, tmp_path: Path, flow: str, parameters: Record, *, module: str, name: str, call: int
) -> None:
    """Run a flow in a process of its own and kill it when it calls a function for the so-manieth time."""
    sign = tmp_path / f"reached-{flow}-{call}"
    program = _HOLD.format(module=module, name=name, call=call, sign=str(sign)) + _RUN
    filled.register()
    with (tmp_path / f"{flow}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps([flow, parameters])],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "PREFECT_API_URL": _api_url()},
        )
    try:
        wait_for(lambda: sign.exists() or process.poll() is not None or None, what="the place to kill it")
        assert sign.exists(), (tmp_path / f"{flow}.log").read_text()[-3_000:]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _api_url() -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [("blocks.staging", "_bounded", 5), pytest.param("flows.restore", "put_in_place", 4, marks=pytest.mark.long)],
    ids=["loading", "between two collections"],
)
def test_a_restore_that_was_killed_goes_on_when_it_is_given_again(
    filled: Pipeline, backups: BackupStore, vectors: VectorStore, tmp_path: Path, module: str, name: str, call: int
) -> None:
    made = filled.complete(backup, rotate=False, **SMALL)["backup"]
    before = everything(filled)
    filled.store.vectordocuments.delete_many({})
    since = everything(filled)
    parameters = {"backup": made, "swap": True, "overwrite": filled.store.name, "parts_in_flight": 1}
    killed_in(filled, tmp_path, "restore", parameters, module=module, name=name, call=call)
    if name == "_bounded":
        live = {one: rows for one, rows in everything(filled).items() if not one.startswith("restoring_")}
        assert live == since
    done = filled.complete(restore, **parameters)
    assert done["documents"] == sum(len(rows) for rows in before.values())
    assert everything(filled) == before
    drop_kept(vectors)
    backups.remove(made)


def test_a_backup_that_was_killed_is_no_backup_and_the_next_one_is_good(
    filled: Pipeline, backups: BackupStore, tmp_path: Path
) -> None:
    known = {one.id for one in backups.list_backups()}
    killed_in(
        filled, tmp_path, "backup", {**SMALL, "parts_in_flight": 1}, module="blocks.snapshots", name="_answers", call=6
    )
    (left,) = [one for one in backups.list_backups() if one.id not in known]
    assert left.state == "unfinished"
    assert left.manifest is None
    made = filled.complete(backup, rotate=False)["backup"]
    found = backups.find(made)
    assert found is not None
    assert found.state == "good"
    with pytest.raises(InputError, match="no backup"):
        verify_backups.fn(backups=[left.id])
    backups.remove(left.id)


# -- writers, and moments -------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.long
def test_a_backup_that_outlives_the_servers_memory_is_of_one_moment_all_the_same(
    filled: Pipeline,
    backups: BackupStore,
    vectors: VectorStore,
    mongo_client: MongoClient[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = everything(filled)
    name = "minSnapshotHistoryWindowInSeconds"
    window = mongo_client.admin.command("getParameter", 1, **{name: 1})[name]
    write_part = BackupStore.write_part

    def slowly(self: BackupStore, *given: Any) -> Any:
        time.sleep(0.4)
        return write_part(self, *given)

    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            filled.store.deadletters.insert_one({"_id": f"written-{number}", "sourceType": "x", "sourceId": number})
            filled.store.vectordocuments.update_one({}, {"$set": {"importance": number}})
            filled.store.vectordocuments.delete_one({"documentId": f"gone-{number - 3}"})
            filled.store.vectordocuments.insert_one({"documentId": f"gone-{number}"})
            number += 1
            time.sleep(0.02)

    filled.store.command("collMod", "vectordocuments", validationLevel="off")
    filled.store.command("collMod", "deadletters", validationLevel="off")
    writer = threading.Thread(target=write)
    mongo_client.admin.command("setParameter", 1, **{name: 1})
    writer.start()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(BackupStore, "write_part", slowly)
            report = filled.complete(backup, rotate=False, drill=True, parts_in_flight=1, **SMALL)
    finally:
        stop.set()
        writer.join()
        mongo_client.admin.command("setParameter", 1, **{name: window})
    assert report["moments"] > 1
    found = backups.find(report["backup"])
    assert found is not None
    assert found.manifest is not None
    vector_documents = found.manifest.store.find("vectordocuments")
    assert vector_documents is not None
    assert vector_documents.changes is not None
    assert found.state == "good"  # counted at the last moment by the server, and restored whole
    done = filled.complete(restore, backup=report["backup"])
    staged = filled.store.client[done["database"]]
    gone = sorted(
        int(row["documentId"].split("-")[1]) for row in staged.vectordocuments.find({"documentId": {"$regex": "^gone"}})
    )
    # At any one moment the last three or four of them are there, and the letters up to the same one.
    assert len(gone) in (2, 3, 4)
    letters = staged.deadletters.count_documents({"_id": {"$regex": "^written"}})
    assert abs(letters - 1 - gone[-1]) <= 1
    mongo_client.drop_database(done["database"])
    original = found.manifest.store
    filled.complete(restore, backup=report["backup"], swap=True, overwrite=filled.store.name)
    filled.complete(undo_restore)
    drop_kept(vectors)
    assert original.moment > original.collections[0].parts[0].taken_at
    filled.store.deadletters.delete_many({"_id": {"$regex": "^written"}})
    filled.store.vectordocuments.delete_many({"documentId": {"$regex": "^gone"}})
    assert set(before) == set(everything(filled))


def test_a_collection_that_is_replaced_while_it_is_backed_up_ends_the_backup(
    filled: Pipeline, backups: BackupStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [one.id for one in backups.list_backups()]
    write_part = BackupStore.write_part

    def drop_then(self: BackupStore, backup_id: str, name: str, documents: Any) -> Any:
        written = write_part(self, backup_id, name, documents)
        if "embeddingstats" in name:
            shape = filled.store.command("listCollections", filter={"name": "embeddingstats"})["cursor"]["firstBatch"]
            filled.store.embeddingstats.drop()
            filled.store.create_collection("embeddingstats", **shape[0]["options"])
        return written

    kept = list(filled.store.embeddingstats.list_indexes())
    with monkeypatch.context() as patched:
        patched.setattr(BackupStore, "write_part", drop_then)
        said = str(filled.run(backup, rotate=False).message)
    assert "embeddingstats: made, dropped, renamed or replaced" in said
    assert [one.id for one in backups.list_backups()] == known
    for index in kept[1:]:
        options = {name: value for name, value in index.items() if name not in ("v", "key", "ns")}
        filled.store.embeddingstats.create_index(list(index["key"].items()), **options)


def test_ingest_waits_for_no_restore_and_a_restore_waits_for_a_run(
    filled: Pipeline, backups: BackupStore, vectors: VectorStore
) -> None:
    made = filled.complete(backup, rotate=False)["backup"]
    now = vectors.read_time()
    filled.store.embeddingjobs.insert_one(
        {"jobId": "at-work", "jobType": "migration", "status": "processing", "createdAt": now, "updatedAt": now,
         "metadata": {"runKey": "x"}}
    )  # fmt: skip
    said = str(filled.run(restore, backup=made, swap=True, overwrite=filled.store.name).message)
    assert "at-work is at work" in said
    filled.store.embeddingjobs.delete_one({"jobId": "at-work"})
    assert filled.complete(ingest, until_idle=True)["written"] == 0
