"""Staking is read from the call data: the selector decides, whole names come second, and nothing is guessed."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.staking import Staking, find_staking
from tests.builders import word

BLOCK_MS = 1_652_021_466_000  # 8 May 2022
UNLOCK_S = 1_715_093_466  # two years later
ETHER = 10**18


def call(selector: str, *words: int, method: str | None = None) -> Staking:
    data = selector + "".join(map(word, words))
    return find_staking(selector=selector, method=method, call_data=data, block_time_ms=BLOCK_MS)


@pytest.mark.parametrize(
    ("selector", "words", "kind", "amount"),
    [
        ("0x65fc3873", (5 * ETHER, UNLOCK_S), "create_lock", "5"),
        ("0x4957677c", (ETHER // 2,), "increase_amount", "0.5"),
        ("0xeff7a612", (UNLOCK_S,), "increase_unlock_time", None),
        ("0x3ccfd60b", (), "withdraw", None),
        ("0x2e1a7d4d", (7 * ETHER,), "withdraw", "7"),
        ("0x8239f064", (), "withdraw_early", None),
        ("0xdb2e21bc", (), "withdraw_early", None),
        ("0xa694fc3a", (1,), "create_lock", "0.000000000000000001"),
        ("0x2e17de78", (3 * ETHER,), "withdraw", "3"),
    ],
)
def test_every_selector_has_its_own_type_and_amount(
    selector: str, words: tuple[int, ...], kind: str, amount: str | None
) -> None:
    found = call(selector, *words)
    assert found.type == kind
    assert found.amount == (None if amount is None else Decimal(amount))


def test_the_selector_decides_against_the_name() -> None:
    assert call("0x3ccfd60b", method="create_lock").type == "withdraw"


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("create_lock", "create_lock"),
        ("createLock", "create_lock"),
        ("unlock", "withdraw"),
        ("lock", "create_lock"),
        ("withdraw_early", "withdraw_early"),
        ("emergencyWithdraw", "withdraw_early"),
        ("increase_amount", "increase_amount"),
        ("increaseUnlockTime", "increase_unlock_time"),
        ("UNSTAKE", "withdraw"),
        ("transfer", "unknown"),
        ("mint", "unknown"),
        ("withdrawFees", "unknown"),
        ("unlockable", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_name_counts_only_as_a_whole(method: str | None, kind: str) -> None:
    found = find_staking(selector=None, method=method, call_data=None, block_time_ms=BLOCK_MS)
    assert found.type == kind
    assert found.confidence == (0.4 if kind == "unknown" else 0.8)


def test_confidence_says_where_the_type_was_read() -> None:
    assert call("0x2e1a7d4d", 1).confidence == 0.95
    assert call("0x65fc3873", 1, UNLOCK_S).confidence == 1.0
    method_id = find_staking(selector="0x2e1a7d4d", method=None, call_data=None, block_time_ms=BLOCK_MS)
    assert method_id == Staking("withdraw", 0.85)


def test_a_lock_lasts_from_its_block_to_its_unlock_time() -> None:
    found = call("0x65fc3873", ETHER, UNLOCK_S)
    assert found.unlock_s == UNLOCK_S
    assert found.lock_days == 730


def test_a_lock_that_is_over_by_now_still_has_its_length() -> None:
    found = find_staking(
        selector="0xeff7a612",
        method=None,
        call_data="0xeff7a612" + word(1_500_000_000),
        block_time_ms=1_450_000_000_000,
    )
    assert found.lock_days == 579


def test_an_unlock_before_the_block_is_a_lock_of_no_days() -> None:
    assert call("0xeff7a612", BLOCK_MS // 1000 - 86_400 * 9).lock_days == 0


def test_without_a_block_time_the_length_is_unknown_and_the_unlock_time_is_not() -> None:
    found = find_staking(
        selector="0xeff7a612", method=None, call_data="0xeff7a612" + word(UNLOCK_S), block_time_ms=None
    )
    assert (found.unlock_s, found.lock_days) == (UNLOCK_S, None)


@pytest.mark.parametrize("moment", [0, 1, 1_438_269_972, 4_294_967_296, 2**255])
def test_a_number_that_is_no_time_of_a_chain_is_no_unlock_time(moment: int) -> None:
    found = call("0xeff7a612", moment)
    assert found.unlock_s is None
    assert found.confidence == 0.95


@pytest.mark.parametrize(
    "arguments",
    ["", "00", word(5 * ETHER)[:-1], "zz" + word(5 * ETHER)[2:], "0x" + word(5 * ETHER)[2:], " +1_0".rjust(64)],
    ids=["none", "one byte", "cut short", "not hexadecimal", "a prefix inside", "what int() would take"],
)
def test_call_data_that_ends_early_or_is_damaged_has_an_unknown_amount(arguments: str) -> None:
    found = find_staking(selector="0x2e1a7d4d", method=None, call_data="0x2e1a7d4d" + arguments, block_time_ms=BLOCK_MS)
    assert found.type == "withdraw"
    assert found.amount is None


@given(st.integers(min_value=0, max_value=2**256 - 1))
def test_no_digit_of_a_staked_amount_is_lost(raw: int) -> None:
    amount = call("0xa694fc3a", raw).amount
    assert amount is not None
    sign, digits, exponent = amount.as_tuple()
    assert (sign, exponent) == (0, -18)
    assert int("".join(map(str, digits))) == raw
