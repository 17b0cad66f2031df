"""Run: what all stages of one run share, small enough to travel with every task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from tasks.domain.chunks import CHUNKER_VERSION
from tasks.domain.registry import describer_version, plural_of
from tasks.domain.vectors import EmbedderFacts
from tasks.domain.windows import Window

#: Raise it when a stage's files change their meaning: an unfinished run of the older code then starts over.
SHARD_SCHEMA = 4


@dataclass(frozen=True, slots=True)
class Scope:
    """Which records a run is about. Empty tuples mean all. ``limit`` counts records in ``_id`` order."""

    source: str = "transaction"
    window: Window = field(default_factory=Window)
    team_ids: tuple[str, ...] = ()
    contract_ids: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def whole(self) -> bool:
        """Return whether it covers the whole source."""
        return self.window.unbounded and not self.team_ids and not self.contract_ids and self.limit is None

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values, for a process that takes part in the work."""
        return {
            "source": self.source,
            "start": self.window.start,
            "end": self.window.end,
            "teams": list(self.team_ids),
            "contracts": list(self.contract_ids),
            "limit": self.limit,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Scope:
        """Return the scope that ``to_record`` was called on."""
        return cls(
            record["source"],
            Window(record["start"], record["end"]),
            tuple(record["teams"]),
            tuple(record["contracts"]),
            record["limit"],
        )

    def __str__(self) -> str:
        """Return ``transactions 2025-06-01..2025-07-01, 1 team``."""
        parts = [f"{plural_of(self.source)} {self.window}"]
        parts.extend(
            f"{len(ids)} {name}{'s' if len(ids) > 1 else ''}"
            for name, ids in (("team", self.team_ids), ("contract", self.contract_ids))
            if ids
        )
        if self.limit is not None:
            parts.append(f"first {self.limit:,}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Run:
    """``key`` names the work and survives a resume; ``id`` names the flow run that does it now.

    ``started_ms`` is when this flow run began: the "now" of every rule about time. ``began_ms`` is when the first one
    at this work did, None where this is the first. ``target_was_empty`` says that nothing of the scope's source was
    stored then: what is not there need not be looked for. ``earlier_ids`` name the flow runs that were at it before.
    ``may_have_written`` says that rows of this work may be stored already: they count as written, not as found
    unchanged. With ``rebuild`` every text is embedded again, changed or not; with ``thorough`` every record's documents
    are looked at, and those that it doesn't make are removed. ``owners`` stands for the contracts and teams by which
    records are given away. ``code_version`` is that of the code that writes its rows, empty where nobody said so.
    ``planned`` records are to be read, which chooses those that are followed (0: all of them; None: none, for work that
    is no load). ``accept`` names findings about the data that a person means.
    """

    key: str
    id: str
    scope: Scope
    started_ms: int
    target_was_empty: bool = False
    earlier_ids: tuple[str, ...] = ()
    may_have_written: bool = False
    rebuild: bool = False
    thorough: bool = False
    owners: str = ""
    began_ms: int | None = None
    code_version: str = ""
    planned: int | None = None
    accept: tuple[str, ...] = ()

    @property
    def may_skip(self) -> bool:
        """Return whether a record that is stored as it is now needs no look: nothing of it is asked for or unsure."""
        return not (self.target_was_empty or self.may_have_written or self.rebuild or self.thorough)

    @property
    def ids(self) -> frozenset[str]:
        """Return the ids of all flow runs that were or are at this work."""
        return frozenset((*self.earlier_ids, self.id))

    @property
    def started(self) -> datetime:
        """Return the start as a date."""
        return datetime.fromtimestamp(self.started_ms / 1000, UTC)


def fingerprint(scope: Scope, facts: EmbedderFacts, **choices: Any) -> str:
    """Return what makes two runs the same work: an unfinished run is taken up by one with the same fingerprint."""
    parts = [
        str(scope.window.start),
        str(scope.window.end),
        scope.source,
        sorted(scope.team_ids),
        sorted(scope.contract_ids),
        scope.limit,
        facts.model,
        facts.dimensions,
        facts.task,
        describer_version(scope.source),
        CHUNKER_VERSION,
        SHARD_SCHEMA,
        choices,
    ]
    return blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=12).hexdigest()
