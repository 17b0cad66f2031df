"""Segment: entries and vectors that are searched together, in arrays that can lie in memory or in mapped files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.domain.retrieval.entries import Entry
from tasks.domain.retrieval.filters import NUMBER_FIELDS, Filter
from tasks.domain.vectors import Matrix

#: BM25 as Lucene has it.
K1, B = 1.2, 0.75

Mask = NDArray[np.bool_]
Positions = NDArray[np.int64]
Scores = NDArray[np.float32]
_WORD_PREFIX = "\0"


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """How many documents of the asked tenant there are, how long they are together, and how many have each word."""

    documents: int
    length: int
    having: Mapping[str, int]

    def __add__(self, other: WordStatistics) -> WordStatistics:
        """Return those of two segments together."""
        words = {*self.having, *other.having}
        having = {word: self.having.get(word, 0) + other.having.get(word, 0) for word in words}
        return WordStatistics(self.documents + other.documents, self.length + other.length, having)


@dataclass(frozen=True, slots=True)
class Postings:
    """Which documents have a term and how often: ``hashes`` sorted, each with ``positions[starts[i]:starts[i+1]]``."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    positions: NDArray[np.uint32]
    counts: NDArray[np.uint8]

    @classmethod
    def build(cls, entries: Iterable[Entry]) -> Postings:
        """Return the postings of entries, words and exact terms together."""
        hashes: list[int] = []
        positions: list[int] = []
        counts: list[int] = []
        for position, entry in enumerate(entries):
            found = {_hash(term): 1 for term in entry.terms}
            for word in entry.words:
                key = _hash(_WORD_PREFIX + word)
                found[key] = min(255, found.get(key, 0) + 1)
            hashes.extend(found)
            counts.extend(found.values())
            positions.extend([position] * len(found))
        keys = np.array(hashes, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        unique, first = np.unique(keys[order], return_index=True)
        return cls(
            unique,
            np.append(first, len(keys)).astype(np.int64),
            np.array(positions, dtype=np.uint32)[order],
            np.array(counts, dtype=np.uint8)[order],
        )

    def find(self, key: int) -> slice:
        """Return where the postings of a term lie."""
        place = int(np.searchsorted(self.hashes, np.uint64(key)))
        if place == len(self.hashes) or int(self.hashes[place]) != key:
            return slice(0, 0)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


@dataclass(slots=True)
class Segment:
    """Documents by position. ``alive`` is False where one was deleted or replaced; all else stays.

    ``vectors`` has one L2-normalised float32 row each, ``numbers`` a row of values for each of ``NUMBER_FIELDS``, NaN
    for none, ``lengths`` the number of words, ``folds`` a hash of what folds documents together.
    """

    vectors: Matrix
    postings: Postings
    numbers: NDArray[np.float64]
    lengths: NDArray[np.uint16]
    folds: NDArray[np.uint64]
    row_ids: Sequence[Any]
    document_ids: Sequence[str]
    alive: Mask

    @classmethod
    def build(cls, entries: Sequence[Entry], vectors: Matrix) -> Segment:
        """Return the segment of these entries; ``vectors`` has a row for each."""
        numbers = np.full((len(NUMBER_FIELDS), len(entries)), np.nan)
        for position, entry in enumerate(entries):
            for row, field in enumerate(NUMBER_FIELDS):
                if field in entry.numbers:
                    numbers[row, position] = entry.numbers[field]
        return cls(
            vectors=vectors,
            postings=Postings.build(entries),
            numbers=numbers,
            lengths=np.array([min(65_535, len(entry.words)) for entry in entries], dtype=np.uint16),
            folds=np.array([_hash(entry.fold) for entry in entries], dtype=np.uint64),
            row_ids=[entry.row_id for entry in entries],
            document_ids=[entry.document_id for entry in entries],
            alive=np.ones(len(entries), dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.alive)

    def choose(self, where: Filter, *, among: Mask | None = None) -> Mask:
        """Return which documents fit; ``among`` those of an earlier choice."""
        chosen = (self.alive if among is None else among).copy()
        for one in where.any_of:
            having = np.zeros(len(chosen), dtype=np.bool_)
            for term in one.terms():
                having[self.postings.positions[self.postings.find(_hash(term))]] = True
            chosen &= ~having if one.negated else having
        for bound in where.between:
            values = self.numbers[NUMBER_FIELDS.index(bound.field)]
            # What is missing is NaN, and compares as False.
            chosen &= values > bound.low if bound.above else values >= bound.low
            chosen &= values < bound.high if bound.below else values <= bound.high
        return chosen

    def nearest(self, chosen: Mask, asked: Matrix) -> tuple[Positions, Scores]:
        """Return the cosine of each chosen document with the question."""
        positions = np.flatnonzero(chosen)
        every = len(positions) == len(chosen)
        return positions, np.asarray((self.vectors if every else self.vectors[positions]) @ asked, dtype=np.float32)

    def word_statistics(self, words: Iterable[str], seen: Mask) -> WordStatistics:
        """Return what BM25 needs to know of the documents that the tenant may see, and of no others."""
        having = {
            word: int(np.count_nonzero(seen[self.postings.positions[self.postings.find(_hash(_WORD_PREFIX + word))]]))
            for word in set(words)
        }
        return WordStatistics(int(np.count_nonzero(seen)), int(self.lengths[seen].sum(dtype=np.int64)), having)

    def by_words(self, chosen: Mask, weights: Mapping[str, float], known: WordStatistics) -> tuple[Positions, Scores]:
        """Return the BM25 score of each chosen document that has one of the words; ``weights`` multiply each word's."""
        scores = np.zeros(len(chosen), dtype=np.float32)
        average = known.length / max(1, known.documents)
        for word, weight in weights.items():
            having = known.having.get(word, 0)
            if not having:
                continue
            place = self.postings.find(_hash(_WORD_PREFIX + word))
            positions = self.postings.positions[place]
            count = self.postings.counts[place].astype(np.float32)
            long = self.lengths[positions].astype(np.float32)
            rarity = np.log1p((known.documents - having + 0.5) / (having + 0.5))
            scores[positions] += weight * rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * long / average))
        found = np.flatnonzero(chosen & (scores > 0))
        return found, scores[found]


@lru_cache(maxsize=262_144)
def _hash(term: str) -> int:
    return int.from_bytes(blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
