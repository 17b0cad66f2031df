"""Reports: what wants a person comes first, every webhook takes them, and a forecast needs a history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tasks.domain.incidents import MAX_SECTION_CHARS
from tasks.domain.reports import Report, by_count, compared, in_order, trend_of

START = datetime(2026, 3, 1, tzinfo=UTC)


def days(*values: float) -> list[tuple[datetime, float]]:
    return [(START + timedelta(days=number), value) for number, value in enumerate(values)]


def test_what_wants_a_person_comes_first() -> None:
    report = Report("A report", in_order(["fine", "! broken <here>", "also fine"]))
    assert report.lines[0] == "! broken <here>"
    assert report.wants_a_person
    assert "❗ broken &lt;here&gt;" in report.payload("slack")["blocks"][1]["text"]["text"]
    assert report.payload("generic")["wants"] is True
    assert report.payload("discord")["allowed_mentions"] == {"parse": []}


def test_a_long_report_fits_the_webhook() -> None:
    report = Report("A report", tuple(f"line {number} & more" for number in range(1_000)))
    text = report.payload("slack")["blocks"][1]["text"]["text"]
    assert len(text) <= MAX_SECTION_CHARS
    assert text.endswith("…")
    assert not text.rstrip("…\n").endswith(("&am", "&a", "&"))


def test_a_line_through_what_grows_evenly_is_exact() -> None:
    trend = trend_of(days(*(100.0 + 7 * number for number in range(10))))
    assert trend is not None
    assert trend.per_day == pytest.approx(7)
    assert trend.last == pytest.approx(163)
    assert trend.days_until(170) == pytest.approx(1)
    assert trend.days_until(100) == 0.0


def test_what_shrinks_never_reaches_a_limit_and_six_days_are_no_history() -> None:
    trend = trend_of(days(9, 8, 7, 6, 5, 4, 3))
    assert trend is not None
    assert trend.days_until(100) is None
    assert trend_of(days(1, 2, 3, 4, 5, 6)) is None
    assert trend_of([(START, 1.0)] * 20) is None


def test_a_figure_stands_beside_the_one_before() -> None:
    assert compared("tokens", 1_500, 1_000) == "tokens: 1,500 (+50% from 1,000)"
    assert compared("tokens", 5, None) == "tokens: 5 (nothing to compare with)"
    assert compared("tokens", None, 5) == "tokens: not measured"
    assert compared("tokens", 5, 0) == "tokens: 5 (0 before)"
    assert by_count({"a": 1, "b": 1_000}) == "b 1,000, a 1"
    assert by_count({}) == "none"
