"""A library in memory: the stored documents of the golden set, as one tenant may see them, chosen as an index does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from bson import ObjectId

from tasks.domain.retrieval.entries import make_entry
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.memory import MemoryEngine
from tasks.domain.retrieval.tenants import Tenant
from tests.questions.test_questions import stored

Stored = Mapping[str, Any]


@dataclass(frozen=True)
class MemoryLibrary:
    """Finds documents by the filters of the search index; they have no vectors that say anything."""

    engine: MemoryEngine
    rows: Mapping[Any, Stored]
    tenant: Tenant

    @property
    def site_id(self) -> str | None:
        return self.tenant.site_id

    def count(self, where: Filter) -> int:
        return len(self.engine.choose(self.tenant, where))

    def find(self, where: Filter, limit: int) -> Sequence[Stored]:
        found = self.engine.first(self.engine.choose(self.tenant, where), limit)
        return [self.rows[one.row_id] for one in found]


@cache
def golden_engine() -> tuple[MemoryEngine, Mapping[Any, Stored]]:
    rows = [{"_id": ObjectId(), **row} for row in stored()]
    engine = MemoryEngine.of([make_entry(row) for row in rows], np.ones((len(rows), 1), dtype=np.float32))
    return engine, {row["_id"]: row for row in rows}


def golden_library(team_id: str | None, site_id: str | None = None) -> MemoryLibrary:
    """Return the library of a team, and of one of its websites."""
    engine, rows = golden_engine()
    return MemoryLibrary(engine, rows, Tenant(team_id, site_id))
