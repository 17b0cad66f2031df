"""Nearness: which vectors lie nearest to one, exactly where they are few, and by a few bits first where they are many.

A million vectors of 1536 numbers are 6 GB, of which a question would read every byte. A thirty-second of that are
their signs. How many signs differ tells the angle between two vectors, give or take: so after an exact look at those
that differ least it is known how many may differ at most in a vector that is nearer still. Where vectors lie in
clusters few are left to look at. Where they don't, their cosines spread as if drawn: so it is known how many of those
that look best by their signs hold the best of all. A second bit of each number orders these, and the best of them are
looked at exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.domain.vectors import Matrix

Signs = NDArray[np.uint8]
Positions = NDArray[np.int64]
Scores = NDArray[np.float32]
_Counts = NDArray[np.int32]
#: So many numbers are multiplied as fast as their signs are compared and the best ones read.
_EXACT_UP_TO = 16_000_000
#: The first exact look is at so many vectors; the last at so many at least.
_FIRST_LOOK, _LAST_LOOK = 200, 800
#: Three standard deviations: one in some seven hundred vectors has signs that mislead more.
_DEVIATIONS = 3.0
#: The question is taken apart into so many signs with a weight each; so many are compared with the second bits.
_PLANES, _FINER_PLANES = 3, 3
#: How a cosine goes with what the signs tell of it, and with what both bits tell, where vectors lie evenly. Of those
#: that are told best, so many are kept as hold the best ten, unless one is misjudged by so many standard deviations.
_TOLD_BY_SIGNS, _TOLD_BY_BOTH = 0.777, 0.91
_SURE_PLACES = 10
#: So many vectors' signs stay in a core's cache while each plane is compared with them.
_CACHED = 4_096
#: Of so many a sample is taken, which has so many at least of those that are kept.
_SAMPLE, _SAMPLED = 20_000, 1_000


class Codes(NamedTuple):
    """Two bits of each number of each vector: its sign, and the sign of what is left; ``scales`` weigh them."""

    signs: Signs
    finer: Signs
    scales: NDArray[np.float32]


class Part(NamedTuple):
    """Vectors with their codes, of which those at ``positions`` are looked at, in ascending order; None: all."""

    vectors: Matrix
    codes: Codes
    positions: Positions | None

    @property
    def size(self) -> int:
        """Return how many are looked at."""
        return len(self.vectors) if self.positions is None else len(self.positions)

    def taken(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the rows that are looked at."""
        return np.ascontiguousarray(array) if self.positions is None else _rows(array, self.positions)


def make_codes(vectors: Matrix) -> Codes:
    """Return the codes of vectors: what ``find_nearest`` looks at first."""
    first = np.abs(vectors).mean(axis=1, dtype=np.float32)
    rest = vectors - np.where(vectors > 0, first[:, None], -first[:, None])
    second = np.abs(rest).mean(axis=1, dtype=np.float32)
    scales = np.stack([first, second], axis=1)
    return Codes(np.packbits(vectors > 0, axis=1), np.packbits(rest > 0, axis=1), scales)


def find_nearest(parts: Sequence[Part], asked: Matrix, limit: int) -> list[tuple[Positions, Scores]]:
    """Return for each part positions and cosines of those that may be among the best ``limit`` of all parts.

    All of them where they are few. Else one can be missed whose bits mislead by more than three standard deviations:
    ``make bench-search`` measures how often.
    """
    dimensions, total = len(asked), sum(part.size for part in parts)
    if total * dimensions <= _EXACT_UP_TO:
        return [_cosines(part, part.positions, asked) for part in parts]
    planes, weights = _take_apart(asked)
    signs = [part.taken(part.codes.signs) for part in parts]
    differing = [_differing(each, planes) for each in signs]
    counts = sum((np.bincount(each[0], minlength=dimensions + 1) for each in differing), np.zeros(dimensions + 1, int))
    reached = np.cumsum(counts)
    first = int(np.searchsorted(reached, min(total, max(_FIRST_LOOK, 2 * limit))))
    found = [_within(part, each[0] <= first, asked) for part, each in zip(parts, differing, strict=True)]
    cosines = np.concatenate([scores for _, scores in found])
    last = float(np.partition(cosines, len(cosines) - limit)[len(cosines) - limit])
    share = float(np.arccos(np.clip(last, -1, 1)) / np.pi)
    most = int(dimensions * share + _DEVIATIONS * np.sqrt(dimensions * share * (1 - share)))
    if most <= first:
        return found
    if int(reached[min(most, dimensions)]) <= _kept(_TOLD_BY_BOTH, total, limit):
        return [_within(part, each[0] <= most, asked) for part, each in zip(parts, differing, strict=True)]
    return _by_both_bits(parts, differing, planes, weights, asked, limit)


def _by_both_bits(
    parts: Sequence[Part],
    differing: Sequence[_Counts],
    planes: Signs,
    weights: NDArray[np.float32],
    asked: Matrix,
    limit: int,
) -> list[tuple[Positions, Scores]]:
    total = sum(part.size for part in parts)
    by_signs = [_along(each, weights, asked) for each in differing]
    chosen = _best(by_signs, _kept(_TOLD_BY_SIGNS, total, limit))
    places = [
        here if part.positions is None else part.positions[here] for part, here in zip(parts, chosen, strict=True)
    ]
    by_both: list[Scores] = []
    for part, here, rows, score in zip(parts, chosen, places, by_signs, strict=True):
        finer = _differing(_rows(part.codes.finer, rows), planes[:_FINER_PLANES])
        scales = _rows(part.codes.scales, rows)
        estimate: Scores = scales[:, 0] * score[here]
        estimate += scales[:, 1] * _along(finer, weights, asked)
        by_both.append(estimate)
    last = _best(by_both, _kept(_TOLD_BY_BOTH, total, limit))
    return [_cosines(part, rows[some], asked) for part, rows, some in zip(parts, places, last, strict=True)]


def _take_apart(asked: Matrix) -> tuple[Signs, NDArray[np.float32]]:
    """Return signs and weights that add up to nearly the question: each plane is the signs of what the others leave."""
    rest, planes, weights = asked.astype(np.float32), [], []
    for _ in range(_PLANES):
        weight = np.float32(np.abs(rest).mean())
        planes.append(np.packbits(rest > 0))
        weights.append(weight)
        rest = rest - np.where(rest > 0, weight, -weight)
    return np.stack(planes), np.array(weights, dtype=np.float32)


def _differing(signs: Signs, planes: Signs) -> _Counts:
    """Return how many bits of each vector differ from each plane; shape ``(planes, vectors)``."""
    import faiss  # a quarter of a second that short commands need not wait for

    faiss.omp_set_num_threads(1)  # of the calling thread: others answer other questions meanwhile
    count: Any = faiss.hammings  # type: ignore[attr-defined]  # of the C++ below the package's Python
    found = np.empty((len(planes), len(signs)), dtype=np.int32)
    for start in range(0, len(signs), _CACHED):
        some = signs[start : start + _CACHED]
        for plane, counts in zip(planes, found, strict=True):
            pointers = (faiss.swig_ptr(plane), faiss.swig_ptr(some))
            count(*pointers, 1, len(some), some.shape[1], faiss.swig_ptr(counts[start:]))
    return found


def _along(differing: _Counts, weights: NDArray[np.float32], asked: Matrix) -> Scores:
    """Return how far signs lie along the question, of which each plane is a part."""
    found = np.full(differing.shape[1], len(asked) * weights[: len(differing)].sum(), dtype=np.float32)
    for counts, weight in zip(differing, weights, strict=False):
        found -= np.multiply(counts, 2 * weight, dtype=np.float32)
    return found


def _kept(told: float, total: int, limit: int) -> int:
    """Return how many of the best estimates hold the best of all, where cosines are as if drawn."""
    normal = NormalDist()
    best = normal.inv_cdf(1 - min(limit, _SURE_PLACES) / (total + 1))
    share = 1 - normal.cdf(told * best - _DEVIATIONS * math.sqrt(1 - told * told))
    return max(round(share * total), _LAST_LOOK, 4 * limit)


def _best(scores: Sequence[Scores], wanted: int) -> list[Positions]:
    """Return the places of about so many of the greatest, of several arrays together."""
    total = sum(map(len, scores))
    if total <= wanted:
        return [np.arange(len(each)) for each in scores]
    # Where the best of many begin, is told well enough by a sample.
    step = max(1, min(total // _SAMPLE, wanted // _SAMPLED))
    sample = np.concatenate([each[::step] for each in scores])
    place = max(0, len(sample) - wanted // step - 1)
    last = np.partition(sample, place)[place]
    return [np.flatnonzero(each >= last) for each in scores]


def _rows(array: NDArray[Any], positions: Positions) -> NDArray[Any]:
    return np.asarray(array).take(positions, axis=0, mode="clip")


def _within(part: Part, near: NDArray[np.bool_], asked: Matrix) -> tuple[Positions, Scores]:
    here = np.flatnonzero(near)
    return _cosines(part, here if part.positions is None else part.positions[here], asked)


def _cosines(part: Part, positions: Positions | None, asked: Matrix) -> tuple[Positions, Scores]:
    if positions is None:
        return np.arange(len(part.vectors)), part.vectors @ asked
    return positions, _rows(part.vectors, positions) @ asked
