"""Nearness: the nearest are found among many, drawn without any order; words of a few are found as those of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bson import ObjectId

from tasks.domain.retrieval import nearness
from tasks.domain.retrieval.entries import Entry
from tasks.domain.retrieval.nearness import Codes, Part, find_nearest, make_codes
from tasks.domain.retrieval.segments import Segment
from tasks.domain.vectors import Matrix


def drawn(count: int, dimensions: int, *, seed: int) -> Matrix:
    vectors: Matrix = np.random.default_rng(seed).standard_normal((count, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def nearest_ten(parts: list[Part], asked: Matrix) -> set[tuple[int, int]]:
    found = [
        (-float(score), number, int(place))
        for number, (places, scores) in enumerate(find_nearest(parts, asked, 10))
        for place, score in zip(places, scores, strict=True)
    ]
    return {(number, place) for _, number, place in sorted(found)[:10]}


@pytest.mark.parametrize("share", [1, 20])
def test_the_nearest_of_vectors_without_clusters_are_found_without_looking_at_most(
    monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    parts = []
    for number in range(2):
        vectors = drawn(20_000, 128, seed=number)
        codes: Codes = make_codes(vectors)
        positions = None if share == 1 else np.arange(number, len(vectors), share)
        parts.append(Part(vectors, codes, positions))
    looked, right = [], []
    for asked in drawn(40, 128, seed=9):
        with monkeypatch.context() as patched:
            patched.setattr(nearness, "_EXACT_UP_TO", 0)
            mine = nearest_ten(parts, asked)
            looked.append(sum(len(places) for places, _ in find_nearest(parts, asked, 10)))
        with monkeypatch.context() as patched:
            patched.setattr(nearness, "_EXACT_UP_TO", 10**12)
            right.append(len(mine & nearest_ten(parts, asked)) / 10)
    assert np.mean(right) >= 0.995
    assert np.mean(looked) < 0.6 * sum(part.size for part in parts)


def test_words_of_a_few_documents_in_long_lists_score_as_among_all() -> None:
    draw = np.random.default_rng(5)
    words = ["swap", "mint", "pool", "vote"]
    plain = Entry(
        row_id=ObjectId(),
        document_id="",
        terms=frozenset(),
        numbers={},
        words=(),
        fold="",
        state=0,
    )
    entries = [
        replace(
            plain,
            row_id=ObjectId(f"{place:024x}"),
            document_id=f"{place:05}",
            words=tuple(draw.choice(words, size=int(draw.integers(1, 6)))),
        )
        for place in range(2_000)
    ]
    segment = Segment.build(entries, drawn(len(entries), 64, seed=1))
    everything = np.ones(len(segment), dtype=np.bool_)
    known = segment.word_statistics(words, everything)
    weights = {"swap": 1.0, "mint": 2.0, "pool": 0.5, "unheard": 1.0}
    places, scores = segment.by_words(everything, weights, known)
    whole = dict(zip(places.tolist(), scores.tolist(), strict=True))
    for few in (0, 1, 3, 40, 700, 1_999):
        some = np.zeros(len(segment), dtype=np.bool_)
        some[draw.choice(len(segment), few, replace=False)] = True
        mine, alone = segment.by_words(some, weights, known)
        expected = {place: whole[place] for place in np.flatnonzero(some).tolist() if place in whole}
        assert dict(zip(mine.tolist(), alone.tolist(), strict=True)) == expected
        seen = segment.word_statistics(words, some)
        chosen = [entry for entry, one in zip(entries, some, strict=True) if one]
        assert seen.having == {word: sum(word in entry.words for entry in chosen) for word in words}
        assert (seen.documents, seen.length) == (few, sum(len(entry.words) for entry in chosen))
