"""The service under load: many teams' mixed requests at a fixed rate, then ten times as many: ``make bench-http``.

The service is a process of its own, started as ``cryptique-rag serve`` starts it, with the limits that it has by
default, over a real mongod. Its rows are the shared ones, again and again under other ids and teams. The requests come
from another process, at moments that are drawn before: how long an answer took counts from the moment at which its
request was due, whatever became of those before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
from bson import ObjectId
from bson.binary import Binary, BinaryVectorDtype
from pymongo import MongoClient

from benchmarks.evaluation import describe_folder, stored
from benchmarks.processes import CpuMeter, children_of
from blocks.wordllama import MAX_TEXTS_PER_REQUEST, LocalEmbedder
from deployments.embedded import embedded_mongod
from deployments.http.tokens import make_token
from deployments.register_blocks import make_blocks
from deployments.settings import Settings
from tasks.domain.batches import batched
from tests.conftest import SHARED_DATA

DOCUMENTS, SECONDS, RATE = 50_000, 300.0, 200.0
OVERLOAD, OVERLOAD_S, AFTERWARDS_S = 10, 30.0, 10.0
#: Each asks less than the default limit of a team at the usual rate; after the overload come the second half's.
TEAMS, SITES = 80, 2
_SECRET = "-".join(("of", "a", "benchmark", "0123456789", "0123456789"))
_DATABASE = "load"
_ANSWERED_WITHIN_S, _IDLE_S = 30.0, 3.0
_MIX = {"retrieve": 60, "generate": 20, "feedback": 10, "live": 5, "ready": 5}
_QUESTIONS = (
    "{token} transfers of at least {amount}",
    "failed {method} transactions on {chain} in {year}",
    "who claimed staking rewards on {chain} in {month} {year}",
    "largest {method} of {token} since {month} {year}",
    "how many swaps were there on {chain} in {year}?",
    "why do {method} calls fail with more than {amount} gas?",
    "approvals of {token} by wallets between {year} and 2025",
    "bridge deposits above {amount} {token}",
)
_WORDS = {
    "token": ("USDC", "USDT", "ETH", "WETH", "DAI", "MATIC", "UNI", "LINK"),
    "method": ("swap", "transfer", "claim", "stake", "withdraw", "mint", "approve", "deposit", "vote"),
    "chain": ("Ethereum", "Polygon", "Base", "Arbitrum", "BNB Chain"),
    "month": ("January", "February", "March", "April", "May", "June", "July", "October", "December"),
}


class Sent(NamedTuple):
    """One request as bytes, and what kind it is of."""

    kind: str
    content: bytes


def team_of(number: int) -> str:
    """Return the id of a team."""
    return f"64a0{number:020x}"


def site_of(team: int, number: int) -> str:
    """Return the id of one of a team's sites."""
    return f"site-{team}-{number}"


def fill(database: Any, documents: int) -> None:
    """Write the teams, their sites and so many documents with their vectors."""
    embedder = LocalEmbedder()
    rows = list(stored(describe_folder(SHARED_DATA)))
    parts = [
        embedder.embed_documents([str(row["content"]) for row in some]) for some in batched(rows, MAX_TEXTS_PER_REQUEST)
    ]
    vectors = [Binary.from_vector(one.tolist(), BinaryVectorDtype.FLOAT32) for one in np.concatenate(parts)]
    teams = [ObjectId(team_of(number)) for number in range(TEAMS)]
    database["teams"].insert_many([{"_id": one, "name": f"Team {number}"} for number, one in enumerate(teams)])
    database["websites"].insert_many(
        {"_id": ObjectId(), "siteId": site_of(team, number), "team": one, "Domain": f"{team}.example", "Name": "Site"}
        for team, one in enumerate(teams)
        for number in range(SITES)
    )
    lineage = {"model": embedder.facts.model, "dimensions": embedder.facts.dimensions, "task": "none"}
    made = (
        {
            **rows[place % len(rows)],
            "_id": ObjectId(f"{place:024x}"),
            "documentId": f"transaction:contract_{place % TEAMS}:0x{place:064x}:0",
            "sourceId": ObjectId(f"{place:024x}"),
            "teamId": teams[place % TEAMS],
            "siteId": site_of(place % TEAMS, place // TEAMS % SITES),
            "embedding": vectors[place % len(rows)],
            "lineage": lineage,
        }
        for place in range(documents)
    )
    for some in batched(made, 1_000):
        database["vectordocuments"].insert_many(some)


def requests_of(number: int, *, seed: int, teams: range, settings: Settings) -> Iterator[Sent]:
    """Yield so many requests of these teams, drawn."""
    draw = random.Random(seed)
    tokens = {
        team: make_token(_SECRET, team_id=team_of(team), user="load", role="editor", hours=2, settings=settings)
        for team in teams
    }
    for place, kind in enumerate(draw.choices(list(_MIX), list(_MIX.values()), k=number)):
        if kind in ("live", "ready"):
            yield Sent(kind, f"GET /health/{kind} HTTP/1.1\r\nHost: load\r\n\r\n".encode())
            continue
        team = draw.choice(teams)
        asked: dict[str, Any] = {"siteId": site_of(team, draw.randrange(SITES))}
        if kind == "feedback":
            asked |= {"requestId": f"load-{seed}-{place:07}", "rating": draw.randint(1, 5), "comment": "of a benchmark"}
        else:
            words = {name: draw.choice(some) for name, some in _WORDS.items()}
            asked["query"] = draw.choice(_QUESTIONS).format(
                **words, year=draw.randint(2016, 2025), amount=draw.randint(1, 100_000)
            )
        body = json.dumps(asked).encode()
        head = (
            f"POST /api/rag/{kind} HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer {tokens[team]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        yield Sent(kind, head.encode() + body)


class Generator:
    """Sends requests when they are due, each over a connection that is free, or else over a new one."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        #: Kind, status (0: none) and seconds of each.
        self.outcomes: list[tuple[str, int, float]] = []

    async def run(self, requests: list[Sent], *, rate: float, seed: int) -> None:
        """Send all, so many a second on average, at moments that don't depend on any answer."""
        draw, due = random.Random(seed), time.monotonic() + 0.2
        under_way = set()
        for one in requests:
            due += draw.expovariate(rate)
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._send(one, due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        for _, _, writer in self._free:
            writer.close()

    async def _send(self, one: Sent, due: float) -> None:
        try:
            async with asyncio.timeout(_ANSWERED_WITHIN_S):
                status = await self._answer(one)
        except (OSError, TimeoutError, EOFError, ValueError):
            status = 0
        self.outcomes.append((one.kind, status, time.monotonic() - due))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            since, reader, writer = self._free.pop()
            # The service closes what is idle for five seconds.
            if time.monotonic() - since < _IDLE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    async def _answer(self, one: Sent) -> int:
        reader, writer = await self._connection()
        whole = False
        try:
            writer.write(one.content)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            whole = b"connection: close" not in head
        finally:
            if whole:
                self._free.append((time.monotonic(), reader, writer))
            else:
                writer.close()
        return int(head.split(b" ", 2)[1])


def generate(url: str, *, seconds: float, rate: float, teams: range, seed: int, settings: Settings) -> dict[str, Any]:
    """Return what became of the requests of so many seconds."""
    requests = list(requests_of(round(seconds * rate), seed=seed, teams=teams, settings=settings))
    generator = Generator(url)
    began = resource.getrusage(resource.RUSAGE_SELF)
    began_at = time.monotonic()
    # At the worst each request has a connection of its own.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(generator.run(requests, rate=rate, seed=seed))
    took, ended = time.monotonic() - began_at, resource.getrusage(resource.RUSAGE_SELF)
    cpu = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    statuses = Counter(status for _, status, _ in generator.outcomes)
    found: dict[str, Any] = {
        "requests": len(requests),
        "a second": len(requests) / took,
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "generator CPU": cpu / took,
    }
    for kind in ("accepted", "refused", *_MIX):
        times = [
            1e3 * seconds
            for name, status, seconds in generator.outcomes
            if (status == 429 if kind == "refused" else status == 200 and kind in (name, "accepted"))
        ]
        if times:
            found[f"{kind} p50, p95, p99, most, ms"] = [
                *(float(np.quantile(times, share)) for share in (0.5, 0.95, 0.99)),
                max(times),
            ]
    return found


def make_settings(uri: str, home: Path) -> Settings:
    """Return the settings of the service: the defaults, but for its stores and its secret."""
    return Settings(_env_file=None, **{name.lower(): value for name, value in _environment(uri, home).items()})


def _environment(uri: str, home: Path) -> dict[str, Any]:
    return {
        "CRYPTIQUE_SOURCE_URI": uri,
        "CRYPTIQUE_SOURCE_DATABASE": _DATABASE,
        "CRYPTIQUE_VECTORS_DATABASE": _DATABASE,
        "CRYPTIQUE_EMBEDDER": "local",
        "CRYPTIQUE_HOME": str(home),
        "CRYPTIQUE_JWT_SECRET": _SECRET,
    }


@contextmanager
def running_service(uri: str, home: Path) -> Iterator[tuple[str, int]]:
    """Yield the address of the service, and its process, once it is ready to answer questions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = ("AWS_", "CRYPTIQUE_", "GEMINI_", "PREFECT_", "SLACK_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(kept)}
    command = [sys.executable, "-P", "-c", "from deployments.cli import main; main()", "serve", "--port", str(port)]
    root = str(Path(__file__).parents[1])
    environment |= {**_environment(uri, home), "PYTHONPATH": root}
    with (home / "service.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=home)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    token = make_token(
        _SECRET, team_id=team_of(0), user="load", role="editor", hours=2, settings=Settings(_env_file=None)
    )
    asked = {"query": "swaps", "siteId": site_of(0, 0)}
    for _ in range(1_200):
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode}")
        try:
            answer = httpx.post(
                f"{url}/api/rag/retrieve", json=asked, headers={"Authorization": f"Bearer {token}"}, timeout=20
            )
            if answer.status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError("the service was not ready within ten minutes")


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _loaded(name: str, url: str, pids: tuple[int, int], **chosen: Any) -> None:
    service, mongod = pids
    before = _resident_mb(service)
    meter = CpuMeter({"service": [service], "mongod": [mongod]})
    command = [sys.executable, "-m", "benchmarks.http_load", "--generate", json.dumps({"url": url, **chosen})]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    used = {f"{group} CPU": seconds / meter.wall_s for group, seconds in meter.read().items()}
    found = {**json.loads(done.stdout), **used, "resident MB, before and after": [before, _resident_mb(service)]}
    lines = [f"  {key:34} {_told(value)}" for key, value in found.items()]
    print("\n".join([name, *lines]), flush=True)  # noqa: T201


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{one:,.1f}" for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {number:,}" for name, number in value.items())
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def main() -> None:
    """Load the service, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.generate:
        given = json.loads(chosen.generate)
        given["teams"] = range(*given["teams"])
        print(json.dumps(generate(settings=Settings(_env_file=None), **given)))  # noqa: T201
        return
    with tempfile.TemporaryDirectory() as folder:
        home, before = Path(folder), children_of(os.getpid())
        with embedded_mongod(home) as uri:
            (mongod,) = children_of(os.getpid()) - before
            blocks = make_blocks(make_settings(uri, home))
            blocks.vectors.require_model(LocalEmbedder().facts, replace=False, write=True)
            with MongoClient[dict[str, Any]](uri) as client:
                fill(client[_DATABASE], chosen.documents)
            blocks.vectors.close()
            with running_service(uri, home) as (url, service):
                pids, first, second = (service, mongod), [0, TEAMS // 2], [TEAMS // 2, TEAMS]
                steps = (
                    ("load", chosen.seconds, chosen.rate, first),
                    ("overload", OVERLOAD_S, OVERLOAD * chosen.rate, first),
                    ("afterwards, other teams", AFTERWARDS_S, chosen.rate, second),
                )
                for seed, (name, seconds, rate, teams) in enumerate(steps):
                    _loaded(name, url, pids, seconds=seconds, rate=rate, teams=teams, seed=seed)


if __name__ == "__main__":
    main()
