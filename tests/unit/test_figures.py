"""Figures: what the source writes as a number or a time is read exactly or left out, as transactions do."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import RecordError
from tasks.domain.figures import (
    FIRST_MS,
    LAST_MS,
    as_datetime,
    confidence_of,
    counted,
    in_time_words,
    read_count,
    read_moment_ms,
    read_number,
    read_time_ms,
    rounded,
)
from tasks.domain.transactions import parse_block_time, parse_transaction
from tests.builders import make_owners, make_record

NOON_MS = 1_748_779_200_000  # 1 June 2025, 12:00 UTC
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.floats(),
    st.decimals(places=3, min_value=-(10**12), max_value=10**12).map(Decimal128),
    st.sampled_from([Decimal128(text) for text in ("NaN", "Infinity", "-0", "1E+6000", "1E-6000")]),
    st.text(max_size=30),
    st.from_regex(r"[+-]?[0-9.,eE]{1,20}", fullmatch=True),
    st.binary(max_size=5),
    st.datetimes(),
    st.integers(-(2**62), 2**62).map(DatetimeMS),
    st.builds(ObjectId),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def count(raw: object) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    return read_count(raw, "visits", warnings), warnings


def number(raw: object) -> tuple[float | None, list[str]]:
    warnings: list[str] = []
    return read_number(raw, "rate", warnings), warnings


@pytest.mark.parametrize("raw", [7, 7.0, Int64(7), Decimal128("7"), Decimal128("7.00"), "7", " 7 ", "0x7"])
def test_a_count_is_read_from_every_form_of_a_whole_number(raw: object) -> None:
    assert count(raw) == (7, [])


@pytest.mark.parametrize("raw", [None, ""])
def test_a_missing_figure_is_no_figure_and_no_fault(raw: object) -> None:
    assert count(raw) == (None, [])
    assert number(raw) == (None, [])
    warnings: list[str] = []
    assert read_time_ms(raw, "createdAt", warnings, earliest_ms=0, latest_ms=1) is None
    assert warnings == []


@pytest.mark.parametrize(
    "raw",
    [
        -1,
        7.5,
        math.nan,
        math.inf,
        True,
        "seven",
        "7.0",
        "1,000",
        2**63 - 1,
        1e300,
        Decimal128("NaN"),
        Decimal128("7.5"),
        Decimal128("-7"),
        datetime(2025, 6, 1, tzinfo=UTC),
    ],
)
def test_what_is_no_count_is_left_out_and_named(raw: object) -> None:
    found, warnings = count(raw)
    assert found is None
    assert len(warnings) == 1
    assert warnings[0].startswith("visits ")
    assert warnings[0].endswith(" left out")


def test_a_count_above_its_bound_is_left_out() -> None:
    warnings: list[str] = []
    assert read_count(10, "visits", warnings, most=10) == 10
    assert read_count(11, "visits", warnings, most=10) is None
    assert warnings == ["visits '11' left out"]


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("37.20", 37.2),
        (" 37.20 ", 37.2),
        (37.2, 37.2),
        (Decimal128("37.20"), 37.2),
        (Int64(37), 37.0),
        ("-1.5e3", -1500.0),
        (".5", 0.5),
        (-4, -4.0),
    ],
)
def test_a_number_is_read_from_every_form_and_from_text(raw: object, value: float) -> None:
    assert number(raw) == (value, [])


@pytest.mark.parametrize(
    "raw",
    [
        math.nan,
        math.inf,
        -math.inf,
        True,
        "nan",
        "inf",
        "1e999",
        "1,5",
        "1_000",
        "0x10",
        "٣",
        "many",
        "1e",
        10**400,
        Decimal128("NaN"),
        Decimal128("Infinity"),
        Decimal128("1E+6000"),
        Binary(b"1"),
    ],
)
def test_what_is_no_finite_number_is_left_out_and_named(raw: object) -> None:
    found, warnings = number(raw)
    assert found is None
    assert len(warnings) == 1


def test_a_zero_has_no_sign() -> None:
    for raw in (-0.0, Decimal128("-0"), "-0.0"):
        found, _ = number(raw)
        assert found is not None
        assert math.copysign(1, found) == 1


def test_a_number_outside_its_bounds_is_left_out() -> None:
    warnings: list[str] = []
    assert read_number(100, "rate", warnings, least=0, most=100) == 100
    assert read_number(100.1, "rate", warnings, least=0, most=100) is None
    assert read_number(-0.1, "rate", warnings, least=0, most=100) is None
    assert warnings == ["rate '100.1' left out", "rate '-0.1' left out"]


def test_a_warning_shows_a_figure_but_never_what_a_list_or_a_document_holds() -> None:
    assert count("seven; or more")[1] == ["visits 'seven, or more' left out"]
    assert count(["user_1"])[1] == ["visits of type list left out"]
    assert count({"userId": "user_1"})[1] == ["visits of type dict left out"]


@pytest.mark.parametrize(
    "raw",
    [
        datetime(2025, 6, 1, 12),  # noqa: DTZ001 - pymongo gives naive times too, and they are UTC
        datetime(2025, 6, 1, 12, tzinfo=UTC),
        datetime(2025, 6, 1, 17, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        DatetimeMS(NOON_MS),
        NOON_MS,
        NOON_MS // 1000,
        float(NOON_MS),
        Int64(NOON_MS),
        Decimal128(str(NOON_MS // 1000)),
        str(NOON_MS),
        str(NOON_MS // 1000),
        "2025-06-01T12:00:00Z",
        "2025-06-01T12:00:00",
        "2025-06-01 14:00:00+02:00",
    ],
)
def test_a_moment_is_read_from_every_form(raw: object) -> None:
    assert read_moment_ms(raw) == NOON_MS


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "",
        "soon",
        True,
        math.nan,
        math.inf,
        [NOON_MS],
        "1e3",
        ObjectId(),
        DatetimeMS(2**62),
        DatetimeMS(-(2**62)),
        10**18,
        Decimal128("NaN"),
        "9" * 40,
        "2025-13-01",
        "0001-01-01T00:00:00+12:00",
    ],
)
def test_what_is_no_moment_that_a_calendar_has_is_none(raw: object) -> None:
    assert read_moment_ms(raw) is None


def test_moments_are_those_of_the_years_1_to_9999() -> None:
    assert read_moment_ms(DatetimeMS(FIRST_MS)) == FIRST_MS
    assert read_moment_ms(DatetimeMS(LAST_MS)) == LAST_MS
    assert read_moment_ms(DatetimeMS(FIRST_MS - 1)) is None
    assert read_moment_ms(DatetimeMS(LAST_MS + 1)) is None
    assert as_datetime(FIRST_MS) == datetime(1, 1, 1, tzinfo=UTC)
    assert as_datetime(LAST_MS) == datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)


def test_a_time_outside_its_bounds_is_left_out_and_named() -> None:
    warnings: list[str] = []
    bounds = {"earliest_ms": NOON_MS, "latest_ms": NOON_MS + 1}
    assert read_time_ms(NOON_MS, "createdAt", warnings, **bounds) == NOON_MS
    assert warnings == []
    for raw in (NOON_MS + 2, NOON_MS - 1, "soon"):
        assert read_time_ms(raw, "createdAt", warnings, **bounds) is None
    assert warnings == ["createdAt is no time between 2025 and now, and is left out"] * 3


@given(ANYTHING)
def test_reading_never_fails_and_tells_of_all_that_it_leaves_out(raw: Any) -> None:
    is_missing = raw is None or raw == ""
    for read in (count, number):
        found, warnings = read(raw)
        assert (found is None) == (is_missing or len(warnings) == 1)
        if found is not None:
            assert math.isfinite(found)
            assert warnings == []
    moment = read_moment_ms(raw)
    assert moment is None or as_datetime(moment).tzinfo is not None


@given(ANYTHING)
def test_counts_and_moments_are_those_that_a_transaction_has(raw: Any) -> None:
    moment = parse_block_time(raw)
    assert read_moment_ms(raw) == (moment if moment is not None and FIRST_MS <= moment <= LAST_MS else None)
    try:
        gas = parse_transaction(make_record(gas_used=raw), make_owners(), now_ms=NOON_MS).gas_used
    except RecordError:
        raise AssertionError("a figure beside the amount never refuses a transaction") from None
    assert count(raw)[0] == gas


def test_figures_are_told_in_words() -> None:
    assert [counted(figure, "page view") for figure in (0, 1, 1_200)] == [
        "0 page views",
        "1 page view",
        "1,200 page views",
    ]
    assert [rounded(figure) for figure in (0, 37.2, 1_234.567, 100, -0.5, 0.001234)] == [
        "0",
        "37.2",
        "1,234.57",
        "100",
        "-0.5",
        "0.00123",
    ]
    assert [in_time_words(seconds) for seconds in (0, 41.6, 60, 130, 3_600, 11_100, 86_400, 1_054_800)] == [
        "0 s",
        "42 s",
        "1 min",
        "2 min 10 s",
        "1 h",
        "3 h 5 min",
        "1 day",
        "12 days 5 h",
    ]


def test_each_warning_takes_a_tenth_of_the_confidence_down_to_a_half() -> None:
    assert [confidence_of(["odd"] * number) for number in (0, 1, 3, 5, 9)] == [1.0, 0.9, 0.7, 0.5, 0.5]
