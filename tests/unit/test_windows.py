"""Windows: half-open, in UTC, over a field that holds dates, numbers and texts."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Decimal128
from bson.datetime_ms import DatetimeMS
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.domain.transactions import parse_block_time
from tasks.domain.windows import Window

JUNE, JULY = datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)


def in_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def kind(value: object) -> str:
    """Return MongoDB's class of a value: its comparisons never cross classes."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, datetime | DatetimeMS):
        return "date"
    return "number" if isinstance(value, int | float | Decimal128) and not isinstance(value, bool) else "other"


def comparable(value: Any) -> Any:
    """Return the value as MongoDB compares it: dates by their whole milliseconds, which is all that BSON holds."""
    if isinstance(value, DatetimeMS):
        return int(value)
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return value.to_decimal() if isinstance(value, Decimal128) else value


def matches(criteria: dict[str, Any], value: Any) -> bool:
    """Return whether MongoDB would find a record whose ``t`` is the value, for the operators that a window uses."""

    def holds(operator: str, operand: Any) -> bool:
        if operator == "$type":
            return operand == "string" and isinstance(value, str)
        if operator == "$not":
            return not re.search(operand["$regex"], value)
        if kind(operand) != kind(value):
            return False
        if operator == "$gte":
            return bool(comparable(value) >= comparable(operand))
        assert operator == "$lt"
        return bool(comparable(value) < comparable(operand))

    def all_hold(condition: dict[str, Any]) -> bool:
        return all(holds(operator, operand) for operator, operand in condition.items())

    return not criteria or any(all_hold(part["t"]) for part in criteria["$or"])


instants = st.datetimes(datetime(2015, 7, 30), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@st.composite
def written_times(draw: st.DrawFn, near: datetime) -> Any:
    """A moment near a bound in one of the forms that a source writes."""
    moment = near + timedelta(
        microseconds=draw(st.integers(-3_000, 3_000) | st.integers(-(10**12), 10**12)),
    )
    local = moment.astimezone(draw(zones))
    seconds = moment.timestamp()
    return draw(
        st.sampled_from(
            [
                moment.replace(microsecond=moment.microsecond // 1000 * 1000),
                DatetimeMS(in_ms(moment)),
                seconds,
                int(seconds),
                Decimal128(str(round(seconds, 4))),
                in_ms(moment),
                seconds * 1000,
                str(int(seconds)),
                str(in_ms(moment)),
                local.isoformat(),
                local.isoformat(" "),
                " " + local.isoformat(),
                f"{moment:%Y-%m-%dT%H:%M:%SZ}",
                f"{moment:%Y%m%dT%H%M%S}",
                f"{moment:%Y-%m-%d}",
                f"{moment:%G-W%V-%u}",
            ]
        )
    )


@given(st.data(), instants, st.timedeltas(timedelta(milliseconds=1), timedelta(days=900)))
@example(None, JUNE, timedelta(days=30))
def test_no_record_in_a_window_is_missed_by_its_filter(data: Any, start: datetime, length: timedelta) -> None:
    for window in (Window(start, start + length), Window(start, None), Window(None, start + length)):
        bounds = [bound for bound in (window.start, window.end) if bound is not None]
        for bound in bounds:
            value = str(int(bound.timestamp())) if data is None else data.draw(written_times(bound))
            if window.holds(parse_block_time(value)):
                assert matches(window.candidates("t"), value), value


def test_a_filter_leaves_out_what_lies_well_outside() -> None:
    criteria = Window(JUNE, JULY).candidates("t")
    for value in (datetime(2025, 1, 1, tzinfo=UTC), JUNE.timestamp() - 86_400, in_ms(JULY) + 10**9, "2024-12-31"):
        assert not matches(criteria, value)
    assert not matches(criteria, None)


def test_the_start_is_inside_and_the_end_is_not() -> None:
    window = Window(JUNE, JULY)
    assert window.holds(in_ms(JUNE))
    assert not window.holds(in_ms(JUNE) - 1)
    assert window.holds(in_ms(JULY) - 1)
    assert not window.holds(in_ms(JULY))


def test_windows_side_by_side_share_nothing_and_leave_nothing_out() -> None:
    for moment in (in_ms(JUNE) - 1, in_ms(JUNE), in_ms(JULY) - 1, in_ms(JULY)):
        sides = [Window(None, JUNE), Window(JUNE, JULY), Window(JULY, None)]
        assert sum(window.holds(moment) for window in sides) == 1


def test_a_record_without_a_time_is_only_in_all_time() -> None:
    assert Window().holds(None)
    assert Window().candidates("t") == {}
    assert not Window(JUNE, None).holds(None)
    assert not Window(None, JUNE).holds(None)


def test_a_time_without_a_zone_is_utc() -> None:
    assert Window(datetime(2025, 6, 1), datetime(2025, 7, 1)) == Window(JUNE, JULY)  # noqa: DTZ001


@pytest.mark.parametrize("end", [JUNE, JUNE - timedelta(days=1)])
def test_a_window_that_ends_before_it_starts_is_refused(end: datetime) -> None:
    with pytest.raises(ValueError, match="not before its end"):
        Window(JUNE, end)


def test_a_window_at_the_end_of_the_calendar_has_a_filter() -> None:
    window = Window(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    assert matches(window.candidates("t"), JUNE)
    assert matches(window.candidates("t"), "2025-06-01T00:00:00Z")


def test_a_window_is_named_by_its_days() -> None:
    assert str(Window()) == "all time"
    assert str(Window(JUNE, JULY)) == "2025-06-01..2025-07-01"
    assert str(Window(JUNE, None)) == "2025-06-01.."
    assert str(Window(None, JULY)) == "..2025-07-01"
