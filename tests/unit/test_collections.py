"""Collections: the application's own fields and indexes, to the letter."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.domain.collections import (
    COLLECTIONS,
    DEAD_LETTER_BOX,
    DIGEST_INDEX,
    EMBEDDING_JOBS,
    EMBEDDING_STATS,
    LOOKUP_INDEX,
    RUN_CHECKPOINTS,
    VECTOR_DOCUMENTS,
    VECTOR_FILTERS,
    Collection,
    vector_index_definition,
)
from tasks.domain.rows import VectorForm

Keys = tuple[tuple[str, int | str], ...]
DAY_S = 86_400


def keys(text: str) -> Keys:
    return tuple((name.removeprefix("-"), -1 if name.startswith("-") else 1) for name in text.split())


def indexes(collection: Collection) -> dict[Keys, dict[str, Any]]:
    return {index.keys: index.options for index in collection.indexes}


def test_vectordocuments_has_the_applications_indexes_and_two_more_for_comparing() -> None:
    singles = ["sourceType", "sourceId", "siteId", "teamId", "status", "createdAt"]
    compound = [
        "teamId siteId sourceType",
        "teamId -createdAt",
        "sourceType metadata.dataType",
        "metadata.timeframe.start metadata.timeframe.end",
        "metadata.tags",
        "status -createdAt",
    ]
    expected: dict[Keys, dict[str, Any]] = {keys(text): {} for text in singles + compound}
    expected[keys("documentId")] = {"unique": True}
    expected[keys("expiresAt")] = {"expireAfterSeconds": 0}
    expected[(("content", "text"), ("summary", "text"), ("metadata.tags", "text"))] = {}
    expected[keys("documentId contentHash rowHash sourceId lineage.chunks")] = {}
    expected[keys("sourceId sourceDigest lineage.chunks")] = {}
    assert indexes(VECTOR_DOCUMENTS) == expected
    for name in (LOOKUP_INDEX, DIGEST_INDEX):
        assert sum(index.name == name for index in VECTOR_DOCUMENTS.indexes) == 1


def test_every_unique_index_of_vectordocuments_is_there_before_the_first_row_is_written() -> None:
    unique = [index for index in VECTOR_DOCUMENTS.indexes if index.options.get("unique")]
    assert unique
    assert all(index.early for index in unique)


def test_vector_documents_expire_only_by_their_own_date() -> None:
    assert "expireAfterSeconds" not in indexes(VECTOR_DOCUMENTS)[keys("createdAt")]


def test_embeddingjobs_has_the_applications_indexes() -> None:
    done = {"status": {"$in": ["completed", "cancelled"]}}
    found = indexes(EMBEDDING_JOBS)
    expected: dict[Keys, dict[str, Any]] = {
        keys("jobId"): {"unique": True},
        keys("status -priority scheduledFor"): {},
        keys("teamId status -createdAt"): {},
        keys("sourceType status"): {},
        keys("workerId status"): {},
        keys("retryConfig.nextRetryAt"): {},
        keys("completedAt"): {"expireAfterSeconds": 30 * DAY_S, "partialFilterExpression": done},
    }
    assert {index: found.get(index) for index in expected} == expected
    ours = [options for index, options in found.items() if index not in expected]
    assert all("partialFilterExpression" in options for options in ours), "ours must not bind the application's jobs"


def test_embeddingstats_has_the_applications_indexes() -> None:
    assert indexes(EMBEDDING_STATS) == {
        keys("period startDate teamId"): {"unique": True},
        keys("teamId period -startDate"): {},
        keys("startDate endDate"): {},
        keys("createdAt"): {"expireAfterSeconds": 365 * DAY_S},
    }


def test_a_record_has_one_dead_letter_and_a_shard_one_checkpoint() -> None:
    assert indexes(DEAD_LETTER_BOX)[keys("sourceType sourceId")] == {"unique": True}
    assert indexes(RUN_CHECKPOINTS)[keys("runKey shard")] == {"unique": True}


def test_every_field_of_vectordocuments_has_its_type_and_bounds() -> None:
    fields = VECTOR_DOCUMENTS.schema["properties"]
    assert fields["sourceType"]["enum"] == [
        "analytics",
        "transaction",
        "session",
        "campaign",
        "website",
        "user_journey",
        "smart_contract",
    ]
    assert fields["content"]["maxLength"] == 8_000
    assert fields["summary"]["maxLength"] == 500
    assert fields["teamId"] == fields["sourceId"] == {"bsonType": "objectId"}
    assert fields["status"]["enum"] == ["active", "archived", "deprecated"]
    metadata = fields["metadata"]["properties"]
    assert metadata["dataType"]["enum"] == ["metric", "event", "journey", "transaction", "campaign", "insight"]
    assert metadata["aggregationLevel"]["enum"] == ["raw", "hourly", "daily", "weekly", "monthly"]
    assert (metadata["importance"]["minimum"], metadata["importance"]["maximum"]) == (1, 10)
    assert (metadata["confidence"]["minimum"], metadata["confidence"]["maximum"]) == (0, 1)
    assert metadata["timeframe"]["properties"].keys() == {"start", "end"}
    names = "timeframe dataType tags category chainId contractAddress metricType userSegment deviceType importance"
    assert metadata.keys() == {*names.split(), "aggregationLevel", "processingTime", "confidence"}


def test_every_field_of_embeddingjobs_has_its_bounds() -> None:
    fields = EMBEDDING_JOBS.schema["properties"]
    assert fields["jobType"]["enum"] == ["initial_processing", "reprocessing", "batch_update", "migration"]
    assert fields["status"]["enum"] == ["pending", "processing", "completed", "failed", "cancelled", "retrying"]
    config = fields["config"]["properties"]
    bounds = {name: (field.get("minimum"), field.get("maximum")) for name, field in config.items()}
    assert bounds == {
        "batchSize": (1, 100),
        "chunkSize": (100, 8_000),
        "overlapSize": (0, 1_000),
        "embeddingModel": (None, None),
    }
    retry = fields["retryConfig"]["properties"]
    assert (retry["maxRetries"]["minimum"], retry["maxRetries"]["maximum"]) == (0, 10)
    assert (retry["backoffMultiplier"]["minimum"], retry["backoffMultiplier"]["maximum"]) == (1, 10)


@pytest.mark.parametrize("dimensions", [256, 1536])
@pytest.mark.parametrize(
    ("form", "similarity"),
    [("float32", "cosine"), ("int8", "cosine"), ("doubles", "cosine"), ("bits", "euclidean")],
)
def test_the_vector_index_filters_by_tenant_before_it_ranks(dimensions: int, form: VectorForm, similarity: str) -> None:
    vector, *filters = vector_index_definition(dimensions, form)["fields"]
    assert vector == {"type": "vector", "path": "embedding", "numDimensions": dimensions, "similarity": similarity}
    assert [field["path"] for field in filters] == list(VECTOR_FILTERS)
    assert {field["type"] for field in filters} == {"filter"}
    assert {"siteId", "teamId", "sourceType", "status"} < set(VECTOR_FILTERS)
    assert {"metadata.timeframe.start", "metadata.timeframe.end"} < set(VECTOR_FILTERS)


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda collection: collection.name)
def test_required_fields_are_described_and_names_of_indexes_are_unique(collection: Collection) -> None:
    required = set(collection.schema["required"])
    free = {"sourceId", "counts"}  # of any type: a refused record's id, and a manifest
    assert required - free <= collection.schema["properties"].keys()
    names = [index.name for index in collection.indexes]
    assert len(set(names)) == len(names)
