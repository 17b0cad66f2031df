"""Charts: an axis has round numbers, what was not measured is not drawn, and what is bad is seen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from deployments.http.charts import Chart, Values, draw, in_short, nice_ceiling, nice_time, time_in_short

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def make_chart(series: dict[str, Values], *, kind: str = "bars", title: str = "t", **more: object) -> Chart:
    steps = len(next(iter(series.values())))
    return Chart(
        title=title,
        says="in words",
        kind=kind,
        moments=[BEGIN + timedelta(hours=place) for place in range(steps)],
        series=series,
        tell=lambda value: f"{value:g}",
        axis=in_short,
        daily=False,
        **more,  # type: ignore[arg-type]
    )


def shapes(chart: Chart, name: str) -> list[ElementTree.Element]:
    """Return the shapes of the drawing for a wide screen; it is XML that any reader takes."""
    both = ElementTree.fromstring(f"<both>{draw(chart)}</both>")
    return list(both[0].iter(name))


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.03, 0.04), (1, 1), (1.2, 2), (550, 600), (9_001, 10_000), (13_873_333, 20_000_000)]
)
def test_an_axis_ends_at_the_next_round_number(value: float, top: float) -> None:
    assert nice_ceiling(value) == pytest.approx(top)


@pytest.mark.parametrize(
    ("seconds", "top"),
    [(0.62, "1 s"), (53, "1 min"), (61, "2 min"), (1_200, "20 min"), (3_601, "2 h"), (90_000, "2 d")],
)
def test_an_axis_of_time_is_in_the_units_of_people(seconds: float, top: str) -> None:
    assert time_in_short(nice_time(seconds)) == top


def test_a_line_is_broken_where_nothing_was_measured() -> None:
    assert len(shapes(make_chart({"lag": [1, 2, None, 3, 4, None, 5]}, kind="line"), "polyline")) == 3


def test_a_minute_of_a_bad_day_is_seen() -> None:
    chart = make_chart({"down": [60.0], "well": [86_340.0]}, style={"down": "bad", "well": "good"}, top=86_400.0)
    down, well = shapes(chart, "rect")
    assert float(down.attrib["height"]) == 4
    assert float(well.attrib["y"]) + float(well.attrib["height"]) == pytest.approx(float(down.attrib["y"]), abs=0.1)
    assert float(well.attrib["y"]) == 10


def test_a_title_is_no_markup_and_nothing_is_said_in_words() -> None:
    chart = make_chart({"<b>": [1.0, None]}, title='<script>"')
    assert "<script>" not in draw(chart)
    assert shapes(chart, "title")[0].text == '<script>"'
    assert chart.rows() == [("01 Nov 00:00", ["1"])]
    assert draw(make_chart({"a": [0.0, None]})) == '<p class="nothing">in words</p>'
