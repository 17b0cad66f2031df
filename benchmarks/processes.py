"""Processes: the CPU seconds and the memory of a process and all it started, as Linux counts them in ``/proc``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
#: More of these would cost more than they tell.
_KEPT_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class Process:
    """One line of ``/proc/PID/stat``. ``ended_children_s`` is the CPU of children that ended and were waited for."""

    pid: int
    parent: int
    session: int
    own_s: float
    ended_children_s: float

    @property
    def cpu_s(self) -> float:
        """Return its own CPU seconds and those of its ended children: a child's end moves them, and loses none."""
        return self.own_s + self.ended_children_s


def read_processes() -> dict[int, Process]:
    """Return all processes by their id; one that ends meanwhile is left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The second field is the program's name in brackets and may hold anything.
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        pid = int(folder.name)
        found[pid] = Process(pid, int(fields[1]), int(fields[3]), own / _TICKS, children / _TICKS)
    return found


def family(roots: Iterable[int], processes: Mapping[int, Process]) -> set[int]:
    """Return the roots that run, their descendants, and whoever is left in a session that one of them began."""
    members = {pid for pid in roots if pid in processes}
    sessions = set(roots)
    while True:
        more = {one.pid for one in processes.values() if one.parent in members or one.session in sessions} - members
        if not more:
            return members
        members |= more
        sessions |= more


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return the CPU seconds that these processes and all they started have used, ended ones included."""
    processes = read_processes()
    return sum(processes[pid].cpu_s for pid in family(roots, processes))


def children_of(pid: int) -> set[int]:
    """Return the processes that this one started and that run."""
    return {one.pid for one in read_processes().values() if one.parent == pid}


def peak_mb(pid: int) -> float:
    """Return the most memory the process ever held (its peak resident set), in MB of 10^6 bytes; 0 if it ended."""
    return _status_mb(pid, "VmHWM:")


def name_of(pid: int) -> str:
    """Return a short name for what the process runs, or an empty one if it ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return module or " ".join(Path(word).name for word in words[:2] if word and not word.startswith("-"))


def _status_mb(pid: int, field: str) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return 0.0


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that one process held."""

    pid: int
    name: str
    mb: float


class Sampler:
    """A thread that looks at a process and its children until it is left: ``with Sampler(pid)``.

    A peak is the system's own count, so none between two looks is missed but those of a process's last moments.
    """

    def __init__(self, root: int, *, every_s: float = 0.25) -> None:
        self._root, self._every_s = root, every_s
        self._peaks: dict[int, Peak] = {}
        self._cpu_s = 0.0
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peaks(self) -> list[Peak]:
        """Return the processes with their peaks, the largest first."""
        return sorted(self._peaks.values(), key=lambda peak: -peak.mb)

    @property
    def cpu_s(self) -> float:
        """Return the most CPU seconds they were seen to have used: also of children that nobody waited for."""
        return self._cpu_s

    @property
    def samples(self) -> list[tuple[float, float]]:
        """Return what all of them held together, as (seconds since the start, MB), some hundred pairs."""
        step = max(1, len(self._samples) // _KEPT_SAMPLES)
        return self._samples[::step]

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(self._every_s):
            processes = read_processes()
            members = family([self._root], processes)
            self._cpu_s = max(self._cpu_s, sum(processes[pid].cpu_s for pid in members))
            held = 0.0
            for pid in members:
                held += _status_mb(pid, "VmRSS:")
                peak = peak_mb(pid)
                if peak:
                    # A process that was just forked has its parent's name until it runs its own program.
                    self._peaks[pid] = Peak(pid, name_of(pid) or str(pid), peak)
            self._samples.append((round(time.monotonic() - began, 2), round(held, 1)))


class CpuMeter:
    """Counts the CPU seconds of named groups of processes from its making on."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        self._groups = groups
        self._before = self._read()
        self._began = time.monotonic()

    def read(self) -> dict[str, float]:
        """Return the CPU seconds of every group since the start."""
        return {name: max(0.0, now - self._before[name]) for name, now in self._read().items()}

    @property
    def wall_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._began

    def _read(self) -> dict[str, float]:
        processes = read_processes()
        return {
            name: sum(processes[pid].cpu_s for pid in family(roots, processes)) for name, roots in self._groups.items()
        }
