"""Partial figures in the store: versioned, in parts that fit, and never read wrongly."""

from __future__ import annotations

from datetime import date

import bson
import pytest

from tasks.domain.aggregates.moves import Move, Moves
from tasks.domain.aggregates.periods import Calendar, Period
from tasks.domain.aggregates.scopes import AggregateKey, PartialKey, PartialTopic, Scope
from tasks.domain.aggregates.storage import (
    PARTIAL_VERSION,
    Figures,
    OutdatedPartialError,
    decode_partial,
    encode_partial,
)
from tasks.domain.aggregates.transactions import TransactionFigures, read_row
from tasks.domain.aggregates.visits import VisitFigures
from tests.builders import TEAM_ID, TOKEN_ID, make_transaction
from tests.unit.aggregates.test_aggregated_visits import make_visit

DAY = date(2025, 6, 10)
MANY = TransactionFigures.of_rows(
    [
        read_row(
            make_transaction(
                tx_hash=f"0x{number:064x}",
                from_address=f"0x{number * 7:040x}",
                to_address=f"0x{number * 11:040x}",
                method=f"method{number}",
                unit=f"SPAM{number % 90}",
            ),
            number % 24,
        )
        for number in range(400)
    ],
    DAY,
)
VISITS = VisitFigures.of_visits(
    [
        make_visit(session_id=str(number), visitor=f"v{number}", wallet=f"0x{number:040x}", pages=(f"/{number}",))
        for number in range(300)
    ],
    DAY,
    Calendar(),
)
MOVES = Moves.of_rows(
    Move(number, f"0x{number:040x}", "Base", f"0x{number:064x}", TOKEN_ID, "success", "ETH", None, False, False)
    for number in range(200)
)
EVERYTHING: list[tuple[PartialTopic, Figures]] = [("transactions", MANY), ("visits", VISITS), ("moves", MOVES)]


@pytest.mark.parametrize(("topic", "figures"), EVERYTHING)
def test_figures_come_back_as_they_were(topic: PartialTopic, figures: Figures) -> None:
    (part,) = encode_partial(topic, figures)
    assert decode_partial(topic, [part]) == figures
    assert encode_partial(topic, decode_partial(topic, [part])) == [part]


@pytest.mark.parametrize(("topic", "figures"), EVERYTHING)
def test_figures_that_are_too_large_lie_in_parts_and_are_the_same_in_any_order(
    topic: PartialTopic, figures: Figures
) -> None:
    parts = encode_partial(topic, figures, max_bytes=4_000)
    assert len(parts) > 4
    assert max(map(len, parts)) <= 4_000
    assert decode_partial(topic, parts) == figures
    assert decode_partial(topic, parts[::-1]) == figures


def test_parts_that_no_split_makes_small_enough_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be stored"):
        encode_partial("transactions", MANY, max_bytes=100)


def test_no_parts_are_the_figures_of_nothing() -> None:
    assert decode_partial("transactions", []) == TransactionFigures.of_rows([], DAY)
    assert decode_partial("moves", []).rows == ()


@pytest.mark.parametrize(
    "changes",
    [{"v": PARTIAL_VERSION + 1}, {"v": None}, {"topic": "visits"}, {"figures": {}}, {"figures": None}],
    ids=repr,
)
def test_figures_of_another_version_or_form_are_never_read(changes: dict[str, object]) -> None:
    (part,) = encode_partial("transactions", MANY)
    with pytest.raises(OutdatedPartialError, match="from the rows again"):
        decode_partial("transactions", [bson.encode({**bson.decode(part), **changes})])


@pytest.mark.parametrize("part", [b"", b"\0" * 40, encode_partial("moves", MOVES)[0][:-9]])
def test_damaged_figures_are_never_read(part: bytes) -> None:
    with pytest.raises(OutdatedPartialError, match="from the rows again"):
        decode_partial("moves", [part])


def test_keys_are_stable_and_tell_everything_apart() -> None:
    contract, chain = Scope.contract(TOKEN_ID), Scope.chain(str(TEAM_ID), "BNB Chain")
    june = Period.from_label("2025-06")
    assert AggregateKey("transactions", contract, june).text == f"aggregate:{TOKEN_ID}:transactions:month:2025-06"
    assert AggregateKey("staking", chain, june, "Europe/Berlin").text == (
        f"aggregate:{TEAM_ID}:staking:month:2025-06:chain=BNB Chain:zone=Europe/Berlin"
    )
    assert AggregateKey("campaign", Scope.campaign("a:b", "64d0"), Period.from_label("all")).text == (
        "aggregate:a%3Ab:campaign:all:all:campaign=64d0"
    )
    keys = [
        PartialKey(topic, scope, day, zone).text
        for topic in ("transactions", "moves")
        for scope in (contract, chain, Scope.team(str(TEAM_ID)), Scope.chain(str(TEAM_ID), None))
        for day in (None, DAY)
        for zone in ("UTC", "Europe/Berlin")
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == f"transactions:{TOKEN_ID}:contract::undated:UTC"
