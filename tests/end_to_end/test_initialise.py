"""Initialise as a flow: what it makes, what it reports, and that it destroys nothing."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.reconcile import reconcile
from tasks.domain.collections import COLLECTIONS, VECTOR_DOCUMENTS
from tests.end_to_end.pipeline import Pipeline, SourceData, prefect_client
from tests.loopback.gemini import LoopbackGemini

EARLY = {"_id_", *(index.name for index in VECTOR_DOCUMENTS.indexes if index.early)}


def test_initialise_makes_everything_once_and_says_what_it_made(pipeline: Pipeline) -> None:
    first = pipeline.initialise()
    made = {f"collection {collection.name}" for collection in COLLECTIONS} | {
        f"index {index.name} of {collection.name}" for collection in COLLECTIONS for index in collection.indexes
    }
    assert set(first["created"]) == made
    assert first["differs"] == []
    assert any("no search nodes" in note for note in first["notes"])

    before = pipeline.fingerprint()
    second = pipeline.initialise()
    assert (second["created"], second["differs"]) == ([], [])
    assert pipeline.fingerprint() == before
    state = pipeline.flow_run().state
    assert state is not None
    assert state.message == "0 made, 0 differ"


def test_initialise_reports_what_differs_in_the_run_and_leaves_it_alone(pipeline: Pipeline) -> None:
    pipeline.initialise()
    vectors = pipeline.store["vectordocuments"]
    vectors.drop_index("documentId_1")
    vectors.create_index("documentId")
    found = pipeline.initialise()
    assert found["differs"] == ["index documentId_1 of vectordocuments has unique False, not True"]
    assert "unique" not in vectors.index_information()["documentId_1"]
    with prefect_client() as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[pipeline.last_run_id]))
        )
    assert "has unique False, not True" in str(artifact.data)


# -- a first load ------------------------------------------------------------------------------------------


def indexes_of(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    return {collection.name: pipeline.store[collection.name].index_information() for collection in COLLECTIONS}


def indexes_that_initialise_makes(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return the indexes of an empty store, which is as it was afterwards."""
    pipeline.initialise()
    made = indexes_of(pipeline)
    pipeline.empty_store()
    return made


def test_a_first_load_has_made_in_the_end_what_initialise_makes(pipeline: Pipeline, source_data: SourceData) -> None:
    expected = indexes_that_initialise_makes(pipeline)
    pipeline.load(source_data, source_data.some(60))
    pipeline.migrate(limit=20)
    assert indexes_of(pipeline) == expected
    pipeline.migrate()
    assert indexes_of(pipeline) == expected
    found = pipeline.initialise()
    assert (found["created"], found["differs"]) == ([], [])


@pytest.mark.long
def test_a_first_load_that_failed_half_way_has_made_every_index_when_it_went_on(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    expected = indexes_that_initialise_makes(pipeline)
    pipeline.load(source_data, source_data.some(300))
    by_shard = {"shard_rows": 100, "shards_in_flight": 1}
    # The check and the request of the first shard are answered.
    with LoopbackGemini(faults=lambda index: "403" if index >= 2 else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        for _ in range(2):
            pipeline.refusal(**by_shard)
            assert len(pipeline.stored_source_ids()) == 100
            assert set(pipeline.store["vectordocuments"].index_information()) == EARLY
        state = pipeline.run(reconcile, heal=False)
        assert "200 missing" in f"{state.message}"
        server.faults = ()
        report = pipeline.migrate(**by_shard)
    assert (report["read"], report["resumed_shards"]) == (300, 1)
    assert indexes_of(pipeline) == expected
    found = pipeline.initialise()
    assert (found["created"], found["differs"]) == ([], [])
