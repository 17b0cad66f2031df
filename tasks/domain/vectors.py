"""Vectors: what an embedder promises, how texts are packed into requests, and the check every reply must pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tasks.domain.errors import TransientError

Matrix = NDArray[np.float32]

#: Vectors are compared by cosine; a stored vector's length may differ from 1 by rounding only.
NORM_TOLERANCE = 1e-3
#: Between these lengths single precision divides exactly enough; a real vector's is some ten powers away from both.
_SHORTEST, _LONGEST = 1e-30, 1e30


@dataclass(frozen=True, slots=True)
class EmbedderFacts:
    """What decides a vector beside its text, and what a request may hold and cost.

    ``model``, ``dimensions`` and ``task`` go into every vector's lineage: vectors that differ in one of them
    are never compared. A limit of ``None`` means that the embedder has none.
    """

    model: str
    dimensions: int
    task: str
    max_texts_per_request: int
    max_tokens_per_text: int
    max_tokens_per_request: int | None = None
    texts_per_minute: int | None = None
    tokens_per_minute: int | None = None
    texts_per_day: int | None = None
    usd_per_day: float | None = None
    usd_per_million_tokens: float = 0.0


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors of one model."""

    @property
    def facts(self) -> EmbedderFacts:
        """Return what decides its vectors and bounds its requests. No call leaves the process."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """Return one L2-normalised row per text, in the order of the texts.

        At most ``facts.max_texts_per_request`` texts. Raises ``RecordError`` if the service refuses a text for
        what it says (the caller then halves the batch to find it), ``TransientError`` if the call may work
        later (``ThrottledError`` and ``NotSentError`` where it cost nothing), ``QuotaSpentError`` if it will on
        another day, ``TerminalError`` if it never will (key, model, quota set to zero).
        """
        ...

    def embed_query(self, text: str) -> Matrix:
        """Return the L2-normalised vector of a question, shape ``(dimensions,)``. Errors as above."""
        ...


def checked_vectors(vectors: Sequence[Sequence[float]] | Matrix, *, count: int, dimensions: int) -> Matrix:
    """Return the reply as float32 rows of length 1, shape ``(count, dimensions)``.

    Raises ``TransientError`` if a vector is missing or too many, has another dimension, holds NaN, infinity or
    what is no number, is all zeros or far too long: such a reply is broken, and is asked for again. It is never stored.
    """
    if len(vectors) != count:
        raise TransientError(f"the embedder answered {len(vectors)} vectors for {count} texts")
    try:
        lengths = {len(vector) for vector in vectors}
    except TypeError:
        raise TransientError("the embedder answered something that is no vector") from None
    if lengths - {dimensions}:
        raise TransientError(f"the embedder answered vectors of {sorted(lengths)} dimensions, not {dimensions}")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinity, and is refused below
            matrix = np.asarray(vectors, dtype=np.float32).reshape(count, dimensions)
    except (TypeError, ValueError, OverflowError):
        raise TransientError("the embedder answered a vector that holds something other than numbers") from None
    # Summed in double precision: single precision would overflow, and round the length away.
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    if not (norms < _LONGEST).all():  # nor is NaN
        raise TransientError("the embedder answered a vector that holds NaN or infinity")
    if (norms < _SHORTEST).any():
        raise TransientError("the embedder answered a vector of zeros")
    unit: Matrix = matrix / norms[:, None].astype(np.float32)
    return unit


def pack_batches(tokens: Sequence[int], *, max_texts: int, max_tokens: int | None) -> Iterator[slice]:
    """Yield slices over the texts, in order, each within the request's limits.

    ``tokens`` holds the token count of each text. A text above ``max_tokens`` travels alone: the embedder
    decides about it. Every index is in exactly one slice.
    """
    start = total = 0
    for index, count in enumerate(tokens):
        full = index - start == max_texts or (max_tokens is not None and total + count > max_tokens)
        if full and index > start:
            yield slice(start, index)
            start, total = index, 0
        total += count
    if start < len(tokens):
        yield slice(start, len(tokens))
