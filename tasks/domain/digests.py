"""Source digest: what stands for all that a record's rows are made of, so that an unchanged record is not described."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, dataclass
from hashlib import blake2b

import pyarrow as pa

from tasks.domain.chunks import CHUNKER_VERSION, ChunkSize
from tasks.domain.owners import Holder
from tasks.domain.sources import Source
from tasks.domain.vectors import EmbedderFacts

_DIGEST_BYTES, _KEY_BYTES = 16, 32


@dataclass(frozen=True, slots=True)
class UnchangedRecord:
    """A record that is stored as it is now, for the accounts; ``record_id`` is the 12 bytes of its id."""

    record_id: bytes
    team_id: str | None
    holder_id: str
    chunks: int


def count_unchanged(table: pa.Table) -> Counter[tuple[str | None, str, int]]:
    """Return how many of the records in a file of ``UnchangedRecord`` have each team, holder and number of chunks."""
    return Counter(zip(*(table.column(name).to_pylist() for name in ("team_id", "holder_id", "chunks")), strict=True))


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record whose rows are all stored and agree on the digest that they were made from."""

    digest: bytes
    chunks: int


class SourceDigests:
    """Digests of raw records under one describer, chunker, model and set of owners.

    Equal digests mean equal rows: a record's bytes, its contract or website with its team, and the versions of all code
    between them decide what is stored. That holds as long as the source's ``version`` is raised with every change of
    what parsing or describing makes of a record.
    """

    def __init__(self, source: Source, facts: EmbedderFacts, size: ChunkSize) -> None:
        made_by = (source.name, source.version, source.seal, CHUNKER_VERSION, facts.model, facts.dimensions, facts.task)
        self._made_by = repr((made_by, astuple(size)))
        self._keys: dict[int, tuple[Holder, bytes]] = {}

    def digest(self, raw: bytes, holder: Holder) -> bytes:
        """Return 16 bytes for a record, as BSON with the fields that parsing reads, under its holder."""
        known = self._keys.get(id(holder))
        if known is None:
            words = f"{self._made_by}{holder!r}"
            # The holder is kept beside its key: while it lives, no other has its identity.
            known = (holder, blake2b(words.encode(), digest_size=_KEY_BYTES).digest())
            self._keys[id(holder)] = known
        return blake2b(raw, digest_size=_DIGEST_BYTES, key=known[1]).digest()
