"""Server search: nearest documents by the server's vector search, where it has one (Atlas, or mongot beside mongod).

Conditions and words stay with the index, which every service has: it says which documents are meant, exactly and as
they are now. The server is asked for neighbours among those that its filter fields tell apart; what it names counts
only where the index agrees. Where few documents are meant, or the server names too few of them, the index compares them
itself, so that the answers are those of a service beside a plain mongod.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import Any

import numpy as np

from blocks.search_index import IndexView
from blocks.vector_store import VectorStore
from tasks.domain.errors import PipelineError
from tasks.domain.retrieval.engine import SCORE_DIGITS, Ranked
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.retrieval.views import Choice
from tasks.domain.vectors import Matrix

_LOGGER = logging.getLogger("cryptique.search")
#: Fewer are compared here, exactly, in less time than a question to the server takes.
_FEW = 5_000
#: What the server compares for each that it returns, and the most that it may: both are its documentation's advice.
_CANDIDATES_EACH = 20
_MOST_CANDIDATES = 10_000
_SOURCE_TYPES = frozenset(
    {"analytics", "transaction", "session", "campaign", "website", "user_journey", "smart_contract"}
)


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """Documents that the index chose, with what chose them."""

    chosen: Choice
    tenant: Tenant
    where: Filter

    def __len__(self) -> int:
        return len(self.chosen)


@dataclass(frozen=True, slots=True)
class ServerView:
    """An engine: the index of a generation, whose neighbours the server finds."""

    index: IndexView
    store: VectorStore

    @property
    def generation(self) -> str:
        """Return the name of the generation that is searched."""
        return self.index.generation

    def choose(self, tenant: Tenant, where: Filter) -> ServerChoice:
        """Return the documents that the tenant may see and that fit."""
        return ServerChoice(self.index.choose(tenant, where), tenant, where)

    def narrow(self, chosen: ServerChoice, where: Filter) -> ServerChoice:
        """Return those of the chosen documents that fit as well."""
        return ServerChoice(self.index.narrow(chosen.chosen, where), chosen.tenant, chosen.where & where)

    def nearest(self, chosen: ServerChoice, asked: Matrix, limit: int) -> list[Ranked]:
        """Return the chosen documents of greatest cosine; a server that fails is not waited for, the index answers."""
        if len(chosen) > _FEW:
            try:
                found = self._of_the_server(chosen, asked, limit)
            except PipelineError as error:
                _LOGGER.warning("the server's vector search failed, and the index answers: %s", error)
                found = []
            if len(found) == min(limit, len(chosen)):
                return found
        return self.index.nearest(chosen.chosen, asked, limit)

    def by_words(self, chosen: ServerChoice, weights: Mapping[str, float], limit: int) -> list[Ranked]:
        """Return the chosen documents by BM25."""
        return self.index.by_words(chosen.chosen, weights, limit)

    def first(self, chosen: ServerChoice, limit: int) -> list[Ranked]:
        """Return chosen documents by their ids."""
        return self.index.first(chosen.chosen, limit)

    def values(self, tenant: Tenant, field: str) -> Mapping[str, int]:
        """Return the values of a field of the catalogue with the number of the tenant's documents."""
        return self.index.values(tenant, field)

    def _of_the_server(self, chosen: ServerChoice, asked: Matrix, limit: int) -> list[Ranked]:
        """Return the best that the server names and the index agrees to, asked for more until there are enough."""
        criteria = {**chosen.tenant.criteria(), **_pushed(chosen.where)}
        wanted = limit
        while True:
            candidates = min(_MOST_CANDIDATES, max(wanted * _CANDIDATES_EACH, wanted))
            rows = self.store.find_nearest(asked, criteria, limit=wanted, candidates=candidates)
            found = self._agreed(chosen, rows)
            if len(found) >= limit or len(rows) < wanted or wanted >= _MOST_CANDIDATES:
                return found[:limit]
            wanted = min(_MOST_CANDIDATES, wanted * 4)

    def _agreed(self, chosen: ServerChoice, rows: list[tuple[Any, float]]) -> list[Ranked]:
        row_ids = np.array([row_id.binary for row_id, _ in rows], dtype="S12")
        found: list[Ranked] = []
        for part in chosen.chosen.parts if rows else ():
            segment = part.segment
            for place, position in enumerate(segment.find_rows(row_ids)):
                if position >= 0 and part.fitting[position]:
                    at = int(position)
                    score = round(rows[place][1], SCORE_DIGITS)
                    found.append(Ranked(score, segment.document_id(at), segment.row_id(at), int(segment.folds[at])))
        return sorted(found, key=lambda one: (-one.score, one.document_id))


def _pushed(where: Filter) -> dict[str, Any]:
    """Return those conditions that the vector index has fields for, as a MongoDB filter; the others are the index's."""
    criteria: dict[str, Any] = {}
    for one in where.any_of:
        if one.field == "source" and not one.negated and _SOURCE_TYPES.issuperset(one.values):
            criteria["sourceType"] = {"$in": list(one.values)}
    for limit in where.between:
        if limit.field not in ("start", "end"):
            continue
        bounds: dict[str, Any] = {}
        if limit.low > -inf:
            bounds["$gt" if limit.above else "$gte"] = datetime.fromtimestamp(limit.low, UTC)
        if limit.high < inf:
            bounds["$lt" if limit.below else "$lte"] = datetime.fromtimestamp(limit.high, UTC)
        if bounds:
            criteria.setdefault(f"metadata.timeframe.{limit.field}", {}).update(bounds)
    return criteria
