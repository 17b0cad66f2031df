"""Manifest: what a run read, wrote, left, refused and removed, per team and holder. It must close exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from tasks.domain.dead_letters import DeadLetter
from tasks.domain.errors import TerminalError
from tasks.domain.profiles import Profile

#: What a token costs in a batch job, as a share of its price in an ordinary request: half, for every model of Gemini.
BATCH_PRICE_SHARE = 0.5


class Owner(NamedTuple):
    """Whom rows are counted for: a team, and the contract or website of its that they came through.

    Both are None for records whose owner could not be told.
    """

    team_id: str | None
    holder_id: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Records, unless the name says otherwise. ``read = written + unchanged + dead_lettered`` always.

    The others are vector documents: ``chunks`` were described, of which ``created`` were inserted and ``updated``
    set; ``removed`` were taken away.
    """

    read: int = 0
    written: int = 0
    unchanged: int = 0
    dead_lettered: int = 0
    removed: int = 0
    chunks: int = 0
    created: int = 0
    updated: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def closes(self) -> bool:
        """Return whether every record that was read has exactly one outcome."""
        return self.read == self.written + self.unchanged + self.dead_lettered


@dataclass(slots=True)
class Manifest:
    """The counts of a shard or of a run, by owner, and its dead letters by reason code.

    ``embedded`` texts with ``tokens`` tokens in all were sent to the embedder and answered: what was paid for. Of these
    ``batch_tokens`` came from batch jobs. ``profile`` says what the records are like, where that was looked at; a
    shard's is ``packed``, which is one value for Prefect to look at.
    """

    by_owner: dict[Owner, Counts] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    embedded: int = 0
    tokens: int = 0
    batch_tokens: int = 0
    profile: Profile | None = None
    packed: bytes = b""

    def add(self, owner: Owner, **counts: int) -> None:
        """Add to one owner's counts."""
        self.by_owner[owner] = self.by_owner.get(owner, Counts()) + Counts(**counts)

    def merge(self, other: Manifest) -> None:
        """Add another manifest's counts to this one."""
        for owner, counts in other.by_owner.items():
            self.by_owner[owner] = self.by_owner.get(owner, Counts()) + counts
        for code, number in other.refused.items():
            self.refused[code] = self.refused.get(code, 0) + number
        self.embedded += other.embedded
        self.tokens += other.tokens
        self.batch_tokens += other.batch_tokens
        profile = other.profile or (Profile.from_bytes(other.packed) if other.packed else None)
        if profile is not None:
            if self.profile is None:
                self.profile = Profile(profile.source)
            self.profile.merge(profile)

    def cost_usd(self, usd_per_million_tokens: float) -> float:
        """Return what the tokens cost, where an ordinary request costs so much."""
        full_price = self.tokens - (1 - BATCH_PRICE_SHARE) * self.batch_tokens
        return full_price * usd_per_million_tokens / 1_000_000

    @property
    def total(self) -> Counts:
        """Return the sum over all owners."""
        return sum(self.by_owner.values(), Counts())

    def add_unchanged(self, records: Mapping[tuple[str | None, str, int], int]) -> None:
        """Count records that are stored as they are: how many of each team, holder and number of chunks."""
        for (team_id, holder_id, chunks), number in records.items():
            self.add(Owner(team_id, holder_id), read=number, unchanged=number, chunks=number * chunks)

    def require_closed(self, what: str) -> None:
        """Raise ``TerminalError`` naming each owner whose records do not add up."""
        open_owners = [
            f"team {owner.team_id or 'unknown'}, {owner.holder_id or 'unknown'}: read {c.read}, "
            f"written {c.written}, unchanged {c.unchanged}, dead-lettered {c.dead_lettered}"
            for owner, c in self.by_owner.items()
            if not c.closes
        ]
        if open_owners:
            raise TerminalError(f"the accounting of {what} does not close: " + "; ".join(open_owners[:5]))

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values, for a checkpoint."""
        return {
            "counts": [
                {"team_id": owner.team_id, "holder_id": owner.holder_id, **asdict(counts)}
                for owner, counts in sorted(
                    self.by_owner.items(), key=lambda item: tuple(part or "" for part in item[0])
                )
            ],
            "refused": self.refused,
            "embedded": self.embedded,
            "tokens": self.tokens,
            "batch_tokens": self.batch_tokens,
            **({"profile": self.packed} if self.packed else {}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Manifest:
        """Return the manifest that ``to_record`` was called on."""
        names = [f.name for f in fields(Counts)]
        return cls(
            {
                Owner(row["team_id"], row["holder_id"]): Counts(**{name: row[name] for name in names})
                for row in record["counts"]
            },
            dict(record["refused"]),
            record["embedded"],
            record["tokens"],
            record.get("batch_tokens", 0),
            packed=record.get("profile", b""),
        )


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """What the store took of a shard and what was refused of it.

    ``stored_ids`` are the records that have vectors now, written or unchanged: ids of 12 bytes each, joined, which
    is one value for Prefect to look at, however many records.
    """

    manifest: Manifest
    stored_ids: bytes
    letters: tuple[DeadLetter, ...]
