"""Answer: a question for figures, from the documents that the asker may see: exact, cited, or refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from blocks.vector_store import VectorStore
from tasks.domain.answers.answering import answer_figures, find_subjects
from tasks.domain.answers.asking import ALL_TIME_SPAN, Span
from tasks.domain.answers.model import FigureAnswer, Refusal
from tasks.domain.answers.overviews import Overview, make_overview
from tasks.domain.answers.subjects import Subject
from tasks.domain.retrieval.engine import Engine, Engines
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.retrieval.understanding import Understood

#: New websites, contracts and campaigns are known by their names after so long.
_SUBJECTS_KEPT_S = 60.0
_MOST_KEPT = 2_000


@dataclass(frozen=True, slots=True)
class StoreLibrary:
    """One tenant's documents: chosen by an index, and read from the store under the tenant's filter once more."""

    engine: Engine[Any]
    store: VectorStore
    tenant: Tenant

    @property
    def site_id(self) -> str | None:
        """Return the website that the tenant is bound to."""
        return self.tenant.site_id

    def count(self, where: Filter) -> int:
        """Return how many documents fit."""
        return len(self.engine.choose(self.tenant, where))

    def find(self, where: Filter, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return documents that fit, by their ids, without texts and vectors."""
        chosen = self.engine.first(self.engine.choose(self.tenant, where), limit)
        rows = self.store.read_facts([one.row_id for one in chosen], within=self.tenant.criteria())
        return [rows[one.row_id] for one in chosen if one.row_id in rows]


class Answerer:
    """Answers questions for figures. Safe to share between threads."""

    def __init__(
        self,
        engines: Engines,
        vectors: VectorStore,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engines, self._vectors, self._clock = engines, vectors, clock
        self._lock = threading.Lock()
        self._subjects: dict[tuple[str, Tenant], tuple[float, list[Subject]]] = {}

    def open(self, tenant: Tenant) -> StoreLibrary:
        """Return the tenant's documents in the generation that is live now. Errors are the store's."""
        engine = self._engines.live()
        return StoreLibrary(engine, self._vectors.at(engine.generation), tenant)

    def answer(
        self, understood: Understood, tenant: Tenant, *, over: Span = ALL_TIME_SPAN
    ) -> FigureAnswer | Refusal | None:
        """Return the figures with what they rest on, whole, or why they can't be known; None for other questions.

        A question that names no time is asked ``over`` one.
        Raises ``PipelineError`` where the store does not answer.
        """
        if tenant.team_id is None:
            return None  # figures are a team's: those of all teams together are nobody's
        library = self.open(tenant)
        found = answer_figures(understood, library, now=self._clock(), subjects=self._known(library), over=over)
        if not isinstance(found, FigureAnswer):
            return found
        return replace(found, cited=self._whole(library, found.cited))

    def overview(self, understood: Understood, tenant: Tenant, chosen: Span) -> Overview:
        """Return what a dashboard shows for a question, over ``chosen`` or the time that it names.

        Raises ``PipelineError`` where the store does not answer.
        """
        library = self.open(tenant)
        found = make_overview(understood, library, self._known(library), chosen, now=self._clock())
        return replace(found, cited=self._whole(library, found.cited))

    def _whole(self, library: StoreLibrary, cited: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
        """Return documents with their texts, those that still stand."""
        rows = library.store.read_documents([row["_id"] for row in cited], within=library.tenant.criteria())
        return tuple(rows.get(row["_id"], row) for row in cited)

    def _known(self, library: StoreLibrary) -> list[Subject]:
        key, now = (library.engine.generation, library.tenant), time.monotonic()
        with self._lock:
            kept = self._subjects.get(key)
        if kept is not None and now - kept[0] < _SUBJECTS_KEPT_S:
            return kept[1]
        found = find_subjects(library)
        with self._lock:
            if len(self._subjects) >= _MOST_KEPT:
                self._subjects.clear()
            self._subjects[key] = (now, found)
        return found
