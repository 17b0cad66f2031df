"""Memory: a run tells the garbage collector once that what it found at its start stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import gc, json
from blocks.memory import limit_heaps, release_memory
plain = gc.get_threshold()
limit_heaps()
tuned, frozen = gc.get_threshold(), gc.get_freeze_count()
gc.set_threshold(*plain)
limit_heaps()  # the next run of the same process
release_memory()
class Knot:
    pass
knot = Knot()
knot.itself = knot
del knot
found = gc.collect()
print(json.dumps({"plain": plain, "tuned": tuned, "frozen": frozen, "again": gc.get_threshold(), "found": found}))
"""


def test_the_garbage_collector_walks_seldom_but_still_finds_cycles() -> None:
    process = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, check=True, capture_output=True, text=True)
    said: dict[str, Any] = json.loads(process.stdout)
    assert all(tuned > plain for tuned, plain in zip(said["tuned"], said["plain"], strict=True))
    assert said["frozen"] > 1_000
    # What a program sets itself after the first run is left alone.
    assert said["again"] == said["plain"]
    assert said["found"] > 0
