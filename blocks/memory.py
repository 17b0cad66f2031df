"""The process's memory: given back to the system when a shard is done, so that its peak doesn't grow with the rows."""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import cache

import pyarrow as pa

_M_ARENA_MAX = -8
#: glibc gives every thread a heap of its own and keeps what each once held: with the twelve threads of two shards in
#: flight that is hundreds of megabytes of nothing. Two heaps cost no time that could be measured.
_ARENAS = 2
#: What is larger than this has pages of its own, which go back when it is freed. Left to itself, glibc raises the limit
#: up to 32 MB and keeps such pieces in its heaps, with holes between them.
_M_MMAP_THRESHOLD, _OWN_PAGES_FROM_BYTES = -3, 16 << 20


@cache
def _c_library() -> ctypes.CDLL | None:
    """Return glibc, with few heaps from now on, or None where the system has another C library."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        return None
    library.mallopt(_M_ARENA_MAX, _ARENAS)
    library.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_FROM_BYTES)
    return library


#: A shard makes tens of thousands of objects that live until it is done, and no cycles to speak of. At its usual pace
#: the collector walks all of them again and again, which is a tenth of a load's CPU time.
_NEW_OBJECTS, _YOUNG_COLLECTIONS = 50_000, 20


def limit_heaps() -> None:
    """Keep the C library to few heaps and the garbage collector to few walks. Safe to repeat.

    Call it at the start of a run, before its threads are started: what lives then is taken to live on.
    """
    _c_library()
    _collect_seldom()


@cache
def _collect_seldom() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, _YOUNG_COLLECTIONS, _YOUNG_COLLECTIONS)


def release_memory() -> None:
    """Give freed memory back to the system; takes milliseconds."""
    pa.default_memory_pool().release_unused()
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)
