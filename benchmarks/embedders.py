"""Embedders: what answers ``GeminiEmbedder`` while the pipeline is measured, in the process that calls it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from benchmarks.zero_latency import random_vectors
from blocks.gemini import EmbedCall, GeminiEmbedder, Task
from tasks.domain.vectors import Matrix


@dataclass(slots=True)
class Requests:
    """What was asked of the embedder for documents; questions don't count. Seconds are of the monotonic clock."""

    requests: int = 0
    texts: int = 0
    cpu_s: float = 0.0
    most_at_once: int = 0
    first_began: float | None = None
    last_ended: float | None = None
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def one(self, texts: int) -> Iterator[None]:
        """Count one request; the CPU is what the calling thread uses within."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            if self.first_began is None:
                self.first_began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1
                self.requests += 1
                self.texts += texts
                self.last_ended = time.monotonic()

    def add_cpu(self, seconds: float) -> None:
        """Count CPU seconds of the embedder itself."""
        with self._lock:
            self.cpu_s += seconds

    def to_record(self) -> dict[str, float | int]:
        """Return the counts; ``seconds`` is from the first request to the end of the last."""
        seconds = 0.0
        if self.first_began is not None and self.last_ended is not None:
            seconds = self.last_ended - self.first_began
        return {
            "requests": self.requests,
            "texts": self.texts,
            "cpu_s": round(self.cpu_s, 3),
            "most_at_once": self.most_at_once,
            "seconds": round(seconds, 3),
        }


def make_call(requests: Requests, *, latency_s: float = 0.0, at_once: int | None = None) -> EmbedCall:
    """Return what ``GeminiEmbedder`` calls instead of a client: random vectors, each request after ``latency_s``.

    ``at_once`` is how many requests the service works at; a further one waits for its turn before its latency begins.
    """
    slots = threading.BoundedSemaphore(at_once) if at_once else None

    def call(model: str, texts: Sequence[str], task: Task | None, dimensions: int) -> Matrix:
        if task == "RETRIEVAL_QUERY":
            return random_vectors(texts, dimensions)
        with requests.one(len(texts)):
            if slots is not None:
                with slots:
                    time.sleep(latency_s)
            elif latency_s:
                time.sleep(latency_s)
            began = time.thread_time()
            rows = random_vectors(texts, dimensions)
            requests.add_cpu(time.thread_time() - began)
        return rows

    return call


@contextmanager
def instead_of_gemini(call: EmbedCall) -> Iterator[None]:
    """Let every ``GeminiEmbedder`` of this process call this; its replies are checked as Gemini's are."""
    with patch.object(GeminiEmbedder, "_make_call", lambda embedder: call):
        yield
