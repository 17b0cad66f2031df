"""Charts as SVG, drawn here: a line or bars over time, with axes, a unit, and words for who can't see them.

Colours come from the page's style sheet, so a chart is right in light and dark. What is drawn is in a table beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import floor, log10

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 10, 24
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a moment; None where nothing was measured."""

    at: datetime
    value: float | None


def nice_ceiling(value: float) -> float:
    """Return the next of 1, 2, 2.5 and 5 times a power of ten, so that an axis has round numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999999)


def in_short(value: float) -> str:
    """Return a number as an axis has it: 1.2k, 3M, 0.05."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:.4g}"


def line_chart(
    points: Sequence[Point], *, title: str, unit: str, since: datetime, until: datetime, limit: float | None = None
) -> Markup:
    """Return a line over time, interrupted where nothing was measured, with the limit that alerts go by."""
    values = [one.value for one in points if one.value is not None]
    top = nice_ceiling(max([*values, *([limit] if limit is not None else [])], default=0.0))
    paths: list[list[str]] = []
    current: list[str] = []
    gap = _gap(points)
    last: Point | None = None
    for one in points:
        if one.value is None or (last is not None and one.at - last.at > gap):
            if current:
                paths.append(current)
            current = []
        if one.value is not None:
            current.append(f"{_x(one.at, since, until):.1f},{_y(one.value, top):.1f}")
        last = one
    if current:
        paths.append(current)
    drawn = Markup("").join(
        Markup('<polyline class="line" points="{}"/>').format(" ".join(path if len(path) > 1 else path * 2))
        for path in paths
    )
    if limit is not None:
        y = _y(limit, top)
        drawn += Markup('<line class="limit" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LEFT, _WIDTH - _RIGHT, y, y
        )
    said = (
        f"highest {in_short(max(values))} {unit}, last {in_short(values[-1])} {unit}" if values else "nothing measured"
    )
    return _frame(drawn, title, said, unit=unit, top=top, since=since, until=until)


def bar_chart(points: Sequence[Point], *, title: str, unit: str, since: datetime, until: datetime) -> Markup:
    """Return a bar for each point, as wide as the time to the next."""
    values = [one.value or 0.0 for one in points]
    top = nice_ceiling(max(values, default=0.0))
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(points))
    drawn = Markup("")
    for place, (one, value) in enumerate(zip(points, values, strict=True)):
        if value:
            y = _y(value, top)
            drawn += Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {} {}</title></rect>'
            ).format(
                _LEFT + place * step + 1,
                y,
                max(1.0, step - 2),
                _HEIGHT - _BOTTOM - y,
                _moment(one.at, until - since),
                in_short(value),
                unit,
            )
    said = f"{in_short(sum(values))} {unit} in all, highest {in_short(max(values))}" if any(values) else "nothing"
    return _frame(drawn, title, said, unit=unit, top=top, since=since, until=until)


def _gap(points: Sequence[Point]) -> timedelta:
    """Return the pause between two points that is no longer one line: four times the usual."""
    pauses = sorted(after.at - before.at for before, after in itertools.pairwise(points))
    return 4 * pauses[len(pauses) // 2] if pauses else timedelta(days=1)


def _x(at: datetime, since: datetime, until: datetime) -> float:
    share = (at - since) / (until - since)
    return _LEFT + max(0.0, min(1.0, share)) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - min(1.0, value / top) * (_HEIGHT - _TOP - _BOTTOM)


def _moment(at: datetime, span: timedelta) -> str:
    return f"{at:%d %b}" if span > timedelta(days=2) else f"{at:%H:%M}"


def _frame(drawn: Markup, title: str, said: str, *, unit: str, top: float, since: datetime, until: datetime) -> Markup:
    axes = Markup("")
    for place in range(_TICKS + 1):
        value = top * place / _TICKS
        y = _y(value, top)
        axes += Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LEFT, _WIDTH - _RIGHT, y, y
        )
        axes += Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            _LEFT - 6, y + 4, in_short(value)
        )
        at = since + (until - since) * place / _TICKS
        anchor = "start" if place == 0 else "end" if place == _TICKS else "middle"
        axes += Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
            _x(at, since, until), _HEIGHT - 6, anchor, _moment(at, until - since)
        )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>{}{}</svg>'
    ).format(_WIDTH, _HEIGHT, f"{title}, {unit}: {said}", title, escape(said), axes, drawn)
