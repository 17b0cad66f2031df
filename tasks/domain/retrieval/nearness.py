"""Nearness: which vectors lie nearest to one, exactly where they are few, and by a few bits first where they are many.

A million vectors of 1536 numbers are 6 GB, of which a question would read every byte. A thirty-second of that are
their signs. How many signs differ tells the angle between two vectors, give or take: so after an exact look at those
that differ least it is known how many may differ at most in a vector that is nearer still. Where vectors lie in
clusters few are left to look at. Where they don't, a second bit of each number orders what is left, and the best of
that are looked at exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
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
#: The first exact look is at so many vectors; the last at so many at most.
_FIRST_LOOK, _LAST_LOOK = 400, 2_500
#: Three standard deviations: one in some seven hundred vectors has signs that mislead more.
_DEVIATIONS = 3.0
#: The question is taken apart into so many signs with a weight each, of which two order all vectors.
_PLANES, _FIRST_PLANES = 4, 2
#: What those two leave to be ordered by both bits.
_LEFT = 0.06
_SAMPLE = 20_000


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
        return np.ascontiguousarray(array if self.positions is None else array[self.positions])


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
    differing = [_differing(each, planes[:1])[0] for each in signs]
    counts = sum((np.bincount(each, minlength=dimensions + 1) for each in differing), np.zeros(dimensions + 1, int))
    reached = np.cumsum(counts)
    first = int(np.searchsorted(reached, min(total, max(_FIRST_LOOK, 2 * limit))))
    found = [_within(part, each <= first, asked) for part, each in zip(parts, differing, strict=True)]
    cosines = np.concatenate([scores for _, scores in found])
    last = float(np.partition(cosines, len(cosines) - limit)[len(cosines) - limit])
    share = float(np.arccos(np.clip(last, -1, 1)) / np.pi)
    most = int(dimensions * share + _DEVIATIONS * np.sqrt(dimensions * share * (1 - share)))
    if most <= first:
        return found
    if int(reached[min(most, dimensions)]) <= _LAST_LOOK:
        return [_within(part, each <= most, asked) for part, each in zip(parts, differing, strict=True)]
    return _by_both_bits(parts, signs, differing, planes, weights, asked, limit)


def _by_both_bits(
    parts: Sequence[Part],
    signs: Sequence[Signs],
    differing: Sequence[_Counts],
    planes: Signs,
    weights: NDArray[np.float32],
    asked: Matrix,
    limit: int,
) -> list[tuple[Positions, Scores]]:
    dimensions = len(asked)
    rough = []
    for taken, each in zip(signs, differing, strict=True):
        more = _differing(taken, planes[1:_FIRST_PLANES])
        score = each * np.float32(-2 * weights[0])
        for plane, counts in zip(range(1, _FIRST_PLANES), more, strict=True):
            score += counts * np.float32(-2 * weights[plane])
        rough.append(score)
    wanted = max(_LAST_LOOK, 4 * limit)
    every = np.concatenate(rough)
    if len(every) * _LEFT > wanted:
        # Where the best six in a hundred begin, is told well enough by a sample.
        sample = every[:: max(1, len(every) // _SAMPLE)]
        from_here = np.quantile(sample, 1 - _LEFT)
    else:
        from_here = every.min()
    kept, fine = [], []
    for part, taken, score in zip(parts, signs, rough, strict=True):
        chosen = np.flatnonzero(score >= from_here)
        here = chosen if part.positions is None else part.positions[chosen]
        scales = part.codes.scales[here]
        estimate = np.zeros(len(here), dtype=np.float32)
        for bit, codes in enumerate((taken[chosen], part.codes.finer[here])):
            products = _differing(codes, planes)
            along = (weights[:, None] * (dimensions - 2 * products)).sum(axis=0, dtype=np.float32)
            estimate += scales[:, bit] * along
        kept.append(here)
        fine.append(estimate)
    every = np.concatenate(fine)
    last = np.partition(every, len(every) - wanted)[len(every) - wanted] if len(every) > wanted else every.min()
    return [
        _cosines(part, here[estimate >= last], asked) for part, here, estimate in zip(parts, kept, fine, strict=True)
    ]


def _take_apart(asked: Matrix) -> tuple[Signs, NDArray[np.float32]]:
    """Return signs and weights that add up to nearly the question: each plane is the signs of what the others leave."""
    rest, planes, weights = asked.astype(np.float32), [], []
    for _ in range(_PLANES):
        weight = np.float32(np.abs(rest).mean())
        planes.append(np.packbits(rest > 0))
        weights.append(weight)
        rest = rest - np.where(rest > 0, weight, -weight)
    return np.stack(planes), np.array(weights, dtype=np.float32)


def _differing(signs: Signs, planes: Signs) -> NDArray[np.int32]:
    """Return how many bits of each vector differ from each plane; shape ``(planes, vectors)``."""
    import faiss  # a quarter of a second that short commands need not wait for

    found = np.empty((len(planes), len(signs)), dtype=np.int32)
    if len(signs):
        faiss.omp_set_num_threads(1)  # of the calling thread: others answer other questions meanwhile
        pointers = (faiss.swig_ptr(planes), faiss.swig_ptr(signs))
        count: Any = faiss.hammings  # type: ignore[attr-defined]  # of the C++ below the package's Python
        count(*pointers, len(planes), len(signs), signs.shape[1], faiss.swig_ptr(found))
    return found


def _within(part: Part, near: NDArray[np.bool_], asked: Matrix) -> tuple[Positions, Scores]:
    here = np.flatnonzero(near)
    return _cosines(part, here if part.positions is None else part.positions[here], asked)


def _cosines(part: Part, positions: Positions | None, asked: Matrix) -> tuple[Positions, Scores]:
    if positions is None:
        return np.arange(len(part.vectors)), part.vectors @ asked
    return positions, part.vectors[positions] @ asked
