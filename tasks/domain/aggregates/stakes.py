"""Stake: what the calls of one escrow contract locked and withdrew, and for how long.

An amount that a call doesn't tell (``withdraw()``) is counted as unknown, never taken as zero; a call that failed or is
pending locked and freed nothing. Amounts assume 18 decimals (``tasks/domain/staking.py``), and tokens of two contracts
are never added: stakes are kept by contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tasks.domain.aggregates.tallies import add_up
from tasks.domain.aggregates.volumes import SUMS
from tasks.domain.amounts import plain
from tasks.domain.staking import CREATE_LOCK, INCREASE_AMOUNT, INCREASE_UNLOCK_TIME, WITHDRAW, WITHDRAW_EARLY

#: The calls that lock tokens, and those that take them out.
LOCKS = (CREATE_LOCK, INCREASE_AMOUNT)
WITHDRAWALS = (WITHDRAW, WITHDRAW_EARLY)
_ZERO = Decimal(0)


@dataclass(slots=True)
class Stake:
    """``calls`` counts calls that took effect, by type; ``not_done`` those that failed or are pending.

    ``locked`` sums ``create_lock`` and ``increase_amount``, ``withdrawn`` both kinds of withdrawal, each with how many
    amounts are known and unknown. ``lock_days`` counts new locks, ``extended_days`` extensions, by their length in
    whole days from the block to the unlock time; those of ``lock_unknown`` and ``extended_unknown`` can't be told.
    """

    calls: dict[str, int] = field(default_factory=dict)
    not_done: int = 0
    locked: Decimal = _ZERO
    locked_known: int = 0
    locked_unknown: int = 0
    withdrawn: Decimal = _ZERO
    withdrawn_known: int = 0
    withdrawn_unknown: int = 0
    lock_days: dict[int, int] = field(default_factory=dict)
    lock_unknown: int = 0
    extended_days: dict[int, int] = field(default_factory=dict)
    extended_unknown: int = 0

    def add(self, kind: str, amount: Decimal | None, days: int | None, *, done: bool) -> None:
        """Add one call."""
        if not done:
            self.not_done += 1
            return
        self.calls[kind] = self.calls.get(kind, 0) + 1
        if kind in LOCKS:
            if amount is None:
                self.locked_unknown += 1
            else:
                self.locked_known += 1
                self.locked = SUMS.add(self.locked, amount)
        elif kind in WITHDRAWALS:
            if amount is None:
                self.withdrawn_unknown += 1
            else:
                self.withdrawn_known += 1
                self.withdrawn = SUMS.add(self.withdrawn, amount)
        if kind == CREATE_LOCK:
            if days is None:
                self.lock_unknown += 1
            else:
                self.lock_days[days] = self.lock_days.get(days, 0) + 1
        elif kind == INCREASE_UNLOCK_TIME:
            if days is None:
                self.extended_unknown += 1
            else:
                self.extended_days[days] = self.extended_days.get(days, 0) + 1

    @property
    def net(self) -> Decimal | None:
        """Return what was locked less what was withdrawn; None where an amount on either side is unknown."""
        return None if self.locked_unknown or self.withdrawn_unknown else self.net_of_known

    @property
    def net_of_known(self) -> Decimal:
        """Return the difference of the known amounts alone."""
        return SUMS.subtract(self.locked, self.withdrawn)

    @classmethod
    def merged(cls, stakes: Iterable[Stake]) -> Stake:
        """Return what all of them hold; it shares nothing with them."""
        parts = list(stakes)
        whole = cls(
            calls=add_up(part.calls for part in parts),
            lock_days=add_up(part.lock_days for part in parts),
            extended_days=add_up(part.extended_days for part in parts),
        )
        for part in parts:
            whole.not_done += part.not_done
            whole.locked = SUMS.add(whole.locked, part.locked)
            whole.locked_known += part.locked_known
            whole.locked_unknown += part.locked_unknown
            whole.withdrawn = SUMS.add(whole.withdrawn, part.withdrawn)
            whole.withdrawn_known += part.withdrawn_known
            whole.withdrawn_unknown += part.withdrawn_unknown
            whole.lock_unknown += part.lock_unknown
            whole.extended_unknown += part.extended_unknown
        return whole

    def stored(self) -> dict[str, Any]:
        """Return it as BSON values."""
        return {
            "calls": [[kind, count] for kind, count in sorted(self.calls.items())],
            "notDone": self.not_done,
            "locked": plain(self.locked),
            "lockedKnown": self.locked_known,
            "lockedUnknown": self.locked_unknown,
            "withdrawn": plain(self.withdrawn),
            "withdrawnKnown": self.withdrawn_known,
            "withdrawnUnknown": self.withdrawn_unknown,
            "lockDays": [[days, count] for days, count in sorted(self.lock_days.items())],
            "lockUnknown": self.lock_unknown,
            "extendedDays": [[days, count] for days, count in sorted(self.extended_days.items())],
            "extendedUnknown": self.extended_unknown,
        }

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Stake:
        """Return the stake of what ``stored`` gave."""
        return cls(
            calls=dict(stored["calls"]),
            not_done=stored["notDone"],
            locked=Decimal(stored["locked"]),
            locked_known=stored["lockedKnown"],
            locked_unknown=stored["lockedUnknown"],
            withdrawn=Decimal(stored["withdrawn"]),
            withdrawn_known=stored["withdrawnKnown"],
            withdrawn_unknown=stored["withdrawnUnknown"],
            lock_days=dict(stored["lockDays"]),
            lock_unknown=stored["lockUnknown"],
            extended_days=dict(stored["extendedDays"]),
            extended_unknown=stored["extendedUnknown"],
        )


def merge_stakes(parts: Iterable[Mapping[str, Stake]]) -> dict[str, Stake]:
    """Return the stakes of all parts, contract by contract."""
    by_contract: dict[str, list[Stake]] = {}
    for part in parts:
        for contract_id, stake in part.items():
            by_contract.setdefault(contract_id, []).append(stake)
    return {contract_id: Stake.merged(stakes) for contract_id, stakes in by_contract.items()}
