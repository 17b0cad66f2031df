"""BSON documents, one behind the other, cut apart as their bytes come."""

from __future__ import annotations

from bson.errors import InvalidBSON

_LENGTH_BYTES = 4
#: An empty document: its length and the byte that ends it.
_LEAST_BYTES = 5
#: The largest document that MongoDB stores, with room for what wraps it in a part of changes.
_MOST_BYTES = (16 << 20) + (64 << 10)


class DocumentSplitter:
    """Cuts a stream of documents apart; blocks may end anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def split(self, block: bytes) -> list[bytes]:
        """Return the documents that are whole with this block, in order. Raises ``InvalidBSON`` for what is none."""
        data = self._rest + block if self._rest else block
        found: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= _LENGTH_BYTES:
            size = int.from_bytes(data[at : at + _LENGTH_BYTES], "little")
            if not _LEAST_BYTES <= size <= _MOST_BYTES:
                raise InvalidBSON(f"a document can't be of {size:,} bytes")
            if at + size > end:
                break
            if data[at + size - 1]:
                raise InvalidBSON("a document doesn't end where it should")
            found.append(data[at : at + size])
            at += size
        self._rest = data[at:]
        return found

    def require_end(self) -> None:
        """Raise ``InvalidBSON`` if the last document is not whole."""
        if self._rest:
            raise InvalidBSON(f"the last document is cut short: {len(self._rest):,} bytes of it are there")
