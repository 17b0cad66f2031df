"""An engine over one segment in memory: for evaluations, and for tests that compare with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.domain.retrieval.engine import Ranked
from tasks.domain.retrieval.entries import Entry
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.nearness import Positions, Scores, find_nearest
from tasks.domain.retrieval.segments import Mask, Segment
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
        seen = self._segment.choose(tenant.filter(), np.ones(len(self._segment), dtype=np.bool_))
        return ChosenMask(seen, self._segment.choose(where, seen))

    def nearest(self, chosen: ChosenMask, asked: Matrix, limit: int) -> list[Ranked]:
        """Return the chosen documents of greatest cosine."""
        ((positions, scores),) = find_nearest([self._segment.part(chosen.fitting)], asked, limit)
        return best_of([(self._segment, positions, scores)], limit)

    def by_words(self, chosen: ChosenMask, weights: Mapping[str, float], limit: int) -> list[Ranked]:
        """Return the chosen documents by BM25."""
        known = self._segment.word_statistics(weights, chosen.seen)
        return best_of([(self._segment, *self._segment.by_words(chosen.fitting, weights, known))], limit)

    def first(self, chosen: ChosenMask, limit: int) -> list[Ranked]:
        """Return chosen documents by their ids."""
        positions = np.flatnonzero(chosen.fitting)
        return best_of([(self._segment, positions, np.zeros(len(positions), dtype=np.float32))], limit)

    def values(self, tenant: Tenant, field: str) -> Mapping[str, int]:
        """Return the values of a field with the number of the tenant's documents."""
        if (tenant, field) not in self._values:
            seen = self._segment.choose(tenant.filter(), np.ones(len(self._segment), dtype=np.bool_))
            self._values[tenant, field] = count_values([(self._segment, seen)], tenant, field)
        return self._values[tenant, field]


def best_of(parts: Iterable[tuple[Segment, Positions, Scores]], limit: int) -> list[Ranked]:
    """Return the best documents of several segments; scores are rounded, and equal ones go by their document ids."""
    found: list[tuple[float, str, Segment, int]] = []
    for segment, positions, scores in parts:
        rounded = np.round(scores, _DIGITS)
        if len(rounded) > limit:
            last = np.partition(rounded, len(rounded) - limit)[len(rounded) - limit]
            above = np.flatnonzero(rounded > last)
            # Positions are in the order of ids, so of those that tie with the last place the first have it.
            tied = np.flatnonzero(rounded == last)
            tied = tied[np.argsort(positions[tied], kind="stable")][: limit - len(above)]
            chosen = np.concatenate([above, tied])
            positions, rounded = positions[chosen], rounded[chosen]
        found.extend(
            (-float(score), segment.document_id(int(position)), segment, int(position))
            for score, position in zip(rounded, positions, strict=True)
        )
    found.sort(key=lambda one: one[:2])
    return [
        Ranked(-negative, document_id, segment.row_id(position), int(segment.folds[position]))
        for negative, document_id, segment, position in found[:limit]
    ]


def count_values(parts: Iterable[tuple[Segment, Mask]], tenant: Tenant, field: str) -> dict[str, int]:
    """Return how many of the documents that a tenant sees have each value of a field of the catalogue."""
    counts: dict[str, int] = {}
    for segment, seen in parts:
        teams = segment.catalogue.get(field, {})
        chosen = teams.values() if tenant.team_id is None else [teams.get(tenant.team_id, [])]
        for value in {value for values in chosen for value in values}:
            number = int(np.count_nonzero(seen[segment.having(f"{field}={value}")]))
            if number:
                counts[value] = counts.get(value, 0) + number
    return counts
