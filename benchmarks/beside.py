"""The measurements that have commands of their own, run beside the migration's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

from benchmarks.measurements import ROOT, BenchmarkError, Record


def measure_quota() -> Record:
    """Return what ``python -m benchmarks.quota`` prints: names and values, as it words them."""
    command = [sys.executable, "-m", "benchmarks.quota", "--minutes", "2.5", "--texts-per-minute", "3000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"benchmarks.quota ended with {done.returncode}: {done.stderr[-2_000:]}")
    lines = (line.partition("  ") for line in done.stdout.splitlines())
    return {"lines": [[name, value.strip()] for name, _, value in lines if value]}


def measure_embedding() -> Record:
    """Return what a request of 100 texts costs by each of Gemini's clients, and the one that is used by default."""
    # Imported here: the clients are slow to import, and only this needs them.
    from benchmarks.embedding import measure
    from blocks.gemini import GeminiEmbedder

    costs = measure()
    default = GeminiEmbedder.model_fields["client"].default
    used = next(cost for cost in costs if cost.client == default and cost.lifelike)
    return {"client": default, "cpu_ms_per_request": used.cpu_ms, "costs": [asdict(cost) for cost in costs]}


def measure_forms() -> Record:
    """Return, by form of stored vectors, their bytes and what a search still finds."""
    from benchmarks.storage import measure

    return {"forms": measure()}
