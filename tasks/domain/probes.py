"""Probe: one look at one part of the system, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

#: ``unknown``: it isn't configured or can't be told, and ``says`` tells why.
Verdict = Literal["ok", "failed", "unknown"]

PROBES = (
    *("source", "vectors", "embedder", "backups", "prefect", "workers", "queue", "ingest"),
    *("letters", "spending", "requests", "disk", "memory", "cpu", "watch"),
)
#: Without one of these nothing is searched or taken over: a look in which one fails is downtime.
VITAL = ("source", "vectors", "prefect")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a probe found.

    ``says`` is a sentence for a person and holds no secret. ``figures`` are by name with the unit at its end; one that
    could not be told is missing.
    """

    probe: str
    at: datetime
    verdict: Verdict
    says: str
    took_s: float
    figures: Mapping[str, float] = field(default_factory=dict)
