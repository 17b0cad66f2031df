"""How much of Gemini's quota several processes use together, how often they are refused, and what that costs.

A loopback server enforces the quota over a window of one minute that slides. The processes run the real embed stage
behind the real gate, on a real Prefect server (SQLite) and a real mongod, all on this machine (Linux).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

from blocks.quota import make_limits
from deployments.embedded import embedded_mongod, local_prefect_server
from deployments.local_services import talking_to
from tasks.domain.quotas import Quota
from tests.embedding_worker import Outcome, Worker, outcome_of
from tests.loopback.gemini import EnforcedQuota, LoopbackGemini

_LIMITS = "benchmark-gemini"


def main() -> None:
    """Measure once, with the arguments of the command line, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--texts-per-minute", type=int, default=300)
    parser.add_argument("--tokens-per-minute", type=int, default=1_000_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quota-") as folder:
        home = Path(folder)
        with embedded_mongod(home, cache_gb=0.5) as mongo_uri, local_prefect_server(home) as url, talking_to(url):
            _measure(home, mongo_uri, chosen)


def _measure(home: Path, mongo_uri: str, chosen: argparse.Namespace) -> None:
    limits = {"texts_per_minute": chosen.texts_per_minute, "tokens_per_minute": chosen.tokens_per_minute}
    make_limits(Quota(**limits), name=_LIMITS)
    enforced = EnforcedQuota(**limits)
    seconds = chosen.minutes * 60
    with LoopbackGemini(quota=enforced, latency_seconds=0.2) as server:
        workers = [
            Worker(
                mongo_uri=mongo_uri,
                database="benchmark",
                gemini_url=server.url,
                api_key=server.api_key,
                folder=str(home / f"shards-{number}"),
                limits=_LIMITS,
                run_key=f"run-{number}",
                texts=int(chosen.texts_per_minute * (chosen.minutes + 2)),
                quota=limits,
                seconds=seconds,
            )
            for number in range(chosen.processes)
        ]
        idle = _idle_share(home)
        server_cpu = _cpu_seconds_of_servers(home)
        started = time.monotonic()
        marks = _Marks(enforced)
        running = [worker.start() for worker in workers]
        marks.follow(seconds)
        outcomes = [outcome_of(process, timeout_seconds=120) for process in running]
        passed = time.monotonic() - started
        server_cpu = {
            name: after - server_cpu[name] - passed * idle[name]
            for name, after in _cpu_seconds_of_servers(home).items()
        }
    _report(chosen, enforced, marks, outcomes, server_cpu)


class _Marks:
    """How many texts were accepted at each second from the first request on."""

    def __init__(self, enforced: EnforcedQuota) -> None:
        self._enforced = enforced
        self.accepted: list[int] = []

    def follow(self, seconds: float) -> None:
        """Wait for the first request, then look every second."""
        tick = threading.Event()
        while self._enforced.accepted_texts == 0:
            tick.wait(0.05)
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds - 5:  # a worker's time began before its first request
            self.accepted.append(self._enforced.accepted_texts)
            tick.wait(max(0.0, len(self.accepted) - passed))


def _report(
    chosen: argparse.Namespace,
    enforced: EnforcedQuota,
    marks: _Marks,
    outcomes: list[Outcome],
    server_cpu: dict[str, float],
) -> None:
    requests = enforced.accepted_requests + enforced.refused_requests
    per_second = chosen.texts_per_minute / 60
    steady = marks.accepted[60:]
    rows = [
        (f"{chosen.processes} processes, {chosen.minutes:g} minutes", f"{chosen.texts_per_minute:,} texts a minute"),
        ("share used, from the first request", f"{marks.accepted[-1] / (per_second * len(marks.accepted)):.1%}"),
        (
            "share used, without the first minute",
            f"{(steady[-1] - steady[0]) / (per_second * (len(steady) - 1)):.1%}" if len(steady) > 1 else "-",
        ),
        ("requests", f"{requests:,} of {enforced.accepted_texts / max(1, enforced.accepted_requests):.1f} texts"),
        ("share refused, of requests", f"{enforced.refused_requests / max(1, requests):.2%}"),
        ("CPU per request, clients", f"{sum(one.cpu_seconds for one in outcomes) / requests * 1000:.1f} ms"),
        *(
            (f"CPU per request, {name}", f"{seconds / requests * 1000:.1f} ms beyond its idle work")
            for name, seconds in server_cpu.items()
        ),
        ("how the workers ended", ", ".join(f"{one.error} {one.said}".strip() for one in outcomes)),
    ]
    for name, value in rows:
        print(f"{name:<40} {value}")  # noqa: T201


def _idle_share(home: Path, seconds: float = 30.0) -> dict[str, float]:
    """Return the CPU seconds that each server uses a second when nobody asks it anything."""
    before = _cpu_seconds_of_servers(home)
    time.sleep(seconds)
    return {name: (after - before[name]) / seconds for name, after in _cpu_seconds_of_servers(home).items()}


def _cpu_seconds_of_servers(home: Path) -> dict[str, float]:
    """Return the CPU seconds of mongod and the Prefect server: the processes that hold the home in their command."""
    found = {"Prefect server": 0.0, "mongod": 0.0}
    ticks = os.sysconf("SC_CLK_TCK")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (process / "environ").read_bytes().decode(errors="replace")
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if str(home) not in command + environment or process.name == str(os.getpid()):
            continue
        for name, word in (("Prefect server", "prefect"), ("mongod", "mongod")):
            if word in command and "embedding_worker" not in command:
                found[name] += (int(fields[11]) + int(fields[12])) / ticks
                break
    return found


if __name__ == "__main__":
    main()
