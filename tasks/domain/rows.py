"""Vector document: a chunk with its owner, facts, lineage and vector, as the bytes that MongoDB stores.

A row has two parts. The body is decided by the record, the describer, the chunker and the model, and nothing else:
equal bytes mean that nothing changed. The vector, the hashes and the times come when it is written. The body is
encoded once and never decoded again on its way through the stages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Literal

import bson
import numpy as np
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from numpy.typing import NDArray

from tasks.domain.chunks import CHUNKER_VERSION, Chunk
from tasks.domain.documents import Document
from tasks.domain.sources import Source
from tasks.domain.vectors import EmbedderFacts, Matrix

#: ``float32``: BSON binary vectors, read by Atlas and Community vector search at a third of an array's bytes.
#: ``int8``: a quarter of that, each vector scaled to its largest number. ``bits``: a thirty-second, the signs alone.
#: ``doubles``: arrays of doubles, for readers that know nothing else. What int8 and bits cost a search is measured by
#: ``benchmarks/storage.py``.
VectorForm = Literal["float32", "int8", "bits", "doubles"]

_HASH_BYTES = 16
_BINARY, _VECTOR_SUBTYPE = b"\x05", b"\x09"
#: The first byte of a BSON vector says what it holds, the second how many bits of its last byte are padding.
_FLOAT32, _INT8, _BITS = 0x27, 0x03, 0x10
_HEADER_BYTES = 2
_LARGEST_INT8 = 127
_EMBEDDING_NAME = b"embedding\x00"
_END = b"\x00"


class Verdict(IntEnum):
    """What a described chunk needs, compared with what is stored."""

    UNCHANGED = 0
    NEW = 1
    TEXT_CHANGED = 2
    ROW_CHANGED = 3

    @property
    def needs_vector(self) -> bool:
        """Return whether it is written with a vector."""
        return self in (Verdict.NEW, Verdict.TEXT_CHANGED)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store says of a document id. Run and version are read only where they are asked for."""

    source_id: ObjectId
    content_hash: bytes
    row_hash: bytes
    chunks: int
    run_id: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class RowChange:
    """What ``$set`` takes to change a stored row that had the hash ``seen``, and which has ``becomes`` afterwards."""

    fields: RawBSONDocument
    seen: bytes
    becomes: bytes


def document_id(key: str, ordinal: int) -> str:
    """Return the id of a chunk: derived, so that writing it again overwrites it."""
    return f"{key}:{ordinal}"


def encode_head(document: Document) -> bytes:
    """Return what all rows of a document share, as BSON elements. The same document gives the same bytes."""
    fields = {
        "sourceType": document.source_type,
        "sourceId": ObjectId(document.source_id),
        "teamId": ObjectId(document.team_id),
        "siteId": document.site_id,
        "source": f"{document.source_type}:{document.source_id}",
        "summary": document.summary,
        "metadata": document.metadata,
        "status": "active",
    }
    return bson.encode(fields)[4:-1]


class Bodies:
    """Encodes the bodies of rows that one describer and one model make."""

    def __init__(self, source: Source, facts: EmbedderFacts) -> None:
        self._made_by = {
            "model": facts.model,
            "dimensions": facts.dimensions,
            "task": facts.task,
            "describer": source.version,
            "chunker": CHUNKER_VERSION,
        }
        self._lineages: dict[tuple[int, int], bytes] = {}

    def encode(self, key: str, head: bytes, chunk: Chunk, chunks: int) -> bytes:
        """Return the body of a row as BSON. The same arguments give the same bytes."""
        lineage = self._lineages.get((chunk.ordinal, chunks))
        if lineage is None:
            fields = {**self._made_by, "ordinal": chunk.ordinal, "chunks": chunks}
            lineage = self._lineages[chunk.ordinal, chunks] = bson.encode({"lineage": fields})[4:-1]
        own = bson.encode({"documentId": document_id(key, chunk.ordinal), "content": chunk.text})[4:-1]
        size = struct.pack("<i", 4 + len(own) + len(head) + len(lineage) + len(_END))
        return b"".join((size, own, head, lineage, _END))


def row_hash(body: bytes) -> bytes:
    """Return 16 bytes that stand for the body."""
    return blake2b(body, digest_size=_HASH_BYTES).digest()


def judge(stored: Stored | None, *, content_hash: bytes, row_hash: bytes) -> Verdict:
    """Return what must be done. Only a changed text, model, dimension or task is embedded again."""
    if stored is None:
        return Verdict.NEW
    if stored.content_hash != content_hash:
        return Verdict.TEXT_CHANGED
    return Verdict.UNCHANGED if stored.row_hash == row_hash else Verdict.ROW_CHANGED


def row_id(source_id: str, document_id: str, ordinal: int) -> ObjectId:
    """Return a row's ``_id``: the record's own for its first chunk, so that loads stay in order; else derived."""
    if ordinal == 0:
        return ObjectId(source_id)
    return ObjectId(blake2b(document_id.encode(), digest_size=12).digest())


def new_row(
    body: bytes,
    *,
    row_id: ObjectId,
    vector: Matrix,
    form: VectorForm,
    content_hash: bytes,
    row_hash: bytes,
    source_digest: bytes,
    run_id: str,
    now: datetime,
    code_version: str = "",
) -> RawBSONDocument:
    """Return a whole row to insert."""
    head = bson.encode({"_id": row_id})[4:-1]
    tail = _tail(content_hash, row_hash, source_digest, run_id, code_version, now, version=1, createdAt=now)
    return _joined(head, body[4:-1], _embedding(vector, form), tail)


def changed_fields(
    body: bytes,
    *,
    vector: Matrix | None,
    form: VectorForm,
    content_hash: bytes,
    row_hash: bytes,
    source_digest: bytes,
    run_id: str,
    now: datetime,
    code_version: str = "",
) -> RawBSONDocument:
    """Return what ``$set`` takes to make a stored row this one; without a vector the stored one stays."""
    embedding = b"" if vector is None else _embedding(vector, form)
    return _joined(body[4:-1], embedding, _tail(content_hash, row_hash, source_digest, run_id, code_version, now))


def read_vector(stored: object) -> Matrix:
    """Return a stored embedding of any form as float32.

    ``int8`` and ``bits`` hold no length: they come back with a length of 1, which is what they were made from.
    """
    if isinstance(stored, bytes):  # Binary is bytes
        kind, padding = stored[0], stored[1]
        if kind == _FLOAT32:
            return np.frombuffer(stored, dtype="<f4", offset=_HEADER_BYTES)
        if kind == _INT8:
            numbers = np.frombuffer(stored, dtype=np.int8, offset=_HEADER_BYTES).astype(np.float32)
            return _unit(numbers)
        if kind == _BITS:
            bits = np.unpackbits(np.frombuffer(stored, dtype=np.uint8, offset=_HEADER_BYTES))
            signs = bits[: len(bits) - padding].astype(np.float32) * 2 - 1
            return _unit(signs)
        raise TypeError(f"an embedding is stored as a BSON vector of the unknown kind {kind:#04x}")
    if isinstance(stored, Sequence):
        return np.asarray(stored, dtype=np.float32)
    raise TypeError(f"an embedding is stored as {type(stored).__name__}")


def _unit(numbers: Matrix) -> Matrix:
    length = np.linalg.norm(numbers)
    unit: Matrix = numbers / length if length else numbers
    return unit


def _tail(
    content_hash: bytes,
    row_hash: bytes,
    source_digest: bytes,
    run_id: str,
    code_version: str,
    now: datetime,
    **more: Any,
) -> bytes:
    # What wrote it is told beside what it is: a release that describes the same rewrites nothing.
    return bson.encode(
        {
            "contentHash": content_hash,
            "rowHash": row_hash,
            "sourceDigest": source_digest,
            "runId": run_id,
            "codeVersion": code_version,
            "updatedAt": now,
            **more,
        }
    )[4:-1]


def _embedding(vector: Matrix, form: VectorForm) -> bytes:
    if form == "doubles":
        return bson.encode({"embedding": [float(value) for value in vector]})[4:-1]
    kind, padding, numbers = _FLOAT32, 0, np.ascontiguousarray(vector, dtype="<f4").data.cast("B")
    if form == "int8":
        kind, numbers = _INT8, _to_int8(vector).data.cast("B")
    elif form == "bits":
        kind, padding, numbers = _BITS, -len(vector) % 8, np.packbits(vector > 0).data.cast("B")
    size = struct.pack("<i", _HEADER_BYTES + len(numbers))
    header = bytes((kind, padding))
    return b"".join((_BINARY, _EMBEDDING_NAME, size, _VECTOR_SUBTYPE, header, numbers))


def _to_int8(vector: Matrix) -> NDArray[np.int8]:
    """Return the vector scaled so that its largest number is 127: cosines don't see the scale, only the rounding."""
    largest = float(np.abs(vector).max()) or 1.0
    scaled: NDArray[np.int8] = np.rint(vector * (_LARGEST_INT8 / largest)).astype(np.int8)
    return scaled


def _joined(*parts: bytes) -> RawBSONDocument:
    size = 4 + sum(map(len, parts)) + len(_END)
    return RawBSONDocument(b"".join((struct.pack("<i", size), *parts, _END)))
