"""The process's memory: given back to the system when a shard is done, so that its peak doesn't grow with the rows."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import pyarrow as pa

_M_ARENA_MAX = -8
#: glibc gives every thread a heap of its own and keeps what each once held: with the twelve threads of two shards in
#: flight that is hundreds of megabytes of nothing. Two heaps cost no time that could be measured.
_ARENAS = 2


@cache
def _c_library() -> ctypes.CDLL | None:
    """Return glibc, with few heaps from now on, or None where the system has another C library."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        return None
    library.mallopt(_M_ARENA_MAX, _ARENAS)
    return library


def limit_heaps() -> None:
    """Keep the C library to few heaps; call it before threads are started. Safe to repeat."""
    _c_library()


def release_memory() -> None:
    """Give freed memory back to the system; takes milliseconds."""
    pa.default_memory_pool().release_unused()
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)
