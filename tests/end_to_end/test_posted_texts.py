"""Texts that were posted are a source like any other: every flow knows them, and none removes or pays twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bson import ObjectId

from blocks.embedders import Embedders
from blocks.wordllama import LocalEmbedder
from flows.backup import backup
from flows.generations import build_generation, switch
from flows.ingest import ingest
from flows.reconcile import reconcile
from flows.restore import restore
from tasks.domain.posted_texts import PostedText
from tests.builders import OTHER_TEAM_ID, SITE_ID, TEAM_ID
from tests.contracts.test_http_documents import found, put_text
from tests.end_to_end.pipeline import Pipeline
from tests.rag import RagService, put_owners, running_rag

TEXTS = ["Refunds are paid within 14 days.", "Staking rewards are paid on Mondays.", "The office is in Basel."]


@pytest.fixture
def service(pipeline: Pipeline, tmp_path: Path) -> Iterator[RagService]:
    """The service over a pipeline's source and store, which are two databases."""
    put_owners(pipeline.source)
    chosen = {"cryptique_vectors_database": pipeline.store.name}
    with running_rag(pipeline.uri, pipeline.source, tmp_path / "http", [], **chosen) as running:
        yield running


def test_reconcile_keeps_posted_texts_embeds_what_waits_and_no_run_pays_twice(
    pipeline: Pipeline, service: RagService
) -> None:
    for text in TEXTS:
        assert put_text(service, text).status_code == 200
    # One that is kept and waits, as where the budget was spent.
    waiting = PostedText(str(TEAM_ID), SITE_ID, "A text that waits.")
    service.parts.vectors.put_text(waiting, now=datetime.now(UTC))
    before = pipeline.documents()
    assert len(before) == len(TEXTS)
    # The application's database was only read.
    assert pipeline.source.list_collection_names(filter={"name": {"$regex": "^rag"}}) == []

    compared = pipeline.complete(reconcile, sources=["texts"])
    counts = {name: compared[name] for name in ("compared", "missing", "orphaned", "removed", "written")}
    assert counts == {"compared": 4, "missing": 1, "orphaned": 0, "removed": 0, "written": 1}
    after = pipeline.documents()
    assert {key: after[key] for key in before} == before
    found(service, "which text waits?", str(waiting.record_id))
    taken = pipeline.complete(ingest, sources=["texts"])
    assert (taken["others"]["unchanged"], taken["others"]["embedded"]) == (4, 0)
    assert pipeline.documents() == after


@pytest.mark.long
def test_another_generation_has_them_because_the_live_one_does_and_later_ones_go_to_the_live_one(
    pipeline: Pipeline, service: RagService
) -> None:
    ids = [put_text(service, text).json()["id"] for text in TEXTS]
    built = pipeline.complete(build_generation, name="next", dimensions=64)
    assert (built["sources"], built["load"]["written"]) == (["text"], len(TEXTS))
    switch("next", vectors=service.parts.vectors, embedders=Embedders(LocalEmbedder()))
    assert service.parts.indexes.wait(20)
    late = put_text(service, "Posted to the new generation.").json()["id"]
    row = pipeline.store["vectordocuments_next"].find_one({"sourceId": ObjectId(late)})
    assert row is not None
    assert row["lineage"]["dimensions"] == 64
    found(service, "how long does a refund take?", ids[0])
    found(service, "what was posted to the new generation?", late)


@pytest.mark.long
def test_a_text_goes_with_its_team_and_comes_back_with_the_website(pipeline: Pipeline, service: RagService) -> None:
    for text in TEXTS:
        assert put_text(service, text).status_code == 200
    websites = pipeline.source["websites"]
    websites.update_one({"siteId": SITE_ID}, {"$set": {"team": OTHER_TEAM_ID}})
    gone = pipeline.complete(reconcile, sources=["texts"], remove_orphans=True)
    assert gone["dead_lettered"] == len(TEXTS)
    assert pipeline.documents() == {}
    assert {letter["code"] for letter in pipeline.letters(status="open")} == {"owner_changed"}
    websites.update_one({"siteId": SITE_ID}, {"$set": {"team": TEAM_ID}})
    pipeline.complete(reconcile, sources=["texts"])
    assert {row["content"] for row in pipeline.documents().values()} == set(TEXTS)
    assert pipeline.letters(status="open") == []


@pytest.mark.long
def test_a_backup_holds_them_and_a_restore_of_the_team_brings_them_back(
    pipeline: Pipeline, service: RagService
) -> None:
    for text in TEXTS:
        assert put_text(service, text).status_code == 200
    theirs = service.post("/api/rag/documents", {"text": "Theirs.", "siteId": "site-a"}, team=OTHER_TEAM_ID).json()
    texts = pipeline.store["ragtexts"]
    before = list(texts.find({"teamId": TEAM_ID}).sort("_id", 1))
    report = pipeline.complete(backup)
    texts.delete_many({})
    pipeline.complete(restore, backup=report["backup"], team=str(TEAM_ID), swap=True, overwrite=pipeline.store.name)
    assert list(texts.find({}).sort("_id", 1)) == before
    pipeline.complete(restore, backup=report["backup"], swap=True, overwrite=pipeline.store.name)
    assert {row["_id"] for row in texts.find({})} == {*(row["_id"] for row in before), ObjectId(theirs["id"])}
    compared = pipeline.complete(reconcile, sources=["texts"])
    assert (compared["compared"], compared["missing"], compared["orphaned"]) == (4, 0, 0)
