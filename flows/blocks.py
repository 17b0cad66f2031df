"""Which blocks a flow works with, loaded by the names under which they are registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from prefect.blocks.core import Block

from blocks.gemini import GeminiEmbedder
from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from blocks.slack import SlackNotifier
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from tasks.domain.chunks import ChunkSize
from tasks.domain.errors import TerminalError
from tasks.domain.owners import Owners
from tasks.domain.vectors import EmbedderFacts

SOURCE, VECTORS, SHARDS, GEMINI, LOCAL = "source", "vectors", "shards", "gemini", "local"
ALERTS = "alerts"

AnyBlock = TypeVar("AnyBlock", bound=Block)
PipelineEmbedder = GeminiEmbedder | LocalEmbedder


def _load(block_type: type[AnyBlock], name: str) -> AnyBlock:
    try:
        found = block_type.load(name, _sync=True)  # type: ignore[call-arg]
    except ValueError as error:
        raise TerminalError(
            f"the block {block_type.get_block_type_slug()}/{name} is not registered with this Prefect server: run "
            "`cryptique-rag register` with the environment set"
        ) from error
    assert isinstance(found, block_type)
    return found


def load_source() -> MongoSource:
    """Return the application's database. Raises ``TerminalError`` if the block is not registered; so do the others."""
    return _load(MongoSource, SOURCE)


def load_vectors() -> VectorStore:
    """Return the vector store."""
    return _load(VectorStore, VECTORS)


def load_shards() -> ShardStore:
    """Return the folder in which stages hand over."""
    return _load(ShardStore, SHARDS)


def load_embedder(vectors: VectorStore) -> PipelineEmbedder:
    """Return the embedder that fills this store."""
    return _load(GeminiEmbedder, GEMINI) if vectors.embedder == "gemini" else _load(LocalEmbedder, LOCAL)


def load_alerts() -> SlackNotifier | None:
    """Return the webhook that is told of failures, or None where there is none."""
    try:
        return _load(SlackNotifier, ALERTS)
    except TerminalError:
        return None


@dataclass(frozen=True, slots=True)
class Parts:
    """All that the stages of one run work with."""

    source: MongoSource
    vectors: VectorStore
    embedder: PipelineEmbedder
    store: ShardStore
    owners: Owners
    facts: EmbedderFacts
    size: ChunkSize
    retries: int


def load_parts(*, retries: int) -> Parts:
    """Return the parts of a run, both databases proved to answer and the owners read."""
    source, vectors = load_source(), load_vectors()
    embedder = load_embedder(vectors)
    source.check()
    vectors.check()
    facts = embedder.facts
    size = ChunkSize(whole_tokens=min(ChunkSize().whole_tokens, facts.max_tokens_per_text))
    return Parts(source, vectors, embedder, load_shards(), source.load_owners(), facts, size, retries)
