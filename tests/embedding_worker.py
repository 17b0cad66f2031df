"""A process that embeds texts of its own through the gate, as a worker does.

``Worker(...).start()`` runs it beside the caller; it ends with what came of it. The Prefect server is the caller's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect.settings import PREFECT_API_URL

from blocks.gemini import GeminiEmbedder
from blocks.quota import EmbeddingGate
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from tasks.domain.errors import PipelineError
from tasks.domain.quotas import Quota
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import Shard
from tasks.embed import Slots, embed_shard
from tests.loopback.gemini import count_tokens

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Worker:
    """What one process is to embed, and what it may use. ``seconds`` is when it is asked to stop."""

    mongo_uri: str
    database: str
    gemini_url: str
    api_key: str
    folder: str
    limits: str
    run_key: str
    texts: int
    quota: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    keep_back: float = 0.0
    budget_usd: float | None = None
    concurrency: int = 4

    def start(self) -> subprocess.Popen[str]:
        """Start the process, which talks to the Prefect server that this one talks to."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.embedding_worker", json.dumps(asdict(self))],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
            stdout=subprocess.PIPE,
            text=True,
        )


@dataclass(frozen=True)
class Outcome:
    """What a worker says at its end: texts that have vectors, the error that ended it, and its CPU seconds."""

    embedded: int
    error: str | None
    said: str
    cpu_seconds: float


def outcome_of(process: subprocess.Popen[str], *, timeout_seconds: float) -> Outcome:
    """Wait for a worker and return what came of it."""
    said, _ = process.communicate(timeout=timeout_seconds)
    assert process.returncode == 0, f"the worker ended with {process.returncode}"
    return Outcome(**json.loads(said.splitlines()[-1]))


def write_shard(store: ShardStore, run_key: str, texts: list[str]) -> Shard:
    """Write the shard that the embed stage reads, with one new chunk for each text."""
    count = len(texts)
    table = pa.table(
        {
            "verdict": pa.array([next(v for v in Verdict if v.needs_vector).value] * count),
            "content_hash": pa.array(
                [blake2b(text.encode(), digest_size=16).digest() for text in texts], pa.large_binary()
            ),
            "text": pa.array(texts, pa.large_string()),
            "tokens": pa.array([count_tokens(text) for text in texts], pa.int32()),
            "record_id": pa.array([f"{number:012x}".encode() for number in range(count)], pa.large_binary()),
            "team_id": pa.array([""] * count, pa.large_string()),
            "holder_id": pa.array([""] * count, pa.large_string()),
            "key": pa.array([""] * count, pa.large_string()),
        }
    )
    return Shard(number=0, read=count, rows=store.write_table(run_key, "000000.rows", table))


def run(worker: Worker) -> Outcome:
    """Embed in this process and return what came of it."""
    embedder = GeminiEmbedder.model_validate(
        {"api_key": worker.api_key, "base_url": worker.gemini_url, "dimensions": 64, **worker.quota}
    )
    vectors = VectorStore.model_validate({"uri": worker.mongo_uri, "database": worker.database, "embedder": "gemini"})
    store = ShardStore(folder=Path(worker.folder))
    stop = threading.Event()
    gate = EmbeddingGate(
        vectors,
        Quota.of(embedder.facts),
        embedder.facts.usd_per_million_tokens,
        run_key=worker.run_key,
        name=worker.limits,
        keep_back=worker.keep_back,
        budget_usd=worker.budget_usd,
        stop=stop,
    )
    texts = [f"{worker.folder} {worker.run_key} {number:09d}" for number in range(worker.texts)]
    shard = write_shard(store, worker.run_key, texts)
    about = Run(key=worker.run_key, id="worker", scope=Scope(), started_ms=0)
    if worker.seconds is not None:
        threading.Timer(worker.seconds, stop.set).start()
    before = time.process_time()
    failure: PipelineError | None = None
    try:
        embed_shard.fn(about, shard, store, embedder, Slots(worker.concurrency), gate=gate, stop=stop)
    except PipelineError as error:
        failure = error
    cpu_seconds = time.process_time() - before
    gate.close()
    with store.paid_texts(worker.run_key) as paid:
        embedded, _ = paid.paid_by(0)
    return Outcome(embedded, type(failure).__name__ if failure else None, str(failure or ""), cpu_seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(run(Worker(**json.loads(sys.argv[1]))))))  # noqa: T201
