"""Changes: which records of the source changed, and from where to follow on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_LAG_STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Records that changed, each once, whatever happened to it; the record itself is read when it is taken.

    ``times_ms`` are the moments of all changes in it. ``position`` is where to follow on once the batch is stored,
    as plain values; never before.
    """

    number: int
    ids: tuple[Any, ...]
    times_ms: tuple[int, ...]
    position: dict[str, Any]


@dataclass(slots=True)
class Lags:
    """How long changes took from the source to being searchable; holds counts, not every lag."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, times_ms: tuple[int, ...], *, now_ms: int) -> None:
        """Count changes that became searchable at ``now_ms``. A clock that runs ahead counts as no lag."""
        self.counts.update(int(max(0, now_ms - moment) / (1000 * _LAG_STEP_S)) for moment in times_ms)

    def quantile_s(self, share: float) -> float | None:
        """Return the lag that this share of the changes stayed within, in seconds, rounded up to a tenth."""
        total = self.counts.total()
        if not total:
            return None
        seen = 0
        for step in sorted(self.counts):
            seen += self.counts[step]
            if seen >= share * total:
                return round((step + 1) * _LAG_STEP_S, 1)
        raise AssertionError("unreachable: the counts sum to the total")
