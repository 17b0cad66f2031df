"""Figures of transactions, merged from stored days, against the naive computation over all rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.aggregates.compiling import Aggregate, put_together
from tasks.domain.aggregates.describe import describe_staking, describe_transactions
from tasks.domain.aggregates.newcomers import changed_days, count_newcomers, newcomers_in
from tasks.domain.aggregates.periods import LEVELS, Calendar, Level, Period
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.storage import decode_partial, encode_partial
from tasks.domain.aggregates.subjects import Subject, chain_subject, contract_subject, team_subject
from tasks.domain.aggregates.transactions import TransactionDays, TransactionFigures, transaction_keys
from tasks.domain.owners import ESCROW
from tasks.domain.transactions import Transaction
from tests.builders import (
    ESCROW_ID,
    OTHER_TEAM_ID,
    SHARED_ID,
    SITE_ID,
    TEAM_ID,
    TOKEN_ID,
    make_owners,
    make_transaction,
)
from tests.unit.aggregates import naive

Partials = dict[PartialKey, TransactionFigures]

OWNERS = make_owners()
TEAM, OTHER = str(TEAM_ID), str(OTHER_TEAM_ID)
NOW_MS = 1_800_000_000_000
ZERO = "0x" + "0" * 40
WALLETS = ["0x" + digit * 40 for digit in "12ab"] + ["0x" + "00" * 19 + "c0", ZERO, None]
HASHES = ["0x" + digit * 64 for digit in "123456789"]
UNLIMITED = str(2**256 - 1)


def ms(*when: int) -> int:
    return round(datetime(*when, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc]


#: Both sides of midnight in several zones, of changes of clocks, a leap day, a turn of the year, an ISO week's end.
MOMENTS = [
    None,
    ms(2024, 2, 28, 23, 30),
    ms(2024, 2, 29, 0, 0),
    ms(2024, 2, 29, 23, 59, 59),
    ms(2024, 3, 1, 0, 0) - 1,
    ms(2024, 3, 1, 4, 30),
    ms(2024, 3, 31, 0, 59),
    ms(2024, 3, 31, 1, 0),
    ms(2024, 3, 31, 22, 30),
    ms(2024, 4, 7, 3, 0),
    ms(2024, 10, 27, 0, 30),
    ms(2024, 10, 27, 1, 30),
    ms(2024, 12, 29, 23, 0),
    ms(2024, 12, 30, 12, 0),
    ms(2025, 1, 1, 0, 30),
    ms(2025, 1, 31, 18, 0),
]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati"]
AMOUNTS = [
    (None, False, False),
    ("0", False, False),
    ("0.05", False, False),
    ("0.099999999999999999", False, False),
    ("0.1", False, False),
    ("1", False, False),
    ("10", False, False),
    ("10.000000000000000001", False, False),
    ("115792089237316195423570985.584007913129639935", False, False),
    ("0.0001", True, False),
    ("0.1", True, False),
    ("5", True, False),
    ("5", False, False),
    (UNLIMITED, False, True),
]
SECOND_ESCROW_ID = "contract_1744848002816_ffffffffffffffff"
TEAM_CONTRACTS = [TOKEN_ID, ESCROW_ID, SECOND_ESCROW_ID]
HOUR_MS = 3_600_000
CALLS = [
    ("create_lock", "1.5"),
    ("create_lock", None),
    ("increase_amount", "0.000000000000000001"),
    ("increase_unlock_time", None),
    ("withdraw", "3"),
    ("withdraw", None),
    ("withdraw_early", "2"),
    ("unknown", None),
]


@st.composite
def transactions(draw: st.DrawFn) -> list[Transaction]:
    """Return rows of four contracts of two teams.

    Every other row is a twin of one before: the same but for one field, under the same contract or another.
    """
    rows: list[Transaction] = []
    for number in range(draw(st.integers(0, 16))):
        record_id = f"64c0000000000000000{number * 7919 % 100_000:05}"
        amount, below, unlimited = draw(st.sampled_from(AMOUNTS))
        kind, staked = draw(st.sampled_from(CALLS))
        fields: dict[str, Any] = {
            "tx_hash": draw(st.sampled_from(HASHES)),
            "chain": draw(st.sampled_from(["Ethereum", "Ethereum", "Base", None])),
            "block_time_ms": draw(st.sampled_from(MOMENTS)),
            "status": draw(st.sampled_from(["success", "success", "failed", "pending", None])),
            "from_address": draw(st.sampled_from(WALLETS)),
            "to_address": draw(st.sampled_from(WALLETS)),
            "method": draw(st.sampled_from(["transfer", "approve", "swapExactETHForTokens", None])),
            "selector": draw(st.sampled_from(["0xa9059cbb", None])),
            "is_transfer": draw(st.booleans()),
            "gas_used": draw(st.sampled_from([None, 0, 21_000, 2**62])),
            "unit": draw(st.sampled_from(["ETH", "USDT", "$a.b", None])),
        }
        amounts = {"amount": amount, "amount_below": below, "amount_unlimited": unlimited}
        call = {
            "staking_type": kind,
            "staking_amount": staked,
            "staking_lock_days": draw(st.sampled_from([None, 0, 7, 30, 365, 1460])),
        }
        contract_id = draw(st.sampled_from(TEAM_CONTRACTS))
        if rows and draw(st.booleans()):
            twin = draw(st.sampled_from(rows))
            changed = draw(st.sampled_from(["amount", "call", "hour", *fields]))
            changes = {"amount": amounts, "call": call}.get(changed, {changed: fields.get(changed)})
            if changed == "hour":
                changes = {"block_time_ms": twin.block_time_ms and twin.block_time_ms + HOUR_MS}
            if twin.contract_id == SHARED_ID:
                contract_id = SHARED_ID
            row = replace(twin, record_id=record_id, contract_id=contract_id, **changes)
        else:
            contract_id = draw(st.sampled_from([contract_id, contract_id, SHARED_ID]))
            team_id = OTHER if contract_id == SHARED_ID else TEAM
            row = make_transaction(
                record_id=record_id, contract_id=contract_id, team_id=team_id, **fields, **amounts, **call
            )
        escrow = contract_id in (ESCROW_ID, SECOND_ESCROW_ID)
        # A call that isn't an escrow contract's has no staking; one that is has a type at least.
        kind = (row.staking_type or "unknown") if escrow else None
        rows.append(replace(row, contract_type=ESCROW if escrow else "main", staking_type=kind))
    return rows


def partials(rows: Iterable[Transaction], zone: str = "UTC") -> Partials:
    """Return the days of all rows, each as it comes back from the store."""
    days = TransactionDays(Calendar(zone))
    for row in rows:
        days.add(row)
    return {
        key: decode_partial("transactions", encode_partial("transactions", figures)) for key, figures in days.finish()
    }


def parts_of(found: Partials, scope: Scope) -> list[tuple[Period | None, TransactionFigures]]:
    """Return the days of a scope; those of a team are those of its chains."""
    mine = (scope,)
    if scope.kind == "team":
        mine = tuple(
            {key.scope for key in found if key.scope.kind == "chain" and key.scope.holder_id == scope.holder_id}
        )
    return [
        (None if key.day is None else Period.of("day", key.day), figures)
        for key, figures in found.items()
        if key.scope in mine
    ]


def aggregate(
    found: Partials, subject: Subject, period: Period, zone: str = "UTC", now_ms: int = NOW_MS
) -> Aggregate[TransactionFigures] | None:
    parts = parts_of(found, subject.scope)
    newcomers = count_newcomers((part.first, figures.senders) for part, figures in parts if part is not None)
    return put_together(subject, period, Calendar(zone), parts, newcomers, kind=TransactionFigures, now_ms=now_ms)


SUBJECTS = [
    contract_subject(OWNERS.by_contract_id[TOKEN_ID]),
    contract_subject(OWNERS.by_contract_id[ESCROW_ID]),
    chain_subject(TEAM, SITE_ID, "Ethereum"),
    chain_subject(TEAM, SITE_ID, None),
    team_subject(TEAM, SITE_ID),
    team_subject(OTHER),
]


def months(parts: Sequence[tuple[Period | None, TransactionFigures]]) -> list[tuple[Period | None, TransactionFigures]]:
    """Return the months of days, merged and stored once more, as all time is made of them."""
    by_month: dict[Period | None, list[TransactionFigures]] = {}
    for part, figures in parts:
        by_month.setdefault(None if part is None else Period.of("month", part.first), []).append(figures)
    return [
        (month, decode_partial("transactions", encode_partial("transactions", TransactionFigures.merged(mine))))
        for month, mine in by_month.items()
    ]


@given(
    rows=transactions(), zone=st.sampled_from(ZONES), level=st.sampled_from(LEVELS), subject=st.sampled_from(SUBJECTS)
)
def test_every_figure_is_that_of_the_naive_computation(
    rows: list[Transaction], zone: str, level: Level, subject: Subject
) -> None:
    found = partials(rows, zone)
    scope = subject.scope
    mine = naive.chosen(rows, scope.kind, scope.holder_id, scope.part)
    days = {naive.day_of(row.block_time_ms, zone) for row in mine} - {None}
    assert all(isinstance(day, date) for day in days)
    for wanted in sorted({naive.label(day, level) for day in (*days, date(2031, 1, 6)) if day is not None}):
        made = aggregate(found, subject, Period.from_label(wanted), zone)
        expected = naive.transaction_figures(mine, scope.kind, level, wanted, zone)
        if made is None or expected is None:
            assert made is None
            assert expected is None
            continue
        facts = describe_transactions(made).metadata["facts"]
        assert {name: figure for name, figure in facts["figures"].items() if name != "series"} == {
            name: figure for name, figure in expected.items() if name[0] != "_"
        }
        staking = describe_staking(made)
        if expected["_stakes"]:
            assert staking is not None
            assert staking.metadata["facts"]["figures"] == naive.staking_figures(expected)
        else:
            assert staking is None
        if level != "all":
            day = next(day for day in days if day is not None and naive.label(day, level) == wanted)
            earlier = naive.label_before(day, level)
            before = naive.transaction_figures(mine, scope.kind, level, earlier, zone)
            assert facts["change"] == {"against": earlier, **naive.change_of_transactions(expected, before)}


@given(rows=transactions(), subject=st.sampled_from(SUBJECTS))
def test_all_time_is_the_same_from_days_and_from_months(rows: list[Transaction], subject: Subject) -> None:
    parts = parts_of(partials(rows), subject.scope)
    made = [
        put_together(subject, Period.from_label("all"), Calendar(), chosen, {}, kind=TransactionFigures, now_ms=NOW_MS)
        for chosen in (parts, months(parts), parts[::-1])
    ]
    documents = [None if one is None else describe_transactions(one) for one in made]
    assert documents[0] == documents[1] == documents[2]


@given(rows=transactions(), order=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[Transaction], order: Any) -> None:
    shuffled = list(rows)
    order.shuffle(shuffled)
    first, second = partials(rows), partials(shuffled)
    assert first == second
    for key, figures in first.items():
        assert encode_partial("transactions", figures) == encode_partial("transactions", second[key])


@given(rows=transactions())
def test_a_row_goes_where_its_keys_say(rows: list[Transaction]) -> None:
    expected = {key for row in rows for key in transaction_keys(row, Calendar("Europe/Berlin"))}
    assert set(partials(rows, "Europe/Berlin")) == expected


@given(rows=transactions(), late=transactions())
def test_a_late_row_changes_only_the_days_that_its_keys_name(rows: list[Transaction], late: list[Transaction]) -> None:
    before, after = partials(rows), partials([*rows, *late])
    touched = {key for row in late for key in transaction_keys(row, Calendar())}
    assert {key for key in after if before.get(key) != after[key]} == touched


@given(rows=transactions(), field=st.sampled_from(["status", "amount", "gas_used", "from_address", "method"]))
def test_the_digest_changes_with_every_row_that_changes(rows: list[Transaction], field: str) -> None:
    if not rows:
        return
    changes: dict[str, Any] = {
        "status": "dropped",
        "amount": "77.7",
        "gas_used": 12_345,
        "from_address": "0x" + "9" * 40,
        "method": "mint",
    }
    changed = [replace(rows[0], **{field: changes[field]}), *rows[1:]]
    digests = [{key: figures.digest for key, figures in partials(these).items()} for these in (rows, changed, rows[1:])]
    assert digests[0] != digests[1]
    assert digests[0] != digests[2]


# facts about the rules


def one(rows: Iterable[Transaction], scope: Scope | None = None) -> TransactionFigures:
    """Return the figures of all rows of a scope, the token's own unless another is named."""
    return TransactionFigures.merged(
        [figures for _, figures in parts_of(partials(rows), scope or Scope.contract(TOKEN_ID))]
    )


def test_a_hash_under_two_contracts_is_one_transaction_of_the_team() -> None:
    rows = [
        make_transaction(),
        make_transaction(contract_id=ESCROW_ID, record_id="64c000000000000000000002", method="deposit", unit="ETH"),
    ]
    for scope in (Scope.chain(TEAM, "Ethereum"), Scope.team(TEAM)):
        figures = one(rows, scope)
        assert (figures.transactions, figures.rows, figures.doubled) == (1, 2, 0)
        assert figures.gas_total == 46_626
        assert {unit: str(volume.total) for unit, volume in figures.volumes.items()} == {"USDT": "12.5", "ETH": "12.5"}
    assert [one(rows, Scope.contract(contract)).transactions for contract in (TOKEN_ID, ESCROW_ID)] == [1, 1]


def test_an_equal_amount_in_the_same_unit_counts_once_within_a_transaction() -> None:
    rows = [make_transaction(), make_transaction(contract_id=ESCROW_ID, record_id="64c000000000000000000002")]
    assert str(one(rows, Scope.team(TEAM)).volumes["USDT"].total) == "12.5"
    rows[1] = replace(rows[1], amount="7.5")
    assert str(one(rows, Scope.team(TEAM)).volumes["USDT"].total) == "20"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (["success", "failed"], "failed"),
        (["pending", "success"], "success"),
        ([None, "pending"], "pending"),
        ([None, "success"], "success"),
        ([None, None], "unknown"),
    ],
)
def test_what_one_row_knows_of_a_transaction_holds_for_it(said: list[str | None], status: str) -> None:
    rows = [
        make_transaction(contract_id=contract, status=row_status)
        for contract, row_status in zip(TEAM_CONTRACTS, said, strict=False)
    ]
    assert one(rows, Scope.team(TEAM)).statuses == {status: 1}
    assert one(rows[::-1], Scope.team(TEAM)).statuses == {status: 1}


def test_an_amount_and_less_than_that_amount_are_two() -> None:
    rows = [make_transaction(amount="0.5"), make_transaction(contract_id=ESCROW_ID, amount="0.5", amount_below=True)]
    volume = one(rows, Scope.team(TEAM)).volumes["USDT"]
    assert (volume.amounts, volume.below) == (1, 1)


@pytest.mark.parametrize("shared", [0, 1])
def test_days_with_many_rows_of_several_contracts_are_counted_as_small_ones_are(shared: int) -> None:
    rows = [
        make_transaction(
            record_id=f"64c00000000000000000{number:04}",
            contract_id=TEAM_CONTRACTS[number % 2],
            tx_hash=f"0x{number if number > shared else 0:064x}",
            from_address=f"0x{number % 7:040x}",
        )
        for number in range(80)
    ]
    figures = one(rows, Scope.chain(TEAM, "Ethereum"))
    expected = naive.transaction_figures(rows, "chain", "day", "2022-05-08", "UTC")
    assert expected is not None
    assert (figures.rows, figures.transactions) == (80, 80 - shared)
    made = aggregate(partials(rows), chain_subject(TEAM, SITE_ID, "Ethereum"), Period.from_label("2022-05-08"))
    assert made is not None
    facts = describe_transactions(made).metadata["facts"]["figures"]
    assert facts == {name: figure for name, figure in expected.items() if name[0] != "_"}


def test_a_hash_on_two_chains_is_two_transactions() -> None:
    rows = [make_transaction(), make_transaction(contract_id=ESCROW_ID, chain="Base")]
    assert one(rows, Scope.team(TEAM)).transactions == 2


def test_a_record_stored_twice_is_one_transaction_and_is_told() -> None:
    rows = [make_transaction(amount="1"), make_transaction(record_id="64c000000000000000000000", amount="2")]
    for scope in (None, Scope.chain(TEAM, "Ethereum")):
        figures = one(rows, scope)
        assert (figures.rows, figures.transactions, figures.doubled) == (2, 1, 1)
        assert str(figures.volumes["USDT"].total) == "2"  # of the smaller _id


def test_what_failed_or_is_pending_moves_nothing_and_is_counted() -> None:
    rows = [
        make_transaction(tx_hash=hash_, status=status)
        for hash_, status in zip(HASHES, ["failed", "pending", None, "success"], strict=False)
    ]
    volume = one(rows).volumes["USDT"]
    assert (str(volume.total), volume.amounts, volume.not_moved) == ("25", 2, 2)


def test_units_are_never_added() -> None:
    rows = [
        make_transaction(tx_hash=hash_, unit=unit) for hash_, unit in zip(HASHES, ["ETH", "eth", None], strict=False)
    ]
    assert {unit: str(volume.total) for unit, volume in one(rows).volumes.items()} == {
        "ETH": "12.5",
        "eth": "12.5",
        "": "12.5",
    }


def test_volumes_keep_every_digit_of_any_number_of_rows() -> None:
    smallest, largest = "0." + "0" * 77 + "1", "1" + "0" * 58
    rows = [
        make_transaction(tx_hash=f"0x{number:064x}", amount=smallest if number else largest) for number in range(1_001)
    ]
    assert one(rows).volumes["USDT"].total == Decimal(largest + "." + "0" * 74 + "1")


def test_the_zero_address_is_nobody() -> None:
    figures = one([make_transaction(from_address=ZERO, to_address=ZERO)])
    assert (len(figures.senders), len(figures.recipients)) == (0, 0)


def test_a_row_without_a_time_counts_towards_all_time_alone() -> None:
    found = partials([make_transaction(), make_transaction(tx_hash=HASHES[0], block_time_ms=None)])
    subject = SUBJECTS[0]
    all_time = aggregate(found, subject, Period.from_label("all"))
    month = aggregate(found, subject, Period.from_label("2022-05"))
    assert all_time is not None
    assert month is not None
    assert (all_time.figures.transactions, all_time.figures.undated, month.figures.transactions) == (2, 1, 1)


def test_rows_that_have_no_time_at_all_have_no_window() -> None:
    made = aggregate(partials([make_transaction(block_time_ms=None)]), SUBJECTS[0], Period.from_label("all"))
    assert made is not None
    assert made.window is None
    assert "timeframe" not in describe_transactions(made).metadata


def test_a_late_row_takes_a_newcomer_from_a_later_day() -> None:
    june, july = (
        make_transaction(tx_hash=HASHES[0], block_time_ms=ms(2024, 6, 30)),
        make_transaction(tx_hash=HASHES[1], block_time_ms=ms(2024, 7, 2)),
    )

    def newcomers(rows: list[Transaction]) -> dict[date, int]:
        parts = parts_of(partials(rows), Scope.contract(TOKEN_ID))
        return count_newcomers((part.first, figures.senders) for part, figures in parts if part is not None)

    before, after = newcomers([july]), newcomers([july, june])
    assert (before, after) == ({date(2024, 7, 2): 1}, {date(2024, 6, 30): 1})
    assert newcomers_in(after, Period.from_label("2024-07")) == 0
    assert changed_days(before, after) == {date(2024, 6, 30), date(2024, 7, 2)}


def test_a_wallet_on_two_chains_on_its_first_day_is_one_newcomer_of_the_team() -> None:
    rows = [make_transaction(), make_transaction(tx_hash=HASHES[0], chain="Base")]
    parts = parts_of(partials(rows), Scope.team(TEAM))
    assert count_newcomers((part.first, figures.senders) for part, figures in parts if part) == {date(2022, 5, 8): 1}


def test_newcomers_of_both_chains_of_a_day_are_added_up() -> None:
    rows = [make_transaction(), make_transaction(tx_hash=HASHES[0], chain="Base", from_address="0x" + "5" * 40)]
    parts = parts_of(partials(rows), Scope.team(TEAM))
    assert count_newcomers((part.first, figures.senders) for part, figures in parts if part) == {date(2022, 5, 8): 2}


def test_an_unknown_withdrawal_makes_the_net_change_unknown() -> None:
    calls = [("create_lock", "5"), ("withdraw", None)]
    rows = [
        make_transaction(
            tx_hash=hash_, contract_id=ESCROW_ID, contract_type=ESCROW, staking_type=kind, staking_amount=amount
        )
        for hash_, (kind, amount) in zip(HASHES, calls, strict=False)
    ]
    stake = one(rows, Scope.contract(ESCROW_ID)).stakes[ESCROW_ID]
    assert (stake.net, str(stake.net_of_known), stake.withdrawn_unknown) == (None, "5", 1)


def test_a_part_that_reaches_beyond_the_period_is_refused() -> None:
    figures = one([make_transaction()])
    for part, period in (("2024-W09", "2024-02"), ("2024-W05", "2024-02"), ("2024-02", "2024-02-03")):
        with pytest.raises(ValueError, match="lies in"):
            put_together(
                SUBJECTS[0],
                Period.from_label(period),
                Calendar(),
                [(Period.from_label(part), figures)],
                {},
                kind=TransactionFigures,
                now_ms=NOW_MS,
            )
