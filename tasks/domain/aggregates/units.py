"""Unit: the rows of one team or website on one day, what is computed again as a whole when one of them changes.

Rows are summed up twice. Looking at them, cheaply and all of them, gives each unit's digest; of those whose digest is
not the stored one, the rows are read again and their figures computed. So a late, changed, moved or deleted row costs
the days that it was in and is in, whatever changed it, and no position can be lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from datetime import date
from hashlib import blake2b
from typing import Any, NamedTuple

from bson import ObjectId

from tasks.domain.aggregates.periods import Calendar
from tasks.domain.aggregates.scopes import UNDATED, PartialTopic, Scope
from tasks.domain.dead_letters import record_key
from tasks.domain.documents import make_key
from tasks.domain.errors import RecordError
from tasks.domain.owners import Holder, Owners
from tasks.domain.transaction_documents import TRANSACTIONS
from tasks.domain.transactions import FIRST_BLOCK_MS, FUTURE_TOLERANCE_MS, parse_address, parse_block_time

DIGEST_BYTES = 16
_SPAN = 2 ** (8 * DIGEST_BYTES)
_ID_BYTES = 12


class UnitKey(NamedTuple):
    """``owner_id`` is a team's (of transactions and moves) or a website's; ``day`` is None for rows without a time."""

    topic: PartialTopic
    owner_id: str
    day: date | None
    zone: str

    @property
    def text(self) -> str:
        """Return it as one text, for an ``_id``: no two keys share one."""
        return make_key("unit", self.owner_id, self.topic, self.day_text, self.zone)

    @property
    def day_text(self) -> str:
        """Return ``2025-06-03``, or ``undated``."""
        return UNDATED if self.day is None else self.day.isoformat()


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as it is stored. ``scopes`` are those that it has figures of, or had before what is not described yet.

    ``digest`` is "" while its figures are being replaced, ``described`` says that all documents tell its figures.
    ``rows`` were read of which ``refused`` can't be parsed, and count nowhere.
    """

    digest: str
    rows: int
    refused: int
    scopes: tuple[Scope, ...]
    described: bool


class Reading:
    """What was seen of a unit's rows: how many, which, and a digest of all, whatever their order.

    Ids are kept packed, 12 bytes each: a million rows are 12 MB.
    """

    __slots__ = ("_ids", "_others", "_sum", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0
        self._ids = bytearray()
        self._others: list[Any] = []

    def add(self, record_id: Any, digest: int) -> None:
        """Take one row."""
        self.rows += 1
        self._sum += digest
        if isinstance(record_id, ObjectId):
            self._ids += record_id.binary
        else:
            self._others.append(record_id)

    @property
    def digest(self) -> str:
        """Return what changes whenever one of the rows does, or one comes or goes."""
        return f"{self._sum % _SPAN:032x}"

    @property
    def ids(self) -> list[Any]:
        """Return the rows' ids."""
        packed = bytes(self._ids)
        found = [ObjectId(packed[start : start + _ID_BYTES]) for start in range(0, len(packed), _ID_BYTES)]
        return [*found, *self._others]


@dataclass(slots=True)
class Readings:
    """Everything that was seen: ``left_out`` rows belong to nobody, or to no time that can be."""

    by_unit: dict[UnitKey, Reading] = field(default_factory=dict)
    rows: int = 0
    left_out: int = 0

    def add(self, key: UnitKey, record_id: Any, digest: int) -> None:
        """Take one row of a unit."""
        found = self.by_unit.get(key)
        if found is None:
            found = self.by_unit[key] = Reading()
        found.add(record_id, digest)


class RowDigests:
    """Digests of rows as they came, with all that figures take from their holder."""

    def __init__(self) -> None:
        self._begun: dict[str, Any] = {}

    def digest(self, raw: bytes, holder: Holder, *more: object) -> int:
        """Return the digest of a row; ``more`` is what else its figures depend on."""
        begun = self._begun.get(holder.holder_id)
        if begun is None:
            begun = self._begun[holder.holder_id] = blake2b(repr(astuple(holder)).encode(), digest_size=DIGEST_BYTES)
        one = begun.copy()
        one.update(raw)
        if more:
            one.update(repr(more).encode())
        return int.from_bytes(one.digest())


class TransactionUnits:
    """Says which units a raw transaction is in, on the clocks of some zones; ``wallets`` are those that teams know.

    Records that are ``withheld``, by their ``record_key``, are in none: what they say can't be right.
    """

    def __init__(
        self,
        owners: Owners,
        calendars: Iterable[Calendar],
        wallets: Mapping[str, frozenset[str]],
        withheld: Collection[bytes] = frozenset(),
        *,
        now_ms: int,
    ) -> None:
        self._owners, self._calendars, self._wallets = owners, tuple(calendars), wallets
        self._withheld = withheld
        self._latest_ms = now_ms + FUTURE_TOLERANCE_MS
        self._digests = RowDigests()

    def look_at(self, raw: bytes, record: Mapping[str, Any], into: Readings) -> None:
        """Count a row in its units."""
        into.rows += 1
        found = self.find(raw, record)
        if found is None:
            into.left_out += 1
            return
        keys, digest = found
        for key in keys:
            into.add(key, record["_id"], digest)

    def find(self, raw: bytes, record: Mapping[str, Any]) -> tuple[list[UnitKey], int] | None:
        """Return a row's units and its digest.

        None for one that nobody owns, or whose time can't be: it is left out until that changes.
        """
        if self._withheld and record_key(record["_id"]) in self._withheld:
            return None
        try:
            holder = TRANSACTIONS.find_holder(record, self._owners)
        except RecordError:
            return None
        assert holder.team_id is not None
        moment = parse_block_time(record.get("block_time"))
        if moment is not None and not FIRST_BLOCK_MS <= moment <= self._latest_ms:
            return None
        known = self._wallets.get(holder.team_id)
        moved = moment is not None and known is not None and parse_address(record.get("from_address")) in known
        keys = []
        for calendar in self._calendars:
            day = None if moment is None else calendar.place(moment)[0]
            keys.append(UnitKey("transactions", holder.team_id, day, calendar.zone))
            if moved:
                keys.append(UnitKey("moves", holder.team_id, day, calendar.zone))
        return keys, self._digests.digest(raw, holder)


def in_batches(changed: Iterable[tuple[UnitKey, Reading]], *, rows: int) -> Iterator[list[tuple[UnitKey, Reading]]]:
    """Yield units of one topic and zone together, in order, some ``rows`` at a time: what is computed at once.

    A unit is never cut: one with more rows than that is a batch of its own.
    """
    batch: list[tuple[UnitKey, Reading]] = []
    held = 0
    for key, reading in sorted(
        changed, key=lambda item: (item[0].topic, item[0].zone, item[0].owner_id, item[0].day_text)
    ):
        other = batch and (batch[0][0].topic, batch[0][0].zone) != (key.topic, key.zone)
        if batch and (other or held + reading.rows > rows):
            yield batch
            batch, held = [], 0
        batch.append((key, reading))
        held += reading.rows
    if batch:
        yield batch
