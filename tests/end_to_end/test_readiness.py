"""Readiness: what a real system proves, what breaks a promise, and what can't be told is not called proved."""

from __future__ import annotations

import pytest
from bson import ObjectId
from prefect.settings import PREFECT_API_URL

from blocks.prefect_server import PrefectServer
from deployments.readiness import Proof, prove
from deployments.register_blocks import make_blocks
from flows.reconcile import reconcile
from tests.end_to_end.pipeline import Pipeline, SourceData
from tests.loopback.slack import LoopbackSlack


def proofs(pipeline: Pipeline, *, send: bool = False) -> dict[str, Proof]:
    server = PrefectServer(str(PREFECT_API_URL.value()))
    found = prove(pipeline.settings, make_blocks(pipeline.settings), server, send=send)
    assert len({one.promise for one in found}) == len(found)
    return {one.promise: one for one in found}


def test_a_promise_is_proved_broken_or_not_told_by_what_is_there(
    pipeline: Pipeline, source_data: SourceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.register()
    fresh = proofs(pipeline)
    assert fresh["every vector has an owner"].kept is None
    assert fresh["the store holds what the source holds"].kept is None
    assert fresh["a good backup of the last 26 hours"].kept is False
    assert fresh["secrets are hidden in Prefect"].kept is True
    assert fresh["alerts arrive"].kept is False
    assert fresh["available for 99.9% of 30 days"].kept is None

    pipeline.load(source_data, source_data.some(60))
    assert pipeline.run().is_completed()
    assert pipeline.run(reconcile).is_completed()
    with LoopbackSlack() as slack:
        pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url)
        loaded = proofs(pipeline, send=True)
        assert len(slack.taken) == 1
    assert loaded["alerts arrive"].kept is True
    assert loaded["every vector has an owner"].kept is True
    assert loaded["the store holds what the source holds"].kept is True
    assert loaded["what should expire does"].kept is True
    assert loaded["few records are refused"].kept is True

    row = pipeline.store.vectordocuments.find_one({})
    assert row is not None
    lost = {**row, "_id": ObjectId(), "documentId": "lost", "teamId": None, "siteId": None}
    pipeline.store.vectordocuments.with_options().insert_one(lost, bypass_document_validation=True)
    broken = proofs(pipeline)["every vector has an owner"]
    assert broken.kept is False
    assert broken.says.startswith("1 of ")


def test_a_secret_that_the_server_shows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    server = PrefectServer("http://127.0.0.1:9/api")

    def answer(self: PrefectServer, method: str, path: str, body: object = None) -> object:
        block = {
            "name": "source",
            "block_type": {"slug": "cryptique-source"},
            "block_schema": {"fields": {"secret_fields": ["uri"]}},
        }
        return [{**block, "data": {"uri": "mongodb://u:p@h/"}}, {**block, "name": "other", "data": {"uri": "********"}}]

    monkeypatch.setattr(PrefectServer, "_ask", answer)
    assert server.find_clear_secrets() == ["cryptique-source/source"]
