"""Register the blocks that flows load: from the environment to the Prefect server, as often as you like."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from prefect.blocks.core import Block
from pydantic import SecretStr

from blocks.gemini import GeminiEmbedder
from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from deployments.settings import Settings
from flows.blocks import GEMINI, LOCAL, SHARDS, SOURCE, VECTORS


def make_blocks(settings: Settings, *, embedded_uri: str | None = None) -> dict[str, Block]:
    """Return the blocks that the settings describe, by name. ``embedded_uri`` serves where no URI is set."""
    source_uri = settings.cryptique_source_uri or SecretStr(embedded_uri or "mongodb://127.0.0.1")
    blocks: dict[str, Block] = {
        SOURCE: MongoSource(uri=source_uri, database=settings.cryptique_source_database),
        VECTORS: VectorStore(
            uri=settings.cryptique_vectors_uri or source_uri,
            database=settings.vectors_database,
            embedder=settings.embedder,
            vector_form=settings.cryptique_vector_form,
        ),
        SHARDS: ShardStore(folder=settings.home / "shards"),
        LOCAL: LocalEmbedder(),
    }
    if settings.gemini_api_key is not None:
        blocks[GEMINI] = GeminiEmbedder(
            api_key=settings.gemini_api_key,
            base_url=settings.gemini_base_url,
            model=settings.cryptique_gemini_model,
            dimensions=settings.cryptique_gemini_dimensions,
            client=settings.cryptique_gemini_client,
            texts_per_minute=settings.cryptique_gemini_texts_per_minute,
            tokens_per_minute=settings.cryptique_gemini_tokens_per_minute,
            concurrency=settings.cryptique_gemini_concurrency,
        )
    return blocks


def register_blocks(settings: Settings, *, embedded_uri: str | None = None) -> list[str]:
    """Save the blocks, encrypted, with the Prefect server in use; return their names. A second call overwrites."""
    saved = []
    for name, block in make_blocks(settings, embedded_uri=embedded_uri).items():
        block.save(name, overwrite=True, _sync=True)  # type: ignore[call-arg]
        saved.append(f"{block.get_block_type_slug()}/{name}")
    return saved


def protect_home(home: Path) -> None:
    """Make the home folder readable by its owner only: it holds block secrets' key and records' excerpts."""
    home.mkdir(parents=True, exist_ok=True)
    os.chmod(home, stat.S_IRWXU)
