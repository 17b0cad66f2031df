"""Search: the index at full size beside a plain scan, on vectors with clusters and without: ``make bench-search``.

Texts and facts are those of the shared rows, again and again under other ids; vectors are drawn. Each kind is searched
in a process of its own, which opens the files and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bson import ObjectId

from benchmarks.evaluation import NOW, Corpus
from blocks.wordllama import LocalEmbedder
from tasks.domain.retrieval.entries import Entry
from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.ranking import rank
from tasks.domain.retrieval.segments import Segment
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.retrieval.understanding import Vocabulary, understand
from tasks.domain.retrieval.views import LivingSegment, SegmentsView
from tasks.domain.vectors import Matrix
from tests.conftest import SHARED_DATA

ROWS, DIMENSIONS = 871_781, 1_536
TEAMS = 40
PER_SEGMENT = 131_072
_CLUSTERS, _SPREAD = 2_000, 0.6
_QUESTIONS = 100
_WORDS = {"swap": 1.0, "fail": 1.0, "router": 1.0, "uniswap": 1.0, "token": 1.0}
_ASKED = (
    "failed swaps on the Uniswap V2 router",
    "who claimed staking rewards on Polygon in 2021",
    "USDC transfers of at least 100,000",
)


def team_id(number: int) -> str:
    """Return the id of a team."""
    return f"{number:024x}"


def draw_vectors(count: int, *, clustered: bool, seed: int) -> Matrix:
    """Return vectors of length 1, drawn evenly or around centres that are the same for every seed."""
    generator = np.random.default_rng(seed)
    vectors: Matrix = generator.standard_normal((count, DIMENSIONS), dtype=np.float32)
    if clustered:
        centres = np.random.default_rng(0).standard_normal((_CLUSTERS, DIMENSIONS), dtype=np.float32)
        vectors *= _SPREAD
        vectors += centres[generator.integers(0, _CLUSTERS, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def build(folder: Path, rows: int, *, clustered: bool) -> float:
    """Write an index of so many rows, and return how many seconds that took without the drawing."""
    entries = list(Corpus.of_folder(SHARED_DATA, LocalEmbedder()).engine.entries)
    took = 0.0
    for number, start in enumerate(range(0, rows, PER_SEGMENT)):
        count = min(PER_SEGMENT, rows - start)
        vectors = draw_vectors(count, clustered=clustered, seed=number + 1)
        began = time.perf_counter()
        made = [_renumbered(entries[place % len(entries)], place) for place in range(start, start + count)]
        Segment.build(made, vectors).save(folder / f"segment-{number:03}")
        took += time.perf_counter() - began
    return took


def _renumbered(entry: Entry, place: int) -> Entry:
    head = entry.document_id.split(":", 2)[:2]
    terms = {term for term in entry.terms if not term.startswith(("team=", "hash=", "record="))}
    return replace(
        entry,
        row_id=ObjectId(f"{place:024x}"),
        document_id=f"{head[0]}:{head[1]}:0x{place:064x}:0",
        terms=frozenset({*terms, f"team={team_id(place % TEAMS)}", f"hash=0x{place:064x}", f"record={place:024x}"}),
        fold=f"{head[0]}:{head[1]}:0x{place:064x}",
    )


def measure(folder: Path, *, clustered: bool) -> dict[str, Any]:
    """Return the figures of an index on the disk."""
    before = _resident_mb()
    began = time.perf_counter()
    segments = [Segment.open(path) for path in sorted(folder.iterdir())]
    view = SegmentsView("bench", tuple(LivingSegment(one, np.ones(len(one), dtype=np.bool_)) for one in segments))
    view.nearest(view.choose(Tenant(None), Filter()), _questions(clustered)[0], 10)
    opened = time.perf_counter() - began
    everybody, team = Tenant(None), Tenant(team_id(7))
    questions = _questions(clustered)
    found: dict[str, Any] = {"rows": len(view), "open_s": opened}
    for name, tenant in (("all", everybody), ("team", team)):
        times, cpu, right = [], [], []
        for number, asked in enumerate(questions):
            began, began_cpu = time.perf_counter(), time.process_time()
            best = view.nearest(view.choose(tenant, Filter()), asked, 10)
            times.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
            if number < 20:
                exact = _exact(view, tenant, asked)
                right.append(len({one.document_id for one in best} & exact) / 10)
        found |= {
            f"{name}_p50_ms": 1e3 * float(np.median(times)),
            f"{name}_p95_ms": 1e3 * float(np.quantile(times, 0.95)),
            f"{name}_cpu_ms": 1e3 * float(np.mean(cpu)),
            f"{name}_recall": float(np.mean(right)),
        }
    began = time.process_time()
    for asked in questions[:3]:
        for segment in segments:
            segment.vectors @ asked
    found["scan_cpu_ms"] = 1e3 * (time.process_time() - began) / 3
    for name, tenant in (("all", everybody), ("team", team)):
        found[f"{name}_words_p50_ms"] = _median_ms(
            lambda tenant=tenant: view.by_words(view.choose(tenant, Filter()), _WORDS, 200)  # type: ignore[misc]
        )
        vocabulary = Vocabulary.of(
            tokens=view.values(tenant, "token"), contracts=view.values(tenant, "facts.contractName")
        )
        for question in _ASKED:
            understood = understand(question, vocabulary, now=NOW)
            found.setdefault(f"{name}_rank_p50_ms", []).append(
                _median_ms(lambda tenant=tenant, understood=understood: rank(view, tenant, understood, questions[0]))  # type: ignore[misc]
            )
    found["resident_mb"] = _resident_mb() - before
    return found


def _questions(clustered: bool) -> Matrix:
    return draw_vectors(_QUESTIONS, clustered=clustered, seed=9_999)


def _exact(view: SegmentsView, tenant: Tenant, asked: Matrix) -> set[str]:
    found: list[tuple[float, str]] = []
    for part in view.choose(tenant, Filter()).parts:
        cosines = part.segment.vectors @ asked
        cosines[~part.fitting] = -2
        best = np.argpartition(-cosines, 10)[:10]
        found += [(-float(cosines[place]), part.segment.document_id(int(place))) for place in best]
    return {document_id for _, document_id in sorted(found)[:10]}


def _median_ms(call: Callable[[], object], times: int = 15) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return 1e3 * float(np.median(took))


def _resident_mb() -> float:
    """Return what this process holds in memory of its own, beside mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    """Build and measure both kinds, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--folder", type=Path, help="where the index is made; some 6 GB for the full size")
    parser.add_argument("--measure", choices=["clustered", "unclustered"], help="of the folder, as it is")
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.folder, clustered=chosen.measure == "clustered")))  # noqa: T201
        return
    for kind in ("clustered", "unclustered"):
        folder = Path(tempfile.mkdtemp(dir=chosen.folder))
        try:
            took = build(folder, chosen.rows, clustered=kind == "clustered")
            command = [sys.executable, "-m", "benchmarks.search", "--folder", str(folder), "--measure", kind]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = {"kind": kind, "build_s": took, **json.loads(done.stdout)}
            print("\n".join(_lines(figures)), flush=True)  # noqa: T201
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    for name, value in figures.items():
        if isinstance(value, list):
            yield f"{name:22} {', '.join(f'{one:,.1f}' for one in value)}"
        else:
            yield f"{name:22} {value:,.3f}" if isinstance(value, float) else f"{name:22} {value}"
    yield f"{'share of a scan':22} {figures['all_cpu_ms'] / figures['scan_cpu_ms']:.3f}"


if __name__ == "__main__":
    main()
