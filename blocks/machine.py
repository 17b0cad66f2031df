"""This machine, or the container that we are in: how much of its memory, processors and disk is used."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


class Machine:
    """What this process may use, by its control group (version 2) where that has a limit, else by the machine.

    Processor time is told from one look to the next, so keep the object.
    """

    def __init__(self, cgroup: Path = _CGROUP) -> None:
        self._cgroup = cgroup
        self._before: tuple[float, float] | None = self._busy_s()

    def read_memory(self) -> tuple[int, int]:
        """Return bytes in use and the bytes that may be used. Files that are only cached are not in use."""
        whole = psutil.virtual_memory()
        limit = _number(self._cgroup / "memory.max")
        if limit is None or limit >= whole.total:
            return whole.total - whole.available, whole.total
        used = _number(self._cgroup / "memory.current") or 0
        return max(0, used - self._cached()), limit

    def read_processors(self) -> float | None:
        """Return the share of the processors that was busy since the last look, 0 to 1; None at the first."""
        now, before = self._busy_s(), self._before
        self._before = now
        if now is None or before is None or now[1] <= before[1]:
            return None
        return min(1.0, max(0.0, (now[0] - before[0]) / ((now[1] - before[1]) * self.read_processor_count())))

    def read_processor_count(self) -> float:
        """Return how many processors may be used; a fraction where a control group says so."""
        whole = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        quota, _, period = _text(self._cgroup / "cpu.max").partition(" ")
        return min(whole, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else whole

    def read_disk(self, folder: Path) -> tuple[int, int]:
        """Return bytes in use and the bytes there are on the disk that holds a folder, for a user who isn't root."""
        while not folder.exists():
            folder = folder.parent
        found = psutil.disk_usage(str(folder))
        return found.used, found.used + found.free

    def _busy_s(self) -> tuple[float, float] | None:
        """Return seconds of processor time that were used, and the clock."""
        limited = _text(self._cgroup / "cpu.max").partition(" ")[0].isdigit()
        if limited:
            for line in _text(self._cgroup / "cpu.stat").splitlines():
                name, _, value = line.partition(" ")
                if name == "usage_usec":
                    return int(value) / 1e6, time.monotonic()
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0), time.monotonic()

    def _cached(self) -> int:
        for line in _text(self._cgroup / "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
