"""All figures of the migration, in one run: ``python -m benchmarks.migration``, or ``make bench``.

The first load, a run with nothing changed, one with a hundredth changed, the limit that driver and mongod set, two
scripts to compare with, memory and throughput over rows, a slow embedder, SQLite instead of PostgreSQL, bytes on
disk, the forecast, Gemini's client and its quota. CPU seconds are the figure, wall time stands beside.

Results are written after each measurement, so that what was measured survives an abort. A phase alone:
``python -m benchmarks.migration --phase first-load,unchanged --rows 20000``; it makes what it needs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from benchmarks import beside, report
from benchmarks.measurements import (
    BenchmarkError,
    Place,
    Record,
    change_source,
    load_source,
    make_target,
    migrate,
    orchestrate_nothing,
    require_complete,
    run_script,
    write_ready_made,
)
from benchmarks.results import Results
from benchmarks.servers import Orchestrator, PrefectServer, mongo_server, prefect_server
from benchmarks.targets import bytes_on_disk
from tasks.domain.collections import VECTORS

ROWS = 871_781
SIZES = (10_000, 50_000, 200_000)
YARDSTICK_ROWS = 50_000
LATENCY_MS, AT_ONCE = 300.0, 8
#: Enough for two minutes at the quota of tier 1.
TIMED_ROWS, TEXTS_PER_MINUTE = 6_000, 3_000
_DEFAULT_OUT = Path("bench")
#: Source, store, its copy for the limit, and mongod's log of changes.
_DISK_BYTES_A_ROW, _DISK_BYTES_ANYHOW = 32_000, 3_000_000_000
_OPLOG_BYTES_A_ROW, _SMALLEST_OPLOG_MB = 12_000, 990


class Bench:
    """The phases, on one mongod. A phase that needs what another leaves behind runs that one first."""

    def __init__(self, chosen: argparse.Namespace, place: Place, results: Results, stack: ExitStack) -> None:
        self._chosen, self._place, self._results, self._stack = chosen, place, results, stack
        self._servers: dict[Orchestrator, PrefectServer] = {}
        self._sources: set[int] = set()
        self._stores: dict[int, str] = {}
        self._number = 0
        self.rows: int = chosen.rows
        self.yardstick_rows: int = chosen.yardstick_rows

    # -- phases -----------------------------------------------------------------------------------------------

    def sizes(self) -> None:
        """The first load at several sizes, each in a fresh process on an empty store."""
        for rows in self._chosen.sizes:
            if rows not in (self.yardstick_rows, self.rows):
                self._first_load(rows)
                self._drop_store(rows)

    def yardsticks(self) -> None:
        """Ours, the afternoon script and the strong one on the same rows: the first load, then nothing changed."""
        rows = self.yardstick_rows
        self._unchanged(rows)
        self._drop_store(rows)
        source = self._source(rows)
        for name in ("afternoon", "strong"):
            target = self._new_target(name)
            make_target(self._place, target)
            for run in ("first load", "unchanged"):
                measured = run_script(self._place, f"benchmarks.{name}", source=source, target=target)
                self._keep(f"{name} {run}", rows, measured)
            self._place.client.drop_database(target)

    def sqlite(self) -> None:
        """The first load with the Prefect server on SQLite."""
        self._first_load(self.yardstick_rows, server="sqlite")

    def latency(self) -> None:
        """The first load with an embedder that takes its time."""
        rows, target = self.yardstick_rows, self._new_target("latency")
        measured = migrate(
            self._place,
            self._server(),
            source=self._source(rows),
            target=target,
            latency_ms=LATENCY_MS,
            at_once=AT_ONCE,
            settings={"CRYPTIQUE_GEMINI_CONCURRENCY": AT_ONCE},
        )
        require_complete(self._place, target, measured)
        self._place.client.drop_database(target)
        self._keep("latency", rows, measured | {"latency_ms": LATENCY_MS, "served_at_once": AT_ONCE})

    def forecast(self) -> None:
        """A dry run before the first load: what it says of tokens and cost."""
        self._keep("forecast", self.rows, self._migrate(self.rows, self._new_target("dry"), {"dry_run": True}))

    def first_load(self) -> None:
        """The first load into an empty store."""
        self._first_load(self.rows)

    def storage(self) -> None:
        """What a stored document takes on disk."""
        store = self._store(self.rows)
        self._keep("storage", self.rows, bytes_on_disk(self._place.database(store)[VECTORS]))

    def unchanged(self) -> None:
        """A second run, nothing changed."""
        self._unchanged(self.rows)

    def changed(self) -> None:
        """Another run, a hundredth of the source changed."""
        store = self._store(self.rows)
        rows_changed = change_source(self._place, self._source(self.rows))
        measured = self._migrate(self.rows, store)
        self._sources.discard(self.rows)  # no longer what others were measured on
        self._keep("changed", self.rows, measured | {"rows_changed": rows_changed})

    def limit(self) -> None:
        """The same documents, ready-made, as raw BSON into an empty collection, and its indexes built."""
        store = self._store(self.rows)
        measured = write_ready_made(self._place, source=store, target=self._new_target("limit"))
        del self._stores[self.rows]
        for name, one in measured.items():
            self._keep(name, self.rows, one)

    def orchestration(self) -> None:
        """The flow and task runs of the first load with tasks that do nothing."""
        load = self._results.get("first load", self.rows)
        shards = load["task_runs"].get("checkpoint", 0) if load else 0
        measured = orchestrate_nothing(self._place, self._server(), shards=shards or max(1, self.rows // 5_000))
        self._keep("orchestration", self.rows, measured)

    def timed(self) -> None:
        """The forecast of time against a run at the quota of tier 1."""
        settings = {"CRYPTIQUE_GEMINI_TEXTS_PER_MINUTE": TEXTS_PER_MINUTE}
        told = self._migrate(TIMED_ROWS, self._new_target("dry"), {"dry_run": True}, settings=settings)
        target = self._new_target("timed")
        happened = self._migrate(TIMED_ROWS, target, settings=settings, latency_ms=LATENCY_MS)
        require_complete(self._place, target, happened)
        self._place.client.drop_database(target)
        self._keep("timed", TIMED_ROWS, happened | {"forecast": told["report"]})

    def quota(self) -> None:
        """Two processes under one quota."""
        self._keep("quota", None, beside.measure_quota())

    def embedding(self) -> None:
        """The CPU of Gemini's client."""
        self._keep("embedding", None, beside.measure_embedding())

    def forms(self) -> None:
        """What smaller forms of vectors save and what they cost a search."""
        self._keep("forms", None, beside.measure_forms())

    # -- what they need ---------------------------------------------------------------------------------------

    def _server(self, kind: Orchestrator | None = None) -> PrefectServer:
        kind = kind or self._chosen.prefect
        if kind not in self._servers:
            say(f"starting the Prefect server on {kind}")
            home = self._place.scratch / f"prefect-{kind}"
            self._servers[kind] = self._stack.enter_context(prefect_server(kind, home))
        return self._servers[kind]

    def _source(self, rows: int) -> str:
        if rows not in self._sources:
            say(f"loading a source of {rows:,} rows")
            load_source(self._place, _source_name(rows), rows)
            self._sources.add(rows)
        return _source_name(rows)

    def _store(self, rows: int) -> str:
        if rows not in self._stores:
            self._first_load(rows)
        return self._stores[rows]

    def _new_target(self, name: str) -> str:
        self._number += 1
        return f"target_{self._number}_{name}"

    def _drop_store(self, rows: int) -> None:
        self._place.client.drop_database(self._stores.pop(rows))

    def _first_load(self, rows: int, *, server: Orchestrator | None = None) -> None:
        target = self._new_target("first")
        measured = self._migrate(rows, target, server=server)
        require_complete(self._place, target, measured)
        if server is not None:
            self._place.client.drop_database(target)
            self._keep(f"first load on {server}", rows, measured)
            return
        self._stores[rows] = target
        self._keep("first load", rows, measured)

    def _unchanged(self, rows: int) -> None:
        store = self._store(rows)
        self._keep("unchanged", rows, self._migrate(rows, store))

    def _migrate(
        self,
        rows: int,
        target: str,
        parameters: Record | None = None,
        *,
        server: Orchestrator | None = None,
        **how: Any,
    ) -> Record:
        return migrate(
            self._place, self._server(server), source=self._source(rows), target=target, parameters=parameters, **how
        )

    def _keep(self, name: str, rows: int | None, measured: Record) -> None:
        say(report.line(name, self._results.put(name, rows, measured)))


def _source_name(rows: int) -> str:
    return f"source_{rows}"


PHASES: dict[str, Callable[[Bench], None]] = {
    "sizes": Bench.sizes,
    "yardsticks": Bench.yardsticks,
    "sqlite": Bench.sqlite,
    "latency": Bench.latency,
    "forecast": Bench.forecast,
    "first-load": Bench.first_load,
    "storage": Bench.storage,
    "unchanged": Bench.unchanged,
    "changed": Bench.changed,
    "limit": Bench.limit,
    "orchestration": Bench.orchestration,
    "timed": Bench.timed,
    "quota": Bench.quota,
    "embedding": Bench.embedding,
    "forms": Bench.forms,
}


def main() -> None:
    """Measure what the command line chose and print the table."""
    chosen = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Inherited by all that is started: figures of machines with more cores are comparable.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])
    if chosen.phase is None:
        say(f"this takes some {20 + chosen.rows // 40_000} minutes and {_disk_bytes(chosen.rows) / 1e9:.0f} GB of disk")
    results = Results(chosen.out, resume=chosen.phase is not None)
    failed: list[str] = []
    try:
        failed = _measure(chosen, results)
    except BenchmarkError as error:
        failed = [str(error)]
    except KeyboardInterrupt:
        failed = ["stopped"]
    finally:
        # Also after an abort: what was measured stands.
        report.publish(results)
    for words in failed:
        say(f"failed: {words}")
    raise SystemExit(1 if failed else 0)


def _measure(chosen: argparse.Namespace, results: Results) -> list[str]:
    """Go through the phases and return what failed: the others are measured all the same."""
    failed = []
    began = time.monotonic()
    phases = chosen.phase or list(PHASES)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=chosen.scratch)))
        free, needed = shutil.disk_usage(folder).free, _disk_bytes(chosen.rows)
        if free < needed:
            raise BenchmarkError(f"{folder.parent} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed")
        oplog_mb = max(_SMALLEST_OPLOG_MB, chosen.rows * _OPLOG_BYTES_A_ROW // 1_000_000)
        mongo = stack.enter_context(mongo_server(folder, cache_gb=chosen.cache_gb, oplog_mb=oplog_mb))
        client: MongoClient[Record] = stack.enter_context(MongoClient(mongo.uri, tz_aware=True))
        results.describe_machine(client.server_info()["version"])
        bench = Bench(chosen, Place(mongo, client, folder, tuple(chosen.under)), results, stack)
        for phase in phases:
            say(f"{phase}: {_first_line(PHASES[phase])}")
            try:
                PHASES[phase](bench)
            except BenchmarkError as error:
                say(f"{phase} failed: {error}")
                failed.append(f"{phase}: {str(error).splitlines()[-1]}")
    say(f"{(time.monotonic() - began) / 60:.1f} minutes in all")
    return failed


def _disk_bytes(rows: int) -> int:
    return _DISK_BYTES_ANYHOW + rows * _DISK_BYTES_A_ROW


def _first_line(phase: Callable[[Bench], None]) -> str:
    return (phase.__doc__ or "").partition("\n")[0].rstrip(".")


def say(text: str) -> None:
    """Print a line with the time of day, at once."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)  # noqa: T201


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="of the source (default: %(default)s)")
    parser.add_argument("--sizes", type=_numbers, default=SIZES, help="of the first loads that are compared")
    parser.add_argument("--yardstick-rows", type=int, default=YARDSTICK_ROWS, help="for the scripts, SQLite, latency")
    parser.add_argument("--phase", type=_phases, help=f"only these, separated by commas: {', '.join(PHASES)}")
    parser.add_argument("--prefect", choices=("postgres", "sqlite"), default="postgres", help="the Prefect server")
    parser.add_argument("--scratch", type=Path, help="an existing folder for what is removed afterwards")
    parser.add_argument("--cache-gb", type=float, default=4.0, help="of mongod (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="all share these (default: %(default)s)")
    parser.add_argument("--under", type=shlex.split, default="", help="a command that runs migrate, such as a profiler")
    parser.add_argument("--out", type=Path, help="for the results (default: bench; with --phase: nowhere)")
    chosen = parser.parse_args()
    if chosen.out is None and chosen.phase is None:
        chosen.out = _DEFAULT_OUT
    return chosen


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.replace("_", "").split(",") if part))


def _phases(text: str) -> list[str]:
    chosen = {part.strip() for part in text.split(",")}
    if unknown := chosen - PHASES.keys():
        raise argparse.ArgumentTypeError(f"there is no phase {', '.join(sorted(unknown))}")
    # In their own order: a later one takes away what an earlier one needs.
    return [phase for phase in PHASES if phase in chosen]


if __name__ == "__main__":
    main()
