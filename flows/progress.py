"""Progress: how far a run is, how fast, and how long it still takes; told to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

#: The command line listens here; a run on a worker has nobody listening and writes to its log and artifact.
listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("progress_listener", default=None)
#: Told in words why a run stands still and until when, where its process stays. The command line listens on a terminal,
#: which shows none of the run's log: a bar that doesn't move for hours looks like a run that hangs.
waiting_listener: ContextVar[Callable[[str], None] | None] = ContextVar("waiting_listener", default=None)


@dataclass(slots=True)
class Progress:
    """Records done of those planned. The rate counts only what this process did, not what a resumed run found."""

    total: int
    done: int = 0
    resumed: int = 0
    dead_lettered: int = 0
    _started: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Return records a second since the start."""
        elapsed = time.monotonic() - self._started
        return (self.done - self.resumed) / elapsed if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Return an estimate, or None before anything is known."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    @property
    def percent(self) -> float:
        """Return 0 to 100."""
        return 100.0 if self.total == 0 else min(100.0, 100.0 * self.done / self.total)

    def __str__(self) -> str:
        """Return ``12,000 of 50,000 records (24 %), 5 dead-lettered, 2,140 a second, 18 s left``."""
        left = self.seconds_left
        parts = [f"{self.done:,} of {self.total:,} records ({self.percent:.0f} %)"]
        if self.dead_lettered:
            parts.append(f"{self.dead_lettered:,} dead-lettered")
        if self.rate:
            parts.append(f"{self.rate:,.0f} a second")
        if left is not None and self.done < self.total:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def tell(self) -> None:
        """Call the listener, if there is one."""
        listen = listener.get()
        if listen is not None:
            listen(self)


def tell_waiting(words: str) -> None:
    """Call the listener, if there is one."""
    listen = waiting_listener.get()
    if listen is not None:
        listen(words)


def duration(seconds: float) -> str:
    """Return ``18 s``, ``4 min 10 s`` or ``5 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"
