"""Restores in place that are cut off, refused, undone: at no point is anything that is live lost or mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from prefect.settings import PREFECT_API_URL
from pymongo import MongoClient

import flows.restore
from blocks.staging import RestoreBook, Staging
from blocks.vector_store import VectorStore
from deployments.register_blocks import make_blocks
from flows.backup import backup
from flows.jobs import worker_id
from flows.restore import drop_kept, restore, undo_restore
from tasks.domain.generations import FIRST, Generation
from tests.end_to_end.pipeline import Pipeline, Record, open_pipeline

ROOT = Path(__file__).resolve().parents[2]
NEWER = "vectordocuments_newer"
_RAW: bson.CodecOptions[RawBSONDocument] = bson.CodecOptions(document_class=RawBSONDocument)
#: A process that kills itself when it is about to rename a collection for the so-manieth time.
_KILLED_BEFORE_A_RENAME = """
import json, os, signal, sys
from pymongo.collection import Collection
from flows.restore import restore
real, calls = Collection.rename, 0
def rename(self, *given, **named):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *given, **named)
Collection.rename = rename
restore(**json.loads(sys.argv[2]))
"""


class _CutOffError(Exception):
    """Stands for whatever ends a run at this place."""


@pytest.fixture(scope="module")
def pipeline(
    prefect_api: str, mongo_uri: str, mongo_client: MongoClient[Record], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """A store with some documents of two teams, and all indexes; each test finds it with others than the backup's."""
    with open_pipeline(mongo_uri, mongo_client, tmp_path_factory.mktemp("home"), separate_store=True) as opened:
        opened.initialise()
        yield opened


@pytest.fixture(scope="module")
def made(pipeline: Pipeline) -> str:
    fill(pipeline, "backed up")
    return str(pipeline.complete(backup, rotate=False)["backup"])


@pytest.fixture(scope="module")
def backed_up(pipeline: Pipeline, made: str) -> dict[str, list[bytes]]:
    """Return what the backup holds; nothing was written since."""
    return everything(pipeline)


@pytest.fixture
def vectors(pipeline: Pipeline) -> Iterator[VectorStore]:
    opened = make_blocks(pipeline.settings).vectors
    yield opened
    opened.close()


@pytest.fixture
def written_since(pipeline: Pipeline, backed_up: dict[str, list[bytes]]) -> Iterator[dict[str, list[bytes]]]:
    """Return what is live: other documents than the backup's, and a collection that it doesn't know."""
    client, name = pipeline.store.client, pipeline.store.name
    fill(pipeline, "written since")
    pipeline.store[NEWER].insert_one({"_id": "newer"})
    yield everything(pipeline)
    for left in pipeline.store.list_collection_names():
        if left.startswith(("restoring_", "before_", "undone_", "ragrestores", NEWER)):
            client[name].drop_collection(left)


TEAMS = (ObjectId(), ObjectId())


def fill(pipeline: Pipeline, text: str) -> None:
    documents = [
        {"_id": number, "documentId": f"{number}", "teamId": TEAMS[number % 2], "content": text} for number in range(40)
    ]
    for name, rows in (
        ("vectordocuments", documents),
        ("ragstore", [{"_id": "position:transaction", "position": text}]),
        # Long over: as soon as its index is built, the server deletes it.
        ("ragcheckpoints", [{"_id": text}]),
    ):
        pipeline.store[name].delete_many({})
        pipeline.store[name].insert_many(rows, bypass_document_validation=True)


def everything(pipeline: Pipeline) -> dict[str, list[bytes]]:
    """Return every live document, by collection."""
    aside = ("restoring_", "before_", "undone_", "ragrestores")
    return {
        name: [row.raw for row in pipeline.store.get_collection(name, codec_options=_RAW).find().sort("_id", 1)]
        for name in sorted(pipeline.store.list_collection_names())
        if not name.startswith(aside)
    }


def in_place(pipeline: Pipeline, made: str, **more: Any) -> Record:
    return {"backup": made, "swap": True, "overwrite": pipeline.store.name, **more}


def cut_off_at(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, parameters: Record, name: str, call: int) -> None:
    """Run a restore that ends when it calls this function of the flow for the so-manieth time."""
    real, calls = getattr(flows.restore, name), 0

    def cut_off(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise _CutOffError(name)
        return real(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(flows.restore, name, cut_off)
        state = pipeline.run(restore, **parameters)
    assert state.is_failed()
    assert name in str(state.message)


@pytest.mark.parametrize(
    "rename", [2, pytest.param(11, marks=pytest.mark.long), pytest.param(6, marks=pytest.mark.long)]
)
@pytest.mark.long
def test_killed_between_two_renames_the_same_restore_goes_on(
    pipeline: Pipeline,
    made: str,
    backed_up: dict[str, list[bytes]],
    written_since: dict[str, list[bytes]],
    vectors: VectorStore,
    rename: int,
) -> None:
    pipeline.register()
    parameters = in_place(pipeline, made)
    done = subprocess.run(
        [sys.executable, "-c", _KILLED_BEFORE_A_RENAME, str(rename), json.dumps(parameters)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2_000:]
    half = everything(pipeline)
    assert half != written_since
    assert half != backed_up | {NEWER: written_since[NEWER]}
    # Another one must not come between.
    said = str(pipeline.run(restore, **in_place(pipeline, made, collections=["ragstore"])).message)
    assert "half in place" in said
    report = pipeline.complete(restore, **parameters)
    assert everything(pipeline) == backed_up | {NEWER: written_since[NEWER]}
    assert report["resumed_parts"] == 0  # all of it had been staged and compared
    assert len(report["kept"]) == len(report["collections"])
    assert drop_kept(vectors) == report["kept"]


@pytest.mark.long
def test_a_half_made_swap_is_undone_without_losing_what_was_live(
    pipeline: Pipeline,
    made: str,
    backed_up: dict[str, list[bytes]],
    written_since: dict[str, list[bytes]],
    vectors: VectorStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_off_at(monkeypatch, pipeline, in_place(pipeline, made), "put_in_place", 7)
    assert everything(pipeline) != written_since
    pipeline.complete(undo_restore)
    assert everything(pipeline) == written_since
    assert drop_kept(vectors)
    assert everything(pipeline) == written_since


def test_what_expires_in_staging_does_not_end_a_restore_that_goes_on(
    pipeline: Pipeline,
    made: str,
    backed_up: dict[str, list[bytes]],
    written_since: dict[str, list[bytes]],
    vectors: VectorStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, call in (("_let_expire", 1), ("_put_in_place", 1)):
        cut_off_at(monkeypatch, pipeline, in_place(pipeline, made), name, call)
        assert everything(pipeline) == written_since
        (staged,) = pipeline.store.list_collection_names(filter={"name": {"$regex": "^restoring_.*ragcheckpoints$"}})
        pipeline.store[staged].delete_many({})  # as the server does by the index
    pipeline.complete(restore, **in_place(pipeline, made))
    assert everything(pipeline) == backed_up | {NEWER: written_since[NEWER], "ragcheckpoints": []}
    pipeline.complete(undo_restore)
    assert everything(pipeline) == written_since


def test_a_report_names_what_was_made_after_the_backup_and_stays(
    pipeline: Pipeline, made: str, written_since: dict[str, list[bytes]], vectors: VectorStore
) -> None:
    # Of another generation, in a book that the restore replaces.
    first = Generation(FIRST, "local", "some", 256, "", "float32", "live")
    newer = Generation("newer", "local", "some", 256, "", "float32")
    vectors.begin_generation(newer, first=first, now=vectors.read_time())
    report = pipeline.complete(restore, **in_place(pipeline, made))
    assert report["untouched"] == [NEWER]
    assert everything(pipeline)[NEWER] == written_since[NEWER]


def test_a_team_is_given_its_documents_and_they_are_taken_back_by_an_undo(
    pipeline: Pipeline,
    made: str,
    backed_up: dict[str, list[bytes]],
    written_since: dict[str, list[bytes]],
    vectors: VectorStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parameters = in_place(pipeline, made, team=str(TEAMS[0]))
    cut_off_at(monkeypatch, pipeline, parameters, "merge_team", 2)
    report = pipeline.complete(restore, **parameters)
    assert report["collections"]["vectordocuments"] == 20
    live = everything(pipeline)
    assert live["vectordocuments"][0::2] == backed_up["vectordocuments"][0::2]
    assert live["vectordocuments"][1::2] == written_since["vectordocuments"][1::2]
    assert {**live, "vectordocuments": []} == {**written_since, "vectordocuments": []}
    pipeline.complete(undo_restore)
    assert everything(pipeline) == written_since
    assert all(name.startswith(("before_", "undone_")) for name in drop_kept(vectors))


@pytest.mark.long
def test_what_may_not_be_meant_is_refused_and_touches_nothing(
    pipeline: Pipeline, made: str, written_since: dict[str, list[bytes]], vectors: VectorStore
) -> None:
    def said(**parameters: Any) -> str:
        state = pipeline.run(restore, **parameters)
        assert state.is_failed()
        assert everything(pipeline) == written_since
        return str(state.message)

    name = pipeline.store.name
    assert f"give `overwrite` the database's name, {name}" in said(backup=made, swap=True)
    assert "give `overwrite`" in said(**in_place(pipeline, made, overwrite=name.upper()))
    assert "holds no nothing; it holds deadletters" in said(backup=made, collections=["nothing"])
    assert "is in use" in said(backup=made, into=name)
    assert "is not empty" in said(backup=made, into=stranger(pipeline))
    assert "no good backup of 2001-01-01" in said(backup="2001-01-01")
    assert "it is no time" in said(backup="yesterday")
    assert "belong to no team" in said(**in_place(pipeline, made, team=str(TEAMS[0]), collections=["ragstore"]))
    book = RestoreBook(vectors, "")
    # A process that runs, and is not this one.
    assert book.take(str(worker_id(os.getppid())), instead_of=None)
    assert "another restore is at work" in said(**in_place(pipeline, made))
    book.leave(str(worker_id(os.getppid())))


def stranger(pipeline: Pipeline) -> str:
    """Return the name of a database that holds something else."""
    name = pipeline.source.name
    if not pipeline.source.list_collection_names():
        pipeline.source.teams.insert_one({"_id": 1})
    assert name != pipeline.store.name
    return f"{name}_other" if pipeline.source.client[f"{name}_other"].x.insert_one({}) else ""


def test_a_server_that_goes_away_in_the_middle_leaves_all_that_is_live(
    pipeline: Pipeline, made: str, written_since: dict[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Staging.load

    def lose_the_server(self: Staging, *given: Any, **named: Any) -> Any:
        # The driver's own error of a server that is gone, from the real driver.
        with MongoClient("127.0.0.1:1", serverSelectionTimeoutMS=50) as nowhere, self._errors("loading"):
            nowhere.admin.command("ping")
        return load(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Staging, "load", lose_the_server)
        state = pipeline.run(restore, **in_place(pipeline, made, retries=0))
    assert "does not answer" in str(state.message)
    assert everything(pipeline) == written_since
