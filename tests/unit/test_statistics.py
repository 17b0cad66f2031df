"""Statistics: running totals in a ring become what happened in an hour, a day, a week, a month."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import bson
import pytest
from bson import CodecOptions, Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.aggregates.periods import Period
from tasks.domain.documents import Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.rows import encode_head
from tasks.domain.sources import Source
from tasks.domain.statistics import (
    DAILY_STATS,
    HOURLY_STATS,
    MONTHLY_STATS,
    RING_SNAPSHOTS,
    WEEKLY_STATS,
    Difference,
    Snapshot,
    add_up,
    group_by_day,
    group_by_hour,
    group_by_month,
    group_by_week,
    read_ring,
    take_differences,
)
from tests.builders import TEAM_ID

SITE_ID = "0b4ff0ab-6e5c-4f0e-9a8e-7d5a1c2b3d4e"
ROW_ID = ObjectId("64d000000000000000000001")
OWNERS = Owners.from_records(
    [],
    [{"_id": TEAM_ID}],
    [{"_id": ObjectId(), "siteId": SITE_ID, "team": TEAM_ID, "Name": "Tidewater", "Domain": "tidewater.example"}],
)
JUNE = datetime(2025, 6, 1, tzinfo=UTC)  # a Sunday
NOW_MS = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SOURCES = (HOURLY_STATS, DAILY_STATS, WEEKLY_STATS, MONTHLY_STATS)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(max_size=30),
        st.datetimes(),
        st.sampled_from([Decimal128("NaN"), Decimal128("12"), Int64(3), JUNE, "2025-06-01T00:00:00Z", "Asia/Kolkata"]),
        st.builds(ObjectId),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def entry(at: object, visitors: object = 0, pages: object = 0, web3: object = 0, wallets: object = 0) -> dict[str, Any]:
    return {
        "_id": ObjectId("64e000000000000000000001"),
        "analyticsId": ObjectId("64e000000000000000000002"),
        "timestamp": at,
        "visitors": visitors,
        "web3Users": web3,
        "walletsConnected": wallets,
        "pageViews": pages,
    }


def make_row(*entries: Any, **changes: Any) -> dict[str, Any]:
    """Return a row of hourlystats or dailystats: its ring holds the newest snapshot first."""
    return {"_id": ROW_ID, "siteId": SITE_ID, "analyticsSnapshot": list(entries)[::-1], **changes}


def of_hours(*visitors: Any, start: datetime = JUNE, step: timedelta = HOUR, **changes: Any) -> dict[str, Any]:
    """Return a row with a snapshot every hour, or at another step: ten page views for each visitor."""
    totals = enumerate(visitors)
    return make_row(*(entry(start + step * turn, total, total * 10) for turn, total in totals), **changes)


def of_days(*visitors: Any, start: datetime = JUNE, **changes: Any) -> dict[str, Any]:
    return of_hours(*visitors, start=start, step=DAY, **changes)


def records(source: Source, row: dict[str, Any]) -> list[dict[str, Any]]:
    assert source.split is not None
    return list(source.split(row))


def documents(source: Source, row: dict[str, Any], *, now_ms: int = NOW_MS) -> list[Document]:
    return [source.describe(record, OWNERS, now_ms) for record in records(source, row)]


def figures(source: Source, row: dict[str, Any], name: str = "visitors") -> dict[str, int | None]:
    """Return a figure of each period by its label."""
    found = (document.metadata["facts"] for document in documents(source, row))
    return {facts["period"]: facts.get(name) for facts in found}


def warnings_of(source: Source, row: dict[str, Any]) -> dict[str, str]:
    found = (document.metadata["facts"] for document in documents(source, row))
    return {facts["period"]: facts["warnings"] for facts in found if "warnings" in facts}


# --- differences


def test_what_happened_is_the_difference_of_two_neighbours_in_time() -> None:
    row = of_hours(100, 103, 110)
    assert figures(HOURLY_STATS, row) == {"2025-06-01T00": 3, "2025-06-01T01": 7}
    assert figures(HOURLY_STATS, row, "pageViews") == {"2025-06-01T00": 30, "2025-06-01T01": 70}


def test_the_oldest_snapshot_has_nothing_before_it_and_makes_no_record() -> None:
    assert records(HOURLY_STATS, of_hours(100)) == []
    assert records(DAILY_STATS, of_days(100)) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_order_of_a_ring_changes_nothing(source: Source) -> None:
    row = of_hours(100, 103, 110, 140, 141, 190, step=HOUR if source is HOURLY_STATS else DAY)
    ring = row["analyticsSnapshot"]
    shuffled = [ring[place] for place in (3, 0, 5, 1, 4, 2)]
    for order in (ring[::-1], shuffled):
        assert records(source, {**row, "analyticsSnapshot": order}) == records(source, row)


def test_hours_without_a_change_make_no_record_and_days_without_one_do() -> None:
    assert figures(HOURLY_STATS, of_hours(100, 100, 103, 103)) == {"2025-06-01T01": 3}
    assert figures(DAILY_STATS, of_days(100, 100, 103, 103)) == {"2025-06-01": 0, "2025-06-02": 3, "2025-06-03": 0}


def test_a_total_that_falls_began_anew_and_counts_from_zero() -> None:
    row = of_days(100, 110, 4, 6)
    assert figures(DAILY_STATS, row) == {"2025-06-01": 10, "2025-06-02": 4, "2025-06-03": 2}
    assert warnings_of(DAILY_STATS, row) == {
        "2025-06-02": (
            "visitors fell from 110 to 4: counted anew from 0; pageViews fell from 1100 to 40: counted anew from 0"
        )
    }


@pytest.mark.parametrize("raw", ["many", math.nan, -1, 7.5, [110], 10**13, Decimal128("NaN")])
def test_a_total_that_can_not_be_read_leaves_its_figure_out_and_the_next_one_counts_both_days(raw: object) -> None:
    row = make_row(entry(JUNE, 100, 5), entry(JUNE + DAY, raw, 6), entry(JUNE + 2 * DAY, 130, 8))
    assert figures(DAILY_STATS, row) == {"2025-06-01": None, "2025-06-02": 30}
    assert figures(DAILY_STATS, row, "pageViews") == {"2025-06-01": 1, "2025-06-02": 2}
    found = warnings_of(DAILY_STATS, row)
    assert found["2025-06-01"].startswith("visitors ")
    assert found["2025-06-01"].endswith(" left out")
    assert found["2025-06-02"] == "visitors also counts the time before, when no total was known"


def test_a_missing_total_is_no_fault_and_nothing_is_lost() -> None:
    row = make_row(entry(JUNE, 100), entry(JUNE + DAY, None), entry(JUNE + 2 * DAY, 130))
    assert figures(DAILY_STATS, row) == {"2025-06-01": None, "2025-06-02": 30}
    assert list(warnings_of(DAILY_STATS, row)) == ["2025-06-02"]


def test_the_first_day_says_why_it_lacks_a_figure() -> None:
    row = make_row(entry(JUNE, "many"), entry(JUNE + DAY, 110))
    assert figures(DAILY_STATS, row) == {"2025-06-01": None}
    assert warnings_of(DAILY_STATS, row) == {"2025-06-01": "visitors 'many' left out"}


@pytest.mark.parametrize("raw", ["110", 110.0, Int64(110), Decimal128("110")])
def test_totals_are_read_in_every_form(raw: object) -> None:
    assert figures(DAILY_STATS, make_row(entry(JUNE, 100), entry(JUNE + DAY, raw))) == {"2025-06-01": 10}


@pytest.mark.parametrize(
    "at", ["2025-06-02T00:00:00+00:00", "2025-06-02", round((JUNE + DAY).timestamp()), (JUNE + DAY).timestamp() * 1000]
)
def test_times_are_read_in_every_form(at: object) -> None:
    assert figures(DAILY_STATS, make_row(entry(JUNE, 100), entry(at, 110))) == {"2025-06-01": 10}


def test_two_equal_snapshots_of_one_moment_are_one() -> None:
    twice = make_row(entry(JUNE, 100), entry(JUNE + DAY, 110), entry(JUNE + DAY, 110), entry(JUNE + 2 * DAY, 130))
    assert figures(DAILY_STATS, twice) == {"2025-06-01": 10, "2025-06-02": 20}
    assert warnings_of(DAILY_STATS, twice) == {}


def test_of_two_snapshots_of_one_moment_that_disagree_the_larger_total_counts() -> None:
    one, other = entry(JUNE + DAY, 110, 7), entry(JUNE + DAY, 108, 9)
    for pair in ((one, other), (other, one)):
        row = make_row(entry(JUNE, 100), *pair)
        assert figures(DAILY_STATS, row) == {"2025-06-01": 10}
        assert figures(DAILY_STATS, row, "pageViews") == {"2025-06-01": 9}
        assert warnings_of(DAILY_STATS, row) == {
            "2025-06-01": "two snapshots of one moment disagree: the larger total counts"
        }


@pytest.mark.parametrize(
    ("odd", "warning"),
    [
        (None, "a snapshot that is no document left out"),
        ("2025-06-02", "a snapshot that is no document left out"),
        ({"hour": 13}, "a snapshot without a time left out"),
        (entry(None, 105), "a snapshot without a time left out"),
        (entry("", 105), "a snapshot without a time left out"),
        (entry("noon", 105), "a snapshot whose time can't be read or isn't one of this age left out"),
        (entry(0, 105), "a snapshot whose time can't be read or isn't one of this age left out"),
        (
            entry(datetime(9999, 12, 31, tzinfo=UTC), 105),
            "a snapshot whose time can't be read or isn't one of this age left out",
        ),
        (entry(datetime(2099, 12, 31, tzinfo=UTC), 105), "a snapshot more than a year from the others left out"),
        (entry(datetime(2016, 1, 1, tzinfo=UTC), 105), "a snapshot more than a year from the others left out"),
    ],
)
def test_a_snapshot_without_a_sound_time_is_left_out_and_the_others_stay(odd: Any, warning: str) -> None:
    row = make_row(entry(JUNE, 100), odd, entry(JUNE + 2 * DAY, 130))
    assert figures(DAILY_STATS, row) == {"2025-06-01": 30}
    assert warnings_of(DAILY_STATS, row) == {"2025-06-01": warning}


def test_several_snapshots_that_are_left_out_are_one_warning_so_that_it_stays_as_the_ring_moves_on() -> None:
    row = make_row(entry(JUNE, 100), None, {"hour": 1}, None, entry(JUNE + DAY, 130))
    assert warnings_of(DAILY_STATS, row) == {
        "2025-06-01": "a snapshot that is no document left out; a snapshot without a time left out"
    }


@pytest.mark.parametrize("ring", [None, "", []])
def test_a_row_without_snapshots_has_nothing_to_tell(ring: object) -> None:
    row = {"_id": ROW_ID, "siteId": SITE_ID, "analyticsSnapshot": ring}
    assert records(DAILY_STATS, row) == []
    assert records(DAILY_STATS, {"_id": ROW_ID, "siteId": SITE_ID}) == []


def refusal_of_only_record(row: dict[str, Any]) -> str:
    (record,) = records(DAILY_STATS, row)
    assert DAILY_STATS.read_time(record) is None
    with pytest.raises(RecordError) as refused:
        DAILY_STATS.describe(record, OWNERS, NOW_MS)
    return refused.value.code


@pytest.mark.parametrize("ring", ["none", 17, {"0": entry(JUNE)}])
def test_a_ring_that_is_no_list_refuses_the_row(ring: object) -> None:
    assert (
        refusal_of_only_record({"_id": ROW_ID, "siteId": SITE_ID, "analyticsSnapshot": ring}) == "snapshots_unreadable"
    )


def test_a_row_whose_id_is_no_object_id_is_refused_once_and_stops_no_other() -> None:
    assert refusal_of_only_record(of_days(1, 2, 3, 4, _id="imported-1")) == "id_not_objectid"


@given(st.lists(st.tuples(st.integers(0, 10**6), *[st.integers(0, 50)] * 4), min_size=1, max_size=30))
def test_differences_of_totals_that_only_grow_add_up_to_what_they_grew(steps: list[tuple[int, ...]]) -> None:
    at_ms, totals = 1_700_000_000_000, [7, 7, 7, 7]
    snapshots = [Snapshot(at_ms, tuple(totals))]
    for gap, *grown in steps:
        at_ms += gap + 1
        totals = [total + more for total, more in zip(totals, grown, strict=True)]
        snapshots.append(Snapshot(at_ms, tuple(totals)))
    differences = take_differences(snapshots)
    assert add_up(differences) == tuple(total - 7 for total in totals)
    for group in (group_by_hour, group_by_day, group_by_week, group_by_month):
        groups = group(differences, "UTC").values()
        assert [part for parts in groups for part in parts] == differences
    assert all(before.end_ms == after.start_ms for before, after in pairwise(differences))


def test_nothing_known_adds_up_to_nothing_known() -> None:
    unknown = Difference(0, 1, (None, 1, None, None))
    assert add_up([unknown, Difference(1, 2, (None, 2, 3, None))]) == (None, 3, 3, None)


# --- hours and days on the clocks of the row


def test_an_hour_is_the_one_in_which_the_difference_begins() -> None:
    late = of_hours(1, 2, 4, start=JUNE + timedelta(seconds=41))
    assert figures(HOURLY_STATS, late) == {"2025-06-01T00": 1, "2025-06-01T01": 2}


def test_snapshots_within_an_hour_make_one_record() -> None:
    row = of_hours(1, 2, 4, 9, step=timedelta(minutes=25))
    assert figures(HOURLY_STATS, row) == {"2025-06-01T00": 8}


def test_a_row_without_a_time_zone_is_in_utc() -> None:
    assert figures(DAILY_STATS, of_days(1, 2)) == {"2025-06-01": 1}
    assert figures(DAILY_STATS, of_days(1, 2, timezone=None)) == {"2025-06-01": 1}
    assert documents(DAILY_STATS, of_days(1, 2))[0].metadata["facts"]["timezone"] == "UTC"


def test_hours_and_days_are_those_of_the_rows_time_zone() -> None:
    assert figures(DAILY_STATS, of_days(1, 2, timezone="America/New_York")) == {"2025-05-31": 1}
    assert figures(HOURLY_STATS, of_hours(1, 2, timezone="Asia/Kolkata")) == {"2025-06-01T05": 1}
    (document,) = documents(HOURLY_STATS, of_hours(1, 2, timezone="Asia/Kolkata"))
    assert "hourly traffic of 05:30 to 06:30 on Sunday, 1 June 2025, Asia/Kolkata time:" in document.content


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", "America", "\0", "é", 5, ["UTC"], "x" * 5_000])
def test_an_unknown_time_zone_is_utc_with_a_warning(zone: object) -> None:
    row = of_days(1, 2, timezone=zone)
    assert figures(DAILY_STATS, row) == {"2025-06-01": 1}
    assert warnings_of(DAILY_STATS, row) == {"2025-06-01": "timezone is no IANA name: UTC is used"}


def test_the_hour_that_clocks_show_twice_is_two_records() -> None:
    row = of_hours(1, 2, 4, 8, start=datetime(2025, 10, 25, 23, tzinfo=UTC), timezone="Europe/Berlin")
    assert figures(HOURLY_STATS, row) == {
        "2025-10-26T01": 1,
        "2025-10-26T02": 2,
        "2025-10-26T02+0100": 4,
    }
    assert len({document.key for document in documents(HOURLY_STATS, row)}) == 3


def test_the_short_and_the_long_day_of_the_year_are_days_like_others() -> None:
    midnights = [datetime(2025, 3, 28, 23, tzinfo=UTC), datetime(2025, 3, 29, 23, tzinfo=UTC)]
    midnights += [datetime(2025, 3, 30, 22, tzinfo=UTC), datetime(2025, 3, 31, 22, tzinfo=UTC)]
    row = make_row(*(entry(at, turn) for turn, at in enumerate(midnights)), timezone="Europe/Berlin")
    assert figures(DAILY_STATS, row) == {"2025-03-29": 1, "2025-03-30": 1, "2025-03-31": 1}
    assert all("together" not in document.content for document in documents(DAILY_STATS, row))


# --- weeks and months


def test_a_week_is_the_sum_of_its_days_from_monday_to_sunday() -> None:
    row = of_days(*range(0, 160, 10), start=JUNE + DAY)  # Monday, 2 June, and 15 days more
    assert figures(WEEKLY_STATS, row) == {"2025-W23": 70, "2025-W24": 70, "2025-W25": 10}
    assert figures(WEEKLY_STATS, row, "days") == {"2025-W23": 7, "2025-W24": 7, "2025-W25": 1}


def test_an_iso_week_belongs_to_the_year_of_its_thursday() -> None:
    row = of_days(0, 1, 3, start=datetime(2024, 12, 30, tzinfo=UTC))
    assert figures(WEEKLY_STATS, row) == {"2025-W01": 3}


def test_a_month_is_the_sum_of_its_days() -> None:
    row = of_days(*range(25), start=datetime(2025, 5, 20, tzinfo=UTC))
    assert figures(MONTHLY_STATS, row) == {"2025-05": 12, "2025-06": 12}


def test_a_part_of_a_week_or_a_month_says_how_much_of_it_is_known() -> None:
    row = of_days(0, 3, 5, start=datetime(2025, 6, 4, tzinfo=UTC))
    (week,) = documents(WEEKLY_STATS, row)
    named = Period.from_label("2025-W23").words
    assert f"(tidewater.example), weekly traffic of {named}, 2 of 7 days: 5 visitors, 50 page views." in week.content
    assert (week.metadata["facts"]["days"], week.metadata["facts"]["daysInPeriod"]) == (2, 7)
    (month,) = documents(MONTHLY_STATS, row)
    assert "monthly traffic of June 2025, 2 of 30 days: 5 visitors, 50 page views." in month.content


def test_a_week_names_its_busiest_day() -> None:
    row = of_days(0, 3, 10, 12, start=JUNE + DAY)
    (week,) = documents(WEEKLY_STATS, row)
    assert week.content.endswith(" Busiest day Tuesday, 3 June 2025 with 70 page views.")
    assert week.metadata["facts"]["busiestDay"] == "2025-06-03"
    (quiet,) = documents(WEEKLY_STATS, of_days(3, 3, 3, start=JUNE + DAY))
    assert "Busiest" not in quiet.content


def test_days_without_a_snapshot_across_the_end_of_a_week_are_named() -> None:
    row = make_row(entry(JUNE + 6 * DAY, 0), entry(JUNE + 10 * DAY, 9))
    assert figures(WEEKLY_STATS, row) == {"2025-W23": 9}
    assert warnings_of(WEEKLY_STATS, row) == {
        "2025-W23": "days without a snapshot: the last figure reaches beyond the week"
    }
    regular = of_days(*range(8), start=JUNE + DAY + timedelta(seconds=30))
    assert warnings_of(WEEKLY_STATS, regular) == {}


def test_the_broken_rings_of_weeks_and_months_are_never_read() -> None:
    assert {source.collection for source in SOURCES} == {"hourlystats", "dailystats"}
    broken = {"_id": ROW_ID, "siteId": SITE_ID, "analyticsSnapshot": [{"hour": 3}, {"visitors": 0, "pageViews": 0}]}
    assert [records(source, broken) for source in SOURCES] == [[], [], [], []]


# --- a full ring forgets


def rings(source: Source, start: datetime, totals: list[int], step: timedelta) -> list[dict[str, Any]]:
    """Return the row as it was after each snapshot, once the ring was full."""
    size = RING_SNAPSHOTS[source.collection]
    entries = [entry(start + step * turn, total, total * 10) for turn, total in enumerate(totals)]
    return [make_row(*entries[end - size : end]) for end in range(size, len(entries) + 1)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("seconds", [0, 37, 1_800, 50_000])
def test_what_is_stored_of_a_period_never_shrinks_as_the_ring_moves_on(source: Source, seconds: int) -> None:
    step = HOUR if source is HOURLY_STATS else DAY
    start = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    totals = [turn * 3 for turn in range(110)]
    held: dict[str, int] = {}
    for row in rings(source, start, totals, step):
        for label, visitors in figures(source, row).items():
            assert visitors is not None
            assert visitors >= held.get(label, 0)
            held[label] = visitors
    # The first period was under way when the ring began, the last one is; of a month two days may be out of reach.
    expected = {"hourly_stats": {3}, "daily_stats": {3}, "weekly_stats": {21}, "monthly_stats": {84, 87}}[source.name]
    assert set(list(held.values())[1:-1]) == expected


def test_what_a_full_ring_has_left_of_a_week_makes_no_record() -> None:
    week_in_part = rings(WEEKLY_STATS, JUNE, list(range(30)), DAY)[0]  # Sunday is all that is left of week 22
    assert list(figures(WEEKLY_STATS, week_in_part)) == ["2025-W23", "2025-W24", "2025-W25", "2025-W26"]
    still_whole = rings(WEEKLY_STATS, JUNE + DAY, list(range(30)), DAY)[0]
    assert figures(WEEKLY_STATS, still_whole)["2025-W23"] == 7


def test_a_ring_that_is_not_full_has_forgotten_nothing() -> None:
    row = of_days(*range(29))
    assert figures(WEEKLY_STATS, row)["2025-W22"] == 1


def test_a_month_of_31_days_is_told_as_far_as_a_ring_of_30_snapshots_reaches() -> None:
    july = datetime(2025, 7, 1, tzinfo=UTC)
    over = rings(MONTHLY_STATS, july + 2 * DAY, list(range(30)), DAY)[0]  # 3 July to 1 August
    assert figures(MONTHLY_STATS, over) == {"2025-07": 29}
    assert "July 2025, 29 of 31 days" in documents(MONTHLY_STATS, over)[0].content
    a_day_later = rings(MONTHLY_STATS, july + 3 * DAY, list(range(30)), DAY)[0]
    assert figures(MONTHLY_STATS, a_day_later) == {"2025-08": 1}


def test_the_rest_of_an_hour_that_a_full_ring_has_cut_makes_no_record() -> None:
    starts = [JUNE + timedelta(minutes=40), *(JUNE + HOUR * turn for turn in range(1, 24))]
    row = make_row(*(entry(at, turn) for turn, at in enumerate(starts)))
    assert "2025-06-01T00" not in figures(HOURLY_STATS, row)
    assert figures(HOURLY_STATS, row)["2025-06-01T01"] == 1


# --- the records and their documents


def test_an_hour_is_described_in_words_with_its_exact_figures_in_the_facts() -> None:
    row = make_row(
        entry(JUNE + timedelta(hours=13, seconds=5), 100, 1_000, 10, 4),
        entry(JUNE + timedelta(hours=14, seconds=12), 112, 1_040, 13, 5),
        timezone="UTC",
    )
    (document,) = documents(HOURLY_STATS, row)
    assert document.content == (
        "Website Tidewater (tidewater.example), hourly traffic of 13:00 to 14:00 on Sunday, 1 June 2025, UTC time: "
        "12 visitors, 3 web3 users, 1 wallet connection, 40 page views."
    )
    assert document.summary == (
        "Website Tidewater (tidewater.example) · hourly · 2025-06-01T13 · "
        "12 visitors, 3 web3 users, 1 wallet connection, 40 page views"
    )
    start = JUNE + timedelta(hours=13, seconds=5)
    assert document.metadata == {
        "timeframe": {"start": start, "end": JUNE + timedelta(hours=14, milliseconds=-1)},
        "dataType": "metric",
        "tags": ["traffic", "hourly", "sunday", "13:00", "web3", "wallets"],
        "category": "traffic",
        "metricType": "traffic",
        "importance": 3,
        "aggregationLevel": "hourly",
        "confidence": 1.0,
        "facts": {
            "period": "2025-06-01T13",
            "timezone": "UTC",
            "visitors": 12,
            "web3Users": 3,
            "walletsConnected": 1,
            "pageViews": 40,
            "from": start,
            "to": JUNE + timedelta(hours=14, seconds=12),
            "hours": 1,
        },
    }


def test_a_day_is_described_in_words() -> None:
    (document,) = documents(DAILY_STATS, of_days(100, 112))
    assert document.content == (
        "Website Tidewater (tidewater.example), daily traffic of Sunday, 1 June 2025: 12 visitors, 120 page views."
    )
    assert document.metadata["aggregationLevel"] == "daily"


def test_a_day_without_visitors_says_so_and_matters_less() -> None:
    quiet, busy = documents(DAILY_STATS, of_days(100, 100, 101))
    assert quiet.content.endswith("1 June 2025: no visitors and no page views.")
    assert quiet.metadata["importance"] < busy.metadata["importance"]


def test_a_day_of_which_no_figure_is_known_says_so() -> None:
    row = make_row({"timestamp": JUNE}, {"timestamp": JUNE + DAY})
    (document,) = documents(DAILY_STATS, row)
    assert document.content.endswith("1 June 2025: no figure is known.")


def test_a_gap_is_told_as_what_it_is() -> None:
    hours = make_row(entry(JUNE, 1), entry(JUNE + 5 * HOUR, 9))
    (document,) = documents(HOURLY_STATS, hours)
    assert "00:00 to 05:00, 5 hours without a snapshot between, on Sunday" in document.content
    assert document.metadata["timeframe"]["end"] == JUNE + 5 * HOUR
    days = make_row(entry(JUNE, 1), entry(JUNE + 3 * DAY, 9))
    (document,) = documents(DAILY_STATS, days)
    assert "daily traffic of Sunday, 1 June 2025 to Tuesday, 3 June 2025, 3 days together:" in document.content
    assert document.metadata["facts"]["days"] == 3


def test_a_period_ends_before_the_next_one_begins_so_that_no_search_finds_both() -> None:
    late = of_days(1, 2, 3, start=JUNE + timedelta(seconds=20))
    for source in (DAILY_STATS, WEEKLY_STATS, MONTHLY_STATS):
        for document in documents(source, late):
            frame = document.metadata["timeframe"]
            assert frame["start"] <= frame["end"]
    first, second = documents(DAILY_STATS, late)
    assert first.metadata["timeframe"]["end"] == JUNE + DAY - timedelta(milliseconds=1)
    assert first.metadata["timeframe"]["end"] < second.metadata["timeframe"]["start"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_window_sees_a_record_where_its_timeframe_begins(source: Source) -> None:
    row = of_hours(1, 3, 9, step=HOUR if source is HOURLY_STATS else DAY, timezone="Australia/Sydney")
    assert source.time_field is None  # a window is only asked after splitting
    for record in records(source, row):
        moment = source.read_time(record)
        assert moment is not None
        begins = source.describe(record, OWNERS, NOW_MS).metadata["timeframe"]["start"]
        assert begins == datetime.fromtimestamp(moment / 1000, UTC)
        assert begins in [held["timestamp"] for held in row["analyticsSnapshot"]]
    assert source.read_time(row) is None


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (HOURLY_STATS, f"hourly_stats:{SITE_ID}:2025-06-01T00"),
        (DAILY_STATS, f"daily_stats:{SITE_ID}:2025-06-01"),
        (WEEKLY_STATS, f"weekly_stats:{SITE_ID}:2025-W22"),
        (MONTHLY_STATS, f"monthly_stats:{SITE_ID}:2025-06"),
    ],
)
def test_a_record_is_its_site_and_its_period(source: Source, key: str) -> None:
    row = of_hours(1, 3, step=HOUR if source is HOURLY_STATS else DAY)
    (document,) = documents(source, row)
    assert document.key == key
    assert (document.source_type, document.holder_id, document.site_id) == ("analytics", SITE_ID, SITE_ID)
    assert document.team_id == str(TEAM_ID)
    (record,) = records(source, row)
    assert document.source_id == str(record["_id"])
    # Another row of the site, after a restore, makes the same record.
    assert records(source, {**row, "_id": ObjectId()}) == [record]
    assert SITE_ID not in document.content


def test_records_of_different_sites_sources_and_periods_have_different_ids() -> None:
    row = of_days(*range(20))
    ids = [record["_id"] for source in SOURCES for record in records(source, row)]
    ids += [record["_id"] for source in SOURCES for record in records(source, {**row, "siteId": "another"})]
    assert len(set(ids)) == len(ids)


def test_a_record_without_an_owner_is_refused() -> None:
    for site_id, code in ((None, "site_missing"), ("test-site", "site_unknown")):
        (record,) = records(DAILY_STATS, of_days(1, 2, siteId=site_id))
        with pytest.raises(RecordError) as refused:
            DAILY_STATS.describe(record, OWNERS, NOW_MS)
        assert refused.value.code == code


def test_a_whole_row_is_no_period() -> None:
    with pytest.raises(RecordError) as refused:
        DAILY_STATS.describe(of_days(1, 2), OWNERS, NOW_MS)
    assert refused.value.code == "not_a_period"


def test_a_period_in_the_future_is_refused_and_a_future_day_of_a_week_left_out() -> None:
    now_ms = round((JUNE + 2 * DAY).timestamp() * 1000)
    row = of_days(1, 2, 4, 8, 16, 32, start=JUNE + DAY)  # Monday to Saturday
    with pytest.raises(RecordError) as refused:
        documents(DAILY_STATS, row, now_ms=now_ms)
    assert refused.value.code == "time_in_future"
    (week,) = documents(WEEKLY_STATS, row, now_ms=now_ms)
    assert week.metadata["facts"]["visitors"] == 3  # of Monday and Tuesday: clocks may differ by a day
    assert week.metadata["facts"]["warnings"] == "snapshots in the future left out"


def test_a_record_that_has_been_through_bson_gives_the_same_bytes() -> None:
    row = of_days(Int64(1), 2.0, 3, 2**40, timezone="Asia/Kolkata")
    for source in SOURCES:
        for record in records(source, row):
            read = bson.decode(bson.encode(record), codec_options=CodecOptions(tz_aware=True))
            again = {
                **read,
                "differences": [{**part, "startMs": Int64(part["startMs"])} for part in read["differences"]],
            }
            wanted = encode_head(source.describe(record, OWNERS, NOW_MS))
            assert encode_head(source.describe(read, OWNERS, NOW_MS)) == wanted
            assert encode_head(source.describe(again, OWNERS, NOW_MS)) == wanted


@given(
    st.sampled_from(SOURCES),
    st.lists(
        st.builds(entry, st.datetimes(datetime(2025, 1, 1), datetime(2025, 3, 1)), *[st.integers(0, 10**6)] * 4)  # noqa: DTZ001
        | st.builds(entry, *[ANYTHING] * 5)
        | ANYTHING,
        max_size=32,
    ),
    ANYTHING,
    st.randoms(use_true_random=False),
)
def test_a_row_makes_the_same_sound_documents_whatever_it_holds_and_in_any_order(
    source: Source, ring: list[Any], zone: Any, draws: random.Random
) -> None:
    row = make_row(*ring, timezone=zone)
    shuffled = {**row, "analyticsSnapshot": draws.sample(row["analyticsSnapshot"], len(ring))}
    keys = []
    assert records(source, row) == records(source, shuffled)
    for record in records(source, row):
        try:
            document = source.describe(record, OWNERS, NOW_MS)
        except RecordError:
            continue  # what lies in the future is for the test above
        assert encode_head(document) == encode_head(source.describe(record, OWNERS, NOW_MS))
        assert len(document.content) < 600
        frame = document.metadata["timeframe"]
        assert frame["start"] <= frame["end"]
        keys.append(document.key)
    assert len(set(keys)) == len(keys)


@given(
    st.sampled_from(SOURCES),
    st.dictionaries(st.sampled_from(["_id", *HOURLY_STATS.fields, "differences", "label", "zone"]), ANYTHING),
)
def test_a_row_or_a_record_of_anything_is_split_without_fail_and_described_or_refused(
    source: Source, row: dict[str, Any]
) -> None:
    for record in (*records(source, row), row):
        source.read_time(record)
        try:
            source.describe(record, OWNERS, NOW_MS)
        except RecordError:
            continue


def test_a_ring_is_read_into_the_order_of_time() -> None:
    warnings: list[str] = []
    ring = read_ring([entry(JUNE + HOUR, 2), entry(JUNE, 1)], warnings)
    assert [snapshot.totals[0] for snapshot in ring] == [1, 2]
    assert warnings == []
