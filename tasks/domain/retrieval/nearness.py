"""Nearness: which vectors lie nearest to one, exactly where they are few, and by their signs first where they are many.

A million vectors of 1536 numbers are 6 GB, of which a question would read every byte. Their signs are a thirty-second
of that: those whose signs differ least from the question's are found first, and of these the exact cosine decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.domain.vectors import Matrix

Signs = NDArray[np.uint8]
Positions = NDArray[np.int64]
Scores = NDArray[np.float32]
#: So many numbers are multiplied as fast as their signs are compared and the best ones read.
_EXACT_UP_TO = 16_000_000
#: How many vectors of 1536 numbers are compared exactly. Fewer numbers say less by their signs, by the square.
_DEPTH, _DIMENSIONS = 400, 1536


class Part(NamedTuple):
    """Vectors with their signs, of which those at ``positions`` are looked at, in ascending order; None: all."""

    vectors: Matrix
    signs: Signs
    positions: Positions | None

    @property
    def size(self) -> int:
        """Return how many are looked at."""
        return len(self.vectors) if self.positions is None else len(self.positions)


def pack_signs(vectors: Matrix) -> Signs:
    """Return a bit for each number: 1 where it is above zero; eight to a byte."""
    return np.packbits(vectors > 0, axis=1)


def find_nearest(parts: Sequence[Part], asked: Matrix, limit: int) -> list[tuple[Positions, Scores]]:
    """Return for each part the positions and cosines of those that may be among the best ``limit`` of all parts.

    All of them where they are few; else of those whose signs differ least, so that a vector whose signs mislead can be
    missed: ``make bench-search`` measures how often.
    """
    dimensions = len(asked)
    if sum(part.size for part in parts) * dimensions <= _EXACT_UP_TO:
        return [_cosines(part, asked) for part in parts]
    scale = max(1.0, _DIMENSIONS / dimensions)
    depth = round(max(_DEPTH, 2 * limit) * scale * scale)
    signs = np.packbits(asked > 0)[None, :]
    found = [_by_signs(part, signs, depth) for part in parts]
    distances = np.concatenate([distance for _, distance in found])
    last = int(np.partition(distances, depth - 1)[depth - 1]) if len(distances) > depth else None
    return [
        _cosines(part._replace(positions=positions if last is None else np.sort(positions[distance <= last])), asked)
        for part, (positions, distance) in zip(parts, found, strict=True)
    ]


def _by_signs(part: Part, asked: Signs, depth: int) -> tuple[Positions, NDArray[np.int32]]:
    import faiss  # a quarter of a second that short commands need not wait for

    signs = part.signs if part.positions is None else part.signs[part.positions]
    if not len(signs):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
    faiss.omp_set_num_threads(1)  # of the calling thread: others answer other questions meanwhile
    distances, nearest = faiss.knn_hamming(asked, np.ascontiguousarray(signs), min(depth, len(signs)))
    return (nearest[0] if part.positions is None else part.positions[nearest[0]]), distances[0]


def _cosines(part: Part, asked: Matrix) -> tuple[Positions, Scores]:
    if part.positions is None:
        return np.arange(len(part.vectors)), part.vectors @ asked
    return part.positions, part.vectors[part.positions] @ asked
