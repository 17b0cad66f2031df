"""Periods: days, ISO weeks and months on the clocks of a zone, with windows that leave no moment out and share none."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.aggregates.periods import ALL_TIME, LEVELS, Calendar, Level, Period
from tasks.domain.errors import InputError
from tests.unit.aggregates import naive

DAYS = st.dates(date(2015, 1, 1), date(2035, 12, 31))
MOMENTS_MS = st.integers(1_420_070_400_000, 2_082_758_400_000)
#: Clocks that change at midnight, by half an hour, by a quarter's offset, to the day before, and never.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Africa/Cairo",
    "Asia/Beirut",
    "America/Asuncion",
    "America/Nuuk",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
]


def hours(zone: str, label: str) -> float:
    start, end = Calendar(zone).window(Period.from_label(label).first, Period.from_label(label).end)
    return (end - start) / timedelta(hours=1)


@pytest.mark.parametrize(
    ("zone", "label", "expected"),
    [
        ("UTC", "2024-03-31", 24),
        ("Europe/Berlin", "2024-03-31", 23),
        ("Europe/Berlin", "2024-10-27", 25),
        ("Australia/Lord_Howe", "2024-10-06", 23.5),
        ("Australia/Lord_Howe", "2025-04-06", 24.5),
        ("America/Havana", "2025-03-09", 23),
        ("America/Havana", "2025-11-02", 25),
        ("America/Nuuk", "2024-10-26", 25),
        ("Africa/Cairo", "2025-04-25", 23),
        ("UTC", "2024-02", 29 * 24),
        ("UTC", "2025-02", 28 * 24),
        ("Europe/Berlin", "2024-03", 31 * 24 - 1),
        ("Europe/Berlin", "2024-W13", 7 * 24 - 1),
        ("Europe/Berlin", "2024-W44", 7 * 24),
        ("America/New_York", "2024-W44", 7 * 24 + 1),
    ],
)
def test_a_period_is_as_long_as_the_clocks_make_it(zone: str, label: str, expected: float) -> None:
    if label == "2024-W44" and zone == "America/New_York":
        # New York changes its clocks on 3 November, the last day of that week; Berlin did a week before.
        assert hours("America/New_York", "2024-11-03") == 25
    assert hours(zone, label) == expected


def test_a_day_begins_at_one_where_the_clocks_jump_over_midnight() -> None:
    start, _ = Calendar("Africa/Cairo").window(date(2025, 4, 25), date(2025, 4, 26))
    assert start == datetime(2025, 4, 24, 22, tzinfo=UTC)
    assert Calendar("Africa/Cairo").place(round(start.timestamp() * 1000)) == (date(2025, 4, 25), 1)


@pytest.mark.parametrize("zone", ZONES)
@given(day=DAYS, level=st.sampled_from(LEVELS[:3]))
def test_a_window_holds_the_moments_of_its_days_and_no_others(zone: str, day: date, level: Level) -> None:
    calendar, period = Calendar(zone), Period.of(level, day)
    start, end = (round(moment.timestamp() * 1000) for moment in calendar.window(period.first, period.end))
    assert start < end
    assert period.holds(calendar.place(start)[0])
    assert period.holds(calendar.place(end - 1)[0])
    assert not period.holds(calendar.place(start - 1)[0])
    assert not period.holds(calendar.place(end)[0])


@given(moment_ms=MOMENTS_MS, zone=st.sampled_from(sorted(available_timezones())))
def test_every_moment_lies_in_the_window_of_the_day_that_its_clock_shows(moment_ms: int, zone: str) -> None:
    calendar = Calendar(zone)
    day, hour = calendar.place(moment_ms)
    assert (day, hour) == (naive.local(moment_ms, zone).date(), naive.local(moment_ms, zone).hour)
    start, end = calendar.window(day, day + timedelta(days=1))
    assert start.timestamp() * 1000 <= moment_ms < end.timestamp() * 1000


@given(day=DAYS, level=st.sampled_from(LEVELS))
def test_a_label_names_one_period_and_is_read_again(day: date, level: Level) -> None:
    period = Period.of(level, day)
    assert period.holds(day)
    assert period.label == naive.label(day, level)
    assert Period.from_label(period.label) == period


@given(day=DAYS, level=st.sampled_from(LEVELS[:3]))
def test_neighbours_touch_without_a_gap(day: date, level: Level) -> None:
    period = Period.of(level, day)
    after, before = period.next(), period.previous()
    assert after is not None
    assert before is not None
    assert (after.first, before.end) == (period.end, period.first)
    assert after.previous() == period
    assert before.label == naive.label_before(day, level)


def test_iso_weeks_belong_to_the_year_that_holds_their_thursday() -> None:
    assert Period.of("week", date(2024, 12, 30)).label == "2025-W01"
    assert Period.of("week", date(2021, 1, 3)).label == "2020-W53"
    assert Period.from_label("2020-W53").first == date(2020, 12, 28)


def test_all_time_has_no_neighbours_and_holds_every_day() -> None:
    assert (ALL_TIME.previous(), ALL_TIME.next(), ALL_TIME.label) == (None, None, "all")
    assert ALL_TIME.holds(date.max)
    assert Period.of("all", date(2024, 2, 29)) == ALL_TIME


@pytest.mark.parametrize(
    "label", ["", "2025", "2025-13", "2025-02-29", "2025-W54", "2025-6-1", "june", "２０２５-06", "All"]
)
def test_text_that_names_no_period_is_refused(label: str) -> None:
    with pytest.raises(InputError, match="no period"):
        Period.from_label(label)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd", "America", "Europe/Berlin\0"])
def test_a_zone_that_does_not_exist_is_refused(zone: str) -> None:
    with pytest.raises(InputError, match="no time zone"):
        Calendar(zone)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("2024-02-29", "29 February 2024"),
        ("2025-W23", "week 23 of 2025 (2 to 8 June)"),
        ("2025-W01", "week 1 of 2025 (30 December to 5 January)"),
        ("2025-06", "June 2025"),
        ("all", "all time"),
    ],
)
def test_a_period_is_told_in_words(label: str, words: str) -> None:
    assert Period.from_label(label).words == words
