"""Register the blocks that flows load: from the environment to the Prefect server, as often as you like."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from prefect.blocks.core import Block
from pydantic import SecretStr

from blocks.gemini import GeminiEmbedder
from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from blocks.slack import SlackNotifier
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from deployments.settings import Settings
from flows.blocks import ALERTS, GEMINI, LOCAL, SHARDS, SOURCE, VECTORS, PipelineEmbedder


@dataclass(frozen=True, slots=True)
class PipelineBlocks:
    """The blocks that the settings describe; ``gemini`` and ``alerts`` are None where there is no key or webhook."""

    source: MongoSource
    vectors: VectorStore
    shards: ShardStore
    local: LocalEmbedder
    gemini: GeminiEmbedder | None
    alerts: SlackNotifier | None = None

    @property
    def embedder(self) -> PipelineEmbedder | None:
        """Return the embedder that fills the store, or None where it is Gemini and there is no key."""
        return self.gemini if self.vectors.embedder == "gemini" else self.local

    def by_name(self) -> dict[str, Block]:
        """Return the blocks by the names under which flows load them."""
        named = {
            SOURCE: self.source,
            VECTORS: self.vectors,
            SHARDS: self.shards,
            LOCAL: self.local,
            GEMINI: self.gemini,
            ALERTS: self.alerts,
        }
        return {name: block for name, block in named.items() if block is not None}


def make_blocks(settings: Settings, *, embedded_uri: str | None = None) -> PipelineBlocks:
    """Return the blocks that the settings describe. ``embedded_uri`` serves where no URI is set."""
    source_uri = settings.cryptique_source_uri or SecretStr(embedded_uri or "mongodb://127.0.0.1")
    return PipelineBlocks(
        source=MongoSource(uri=source_uri, database=settings.cryptique_source_database),
        vectors=VectorStore(
            uri=settings.cryptique_vectors_uri or source_uri,
            database=settings.vectors_database,
            embedder=settings.embedder,
            vector_form=settings.cryptique_vector_form,
        ),
        shards=ShardStore(folder=settings.home / "shards"),
        local=LocalEmbedder(),
        gemini=None if settings.gemini_api_key is None else _gemini(settings, settings.gemini_api_key),
        alerts=None
        if settings.slack_webhook_url is None
        else SlackNotifier(url=settings.slack_webhook_url, kind=settings.cryptique_alert_webhook_kind),
    )


def _gemini(settings: Settings, api_key: SecretStr) -> GeminiEmbedder:
    return GeminiEmbedder(
        api_key=api_key,
        base_url=settings.gemini_base_url,
        model=settings.cryptique_gemini_model,
        dimensions=settings.cryptique_gemini_dimensions,
        client=settings.cryptique_gemini_client,
        texts_per_minute=settings.cryptique_gemini_texts_per_minute,
        tokens_per_minute=settings.cryptique_gemini_tokens_per_minute,
        concurrency=settings.cryptique_gemini_concurrency,
    )


def register_blocks(settings: Settings, *, embedded_uri: str | None = None) -> list[str]:
    """Save the blocks, encrypted, with the Prefect server in use; return their names. A second call overwrites."""
    saved = []
    for name, block in make_blocks(settings, embedded_uri=embedded_uri).by_name().items():
        block.save(name, overwrite=True, _sync=True)  # type: ignore[call-arg]
        saved.append(f"{block.get_block_type_slug()}/{name}")
    return saved


def protect_home(home: Path) -> None:
    """Make the home folder readable by its owner only: it holds block secrets' key and records' excerpts."""
    home.mkdir(parents=True, exist_ok=True)
    os.chmod(home, stat.S_IRWXU)
