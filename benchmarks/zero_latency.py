"""An embedder without latency: rows that look random, made from the text alone, in the process that asks.

A text has the same vector in every run. Imports nothing but numpy, so that a script that uses it pays for no more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 1536
#: Rows are sums of two windows of one table: some 10^10 different ones, and no database compresses them.
_TABLE = np.random.Generator(np.random.SFC64(1)).standard_normal(1 << 18, dtype=np.float32)


def random_vectors(texts: Sequence[str], dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Return a row per text; a few microseconds each. Rows are not normalised."""
    rows = np.empty((len(texts), dimensions), dtype=np.float32)
    starts = len(_TABLE) - dimensions
    for row, text in zip(rows, texts, strict=True):
        number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        first, second = number % starts, (number >> 32) % starts
        np.add(_TABLE[first : first + dimensions], _TABLE[second : second + dimensions], out=row)
    return rows


class Embedder:
    """Counts what it is asked for and the CPU seconds it takes itself, so that a measurement can leave them out."""

    def __init__(self) -> None:
        self.texts = 0
        self.cpu_s = 0.0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a row per text."""
        began = time.thread_time()
        rows = random_vectors(texts)
        self.texts += len(texts)
        self.cpu_s += time.thread_time() - began
        return rows

    def embed_as_lists(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a list of numbers per text, as Google's clients do."""
        began = time.thread_time()
        rows: list[list[float]] = random_vectors(texts).tolist()
        self.texts += len(texts)
        self.cpu_s += time.thread_time() - began
        return rows
