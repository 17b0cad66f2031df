"""Serving: the application as a process of its own, with the watch beside it and what it counted written down."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prefect.logging.configuration import ensure_logging_setup
from prefect.settings import PREFECT_API_AUTH_STRING

from blocks.gemini_chat import GeminiChat
from blocks.meters import write_measures
from blocks.prefect_server import PrefectServer
from blocks.search_indexes import SearchIndexes
from deployments.http.app import make_app
from deployments.http.parts import HttpParts, within
from deployments.register_blocks import PipelineBlocks, make_blocks
from deployments.settings import Settings, load_settings
from deployments.watch import Watch
from tasks.answer import Answerer
from tasks.domain.errors import PipelineError
from tasks.retrieve import Retriever

_LOGGER = logging.getLogger("cryptique.http")
_WRITE_EVERY_S = 30.0
_WRITE_WITHIN_S = 10.0
#: The thread that talks to clients gives the interpreter away at each write, and waits so long for it at most while
#: another computes. By Python's own five milliseconds, a few busy threads let it write some dozens of times a second.
_SWITCH_S = 0.0005


def create() -> FastAPI:
    """Return the service by the environment's settings; each process of ``cryptique-rag serve`` calls it once."""
    ensure_logging_setup()
    sys.setswitchinterval(_SWITCH_S)
    return serve_by(load_settings())


def serve_by(settings: Settings) -> FastAPI:
    """Return the service by these settings; it watches, and writes its measures, from its start to its end."""
    blocks = make_blocks(settings)
    parts = make_parts(settings, blocks)
    watch = Watch(blocks, prefect=parts.prefect) if settings.cryptique_http_watch else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stopped = threading.Event()
        writer = threading.Thread(target=_write_down, args=(parts, stopped), name="measures", daemon=True)
        writer.start()
        if watch is not None:
            watch.start()
        if settings.takes_tokens:
            parts.indexes.start()
        # What is loaded by now stays: to look through all of it for garbage again would hold every request up.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            stopped.set()
            if watch is not None:
                watch.stop()
            parts.indexes.stop()
            writer.join(timeout=_WRITE_WITHIN_S + 1)

    return make_app(parts, lifespan=lifespan)


def make_parts(settings: Settings, blocks: PipelineBlocks) -> HttpParts:
    """Return what requests are answered with. No other system is asked yet."""
    embedders = blocks.embedders
    indexes = SearchIndexes(blocks.vectors, embedders, settings.home, by_server=settings.cryptique_search_by == "auto")
    return HttpParts(
        settings=settings,
        vectors=blocks.vectors,
        source=blocks.source,
        embedder=blocks.embedder,
        backups=blocks.backups,
        book=blocks.monitor.open_book(),
        prefect=prefect_of(settings.prefect_api_url),
        indexes=indexes,
        retriever=Retriever(indexes, blocks.vectors, embedders),
        answerer=Answerer(indexes, blocks.vectors),
        embedders=embedders,
        chat=_chat(settings, blocks),
    )


def _chat(settings: Settings, blocks: PipelineBlocks) -> GeminiChat | None:
    if settings.gemini_api_key is None:
        return None
    return GeminiChat(
        blocks.vectors,
        api_key=settings.gemini_api_key,
        model=settings.cryptique_gemini_chat_model,
        base_url=settings.gemini_base_url,
        timeout_seconds=settings.cryptique_gemini_chat_seconds,
        usd_in=settings.cryptique_gemini_chat_usd_in,
        usd_out=settings.cryptique_gemini_chat_usd_out,
        usd_per_day=settings.cryptique_gemini_usd_per_day,
    )


def prefect_of(url: str | None) -> PrefectServer | None:
    """Return the Prefect server at an address, with the credentials of the environment."""
    return None if url is None else PrefectServer(url, auth=PREFECT_API_AUTH_STRING.value())


def _write_down(parts: HttpParts, stopped: threading.Event) -> None:
    ended = False
    while not ended:
        ended = stopped.wait(_WRITE_EVERY_S)
        try:
            within(_WRITE_WITHIN_S, lambda: write_measures(parts.vectors))
        except PipelineError as error:
            _LOGGER.warning("what requests did is written later: %s", error)
