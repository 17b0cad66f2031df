"""What the HTTP service works with, and how a question to another system is kept within its time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import pymongo

from blocks.backups import BackupStore
from blocks.embedders import Embedders
from blocks.gemini import GeminiEmbedder
from blocks.gemini_chat import GeminiChat
from blocks.mongo import MongoSource
from blocks.monitor_book import MonitorBook
from blocks.prefect_server import PrefectServer
from blocks.search_indexes import SearchIndexes
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from deployments.settings import Settings
from tasks.answer import Answerer
from tasks.domain.errors import TransientError
from tasks.retrieve import Retriever

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class HttpParts:
    """The blocks by which requests are answered.

    ``prefect`` is None where no server is meant, and ``chat`` where no model writes answers.
    """

    settings: Settings
    vectors: VectorStore
    source: MongoSource
    embedder: GeminiEmbedder | LocalEmbedder | None
    backups: BackupStore
    book: MonitorBook
    prefect: PrefectServer | None
    indexes: SearchIndexes
    retriever: Retriever
    answerer: Answerer
    embedders: Embedders
    chat: GeminiChat | None = None

    @property
    def prefect_ui(self) -> str | None:
        """Return where a browser sees the Prefect server."""
        return None if self.prefect is None else self.prefect.url.removesuffix("/api")


def asked(seconds: float, call: Callable[[], Answer]) -> Future[Answer]:
    """Return what a thread of its own will have found; its questions to MongoDB end after so many seconds.

    Read it with ``within``: a call that hangs on anything else is left behind.
    """
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            with pymongo.timeout(seconds):
                future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whoever reads the result gets it
            future.set_exception(error)

    threading.Thread(target=run, name="asked", daemon=True).start()
    return future


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return what the call returns, or raise ``TransientError`` when that takes longer."""
    future = asked(seconds, call)
    try:
        return future.result(timeout=seconds + 0.5)
    except TimeoutError:
        raise TransientError(f"no answer within {seconds:g} s") from None
