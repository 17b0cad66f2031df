"""Moves: transactions of wallets that a website knows, the far end of the wallet bridge.

A wallet that was connected in a session is the ``from_address`` of its transactions. Of those, and of no others, each
row is kept with its moment, so that only what came at or after the first visit counts as won by it. A team has few such
wallets (ninety were found in the source), so a day of moves is small.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from hashlib import blake2b
from typing import Any, NamedTuple

from bson.binary import Binary

from tasks.domain.aggregates.periods import Calendar
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.tallies import Tally
from tasks.domain.aggregates.transactions import STATUS_UNKNOWN
from tasks.domain.aggregates.volumes import Volume
from tasks.domain.transactions import FAILED, PENDING, SUCCESS, Transaction

_DIGEST_BYTES = 16
_DIGEST_SPAN = 2 ** (8 * _DIGEST_BYTES)
_STATUS_ORDER = (FAILED, SUCCESS, PENDING, STATUS_UNKNOWN)


class Move(NamedTuple):
    """A row of ``transactions`` whose wallet a website knows; a transaction may have several, under several contracts.

    ``amount`` is plain text, None where the row has none; ``unit`` is "" where it isn't known.
    """

    block_ms: int
    wallet: str
    chain: str
    tx_hash: str
    contract_id: str
    status: str
    unit: str
    amount: str | None
    below: bool
    unlimited: bool


@dataclass(frozen=True, slots=True)
class Moves:
    """The moves of some days of one team, sorted and distinct; ``merged`` joins them in any order and grouping."""

    rows: tuple[Move, ...] = ()

    @classmethod
    def of_rows(cls, rows: Iterable[Move]) -> Moves:
        """Return these moves, each once."""
        return cls(tuple(sorted(set(rows), key=_order)))

    @classmethod
    def merged(cls, parts: Sequence[Moves]) -> Moves:
        """Return the moves of all parts."""
        return cls.of_rows(move for part in parts for move in part.rows)

    def halves(self) -> tuple[Moves, Moves]:
        """Return two parts that merge to these moves."""
        middle = len(self.rows) // 2
        return Moves(self.rows[:middle]), Moves(self.rows[middle:])

    def stored(self) -> dict[str, Any]:
        """Return it as BSON values."""
        return {"rows": [[row.block_ms, Binary(bytes.fromhex(row.wallet[2:])), *row[2:]] for row in self.rows]}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Moves:
        """Return the moves of what ``stored`` gave."""
        return cls(tuple(Move(moment, "0x" + bytes(wallet).hex(), *rest) for moment, wallet, *rest in stored["rows"]))


@dataclass(frozen=True, slots=True)
class Conversions:
    """What connected wallets did at or after their first session: the end of a funnel.

    A hash that stands under several contracts is one transaction, and an equal amount in the same unit counts once in
    it. ``waits_ms`` are the times from a wallet's first session to its first transaction, sorted. ``rows`` is how many
    moves stand behind it, and ``digest`` stands for them.
    """

    wallets: int
    transactions: int
    failed: int
    volumes: Mapping[str, Volume]
    waits_ms: tuple[int, ...]
    rows: int
    digest: int


def read_move(transaction: Transaction) -> Move | None:
    """Return the move of a transaction; None where it has no wallet or no time, so that nothing can be said of it."""
    if transaction.from_address is None or transaction.block_time_ms is None:
        return None
    return Move(
        transaction.block_time_ms,
        transaction.from_address,
        transaction.chain or "",
        transaction.tx_hash,
        transaction.contract_id,
        transaction.status or STATUS_UNKNOWN,
        transaction.unit or "",
        transaction.amount,
        transaction.amount_below,
        transaction.amount_unlimited,
    )


class MoveDays:
    """Sorts the moves of connected wallets into days of teams. Give it whole days of each wallet.

    ``wallets`` are those that any website of a team knows (``VisitFigures.wallets.addresses()``), by team.
    """

    def __init__(self, calendar: Calendar, wallets: Mapping[str, Collection[str]]) -> None:
        self._calendar = calendar
        self._wallets = wallets
        self._rows: dict[PartialKey, list[Move]] = {}

    def add(self, transaction: Transaction) -> None:
        """Take a transaction if its team knows its wallet."""
        if transaction.from_address not in self._wallets.get(transaction.team_id, ()):
            return
        move, key = read_move(transaction), move_key(transaction, self._calendar)
        if move is not None and key is not None:
            self._rows.setdefault(key, []).append(move)

    def finish(self) -> Iterable[tuple[PartialKey, Moves]]:
        """Yield the moves of each day, and forget them."""
        for key in list(self._rows):
            yield key, Moves.of_rows(self._rows.pop(key))


def move_key(transaction: Transaction, calendar: Calendar) -> PartialKey | None:
    """Return the partial figures that a move of this transaction is in: its team's day."""
    if transaction.block_time_ms is None:
        return None
    day: date = calendar.place(transaction.block_time_ms)[0]
    return PartialKey("moves", Scope.team(transaction.team_id), day, calendar.zone)


def convert(connections: Tally, moves: Moves) -> Conversions:
    """Return what the wallets of ``connections`` (key: wallet, number: moment of its first session) did since then."""
    connected = connections.addresses()
    said: dict[tuple[str, str], set[str]] = {}
    amounts: dict[tuple[str, str], set[tuple[str, str, bool, bool]]] = {}
    firsts: dict[str, int] = {}
    rows = digest = 0
    for move in moves.rows:
        since = connected.get(move.wallet)
        if since is None or move.block_ms < since:
            continue
        rows += 1
        digest += int.from_bytes(blake2b(repr(move).encode(), digest_size=_DIGEST_BYTES).digest())
        # Rows are sorted by time: the first of a wallet is its first transaction.
        firsts.setdefault(move.wallet, move.block_ms - since)
        transaction = (move.chain, move.tx_hash)
        said.setdefault(transaction, set()).add(move.status)
        if move.amount is not None:
            kinds = amounts.setdefault(transaction, set())
            kinds.add((move.unit, move.amount, move.below, move.unlimited))
    volumes: dict[str, Volume] = {}
    failed = 0
    for transaction, statuses in said.items():
        status = next(known for known in _STATUS_ORDER if known in statuses)
        failed += status == FAILED
        for unit, amount, below, unlimited in amounts.get(transaction, ()):
            volume = volumes.setdefault(unit, Volume())
            volume.add(Decimal(amount), below=below, unlimited=unlimited, moved=status not in (FAILED, PENDING))
    waits = tuple(sorted(firsts.values()))
    return Conversions(len(firsts), len(said), failed, volumes, waits, rows, digest % _DIGEST_SPAN)


def _order(move: Move) -> tuple[int, str, str, str, str, str]:
    # None does not compare with text.
    return (move.block_ms, move.wallet, move.chain, move.tx_hash, move.contract_id, repr(move))
