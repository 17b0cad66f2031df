"""The sources that the pipeline knows, by name. A new one is a module and a line here."""

from __future__ import annotations

from tasks.domain.sources import Source
from tasks.domain.transaction_documents import TRANSACTIONS

_SOURCES = {source.name: source for source in (TRANSACTIONS,)}


def find_source(name: str) -> Source:
    """Return the source of this name."""
    return _SOURCES[name]
