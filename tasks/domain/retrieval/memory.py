"""An engine over one segment in memory: for evaluations, and for tests that compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.domain.retrieval.entries import Entry
from tasks.domain.retrieval.segments import Segment
from tasks.domain.retrieval.views import LivingSegment, SegmentsView
from tasks.domain.vectors import Matrix


@dataclass(frozen=True, eq=False)
class MemoryEngine(SegmentsView):
    """Searches these entries, whose vectors are in their order."""

    entries: Sequence[Entry] = ()
    vectors: Matrix | None = None

    @classmethod
    def of(cls, entries: Sequence[Entry], vectors: Matrix) -> MemoryEngine:
        """Return the engine over entries with a vector each."""
        whole = LivingSegment(Segment.build(entries, vectors), np.ones(len(entries), dtype=np.bool_))
        return cls("first", (whole,), entries, vectors)
