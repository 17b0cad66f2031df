"""Search indexes: the index of the live generation, opened beside the old one when another becomes live."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blocks.embedders import Embedders
from blocks.search_index import IndexView, SearchIndex
from blocks.server_search import ServerView
from blocks.vector_store import VectorStore
from tasks.domain.errors import PipelineError, TransientError

_LOGGER = logging.getLogger("cryptique.search")
#: How often it is looked which generation is live.
_LOOK_S = 0.5
_RETRY_S = 2.0
_LOOK_FOR_SEARCH_S = 30.0


@dataclass(frozen=True, slots=True)
class IndexStanding:
    """What the index is at: ``documents`` are searched, and ``behind_s`` seconds ago the store was last heard of.

    While it is made, ``done`` of ``total`` documents are read.
    """

    generation: str | None
    documents: int
    behind_s: float
    done: int
    total: int


class SearchIndexes:
    """The index that questions are put to. Safe to share between threads once it is started or opened."""

    def __init__(self, vectors: VectorStore, embedders: Embedders, home: Path, *, by_server: bool = True) -> None:
        """Files lie under ``home/search``, by the database and the generation. Nothing is asked yet.

        ``by_server`` lets a server that has vector search find the nearest vectors.
        """
        self._by_server = by_server
        self._vectors, self._embedders = vectors, embedders
        self._folder = home / "search" / vectors.database
        self._current: tuple[SearchIndex, threading.Event, threading.Thread | None] | None = None
        self._coming: SearchIndex | None = None
        self._stopped = threading.Event()
        self._opened = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: PipelineError | None = None
        #: The store whose server finds the nearest vectors, where it does, and when that was looked at.
        self._searching: VectorStore | None = None
        self._looked_at = -_LOOK_FOR_SEARCH_S

    def start(self) -> None:
        """Open the live generation's index in the background, follow the store, and follow a switch."""
        self._thread = threading.Thread(target=self._watch, name="search-index", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Open the live generation's index as it is now, for one question. Errors are the store's."""
        self._current = self._opened_index(follow=False)
        self._look_for_search()
        self._opened.set()

    def stop(self) -> None:
        """Write down what is in memory."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._current is not None:
            self._close(*self._current)
            self._current = None

    def live(self) -> IndexView | ServerView:
        """Return the index of the live generation. Raises ``TransientError`` while there is none."""
        if self._current is None:
            standing = self.standing()
            if self._failure is not None:
                raise TransientError(f"the search index can't be opened: {self._failure}")
            raise TransientError(f"the search index is being made: {standing.done:,} of {standing.total:,} documents")
        index, _, _ = self._current
        searching = self._searching
        if searching is not None and searching.generation_name == index.view.generation:
            return ServerView(index.view, searching)
        return index.view

    def wait(self, seconds: float) -> bool:
        """Return whether there is an index to search, at the latest after so many seconds."""
        return self._opened.wait(seconds)

    def standing(self) -> IndexStanding:
        """Return what the index is at."""
        current, coming = self._current, self._coming
        moving = coming if coming is not None else current[0] if current is not None else None
        progress = moving.progress if moving is not None else None
        return IndexStanding(
            current[0].view.generation if current else None,
            len(current[0].view) if current else 0,
            current[0].behind_s if current else 0.0,
            progress.done if progress else 0,
            progress.total if progress else 0,
        )

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                live = self._vectors.read_book().live
                if self._current is None or self._current[0].view.generation != live:
                    before = self._current
                    self._current = self._opened_index(follow=True)
                    self._looked_at = -_LOOK_FOR_SEARCH_S
                    self._look_for_search()
                    self._opened.set()
                    if before is not None:
                        self._close(*before)
                    self._sweep()
                self._look_for_search()
                self._failure = None
                self._stopped.wait(_LOOK_S)
            except PipelineError as error:
                if self._current is None:
                    _LOGGER.warning("the search index can't be opened yet: %s", error)
                self._failure = error
                self._stopped.wait(_RETRY_S)
            except OSError as error:
                _LOGGER.error("the search index can't be written: %s", error)
                self._failure = TransientError(f"the folder of the search index can't be written: {error.strerror}")
                self._stopped.wait(_RETRY_S)

    def _look_for_search(self) -> None:
        """See, now and then, whether the server can find the nearest vectors: its index may come, or be made anew."""
        now = time.monotonic()
        if not self._by_server or now - self._looked_at < _LOOK_FOR_SEARCH_S:
            return
        self._looked_at = now
        store = self._vectors.at()
        found = store if store.searches_itself() else None
        if (found is None) != (self._searching is None):
            _LOGGER.info("nearest vectors are found by %s", "the index" if found is None else "the server")
        self._searching = found

    def _opened_index(self, *, follow: bool) -> tuple[SearchIndex, threading.Event, threading.Thread | None]:
        store = self._vectors.at()
        dimensions = self._embedders.of(store).facts.dimensions
        index = SearchIndex(store, self._folder / store.generation_name, dimensions=dimensions)
        self._coming = index
        try:
            began = time.monotonic()
            index.open()
            # Who asks one question sees its answer, and not what had to be opened for it.
            _LOGGER.log(
                logging.INFO if follow else logging.DEBUG,
                "the search index of %s has %s documents and was opened in %.1f s",
                store.generation_name,
                f"{len(index.view):,}",
                time.monotonic() - began,
            )
        except (PipelineError, OSError):
            index.close()
            raise
        finally:
            self._coming = None
        stopped = threading.Event()
        thread = None
        if follow:
            thread = threading.Thread(target=index.follow, args=(stopped,), name="search-follow", daemon=True)
            thread.start()
        return index, stopped, thread

    @staticmethod
    def _close(index: SearchIndex, stopped: threading.Event, thread: threading.Thread | None) -> None:
        stopped.set()
        if thread is not None:
            thread.join(timeout=10)
        if thread is None or not thread.is_alive():
            index.close()

    def _sweep(self) -> None:
        """Delete the files of generations that were dropped."""
        book = self._vectors.read_book()
        standing = {name for name, one in book.generations.items() if one.is_standing} | {book.live}
        with suppress(OSError):
            for folder in self._folder.iterdir():
                if folder.is_dir() and folder.name not in standing:
                    shutil.rmtree(folder, ignore_errors=True)
