"""Measurements: each runs something once, in a process of its own, and returns what it took.

CPU seconds count our processes with all their children, mongod, and the Prefect server with its databases. A write is
paid for when it lies in the data files, so every measurement ends with a flush of mongod.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient, UpdateOne
from pymongo.database import Database

from benchmarks.limit import dump
from benchmarks.processes import CpuMeter, Sampler, cpu_seconds
from benchmarks.servers import Mongo, PrefectServer
from benchmarks.targets import build_indexes, flush, missing_indexes
from tasks.domain.batches import batched
from tasks.domain.collections import VECTORS
from tests.end_to_end.production import without_settings

Record = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
MAKE_TRANSACTIONS = ROOT.parent / "shared" / "tools" / "make_transactions.py"
#: Nothing listens there: a call that was not replaced fails, and is not paid for.
_NOBODY = "http://127.0.0.1:9"
_NO_QUOTA = 0
_CHANGED_SHARE = 100
_SHOWN_LOG_LINES = 25
_QUIET_SHARE, _LONGEST_SETTLING_S = 0.03, 60.0


class BenchmarkError(Exception):
    """A measurement that could not be made, or that would have measured something else."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a measurement happens: mongod, and a folder of its own for files and logs."""

    mongo: Mongo
    client: MongoClient[Record]
    scratch: Path
    #: A command that runs migrate, such as a profiler.
    under: tuple[str, ...] = ()

    def database(self, name: str) -> Database[Record]:
        """Return a database of this mongod."""
        return self.client[name]

    def settle(self) -> None:
        """Wait until mongod is done with what came before: it flushes and drops in the background."""
        flush(self.client)
        deadline = time.monotonic() + _LONGEST_SETTLING_S
        used = cpu_seconds(self.mongo.roots)
        while time.monotonic() < deadline:
            time.sleep(1)
            before, used = used, cpu_seconds(self.mongo.roots)
            if used - before <= _QUIET_SHARE:
                return


# -- the source -----------------------------------------------------------------------------------------------


def load_source(place: Place, name: str, rows: int) -> None:
    """Make a source of generated transactions, with contracts, teams and sites; an existing one is made anew."""
    if not MAKE_TRANSACTIONS.is_file():
        raise BenchmarkError(
            "../shared/tools/make_transactions.py is missing: it lies beside this repository and makes the rows"
        )
    command = [sys.executable, str(MAKE_TRANSACTIONS), "--uri", place.mongo.uri, "--db", name, "--rows", str(rows)]
    done = subprocess.run([*command, "--drop", "--indexes"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"make_transactions.py failed: {done.stderr[-2_000:]}")
    flush(place.client)


def change_source(place: Place, name: str) -> int:
    """Change ``value_eth`` and ``gas_used`` of every hundredth row, and return how many rows that were."""
    transactions = place.database(name).transactions
    changed = 0
    ids = transactions.find({}, {"value_eth": 1, "gas_used": 1}).sort("_id", 1)
    for some in batched((row for number, row in enumerate(ids) if number % _CHANGED_SHARE == 0), 1_000):
        updates = [
            UpdateOne(
                {"_id": row["_id"]},
                {"$set": {"value_eth": _doubled(row.get("value_eth")), "gas_used": (row.get("gas_used") or 0) + 1}},
            )
            for row in some
        ]
        changed += transactions.bulk_write(updates, ordered=False).modified_count
    flush(place.client)
    return changed


def _doubled(value: Any) -> str:
    """Return another amount in the same unit; what is no plain amount becomes one."""
    number, _, unit = str(value or "0").partition(" ")
    try:
        return f"{float(number) * 2 + 1:.6f} {unit}".strip()
    except ValueError:
        return f"1.5 {unit}".strip()


# -- ours -----------------------------------------------------------------------------------------------------


def migrate(
    place: Place,
    server: PrefectServer,
    *,
    source: str,
    target: str,
    parameters: Mapping[str, Any] | None = None,
    latency_ms: float = 0.0,
    at_once: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Record:
    """Return what one run of migrate did and took, in a fresh process.

    ``latency_ms`` and ``at_once`` are the embedder's; ``settings`` are environment variables over the benchmark's own.
    """
    home = place.scratch / "homes" / target
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **server.environment,
        "CRYPTIQUE_SOURCE_URI": place.mongo.uri,
        "CRYPTIQUE_SOURCE_DATABASE": source,
        "CRYPTIQUE_VECTORS_DATABASE": target,
        "CRYPTIQUE_HOME": str(home),
        "CRYPTIQUE_EMBEDDER": "gemini",
        "CRYPTIQUE_GEMINI_TEXTS_PER_MINUTE": str(_NO_QUOTA),
        "CRYPTIQUE_GEMINI_TOKENS_PER_MINUTE": str(_NO_QUOTA),
        "GEMINI_API_KEY": "nobody",
        "GEMINI_BASE_URL": _NOBODY,
        **{name: str(value) for name, value in (settings or {}).items()},
    }
    arguments = ["--latency-ms", f"{latency_ms:g}", "--parameters", json.dumps(dict(parameters or {}))]
    if at_once is not None:
        arguments += ["--at-once", str(at_once)]
    place.settle()
    meter = CpuMeter({"prefect": server.roots, "mongod": place.mongo.roots})
    ran = _run(place, "benchmarks.one_run", arguments, environment, under=place.under)
    flush(place.client)
    mongod_s = meter.read()["mongod"]
    waited = time.monotonic()
    server.settle()
    # It settled after the run's end: what it would have used in that time anyway is not the run's.
    prefect_s = max(0.0, meter.read()["prefect"] - (time.monotonic() - waited) * server.idle_share)
    figures = ran.result
    stages, task_runs = server.task_runs(figures["report"]["flow_run_id"])
    return {
        "orchestrator": server.kind,
        "orchestrator_idle_share": round(server.idle_share, 4),
        "cpu_s": _cpu(ran.cpu_s, mongod_s, prefect_s),
        "wall_s": ran.wall_s,
        **figures,
        "stage_wall_s": stages,
        "task_runs": task_runs,
        "peaks_mb": [[name, mb] for name, mb in ran.peaks],
        "memory_mb": ran.memory,
    }


def require_complete(place: Place, target: str, measured: Record) -> None:
    """Raise ``BenchmarkError`` unless a first load stored what it says, with a vector each and all indexes."""
    vectors, report = place.database(target)[VECTORS], measured["report"]
    if lacking := missing_indexes(vectors):
        raise BenchmarkError(f"the load left out the indexes {', '.join(lacking)}")
    stored = vectors.count_documents({})
    if stored != report["chunks"] or not measured["embedder"]["texts"]:
        raise BenchmarkError(f"{stored:,} documents are stored, the report says {report['chunks']:,}")


def _cpu(ours_s: float, mongod_s: float, prefect_s: float = 0.0) -> dict[str, float]:
    parts = {"ours": ours_s, "prefect": prefect_s, "mongod": mongod_s}
    return {name: round(seconds, 2) for name, seconds in {**parts, "total": sum(parts.values())}.items()}


# -- others ---------------------------------------------------------------------------------------------------


def write_ready_made(place: Place, *, source: str, target: str) -> dict[str, Record]:
    """Return what it takes to insert the documents of a filled store again, as raw BSON, and to index them.

    ``limit`` is a collection as mongod makes it; ``limit, compressed as the store`` one with the store's own
    compression, where it has one. The store's database is dropped: all would not fit on small disks.
    """
    path = place.scratch / "documents.bson"
    vectors = place.database(source)[VECTORS]
    kinds: dict[str, Record] = {"limit": {}}
    if (engine := vectors.options().get("storageEngine")) is not None:
        kinds["limit, compressed as the store"] = {"storageEngine": engine}
    try:
        documents = dump(vectors, path)
        place.client.drop_database(source)
        return {
            name: _write_ready_made(place, path, documents, target=target, options=options)
            for name, options in kinds.items()
        }
    finally:
        path.unlink(missing_ok=True)


def _write_ready_made(place: Place, path: Path, documents: int, *, target: str, options: Record) -> Record:
    try:
        place.settle()
        meter = CpuMeter({"mongod": place.mongo.roots})
        arguments = [place.mongo.uri, target, str(path), json.dumps(options)]
        ran = _run(place, "benchmarks.limit", arguments, without_settings(), result_last=True)
        mongod_s = meter.read()["mongod"]
        if ran.result["documents"] != documents:
            raise BenchmarkError(f"{ran.result['documents']:,} of {documents:,} documents were written")
        return {**ran.result, "cpu_s": _cpu(ran.result["client_cpu_s"], mongod_s)}
    finally:
        place.client.drop_database(target)


def make_target(place: Place, name: str) -> None:
    """Make an empty collection with the store's indexes, for a script that knows of none."""
    place.client.drop_database(name)
    build_indexes(place.database(name).create_collection(VECTORS))


def run_script(place: Place, module: str, *, source: str, target: str) -> Record:
    """Return what a yardstick took to fill the target, or to look at it again."""
    place.settle()
    meter = CpuMeter({"mongod": place.mongo.roots})
    ran = _run(place, module, [place.mongo.uri, source, target], without_settings(), result_last=True)
    flush(place.client)
    cpu = _cpu(ran.cpu_s, meter.read()["mongod"])
    stored = place.database(target)[VECTORS].estimated_document_count()
    return {**ran.result, "cpu_s": cpu, "wall_s": ran.wall_s, "peak_mb": ran.peaks[0][1], "stored": stored}


def orchestrate_nothing(place: Place, server: PrefectServer, *, shards: int) -> Record:
    """Return what the flow and task runs of a load cost when their tasks do nothing: client and server."""
    meter = CpuMeter({"prefect": server.roots})
    ran = _run(place, "benchmarks.empty_pipeline", [str(shards)], server.environment, result_last=True)
    waited = time.monotonic()
    server.settle()
    prefect_s = max(0.0, meter.read()["prefect"] - (time.monotonic() - waited) * server.idle_share)
    return {**ran.result, "server_cpu_s": round(prefect_s, 2), "wall_s": ran.wall_s}


# -- processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ran:
    """What a process was: its own CPU seconds and its children's, the peaks of all, and what it wrote."""

    cpu_s: float
    wall_s: float
    peaks: list[tuple[str, float]]
    memory: list[tuple[float, float]]
    result: Record


def _run(
    place: Place,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    result_last: bool = False,
    under: Sequence[str] = (),
) -> _Ran:
    """Run a module in a process of its own and return what it took. Raises ``BenchmarkError`` with its last words."""
    result = place.scratch / "result.json"
    result.unlink(missing_ok=True)
    log = place.scratch / f"{module}.log"
    command = [*under, sys.executable, "-m", module]
    command += [*arguments, str(result)] if result_last else [str(result), *arguments]
    began = time.monotonic()
    with log.open("wb") as output:
        running = subprocess.Popen(
            command,
            # No .env of the repository must get in between.
            cwd=place.scratch,
            env={**environment, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        with Sampler(running.pid) as sampler:
            try:
                # What the system counted for it and for all its children that it waited for.
                _, status, usage = os.wait4(running.pid, 0)
            except BaseException:
                running.terminate()
                running.wait()
                raise
        running.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - began
    if running.returncode or not result.exists():
        lines = log.read_text("utf-8", "replace").splitlines()[-_SHOWN_LOG_LINES:]
        raise BenchmarkError(f"{module} ended with {running.returncode}:\n" + "\n".join(lines))
    peaks = [(peak.name, round(peak.mb, 1)) for peak in sampler.peaks]
    cpu_s = max(usage.ru_utime + usage.ru_stime, sampler.cpu_s)
    return _Ran(cpu_s, round(wall_s, 2), peaks, sampler.samples, json.loads(result.read_text()))
