"""Chunk: a slice of a document's text that fits the embedding model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from semantic_text_splitter import TextSplitter

from tasks.domain.vectors import EmbedderFacts

#: The longest ``content`` that ``vectordocuments`` takes.
MAX_CONTENT_CHARS = 8_000
#: Goes into the lineage; raise it when the same text would be cut elsewhere.
CHUNKER_VERSION = 1
#: Chunks of a text that is too long to stay whole. Small enough to be about one thing, large enough to say it.
DEFAULT_SIZE_TOKENS, DEFAULT_OVERLAP_TOKENS = 400, 50
#: English runs at four characters a token; scripts that take more tokens a character are caught by the count.
_CHARS_PER_TOKEN = 4

CountTokens = Callable[[list[str]], list[int]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """``text`` is exactly ``document[start : start + len(text)]``; ``tokens`` is never below the model's count."""

    ordinal: int
    start: int
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """Sizes in tokens. ``whole_tokens`` is how long a text may be and still stay in one piece."""

    size_tokens: int = DEFAULT_SIZE_TOKENS
    overlap_tokens: int = DEFAULT_OVERLAP_TOKENS
    whole_tokens: int = 1_000

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_tokens < self.size_tokens:
            raise ValueError("overlap_tokens must be 0 or more and below size_tokens")


def split_text(text: str, size: ChunkSize, count_tokens: CountTokens, *, tokens: int | None = None) -> list[Chunk]:
    """Return the chunks of a text, in order: one if it is short enough, else slices that end at sentences.

    Neighbours share about ``overlap_tokens``, and none lies inside another; every character that is not white space
    at a cut is in a chunk. No chunk is blank, or holds more than ``size_tokens`` tokens or ``MAX_CONTENT_CHARS``
    characters. Ends for every input: a piece that is still too large is cut at half the size, down to single
    characters.
    """
    if not text.strip():
        return []
    if tokens is None:
        tokens = count_tokens([text])[0]
    if tokens <= size.whole_tokens and len(text) <= MAX_CONTENT_CHARS:
        return [Chunk(0, 0, text, tokens)]
    size_chars = min(MAX_CONTENT_CHARS, size.size_tokens * _CHARS_PER_TOKEN)
    overlap_chars = min(size.overlap_tokens * _CHARS_PER_TOKEN, size_chars // 2)
    pieces = _pieces(text, 0, size_chars, overlap_chars, size.size_tokens, count_tokens)
    chunks: list[Chunk] = []
    end = 0
    # Where one of two neighbours had to be cut again, what they share may stand whole in either of them.
    for start, piece, count in sorted(pieces, key=lambda found: (found[0], -len(found[1]))):
        if start + len(piece) > end and piece.strip():
            end = start + len(piece)
            chunks.append(Chunk(len(chunks), start, piece, count))
    return chunks


def _pieces(
    text: str, offset: int, size_chars: int, overlap_chars: int, size_tokens: int, count_tokens: CountTokens
) -> Iterator[tuple[int, str, int]]:
    splitter = TextSplitter(size_chars, overlap=overlap_chars, trim=True)
    found = splitter.chunk_indices(text)
    counts = count_tokens([piece for _, piece in found])
    for (start, piece), count in zip(found, counts, strict=True):
        if count <= size_tokens or size_chars == 1:
            yield offset + start, piece, count
        else:
            # Scripts with several tokens a character, and long strings of digits, need smaller pieces.
            half = max(1, size_chars // 2)
            yield from _pieces(piece, offset + start, half, min(overlap_chars, half // 4), size_tokens, count_tokens)


def content_hash(text: str, facts: EmbedderFacts) -> bytes:
    """Return 16 bytes that stand for the vector: equal exactly where text, model, dimensions and task are."""
    lineage = f"{facts.model}\0{facts.dimensions}\0{facts.task}\0"
    return blake2b(lineage.encode() + text.encode(), digest_size=16).digest()
