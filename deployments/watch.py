"""The watch: a thread that looks at everything every few seconds, in one process of this machine at a time.

It needs neither the Prefect server nor MongoDB to look, to remember and to tell. Whoever starts second waits for the
first one's end, and goes on with the same book.
"""

from __future__ import annotations

import fcntl
import logging
import threading
from datetime import UTC, datetime
from typing import IO

from blocks.monitor_book import MonitorBook
from blocks.prefect_server import PrefectServer
from deployments.register_blocks import PipelineBlocks
from flows.monitor import WATCHED, Lookout
from tasks.domain.errors import PipelineError
from tasks.probe import ProbeParts

#: Two looks in a row must fail, each with its time-out, and a minute is the limit.
LOOK_EVERY_S = 15.0
_LOGGER = logging.getLogger("cryptique.watch")


def probe_parts(blocks: PipelineBlocks, book: MonitorBook, prefect: PrefectServer | None) -> ProbeParts:
    """Return what is looked at, by the settings that the blocks were made from."""
    return ProbeParts(
        source=blocks.source,
        vectors=blocks.vectors,
        embedder=blocks.embedder,
        backups=blocks.backups,
        prefect=prefect,
        home=blocks.monitor.folder,
        limits=blocks.monitor.limits,
        pool=blocks.monitor.pool,
        begun=book.read_begun(),
    )


class Watch:
    """Looks until it is stopped. A look that breaks is logged, and the next one comes all the same."""

    def __init__(self, blocks: PipelineBlocks, *, prefect: PrefectServer | None, every_s: float = LOOK_EVERY_S) -> None:
        self._blocks, self._prefect, self._every_s = blocks, prefect, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look, as soon as no other process of this machine does."""
        self._thread.start()

    def stop(self, *, within_s: float = 15.0) -> None:
        """End after the look that is under way; one that hangs is left to the process's end."""
        self._stopped.set()
        self._thread.join(timeout=within_s)

    def _run(self) -> None:
        folder = self._blocks.monitor.folder / "monitor"
        while not self._stopped.is_set():
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                with open(folder / "watch.lock", "w") as file:
                    if self._is_first(file):
                        self._watch()
                        return
            except OSError as error:
                _LOGGER.error("nobody watches: %s", error)
            self._stopped.wait(self._every_s)

    def _is_first(self, file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _watch(self) -> None:
        book = self._blocks.monitor.open_book()
        lookout: Lookout | None = None
        while not self._stopped.is_set():
            try:
                if lookout is None:
                    lookout = Lookout(
                        probe_parts(self._blocks, book, self._prefect),
                        book,
                        self._blocks.alerts,
                        public_url=self._blocks.monitor.public_url,
                        logger=_LOGGER,
                    )
                now = datetime.now(UTC)
                lookout.look(now=now)
                book.note(WATCHED, now)
            except PipelineError as error:
                _LOGGER.error("a look failed: %s", error)
            except Exception:
                # Nobody else would look.
                _LOGGER.exception("a look broke")
            self._stopped.wait(self._every_s)
