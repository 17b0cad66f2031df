"""View: the segments of an index at one moment, searched together; an ``Engine``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tasks.domain.retrieval.engine import SCORE_DIGITS, Ranked
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.nearness import Positions, Scores, find_nearest
from tasks.domain.retrieval.segments import Mask, Segment, WordStatistics
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.vectors import Matrix


@dataclass(frozen=True, eq=False)
class LivingSegment:
    """A segment, with which of its documents are alive."""

    segment: Segment
    alive: Mask

    @cached_property
    def living(self) -> int:
        """Return how many of them are."""
        return int(np.count_nonzero(self.alive))


@dataclass(frozen=True, slots=True)
class ChosenPart:
    """Documents of one segment: those that the tenant may see, and of them those that fit."""

    segment: Segment
    seen: Mask
    fitting: Mask


@dataclass(frozen=True, eq=False)
class Choice:
    """Documents by segment."""

    parts: tuple[ChosenPart, ...]

    @cached_property
    def _length(self) -> int:
        return sum(int(np.count_nonzero(part.fitting)) for part in self.parts)

    def __len__(self) -> int:
        return self._length


@dataclass(frozen=True, eq=False)
class SegmentsView:
    """Searches segments together, exactly but for ``find_nearest``. ``generation`` is what it says it is of."""

    generation: str
    parts: tuple[LivingSegment, ...] = ()

    def __len__(self) -> int:
        return sum(one.living for one in self.parts)

    def choose(self, tenant: Tenant, where: Filter) -> Choice:
        """Return the documents that the tenant may see and that fit."""
        bounds = tenant.filter()
        chosen = []
        for one in self.parts:
            seen = one.segment.choose(bounds, one.alive)
            if seen is one.alive or seen.any():
                chosen.append(ChosenPart(one.segment, seen, one.segment.choose(where, seen)))
        return Choice(tuple(chosen))

    def narrow(self, chosen: Choice, where: Filter) -> Choice:
        """Return those of the chosen documents that fit as well."""
        return Choice(tuple(replace(one, fitting=one.segment.choose(where, one.fitting)) for one in chosen.parts))

    def nearest(self, chosen: Choice, asked: Matrix, limit: int) -> list[Ranked]:
        """Return the chosen documents of greatest cosine."""
        found = find_nearest([one.segment.part(one.fitting) for one in chosen.parts], asked, limit)
        return _best_of(
            ((one.segment, *scored) for one, scored in zip(chosen.parts, found, strict=True)),
            limit,
        )

    def by_words(self, chosen: Choice, weights: Mapping[str, float], limit: int) -> list[Ranked]:
        """Return the chosen documents by BM25."""
        known = WordStatistics(0, 0, {})
        for one in chosen.parts:
            known += one.segment.word_statistics(weights, one.seen)
        return _best_of(
            ((one.segment, *one.segment.by_words(one.fitting, weights, known)) for one in chosen.parts), limit
        )

    def first(self, chosen: Choice, limit: int) -> list[Ranked]:
        """Return chosen documents by their ids."""
        parts = ((one.segment, np.flatnonzero(one.fitting)) for one in chosen.parts)
        return _best_of(
            ((segment, positions, np.zeros(len(positions), np.float32)) for segment, positions in parts), limit
        )

    def values(self, tenant: Tenant, field: str) -> Mapping[str, int]:
        """Return the values of a field of the catalogue with the number of the tenant's documents."""
        counts: dict[str, int] = {}
        for one in self.choose(tenant, Filter()).parts:
            teams = one.segment.catalogue.get(field, {})
            known = teams.values() if tenant.team_id is None else [teams.get(tenant.team_id, [])]
            for value in {value for values in known for value in values}:
                number = int(np.count_nonzero(one.seen[one.segment.having(f"{field}={value}")]))
                if number:
                    counts[value] = counts.get(value, 0) + number
        return counts


def _best_of(parts: Iterable[tuple[Segment, Positions, Scores]], limit: int) -> list[Ranked]:
    """Return the best documents of several segments; scores are rounded, and equal ones go by their document ids."""
    found: list[tuple[float, str, Segment, int]] = []
    for segment, positions, scores in parts:
        rounded = np.round(scores, SCORE_DIGITS)
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
