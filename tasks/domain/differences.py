"""Differences: how source and store compare, by team, contract or website, and day, in memory that no ids fill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, NamedTuple

import bson

#: What may be wrong with a record; one that differs is of one kind, the first of these that it is:
#:
#: - ``moved``: stored for another team, website or contract than own it now, or for one though nobody owns it now;
#: - ``missing``: lacks a vector;
#: - ``stale``: its vectors say what the source no longer says;
#: - ``doubled``: has documents that it doesn't make;
#: - ``orphaned``: gone from the source, and stored;
#: - ``unaccounted``: refused without a dead letter, or stored in spite of one.
KINDS = ("missing", "stale", "moved", "doubled", "orphaned", "unaccounted")
#: Places beyond so many are counted by team alone: some 20 MB, whatever a source holds.
MAX_PLACES = 50_000
_MAX_MOVES = 1_000
_EXAMPLES = 20


class Place(NamedTuple):
    """Where a record is counted: its team, the contract or website that it has that through, and its day in UTC.

    The day (``2025-06-01``) is that of the record's own time. None is what can't be told, or does not exist.
    """

    team_id: str | None
    holder_id: str | None
    day: str | None


class Move(NamedTuple):
    """From whom to whom stored records are to go. No team is nobody."""

    from_team: str | None
    from_holder: str | None
    to_team: str | None
    to_holder: str | None


def day_of(moment: object) -> str | None:
    """Return the day of a date, or of epoch milliseconds; a date without a zone is UTC. None where there is none."""
    if isinstance(moment, int):
        try:
            moment = datetime.fromtimestamp(moment / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            return None
    if not isinstance(moment, datetime):
        return None
    return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date().isoformat()


@dataclass(slots=True)
class Tally:
    """Records of one place, or of several added up. ``in_source`` counts by the owner of now, ``stored`` by the stored
    one; ``dead_lettered`` are those of the source that are refused now. The others are ``KINDS``.
    """

    in_source: int = 0
    stored: int = 0
    dead_lettered: int = 0
    missing: int = 0
    stale: int = 0
    moved: int = 0
    doubled: int = 0
    orphaned: int = 0
    unaccounted: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        return self

    @property
    def differing(self) -> int:
        """Return how many records differ."""
        return sum(getattr(self, kind) for kind in KINDS)

    def to_record(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(zip((one.name for one in fields(self)), astuple(self), strict=True))


class RecordIds:
    """Ids of records, of any type, in the order in which they came: 22 bytes an ObjectId, where a list takes 100."""

    def __init__(self, ids: Iterable[Any] = ()) -> None:
        self._encoded = bytearray()
        self._count = 0
        self.extend(ids)

    def extend(self, ids: Iterable[Any]) -> None:
        """Add ids at the end."""
        for record_id in ids:
            self._encoded += bson.encode({"_id": record_id})
            self._count += 1

    def add_all(self, other: RecordIds) -> None:
        """Add the ids of another one at the end."""
        self._encoded += other._encoded
        self._count += other._count

    def __iter__(self) -> Iterator[Any]:
        """Yield the ids; what is added meanwhile is not among them."""
        return (row["_id"] for row in bson.decode_iter(bytes(self._encoded)))

    def __len__(self) -> int:
        """Return how many there are."""
        return self._count


@dataclass(slots=True)
class Differences:
    """What a comparison found, of a part of a source or of all of it.

    ``to_mend`` must go through the stages again, ``orphans`` are gone from the source, ``kept`` are gone from a source
    that forgets, and belong to others now; ``unowned`` are those of the stored records that nobody owns now.
    ``examples`` are some ids of each kind, ``refused`` are the dead-lettered by reason code.
    """

    places: dict[Place, Tally] = field(default_factory=dict)
    moves: Counter[Move] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Any]] = field(default_factory=dict)
    to_mend: RecordIds = field(default_factory=RecordIds)
    orphans: RecordIds = field(default_factory=RecordIds)
    kept: RecordIds = field(default_factory=RecordIds)
    unowned: int = 0

    def at(self, place: Place) -> Tally:
        """Return the tally of a place, to count in."""
        found = self.places.get(place)
        if found is None:
            if len(self.places) >= MAX_PLACES:
                place = Place(place.team_id, None, None)
            found = self.places.setdefault(place, Tally())
        return found

    def add(self, kind: str, record_id: Any, place: Place) -> None:
        """Count a record that differs."""
        tally = self.at(place)
        setattr(tally, kind, getattr(tally, kind) + 1)
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(record_id)

    def add_move(self, move: Move) -> None:
        """Count a record that is stored for others than it belongs to."""
        if move in self.moves or len(self.moves) < _MAX_MOVES:
            self.moves[move] += 1
        if move.to_team is None:
            self.unowned += 1

    def merge(self, other: Differences) -> None:
        """Add what another part of the source showed."""
        for place, tally in other.places.items():
            mine = self.at(place)
            mine += tally
        for move, count in other.moves.items():
            if move in self.moves or len(self.moves) < _MAX_MOVES:
                self.moves[move] += count
        self.refused.update(other.refused)
        for kind, ids in other.examples.items():
            shown = self.examples.setdefault(kind, [])
            shown.extend(ids[: _EXAMPLES - len(shown)])
        self.to_mend.add_all(other.to_mend)
        self.orphans.add_all(other.orphans)
        self.kept.add_all(other.kept)
        self.unowned += other.unowned

    @property
    def total(self) -> Tally:
        """Return the sum over all places."""
        total = Tally()
        for tally in self.places.values():
            total += tally
        return total

    def largest(self) -> list[tuple[Place, Tally]]:
        """Return the places where records differ or are dead-lettered, those with most first."""
        told = [item for item in self.places.items() if item[1].differing or item[1].dead_lettered]
        return sorted(told, key=lambda item: (-item[1].differing, -item[1].dead_lettered, _sortable(item[0])))

    def __str__(self) -> str:
        """Return ``2 missing, 1 stale``, or ``nothing differs``."""
        return in_words(self.total.to_record())


def in_words(counts: Mapping[str, int]) -> str:
    """Return the kinds among these counts as words."""
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if counts.get(kind)) or "nothing differs"


def _sortable(place: Place) -> tuple[str, ...]:
    return tuple(part or "" for part in place)
