"""Initialise as a flow: what it makes, what it reports, and that it destroys nothing."""

from __future__ import annotations

from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from tasks.domain.collections import COLLECTIONS
from tests.end_to_end.pipeline import Pipeline, prefect_client


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
