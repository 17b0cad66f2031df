"""Partial figures of transactions: a day of a contract, or a day of a team on one chain; they merge to longer periods.

**What counts once.** A record stored twice (one contract, one hash) is one transaction: the record with the smallest
``_id`` counts, the others only in ``doubled``. A hash that stands under several contracts of a team is one transaction
of the team's: there, equal things within one transaction count once. So it counts once in each category, method, wallet
and recipient that its rows name, its amount once per unit and figure, its gas once; it failed if one row says so, and
its hour is that of the earliest row.

A team's figures are those of its chains merged: a hash on two chains is two transactions.

Categories come from ``tasks/domain/actions.py``: when its table changes, raise ``PARTIAL_VERSION`` in storage.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from bson.binary import Binary

from tasks.domain.aggregates.periods import Calendar
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.stakes import LOCKS, WITHDRAWALS, Stake, merge_stakes
from tasks.domain.aggregates.tallies import WALLET_BYTES, Tally, add_up
from tasks.domain.aggregates.volumes import Volume, merge_volumes
from tasks.domain.owners import ESCROW
from tasks.domain.transaction_documents import find_transaction_action
from tasks.domain.transactions import FAILED, PENDING, SUCCESS, Transaction

#: The status of transactions that have none.
STATUS_UNKNOWN = "unknown"
#: Rows of one transaction may disagree: what is known beats what isn't, and a failure beats all.
_STATUS_ORDER = (FAILED, SUCCESS, PENDING, STATUS_UNKNOWN)
_NOT_MOVED = frozenset({FAILED, PENDING})
_ZERO_ADDRESS = "0x" + "0" * 40
_DIGEST_BYTES = 16
_DIGEST_SPAN = 2 ** (8 * _DIGEST_BYTES)
_HOURS, _WEEKDAYS = 24, 7
_TALLIES = ("senders", "recipients", "lockers", "withdrawers")
_K = TypeVar("_K")


class StakeCall(NamedTuple):
    """A call of an escrow contract."""

    kind: str
    amount: Decimal | None
    days: int | None


class Row(NamedTuple):
    """What figures need of one transaction. ``hour`` is that of the clocks; ``digest`` stands for all that it says."""

    tx_hash: str
    contract_id: str
    record_id: str
    category: str
    method: str | None
    status: str
    wallet: str | None
    recipient: str | None
    gas: int | None
    unit: str
    amount: Decimal | None
    below: bool
    unlimited: bool
    block_ms: int | None
    hour: int | None
    stake: StakeCall | None
    digest: int


def read_row(transaction: Transaction, hour: int | None) -> Row:
    """Return what figures need of a transaction.

    Its wallet is ``from_address`` (as on the wallet bridge), its recipient ``to_address`` where that is somebody else
    than the contract. The zero address is nobody: tokens come from it when they are minted.
    """
    category = find_transaction_action(transaction).category
    wallet, recipient = transaction.from_address, transaction.to_address
    if wallet == _ZERO_ADDRESS:
        wallet = None
    if recipient == _ZERO_ADDRESS or recipient == transaction.contract_address:
        recipient = None
    method = transaction.method or transaction.selector
    status = transaction.status or STATUS_UNKNOWN
    stake = None
    if transaction.contract_type == ESCROW and transaction.staking_type is not None:
        locked = transaction.staking_amount
        stake = StakeCall(
            transaction.staking_type, None if locked is None else Decimal(locked), transaction.staking_lock_days
        )
    amount = transaction.amount
    words = (
        f"{transaction.record_id}\t{transaction.contract_id}\t{transaction.tx_hash}\t{transaction.block_time_ms}\t"
        f"{category}\t{method}\t{status}\t{wallet}\t{recipient}\t{transaction.gas_used}\t{amount}\t{transaction.unit}\t"
        f"{transaction.amount_below}\t{stake}"
    )
    return Row(
        transaction.tx_hash,
        transaction.contract_id,
        transaction.record_id,
        category,
        method,
        status,
        wallet,
        recipient,
        transaction.gas_used,
        transaction.unit or "",
        None if amount is None else Decimal(amount),
        transaction.amount_below,
        transaction.amount_unlimited,
        transaction.block_time_ms,
        hour,
        stake,
        int.from_bytes(blake2b(words.encode(), digest_size=_DIGEST_BYTES).digest()),
    )


@dataclass(frozen=True, slots=True)
class TransactionFigures:
    """Exact figures of the transactions of some days; ``merged`` adds them up in any order and grouping.

    ``rows`` is how many records were read, ``doubled`` how many of them stood for a transaction that another record
    stands for already. ``categories`` count by category and status, ``senders`` and ``recipients`` by address,
    ``lockers`` and ``withdrawers`` the calls that locked or withdrew staked tokens by wallet, ``volumes`` by unit (""
    where an amount has none), ``stakes`` by escrow contract. ``digest`` stands for all that was read: equal rows give
    equal digests, however they were grouped.
    """

    rows: int
    transactions: int
    doubled: int
    undated: int
    statuses: Mapping[str, int]
    categories: Mapping[tuple[str, str], int]
    methods: Mapping[str, int]
    senders: Tally
    recipients: Tally
    lockers: Tally
    withdrawers: Tally
    hours: tuple[int, ...]
    weekdays: tuple[int, ...]
    gas_known: int
    gas_total: int
    gas_largest: int | None
    volumes: Mapping[str, Volume]
    stakes: Mapping[str, Stake]
    oldest_ms: int | None
    newest_ms: int | None
    newest_id: str
    digest: int

    @classmethod
    def of_rows(cls, rows: Sequence[Row], day: date | None) -> TransactionFigures:
        """Return the figures of all rows of one scope and day; ``day`` is None for rows without a time."""
        singles, groups, doubled = _by_transaction(rows)
        statuses: dict[str, int] = {}
        categories: dict[tuple[str, str], int] = {}
        methods: dict[str, int] = {}
        senders: dict[str, int] = {}
        recipients: dict[str, int] = {}
        hours = [0] * _HOURS
        gas: list[int] = []
        volumes: dict[str, Volume] = {}
        stakes: dict[str, Stake] = {}
        lockers: dict[str, int] = {}
        withdrawers: dict[str, int] = {}
        for row in singles:
            # One unpacking costs less than a dozen looks by name, and this loop sees every row.
            _, _, _, category, method, status, wallet, recipient, used, _, amount, _, _, _, hour, stake, _ = row
            statuses[status] = statuses.get(status, 0) + 1
            kind = (category, status)
            categories[kind] = categories.get(kind, 0) + 1
            if method is not None:
                methods[method] = methods.get(method, 0) + 1
            if wallet is not None:
                senders[wallet] = senders.get(wallet, 0) + 1
            if recipient is not None:
                recipients[recipient] = recipients.get(recipient, 0) + 1
            if hour is not None:
                hours[hour] += 1
            if used is not None:
                gas.append(used)
            if amount is not None:
                _add_amount(volumes, row, moved=status not in _NOT_MOVED)
            if stake is not None:
                _add_stake(stakes, lockers, withdrawers, row, done=status not in _NOT_MOVED)
        for group in groups:
            said = {row.status for row in group}
            status = next(known for known in _STATUS_ORDER if known in said)
            done = status not in _NOT_MOVED
            _count(statuses, [status])
            _count(categories, {(row.category, status) for row in group})
            _count(methods, {row.method for row in group if row.method is not None})
            _count(senders, {row.wallet for row in group if row.wallet is not None})
            _count(recipients, {row.recipient for row in group if row.recipient is not None})
            if day is not None:
                hours[min((row.block_ms or 0, row.hour or 0) for row in group)[1]] += 1
            gas.extend(sorted({row.gas for row in group if row.gas is not None})[-1:])
            for row in {(row.unit, row.amount, row.below): row for row in group}.values():
                _add_amount(volumes, row, moved=done)
            for row in {row.stake: row for row in reversed(group)}.values():
                _add_stake(stakes, lockers, withdrawers, row, done=done)
        transactions = len(singles) + len(groups)
        weekdays = [0] * _WEEKDAYS
        if day is not None:
            weekdays[day.weekday()] = transactions
        moments = [row.block_ms for row in rows if row.block_ms is not None]
        return cls(
            rows=len(rows),
            transactions=transactions,
            doubled=doubled,
            undated=transactions if day is None else 0,
            statuses=statuses,
            categories=categories,
            methods=methods,
            senders=Tally.of_addresses(senders),
            recipients=Tally.of_addresses(recipients),
            lockers=Tally.of_addresses(lockers),
            withdrawers=Tally.of_addresses(withdrawers),
            hours=tuple(hours),
            weekdays=tuple(weekdays),
            gas_known=len(gas),
            gas_total=sum(gas),
            gas_largest=max(gas, default=None),
            volumes=volumes,
            stakes=stakes,
            oldest_ms=min(moments, default=None),
            newest_ms=max(moments, default=None),
            newest_id=max((row.record_id for row in rows), default=""),
            digest=sum([row.digest for row in rows]) % _DIGEST_SPAN,
        )

    @classmethod
    def merged(cls, parts: Sequence[TransactionFigures]) -> TransactionFigures:
        """Return the figures of all parts, which hold different rows. Of none: those of no rows."""
        if len(parts) == 1:
            return parts[0]
        none = Tally.empty(WALLET_BYTES)
        return cls(
            rows=sum(part.rows for part in parts),
            transactions=sum(part.transactions for part in parts),
            doubled=sum(part.doubled for part in parts),
            undated=sum(part.undated for part in parts),
            statuses=add_up(part.statuses for part in parts),
            categories=add_up(part.categories for part in parts),
            methods=add_up(part.methods for part in parts),
            senders=Tally.merged([none, *(part.senders for part in parts)]),
            recipients=Tally.merged([none, *(part.recipients for part in parts)]),
            lockers=Tally.merged([none, *(part.lockers for part in parts)]),
            withdrawers=Tally.merged([none, *(part.withdrawers for part in parts)]),
            hours=tuple(sum(part.hours[hour] for part in parts) for hour in range(_HOURS)),
            weekdays=tuple(sum(part.weekdays[day] for part in parts) for day in range(_WEEKDAYS)),
            gas_known=sum(part.gas_known for part in parts),
            gas_total=sum(part.gas_total for part in parts),
            gas_largest=max((part.gas_largest for part in parts if part.gas_largest is not None), default=None),
            volumes=merge_volumes(part.volumes for part in parts),
            stakes=merge_stakes(part.stakes for part in parts),
            oldest_ms=min((part.oldest_ms for part in parts if part.oldest_ms is not None), default=None),
            newest_ms=max((part.newest_ms for part in parts if part.newest_ms is not None), default=None),
            newest_id=max((part.newest_id for part in parts), default=""),
            digest=sum(part.digest for part in parts) % _DIGEST_SPAN,
        )

    def halves(self) -> tuple[TransactionFigures, TransactionFigures]:
        """Return two parts that merge to these figures: each has half of the wallets and names, the first the rest.

        For figures that are too large for one BSON document.
        """
        first: dict[str, Any] = {}
        second: dict[str, Any] = {}
        for name in _TALLIES:
            first[name], second[name] = getattr(self, name).halves()
        for name in ("methods", "volumes", "stakes"):
            items = sorted(getattr(self, name).items())
            first[name], second[name] = dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])
        return replace(self, **first), replace(TransactionFigures.merged([]), **second)

    def stored(self) -> dict[str, Any]:
        """Return it as BSON values. Names that strangers chose stand in values, never in keys."""
        return {
            "rows": self.rows,
            "transactions": self.transactions,
            "doubled": self.doubled,
            "undated": self.undated,
            "statuses": [[status, count] for status, count in sorted(self.statuses.items())],
            "categories": [[*names, count] for names, count in sorted(self.categories.items())],
            "methods": [[method, count] for method, count in sorted(self.methods.items())],
            **{name: getattr(self, name).stored() for name in _TALLIES},
            "hours": list(self.hours),
            "weekdays": list(self.weekdays),
            "gasKnown": self.gas_known,
            "gasTotal": str(self.gas_total),
            "gasLargest": self.gas_largest,
            "volumes": [[unit, volume.stored()] for unit, volume in sorted(self.volumes.items())],
            "stakes": [[contract_id, stake.stored()] for contract_id, stake in sorted(self.stakes.items())],
            "oldestMs": self.oldest_ms,
            "newestMs": self.newest_ms,
            "newestId": self.newest_id,
            "digest": Binary(self.digest.to_bytes(_DIGEST_BYTES)),
        }

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> TransactionFigures:
        """Return the figures of what ``stored`` gave."""
        return cls(
            rows=stored["rows"],
            transactions=stored["transactions"],
            doubled=stored["doubled"],
            undated=stored["undated"],
            statuses=dict(stored["statuses"]),
            categories={(category, status): count for category, status, count in stored["categories"]},
            methods=dict(stored["methods"]),
            **{name: Tally.from_stored(stored[name], WALLET_BYTES) for name in _TALLIES},
            hours=tuple(stored["hours"]),
            weekdays=tuple(stored["weekdays"]),
            gas_known=stored["gasKnown"],
            gas_total=int(stored["gasTotal"]),
            gas_largest=stored["gasLargest"],
            volumes={unit: Volume.from_stored(volume) for unit, volume in stored["volumes"]},
            stakes={contract_id: Stake.from_stored(stake) for contract_id, stake in stored["stakes"]},
            oldest_ms=stored["oldestMs"],
            newest_ms=stored["newestMs"],
            newest_id=stored["newestId"],
            digest=int.from_bytes(stored["digest"]),
        )


class TransactionDays:
    """Sorts transactions into days of contracts and of chains. Holds what figures need of each row until ``finish``.

    Give it whole days: figures of half a day's rows are those of half a day, and a hash that stands in both halves
    would count twice.
    """

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self._days: dict[PartialKey, list[_RowsOfDay]] = {}
        self._rows: dict[tuple[str, str, str | None, date | None], _RowsOfDay] = {}

    def add(self, transaction: Transaction) -> None:
        """Take one transaction into the two days that it belongs to."""
        day = hour = None
        if transaction.block_time_ms is not None:
            day, hour = self._calendar.place(transaction.block_time_ms)
        where = (transaction.contract_id, transaction.team_id, transaction.chain, day)
        found = self._rows.get(where)
        if found is None:
            found = self._rows[where] = _RowsOfDay()
            for key in _keys(transaction, day, self._calendar.zone):
                self._days.setdefault(key, []).append(found)
        found.rows.append(read_row(transaction, hour))

    def finish(self) -> Iterable[tuple[PartialKey, TransactionFigures]]:
        """Yield the figures of each day, and forget its rows."""
        self._rows.clear()
        for key in list(self._days):
            yield key, _figures_of(self._days.pop(key), key.day)


class _RowsOfDay:
    """The rows of one contract on one chain and day. Most are all that their contract and their chain have that day."""

    __slots__ = ("figures", "rows")

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.figures: TransactionFigures | None = None


def _figures_of(parts: Sequence[_RowsOfDay], day: date | None) -> TransactionFigures:
    if len(parts) > 1:
        return TransactionFigures.of_rows([row for part in parts for row in part.rows], day)
    if parts[0].figures is None:
        parts[0].figures = TransactionFigures.of_rows(parts[0].rows, day)
    return parts[0].figures


def transaction_keys(transaction: Transaction, calendar: Calendar) -> tuple[PartialKey, PartialKey]:
    """Return the partial figures that a transaction is in: its contract's day, and its team's day on its chain."""
    moment = transaction.block_time_ms
    return _keys(transaction, None if moment is None else calendar.place(moment)[0], calendar.zone)


def _keys(transaction: Transaction, day: date | None, zone: str) -> tuple[PartialKey, PartialKey]:
    return (
        PartialKey("transactions", Scope.contract(transaction.contract_id), day, zone),
        PartialKey("transactions", Scope.chain(transaction.team_id, transaction.chain), day, zone),
    )


def _by_transaction(rows: Sequence[Row]) -> tuple[Sequence[Row], list[list[Row]], int]:
    """Return the rows that are alone with their hash, those of each other hash by contract, and how many were doubled.

    Of records that stand for one transaction under one contract the one with the smallest ``_id`` is left.
    """
    if len({row.tx_hash for row in rows}) == len(rows):
        return rows, [], 0
    by_hash: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_contract = by_hash.setdefault(row.tx_hash, {})
        known = by_contract.get(row.contract_id)
        if known is None or row.record_id < known.record_id:
            by_contract[row.contract_id] = row
    singles: list[Row] = []
    groups: list[list[Row]] = []
    for by_contract in by_hash.values():
        if len(by_contract) == 1:
            singles.extend(by_contract.values())
        else:
            groups.append([by_contract[contract_id] for contract_id in sorted(by_contract)])
    return singles, groups, len(rows) - sum(map(len, by_hash.values()))


def _add_amount(volumes: dict[str, Volume], row: Row, *, moved: bool) -> None:
    if row.amount is not None:
        volume = volumes.get(row.unit)
        if volume is None:
            volume = volumes[row.unit] = Volume()
        volume.add(row.amount, below=row.below, unlimited=row.unlimited, moved=moved)


def _add_stake(
    stakes: dict[str, Stake], lockers: dict[str, int], withdrawers: dict[str, int], row: Row, *, done: bool
) -> None:
    if row.stake is None:
        return
    stakes.setdefault(row.contract_id, Stake()).add(*row.stake, done=done)
    if done and row.wallet is not None:
        side = lockers if row.stake.kind in LOCKS else withdrawers if row.stake.kind in WITHDRAWALS else None
        if side is not None:
            _count(side, [row.wallet])


def _count(counts: dict[_K, int], keys: Iterable[_K]) -> None:
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
