"""Which blocks a flow works with, loaded by the names under which they are registered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from prefect.blocks.core import Block
from pydantic import SecretStr

from blocks.aggregates import StoredRecords
from blocks.backups import BackupStore
from blocks.embedders import fitted
from blocks.gemini import GeminiEmbedder
from blocks.mongo import MongoSource
from blocks.monitor import Monitor
from blocks.quota import open_gate
from blocks.shards import ShardStore
from blocks.slack import SlackNotifier
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from tasks.domain.chunks import ChunkSize
from tasks.domain.errors import TerminalError
from tasks.domain.generations import FIRST, Generation
from tasks.domain.log_lines import conceal
from tasks.domain.owners import Owners
from tasks.domain.quotas import Gate
from tasks.domain.registry import OF_THE_STORE
from tasks.domain.runs import Run
from tasks.domain.vectors import EmbedderFacts
from tasks.embed import Slots

SOURCE, VECTORS, SHARDS, GEMINI, LOCAL = "source", "vectors", "shards", "gemini", "local"
ALERTS, BACKUPS, MONITOR = "alerts", "backups", "monitor"

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
    for name in block_type.model_fields:
        value = getattr(found, name)
        if isinstance(value, SecretStr):
            conceal(value.get_secret_value())
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


def load_backups() -> BackupStore:
    """Return the store of backups."""
    return _load(BackupStore, BACKUPS)


def load_monitor() -> Monitor:
    """Return what the monitor goes by."""
    return _load(Monitor, MONITOR)


def load_embedder(vectors: VectorStore) -> PipelineEmbedder:
    """Return the embedder that fills this store: of a generation, with that one's model and dimensions.

    For a store that is at no generation it is the one that is registered, and MongoDB is not asked.
    """
    configured: PipelineEmbedder
    configured = _load(GeminiEmbedder, GEMINI) if vectors.embedder == "gemini" else _load(LocalEmbedder, LOCAL)
    generation = None if vectors.generation is None else vectors.describe_generation()
    return configured if generation is None else fitted(configured, generation)


def load_alerts() -> SlackNotifier | None:
    """Return the webhook that is told of failures, or None where there is none."""
    try:
        return _load(SlackNotifier, ALERTS)
    except TerminalError:
        return None


class Stopping(threading.Event):
    """Set when a run is to end at its next boundary. A copy in another process is one of its own."""

    def __reduce__(self) -> tuple[type[Stopping], tuple[()]]:
        return (Stopping, ())


@dataclass(frozen=True, slots=True)
class Parts:
    """All that the stages of one run work with. Without a ``gate`` embedding has neither quota nor budget."""

    source: MongoSource
    vectors: VectorStore
    embedder: PipelineEmbedder
    store: ShardStore
    owners: Owners
    facts: EmbedderFacts
    size: ChunkSize
    retries: int
    slots: Slots
    gate: Gate | None = None
    stopping: Stopping = field(default_factory=Stopping)

    def of_source(self, name: str) -> Parts:
        """Return the parts with the database in which this source's records lie."""
        if name not in OF_THE_STORE or isinstance(self.source, StoredRecords):
            return self
        stored = StoredRecords(
            uri=self.vectors.uri,
            database=self.vectors.database,
            pseudonym_key=self.source.pseudonym_key,
            application=self.source,
        )
        return replace(self, source=stored)


def load_parts(*, retries: int, generation: str | Generation | None = None) -> Parts:
    """Return the parts of a run, both databases proved to answer and the owners read.

    ``generation`` is which of the store's sets of vectors the run is about, from its beginning to its end; None: the
    one that is live now. Raises ``InputError`` if there is none of that name.
    """
    source, vectors = load_source(), load_vectors()
    source.check()
    vectors.check()
    vectors = vectors.at(generation)
    embedder = load_embedder(vectors)
    facts = embedder.facts
    size = ChunkSize(whole_tokens=min(ChunkSize().whole_tokens, facts.max_tokens_per_text))
    slots = Slots(embedder.concurrency)
    return Parts(source, vectors, embedder, load_shards(), source.load_owners(), facts, size, retries, slots)


def of_generation(work: str, parts: Parts) -> str:
    """Return the name of a piece of work, told apart from the same work at another generation."""
    name = parts.vectors.generation_name
    return work if name == FIRST else f"{work}-of-{name}"


#: Of the day's quota this share is left to ingestion by all that can wait.
KEPT_BACK_BY_BULK = 0.05


@contextmanager
def gated(parts: Parts, run: Run, *, bulk: bool, budget_usd: float | None = None) -> Iterator[Parts]:
    """Yield the parts with the gate before the embedder, if it has quotas or this run a budget.

    ``budget_usd`` is what all flow runs of the same run key may spend together. Call it in the flow's own thread: the
    gate speaks to the Prefect server of that thread.
    """
    gate = open_gate(
        parts.vectors,
        parts.facts,
        run_key=run.key,
        keep_back=KEPT_BACK_BY_BULK if bulk else 0.0,
        budget_usd=budget_usd,
        stop=parts.stopping,
    )
    try:
        yield replace(parts, gate=gate)
    finally:
        if gate is not None:
            gate.close()
