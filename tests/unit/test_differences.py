"""What a comparison found, counted by place: nothing is lost, however much there is of it, and the most comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson import ObjectId

import flows.differences
import tasks.domain.differences
from flows.differences import holder_rows, place_rows
from tasks.domain.differences import KINDS, Differences, Move, Place, RecordIds, Tally, day_of
from tasks.domain.owners import Owners


def place(day: int, holder: str = "contract", team: str | None = "team") -> Place:
    return Place(team, holder, f"2025-06-{day:02d}")


def found(*days: tuple[int, str, int]) -> Differences:
    """Return differences with so many records of a kind on a day."""
    made = Differences()
    for day, kind, count in days:
        for number in range(count):
            made.at(place(day)).in_source += 1
            made.add(kind, number, place(day))
    return made


def test_ids_of_any_type_come_back_in_order_and_again() -> None:
    ids = [ObjectId(), 7, "text", {"a": 1}, ObjectId()]
    kept = RecordIds(ids[:2])
    kept.add_all(RecordIds(ids[2:]))
    assert list(kept) == list(kept) == ids
    assert len(kept) == 5
    assert list(RecordIds()) == []


def test_an_object_id_takes_22_bytes() -> None:
    kept = RecordIds(ObjectId() for _ in range(1_000))
    assert len(kept._encoded) == 22_000


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (datetime(2025, 6, 1, 23, 59, tzinfo=UTC), "2025-06-01"),
        (datetime(2025, 6, 1, 23, 59), "2025-06-01"),  # noqa: DTZ001 - as BSON gives it
        (datetime(2025, 6, 1, 23, 0, tzinfo=timezone(timedelta(hours=-5))), "2025-06-02"),
        (1_748_822_399_999, "2025-06-01"),
        (10**30, None),
        (None, None),
        ("2025-06-01", None),
    ],
)
def test_a_day_is_that_of_utc_or_none(moment: object, day: str | None) -> None:
    assert day_of(moment) == day


def test_parts_add_up_and_those_with_most_differences_come_first() -> None:
    whole = found((1, "missing", 2), (2, "stale", 1))
    whole.merge(found((2, "stale", 4), (3, "orphaned", 1)))
    whole.at(place(9)).dead_lettered += 5
    whole.at(place(8)).stored += 7
    assert [(at.day, tally.differing) for at, tally in whole.largest()] == [
        ("2025-06-02", 5),
        ("2025-06-01", 2),
        ("2025-06-03", 1),
        ("2025-06-09", 0),
    ]
    assert str(whole) == "2 missing, 5 stale, 1 orphaned"
    assert (whole.total.in_source, whole.total.stored, whole.total.dead_lettered) == (8, 7, 5)
    assert str(Differences()) == "nothing differs"


def test_examples_are_few_however_many_records_differ() -> None:
    whole = found((1, "missing", 15))
    whole.merge(found((1, "missing", 15)))
    assert len(whole.examples["missing"]) == 20
    assert whole.total.missing == 30


def test_beyond_so_many_places_a_team_is_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.domain.differences, "MAX_PLACES", 3)
    whole = found(*((day, "missing", 1) for day in range(1, 20)))
    assert set(whole.places) == {place(1), place(2), place(3), Place("team", None, None)}
    assert whole.total.missing == 19
    other = found((25, "stale", 2))
    other.merge(whole)
    assert len(other.places) == 4
    assert (other.total.missing, other.total.stale) == (19, 2)


def test_what_belongs_to_nobody_is_counted_among_the_moves() -> None:
    whole = Differences()
    whole.add_move(Move("a", "site", None, "site"))
    whole.add_move(Move("a", "site", "b", "site"))
    other = Differences()
    other.add_move(Move("a", "site", None, "site"))
    whole.merge(other)
    assert (whole.unowned, whole.moves[Move("a", "site", None, "site")]) == (2, 2)


def test_rows_that_are_left_out_are_added_up_in_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.differences, "MAX_ROWS", 2)
    rows = place_rows(
        "session", found((1, "missing", 3), (2, "missing", 2), (3, "stale", 1), (4, "moved", 1)), Owners()
    )
    assert [(row["day"], row["missing"], row.get("places")) for row in rows] == [
        ("2025-06-01", 3, None),
        ("2025-06-02", 2, None),
        (None, 0, 2),
    ]
    assert (rows[-1]["stale"], rows[-1]["moved"]) == (1, 1)


def test_days_of_one_contract_are_one_row_that_says_which() -> None:
    whole = found((1, "missing", 3), (5, "stale", 2))
    whole.add("orphaned", 1, place(2, holder="other"))
    first, second = holder_rows("transaction", whole, Owners())
    expected: dict[str, Any] = {"holder": "contract", "days": 2, "first": "2025-06-01", "last": "2025-06-05"}
    assert {name: first[name] for name in expected} == expected
    assert (first["missing"], first["stale"], second["orphaned"], second["days"]) == (3, 2, 1, 1)


def test_a_tally_names_every_kind() -> None:
    assert set(KINDS) < Tally().to_record().keys()
