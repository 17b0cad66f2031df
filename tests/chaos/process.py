"""The process of the migration: started again after each end, and read by what its log says it is at."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_MIGRATE = "import json, sys; from flows.migrate import migrate; migrate(**json.loads(sys.argv[1]))"
_FINISHED = re.compile(r"Task run '([a-z ]+?) ?(\d*)' - Finished in state Completed")
_NEXT = {
    "extract": "validate",
    "validate": "chunk",
    "chunk": "embed",
    "embed": "upsert",
    "upsert": "checkpoint",
    "check embedder": "initialise",
    "initialise": "plan",
    "plan": "forecast",
    "forecast": "extract",
    "index": "reconcile",
    "reconcile": "end",
}
_PROGRESS = re.compile(r" - ([\d,]+) of ([\d,]+) records")
_KEPT_CHARS = 3_000


class Process:
    """One process that migrates. ``steps`` are the tasks that it has finished, ``last_stage`` is that of the last."""

    def __init__(self, number: int, folder: Path, *, prefect_url: str, parameters: dict[str, Any]) -> None:
        self.number = number
        self.began_s = time.monotonic()
        self.steps = 0
        self.last_stage = ""
        self.is_at_work = False
        #: Whether a server was down at any moment of its life: then it may end by itself.
        self.was_disturbed = False
        self._at: dict[str, str] = {}
        self._phase = "start"
        folder.mkdir(parents=True, exist_ok=True)
        self._log_path = folder / f"process-{number:03d}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
            "PREFECT_API_URL": prefect_url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        }
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MIGRATE, json.dumps(parameters)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._log = self._log_path.open("rb")
        self._rest = b""

    def look(self) -> int | None:
        """Read what it has said since the last look; return its exit code once it has ended."""
        code = self._process.poll()
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        for line in lines:
            self._read(line.decode("utf-8", "replace"))
        return code

    def _read(self, line: str) -> None:
        if "Flow run '" in line:
            self.is_at_work = True
        if "- taking up run" in line:
            self._phase = "extract"
        progress = _PROGRESS.search(line)
        if progress is not None and progress[1] == progress[2]:
            self._phase = "index"
        found = _FINISHED.search(line)
        if found is None:
            return
        self.steps += 1
        stage, shard = found.groups()
        self.last_stage = stage
        if not shard:
            self._phase = _NEXT.get(stage, stage)
        elif stage == "checkpoint":
            self._at.pop(shard, None)
        else:
            self._at[shard] = _NEXT[stage]

    @property
    def doing(self) -> str:
        """Return what it is at: a stage for each shard under way, or what comes before and after the shards."""
        if self._at:
            return ", ".join(f"{stage} {shard}" for shard, stage in sorted(self._at.items(), key=lambda at: int(at[0])))
        return self._phase

    def kill(self) -> None:
        """End it without a word."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill it if it still runs, and let go of its log."""
        if self._process.poll() is None:
            self.kill()
        self._log.close()

    def last_words(self) -> str:
        """Return the end of its log."""
        return self._log_path.read_text("utf-8", "replace")[-_KEPT_CHARS:]
