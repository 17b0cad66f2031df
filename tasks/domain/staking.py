"""Staking, read again from the call data of an escrow contract: the stored analysis is unreliable.

Selectors are the first four bytes of keccak-256 of the signature; arguments are words of 32 bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from tasks.domain.amounts import EXACT

CREATE_LOCK = "create_lock"
INCREASE_AMOUNT = "increase_amount"
INCREASE_UNLOCK_TIME = "increase_unlock_time"
WITHDRAW = "withdraw"
WITHDRAW_EARLY = "withdraw_early"
UNKNOWN = "unknown"

#: selector -> (type, position of the amount word, position of the unlock time word)
_SELECTORS: dict[str, tuple[str, int | None, int | None]] = {
    "0x65fc3873": (CREATE_LOCK, 0, 1),  # create_lock(uint256,uint256)
    "0x4957677c": (INCREASE_AMOUNT, 0, None),  # increase_amount(uint256)
    "0xeff7a612": (INCREASE_UNLOCK_TIME, None, 0),  # increase_unlock_time(uint256)
    "0x3ccfd60b": (WITHDRAW, None, None),  # withdraw()
    "0x2e1a7d4d": (WITHDRAW, 0, None),  # withdraw(uint256)
    "0x8239f064": (WITHDRAW_EARLY, None, None),  # withdraw_early()
    "0xdb2e21bc": (WITHDRAW_EARLY, None, None),  # emergencyWithdraw()
    "0xa694fc3a": (CREATE_LOCK, 0, None),  # stake(uint256)
    "0x2e17de78": (WITHDRAW, 0, None),  # unstake(uint256)
}

#: Whole method names, lower case: a substring would turn unlock into lock and withdraw_early into withdraw.
_NAMES: dict[str, str] = {
    "create_lock": CREATE_LOCK,
    "createlock": CREATE_LOCK,
    "stake": CREATE_LOCK,
    "deposit": CREATE_LOCK,
    "enter": CREATE_LOCK,
    "lock": CREATE_LOCK,
    "increase_amount": INCREASE_AMOUNT,
    "increaseamount": INCREASE_AMOUNT,
    "increase_unlock_time": INCREASE_UNLOCK_TIME,
    "increaseunlocktime": INCREASE_UNLOCK_TIME,
    "withdraw": WITHDRAW,
    "unstake": WITHDRAW,
    "leave": WITHDRAW,
    "unlock": WITHDRAW,
    "exit": WITHDRAW,
    "withdraw_early": WITHDRAW_EARLY,
    "withdrawearly": WITHDRAW_EARLY,
    "emergencywithdraw": WITHDRAW_EARLY,
    "emergency_withdraw": WITHDRAW_EARLY,
}

_WORD = re.compile(r"[0-9a-fA-F]{64}")
_WORD_DIGITS = 64
_SELECTOR_DIGITS = 10
_BY_SELECTOR, _BY_METHOD_ID, _BY_NAME, _BY_VALUE, _UNLOCK_BONUS = 0.95, 0.85, 0.8, 0.4, 0.1
#: Unlock times outside 2015 (the first chain) to 2106 (32-bit seconds) are not times but other arguments.
_FIRST_UNLOCK, _LAST_UNLOCK = 1_438_269_973, 4_294_967_295
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Staking:
    """What an escrow call did. ``amount`` assumes 18 decimals; None means unknown (``withdraw()``), not zero.

    ``unlock_s`` is epoch seconds, ``lock_days`` the whole days from the block to the unlock time.
    """

    type: str
    confidence: float
    amount: Decimal | None = None
    unlock_s: int | None = None
    lock_days: int | None = None


def find_staking(
    *, selector: str | None, method: str | None, call_data: str | None, block_time_ms: int | None
) -> Staking:
    """Return what the call did, as far as it can be told; the type is ``unknown`` where it can't.

    ``call_data`` begins with ``selector``; without it the selector is what an explorer called the method's id.
    """
    known = _SELECTORS.get(selector or "")
    if known is not None:
        kind, amount_at, unlock_at = known
        amount_word = _word(call_data, amount_at)
        unlock = _word(call_data, unlock_at)
        if unlock is not None and not _FIRST_UNLOCK <= unlock <= _LAST_UNLOCK:
            unlock = None
        lock_days = None
        if unlock is not None and block_time_ms is not None:
            lock_days = max(0, round((unlock - block_time_ms / 1000) / SECONDS_PER_DAY))
        confidence = _BY_METHOD_ID if call_data is None else _BY_SELECTOR
        if unlock is not None:
            confidence += _UNLOCK_BONUS
        return Staking(
            kind,
            min(1.0, confidence),
            None if amount_word is None else Decimal(amount_word).scaleb(-18, EXACT),
            unlock,
            lock_days,
        )
    named = _NAMES.get((method or "").lower())
    if named is not None:
        return Staking(named, _BY_NAME)
    return Staking(UNKNOWN, _BY_VALUE)


def _word(call_data: str | None, position: int | None) -> int | None:
    """Return the argument at that position, or None where the call data ends before it."""
    if call_data is None or position is None:
        return None
    start = _SELECTOR_DIGITS + position * _WORD_DIGITS
    word = call_data[start : start + _WORD_DIGITS]
    return int(word, 16) if _WORD.fullmatch(word) else None
