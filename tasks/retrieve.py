"""Retrieve: what a question asks for, chosen exactly, ranked by meaning and by words, and read from the store.

The tenant's bounds and the question's conditions hold before anything is ranked. What an index names is read from the
store under the tenant's filter once more: an index that is behind, or wrong, shows nobody what is another's.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

from blocks.embedders import Embedders
from blocks.meters import METER
from blocks.vector_store import VectorStore
from tasks.domain.errors import PipelineError, QuotaSpentError, TransientError
from tasks.domain.retrieval.engine import SCORE_DIGITS, Engine, Engines, Ranked
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.ranking import rank
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.retrieval.understanding import Reading, Understood, Vocabulary, understand
from tasks.domain.rows import read_vector
from tasks.domain.vectors import Embedder, Matrix

#: The score below zero, so that the best sorts first; the document id, which decides ties; the row's ``_id``.
_Ranked = tuple[float, str, Any]
#: A question is asked again, by a chat that refines it and by people who reload: its vector is kept.
_KEPT_QUESTIONS = 2_000
_VOCABULARY_KEPT_S = 60.0
_IDENTIFIERS = frozenset({"hash", "address", "short", "facts.from", "facts.to"})


@dataclass(frozen=True, slots=True)
class Hit:
    """One document that answers.

    ``score`` is as MongoDB counts it, 0 to 1: half of one plus the cosine (``search`` tells the cosine itself). What is
    found by an identifier, or by conditions that left nothing to search for, has 1. ``lineage`` says what made it.
    ``folded`` are the ids of further documents that say the same, and ``folded_sources`` their records'.
    """

    document_id: str
    source_type: str
    source_id: str
    score: float
    content: str
    metadata: dict[str, Any]
    lineage: dict[str, Any]
    site_id: str = ""
    summary: str = ""
    folded: tuple[str, ...] = ()
    folded_sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What was found, best first, and why. ``fitting`` documents met the conditions, of which the best are ``hits``.

    ``notes`` say what could not be done as it should, such as a search by words alone.
    """

    hits: tuple[Hit, ...]
    understood: Understood
    fitting: int
    generation: str
    notes: tuple[str, ...] = ()


class Reranker(Protocol):
    """Puts hits that were found into another order, by a model that reads question and text together.

    The default is none: on the questions that are measured, fusion leaves little to gain.
    """

    def rerank(self, question: str, hits: Sequence[Hit]) -> Sequence[Hit]:
        """Return the hits, best first; what is left out is not shown. After a ``PipelineError`` the order stays."""
        ...


class Retriever:
    """Answers questions from an index and its store. Safe to share between threads."""

    def __init__(
        self,
        engines: Engines,
        vectors: VectorStore,
        embedders: Embedders,
        *,
        reranker: Reranker | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engines, self._vectors, self._embedders = engines, vectors, embedders
        self._reranker, self._clock = reranker, clock
        self._lock = threading.Lock()
        # More at once than there are cores would only take the interpreter from each other, call by call.
        self._ranking = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._asked: OrderedDict[tuple[str, int, str], Matrix] = OrderedDict()
        self._vocabularies: dict[tuple[str, Tenant], tuple[float, Vocabulary]] = {}
        self._stores: dict[str, tuple[VectorStore, Embedder]] = {}

    def retrieve(
        self,
        question: str,
        tenant: Tenant,
        *,
        limit: int,
        min_score: float = 0.0,
        where: Filter = Filter(),  # noqa: B008 - frozen
    ) -> Retrieval:
        """Return the best documents, at most ``limit``, none below ``min_score``; ``where`` holds beside the question.

        Where the embedder does not answer, words alone decide, and a note says so. Raises ``PipelineError`` where the
        store does not answer.
        """
        began = time.monotonic()
        try:
            found, cached = self._retrieve(question, tenant, limit, min_score, where)
        except PipelineError as error:
            _count(began, 1, error=type(error).__name__)
            raise
        best = found.hits[0].score if found.hits else None
        _count(began, 1, results=len(found.hits), score=best, cached=cached)
        return found

    def understand(self, question: str, tenant: Tenant) -> Understood:
        """Return how a question is read. Raises ``PipelineError`` where the store does not answer."""
        return self._understand(self._engines.live(), question, tenant)

    def _understand(self, engine: Engine[Any], question: str, tenant: Tenant) -> Understood:
        return understand(question, self._vocabulary(engine, tenant), now=self._clock())

    def _retrieve(
        self, question: str, tenant: Tenant, limit: int, min_score: float, where: Filter
    ) -> tuple[Retrieval, bool]:
        engine = self._engines.live()
        understood = self._understand(engine, question, tenant)
        store, embedder = self._store(engine.generation)
        notes: tuple[str, ...] = ()
        asked, cached = None, False
        try:
            asked, cached = self._embed(embedder, understood.text)
        except (TransientError, QuotaSpentError) as error:
            notes = (f"the embedder does not answer, so only words were compared: {type(error).__name__}",)
        with self._ranking:
            ranking = rank(engine, tenant, understood, asked, where=where)
        identified = any(one.field in _IDENTIFIERS for one in understood.where.any_of)
        exact = identified or not understood.words
        hits = self._read(store, tenant, ranking.best, asked, limit, 0.0 if exact else min_score, exact=exact)
        if self._reranker is not None:
            try:
                hits = list(self._reranker.rerank(question, hits))
            except PipelineError as error:
                notes = (*notes, f"the order is that of the search: the reranker failed with {type(error).__name__}")
        return Retrieval(tuple(hits), understood, ranking.fitting, engine.generation, notes), cached

    def _read(
        self,
        store: VectorStore,
        tenant: Tenant,
        folded: Sequence[tuple[Ranked, list[Ranked]]],
        asked: Matrix | None,
        limit: int,
        min_score: float,
        *,
        exact: bool,
    ) -> list[Hit]:
        """Return hits as the store has them now; twice as many are read as are wanted, because texts repeat."""
        hits: dict[str, Hit] = {}
        for start in range(0, len(folded), 2 * limit):
            some = folded[start : start + 2 * limit]
            rows = store.read_documents([one.row_id for one, _ in some], within=tenant.criteria(), with_vectors=True)
            for one, others in some:
                row = rows.get(one.row_id)
                if row is None:
                    continue
                hit = hit_of(row, 1.0 if exact else _similarity(row, asked), others)
                if hit.score < min_score:
                    continue
                same = hits.get(hit.content)
                if same is None:
                    hits[hit.content] = hit
                else:
                    hits[hit.content] = replace(
                        same,
                        folded=(*same.folded, hit.document_id, *hit.folded),
                        folded_sources=(*same.folded_sources, hit.source_id),
                    )
            if len(hits) >= limit:
                break
        return list(hits.values())[:limit]

    def _store(self, generation: str) -> tuple[VectorStore, Embedder]:
        with self._lock:
            found = self._stores.get(generation)
        if found is None:
            store = self._vectors.at(generation)
            found = store, self._embedders.of(store)
            with self._lock:
                self._stores[generation] = found
        return found

    def _embed(self, embedder: Embedder, text: str) -> tuple[Matrix, bool]:
        key = (embedder.facts.model, embedder.facts.dimensions, text)
        with self._lock:
            if key in self._asked:
                self._asked.move_to_end(key)
                return self._asked[key], True
        vector = embedder.embed_query(text)
        with self._lock:
            self._asked[key] = vector
            while len(self._asked) > _KEPT_QUESTIONS:
                self._asked.popitem(last=False)
        return vector, False

    def _vocabulary(self, engine: Engine[Any], tenant: Tenant) -> Vocabulary:
        key, now = (engine.generation, tenant), time.monotonic()
        with self._lock:
            kept = self._vocabularies.get(key)
        if kept is not None and now - kept[0] < _VOCABULARY_KEPT_S:
            return kept[1]
        made = Vocabulary.of(
            tokens=engine.values(tenant, "token"), contracts=engine.values(tenant, "facts.contractName")
        )
        with self._lock:
            if len(self._vocabularies) > _KEPT_QUESTIONS:
                self._vocabularies.clear()
            self._vocabularies[key] = (now, made)
        return made


def explain(readings: Sequence[Reading]) -> list[dict[str, str]]:
    """Return the readings of a question as plain values."""
    return [{"words": one.words, "meaning": one.meaning} for one in readings]


def _similarity(row: Mapping[str, Any], asked: Matrix | None) -> float:
    """Return the score; a half where nothing could be compared."""
    if asked is None:
        return 0.5
    return round((1.0 + float(read_vector(row["embedding"]) @ asked)) / 2, SCORE_DIGITS)


def hit_of(row: Mapping[str, Any], score: float, others: Sequence[Ranked] = ()) -> Hit:
    """Return a stored document as one that was found, with those that say the same."""
    return Hit(
        document_id=row["documentId"],
        source_type=row["sourceType"],
        source_id=str(row["sourceId"]),
        score=score,
        content=row["content"],
        metadata=row["metadata"],
        lineage=row.get("lineage") or {},
        site_id=row["siteId"],
        summary=row.get("summary") or "",
        folded=tuple(one.document_id for one in others),
    )


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
        scores = np.round(asked @ matrix.T, SCORE_DIGITS)
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
        hit_of(document, round(-negative_score, SCORE_DIGITS), ())
        for negative_score, _, row_id in found
        if (document := documents.get(row_id)) is not None
    ]
