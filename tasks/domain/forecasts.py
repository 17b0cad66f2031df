"""Forecast: what embedding will cost and how long Gemini's quotas make it take, before anything is spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from tasks.domain.quotas import Quota

_MINUTE_S, _DAY_S = 60.0, 86_400.0

#: Google's common quotas for embedding by tier of a project (November 2026); a project's own may differ.
TIERS: dict[str, Quota] = {
    "free": Quota(texts_per_minute=100, texts_per_day=1_000),
    "tier 1": Quota(texts_per_minute=3_000, tokens_per_minute=1_000_000),
    "tier 2": Quota(texts_per_minute=5_000, tokens_per_minute=5_000_000),
    "tier 3": Quota(texts_per_minute=10_000, tokens_per_minute=10_000_000),
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will embed. ``sampled`` records were looked at for it; all of them means that it is exact."""

    records: int
    sampled: int
    texts: int
    tokens: int

    @classmethod
    def of_sample(cls, *, records: int, sampled: int, texts: int, tokens: int) -> Forecast:
        """Return the forecast for all records from what some of them need."""
        scale = records / sampled if sampled else 0.0
        return cls(records, sampled, round(texts * scale), round(tokens * scale))

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def seconds_at(quota: Quota, *, texts: int, tokens: int) -> float | None:
    """Return how long a quota makes so much embedding take at least, or None where it has no limit."""
    waits = [
        amount * _MINUTE_S / limit
        for amount, limit in ((texts, quota.texts_per_minute), (tokens, quota.tokens_per_minute))
        if limit
    ]
    if quota.texts_per_day and texts > quota.texts_per_day:
        # The last day's texts don't wait for its end.
        waits.append((ceil(texts / quota.texts_per_day) - 1) * _DAY_S)
    return round(max(waits), 1) if waits else None
