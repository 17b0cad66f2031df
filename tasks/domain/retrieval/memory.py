"""An engine over one segment in memory: for evaluations, and for tests that compare with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.domain.retrieval.engine import Ranked
from tasks.domain.retrieval.entries import Entry
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.segments import Mask, Positions, Scores, Segment
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.vectors import Matrix

#: A score is float32: more digits say nothing, and would rank equal texts by chance.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ChosenMask:
    """Documents of one segment: those that the tenant may see, and of them those that fit."""

    seen: Mask
    fitting: Mask

    def __len__(self) -> int:
        return int(np.count_nonzero(self.fitting))


@dataclass(slots=True)
class MemoryEngine:
    """Searches entries with their vectors, exactly. ``generation`` is what it says it is of."""

    entries: Sequence[Entry]
    vectors: Matrix
    generation: str = "first"
    _segment: Segment = field(init=False)
    _values: dict[tuple[Tenant, str], dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._segment = Segment.build(self.entries, self.vectors)

    def choose(self, tenant: Tenant, where: Filter) -> ChosenMask:
        """Return the documents that the tenant may see and that fit."""
        seen = self._segment.choose(tenant.filter())
        return ChosenMask(seen, self._segment.choose(where, among=seen))

    def nearest(self, chosen: ChosenMask, asked: Matrix, limit: int) -> list[Ranked]:
        """Return the chosen documents of greatest cosine."""
        return self._best(*self._segment.nearest(chosen.fitting, asked), limit)

    def by_words(self, chosen: ChosenMask, weights: Mapping[str, float], limit: int) -> list[Ranked]:
        """Return the chosen documents by BM25."""
        known = self._segment.word_statistics(weights, chosen.seen)
        return self._best(*self._segment.by_words(chosen.fitting, weights, known), limit)

    def first(self, chosen: ChosenMask, limit: int) -> list[Ranked]:
        """Return chosen documents by their ids."""
        positions = np.flatnonzero(chosen.fitting)
        return self._best(positions, np.zeros(len(positions), dtype=np.float32), limit)

    def values(self, tenant: Tenant, field: str) -> Mapping[str, int]:
        """Return the values of a field with the number of the tenant's documents."""
        if (tenant, field) not in self._values:
            counts: dict[str, int] = {}
            seen, prefix = self._segment.choose(tenant.filter()), f"{field}="
            for position in np.flatnonzero(seen):
                for term in self.entries[int(position)].terms:
                    if term.startswith(prefix):
                        value = term.removeprefix(prefix)
                        counts[value] = counts.get(value, 0) + 1
            self._values[tenant, field] = counts
        return self._values[tenant, field]

    def _best(self, positions: Positions, scores: Scores, limit: int) -> list[Ranked]:
        scores = np.round(scores, _DIGITS)
        if len(scores) > limit:
            # All that tie with the last place are looked at, and the smaller document id takes it.
            keep = scores >= np.partition(scores, len(scores) - limit)[len(scores) - limit]
            positions, scores = positions[keep], scores[keep]
        segment = self._segment
        order = sorted(
            (-float(score), segment.document_ids[int(position)], int(position))
            for score, position in zip(scores, positions, strict=True)
        )
        return [
            Ranked(-negative, document_id, segment.row_ids[position], int(segment.folds[position]))
            for negative, document_id, position in order[:limit]
        ]
