"""What a request of 100 texts costs the process that asks, by each of Gemini's clients.

A loopback server in another process answers over HTTP, on this machine: once as the real service writes (compressed
for clients that accept it, indented for those that don't ask otherwise), once plainly. CPU seconds are the figure.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from blocks.gemini import GeminiEmbedder
from tests.loopback.gemini import LoopbackGemini

TEXTS = 100
DIMENSIONS = 1536

#: Requests that are measured: the dearer a client, the fewer are enough.
_REQUESTS = {"rest": 40, "genai": 20, "generativeai": 8}


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of one request in the asking process, and its time from call to vectors, both in milliseconds."""

    client: str
    lifelike: bool
    cpu_ms: float
    wall_ms: float


def measure(clients: Sequence[str] = tuple(_REQUESTS)) -> list[Cost]:
    """Return the cost of each client that is installed, against both kinds of server."""
    installed = [name for name in clients if name == "rest" or importlib.util.find_spec(f"google.{name}")]
    costs = []
    for lifelike in (True, False):
        with _server(lifelike=lifelike) as (url, key):
            costs += [_measure(client, url, key, lifelike=lifelike) for client in installed]
    return costs


def _measure(client: str, url: str, key: str, *, lifelike: bool) -> Cost:
    settings: dict[str, Any] = {"api_key": key, "base_url": url, "client": client, "dimensions": DIMENSIONS}
    embedder = GeminiEmbedder.model_validate(settings)
    texts = [
        f"Transaction {number}: 12.5 BNB from one wallet to another on BNB Smart Chain." for number in range(TEXTS)
    ]
    for _ in range(2):
        embedder.embed_documents(texts)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(_REQUESTS[client]):
        embedder.embed_documents(texts)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(client, lifelike, cpu / _REQUESTS[client] * 1_000, wall / _REQUESTS[client] * 1_000)


@contextmanager
def _server(*, lifelike: bool) -> Iterator[tuple[str, str]]:
    """Run a loopback Gemini in a process of its own; yield its URL and key."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, lifelike), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def _serve(pipe: Connection, lifelike: bool) -> None:
    with LoopbackGemini(lifelike=lifelike) as server:
        pipe.send((server.url, server.api_key))
        pipe.recv()


def main() -> None:
    """Measure once and print the figures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{f'{TEXTS} texts of {DIMENSIONS} dimensions':<36}{'CPU':>10}{'ratio':>9}{'wall':>10}")  # noqa: T201
    costs = measure()
    for cost in costs:
        rest = next(one for one in costs if one.client == "rest" and one.lifelike is cost.lifelike)
        name = f"{cost.client:<14}{'as Google writes' if cost.lifelike else 'plain'}"
        figures = f"{cost.cpu_ms:>7.1f} ms{cost.cpu_ms / rest.cpu_ms:>8.1f}x{cost.wall_ms:>7.0f} ms"
        print(f"{name:<36}{figures}")  # noqa: T201


if __name__ == "__main__":
    main()
