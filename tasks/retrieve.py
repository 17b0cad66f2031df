"""Retrieve: exact nearest vectors on any MongoDB, with the tenant's bounds applied before anything is ranked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from blocks.embedders import Embedders
from blocks.meters import METER
from blocks.vector_store import VectorStore
from tasks.domain.errors import PipelineError
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.rows import read_vector
from tasks.domain.vectors import Embedder, Matrix

#: A score is float32: more digits say nothing, and would rank equal texts by chance.
_SCORE_DIGITS = 6
#: The score below zero, so that the best sorts first; the document id, which decides ties; the row's ``_id``.
_Ranked = tuple[float, str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """One document that answers, with its cosine similarity, -1 to 1. ``lineage`` says what made it."""

    document_id: str
    source_type: str
    source_id: str
    score: float
    content: str
    metadata: dict[str, Any]
    lineage: dict[str, Any]


def search(
    questions: Sequence[str], tenant: Tenant, *, limit: int, vectors: VectorStore, embedder: Embedder | Embedders
) -> list[list[Hit]]:
    """Return the best documents for each question, best first; ties go to the smaller document id.

    Exact: every vector that the tenant may see and that the generation's model made is compared. Memory holds one
    batch of vectors. All answers come from one generation, the store's own or else the one that is live when the
    search begins, and the questions are embedded by its model: ``embedder`` is the configured one, or all that are.
    A search under which its generation is dropped begins again with the one that is live then.

    Raises ``TerminalError`` if the vectors are of a model that the embedders don't have: another embedder's, or in a
    store that never had another generation any but the one that was given first.
    """
    embedders = embedder if isinstance(embedder, Embedders) else Embedders(embedder)
    began = time.monotonic()
    try:
        answers = _search_live(questions, tenant, limit, vectors, embedders)
    except PipelineError as error:
        _count(began, len(questions), error=type(error).__name__)
        raise
    for found in answers:
        _count(began, len(questions), results=len(found), score=found[0].score if found else None)
    return answers


def _count(began: float, questions: int, **more: Any) -> None:
    """Count one question's answer, or the failure of all that were asked together."""
    METER.count("search", at=datetime.now(UTC), seconds=(time.monotonic() - began) / max(1, questions), **more)


def _search_live(
    questions: Sequence[str], tenant: Tenant, limit: int, vectors: VectorStore, embedders: Embedders
) -> list[list[Hit]]:
    while True:
        chosen = vectors if vectors.generation is not None else vectors.at()
        try:
            found = _search(questions, tenant, limit, chosen, embedders.of(chosen))
        except PipelineError:
            if chosen is vectors or chosen.is_standing():
                raise
        else:
            if chosen is vectors or chosen.is_standing():
                return found


def _search(
    questions: Sequence[str], tenant: Tenant, limit: int, vectors: VectorStore, embedder: Embedder
) -> list[list[Hit]]:
    facts = embedder.facts
    asked = np.stack([embedder.embed_query(question) for question in questions])
    criteria = {**tenant.criteria(), "lineage.model": facts.model, "lineage.dimensions": facts.dimensions}
    best: list[list[_Ranked]] = [[] for _ in questions]
    for batch in vectors.read_vectors(criteria):
        matrix: Matrix = np.stack([read_vector(row["embedding"]) for row in batch])
        # Rounded before ranking: equal texts tie exactly, in whatever batch they come.
        scores = np.round(asked @ matrix.T, _SCORE_DIGITS)
        for question, row in enumerate(scores):
            keep = min(len(row), limit)
            worst = np.partition(row, len(row) - keep)[len(row) - keep]
            # All that tie with the last place are looked at, and the smaller document id takes it.
            found = [
                (-float(row[index]), batch[index]["documentId"], batch[index]["_id"])
                for index in np.flatnonzero(row >= worst)
            ]
            best[question] = sorted(best[question] + found)[:limit]
    documents = vectors.read_documents(list({row_id for found in best for _, _, row_id in found}))
    return [_hits(found, documents) for found in best]


def _hits(found: list[_Ranked], documents: dict[Any, dict[str, Any]]) -> list[Hit]:
    return [
        Hit(
            document_id=document["documentId"],
            source_type=document["sourceType"],
            source_id=str(document["sourceId"]),
            score=round(-negative_score, _SCORE_DIGITS),
            content=document["content"],
            metadata=document["metadata"],
            lineage=document["lineage"],
        )
        for negative_score, _, row_id in found
        if (document := documents.get(row_id)) is not None
    ]
