"""Charts as SVG, drawn here: bars or a line over time, with axes, a unit, and words for who can't see them.

Colours come from the page's style sheet, so a chart is right in light and dark. Each is drawn twice, for a wide screen
and for a phone, because a drawing that shrinks takes its letters with it; the style sheet shows one of the two. What is
drawn is in a table beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import floor, log10

from markupsafe import Markup

Values = Sequence[float | None]
Format = Callable[[float], str]
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 24
_TICKS = 4
_LETTER, _LABEL_GAP = 7.0, 12.0
_LEAST_BAD = 4.0
_TIMES = ((1.0, (1, 2, 4, 8, 12, 20, 40)), (60.0, (1, 2, 4, 8, 12, 20, 40)), (3_600.0, (1, 2, 4, 8, 12)))


@dataclass(frozen=True, slots=True)
class Size:
    """Of one drawing, in the page's pixels."""

    name: str
    width: int
    height: int


_SIZES = (Size("wide", 560, 190), Size("narrow", 310, 170))


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn: one value of each series for each step of time; None where nothing was measured.

    ``style`` is of the class of the drawn shapes, by series. ``tell`` makes words of a value, ``axis`` of a tick;
    ``limit`` is the value that alerts go by. ``kind`` ``bars`` puts series on top of each other.
    """

    title: str
    says: str
    kind: str
    moments: Sequence[datetime]
    series: Mapping[str, Values]
    tell: Format
    axis: Format
    daily: bool
    limit: float | None = None
    style: Mapping[str, str] | None = None
    #: The top of the axis, where it isn't to follow the values.
    top: float | None = None

    def label(self, at: datetime) -> str:
        """Return how a step is called in words."""
        return f"{at:%d %b}" if self.daily else f"{at:%H:%M}"

    def class_of(self, name: str) -> str:
        """Return the class of a series' shapes."""
        return (self.style or {}).get(name) or f"s{list(self.series).index(name)}"

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to draw."""
        return not any(value for values in self.series.values() for value in values)

    def heads(self) -> list[str]:
        """Return the heads of the drawing as a table; ``#`` marks those of numbers."""
        return ["Day" if self.daily else "Time, UTC", *(f"#{name}" for name in self.series)]

    def rows(self) -> list[tuple[str, list[str]]]:
        """Return the drawing as a table, the newest first; a step without any value is left out."""
        found = [
            (
                f"{at:%Y-%m-%d}" if self.daily else f"{at:%d %b %H:%M}",
                ["" if one is None else self.tell(one) for one in values],
                any(one is not None for one in values),
            )
            for at, values in zip(self.moments, zip(*self.series.values(), strict=True), strict=True)
        ]
        return [(at, values) for at, values, measured in reversed(found) if measured]


def draw(chart: Chart) -> Markup:
    """Return the drawings of a chart, or one sentence where there is nothing to draw."""
    if chart.is_empty and chart.top is None:
        return Markup('<p class="nothing">{}</p>').format(chart.says)
    return _join(_draw(chart, size) for size in _SIZES)


def nice_ceiling(value: float) -> float:
    """Return the next of 1, 2, 4, 6 and 8 times a power of ten, whose quarters are short numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * 0.999999)


def nice_time(seconds: float) -> float:
    """Return the next span of time whose quarters a person counts in: seconds, minutes, hours or days."""
    for unit, steps in _TIMES:
        for step in steps:
            if step * unit >= seconds * 0.999999:
                return step * unit
    return nice_ceiling(seconds / 86_400) * 86_400


def in_short(value: float) -> str:
    """Return a number as an axis has it: 1.2k, 3M, 0.05."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:.4g}"


def time_in_short(seconds: float) -> str:
    """Return a span of time as an axis has it: 30 s, 15 min, 2 h."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _draw(chart: Chart, size: Size) -> Markup:
    top = chart.top or _top(chart)
    shapes = _bars(chart, size, top) if chart.kind == "bars" else _lines(chart, size, top)
    if chart.limit is not None and chart.limit <= top:
        y = _y(chart.limit, top, size)
        shapes += Markup(
            '<line class="limit" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"><title>alert above {}</title></line>'
        ).format(_LEFT, size.width - _RIGHT, y, y, chart.tell(chart.limit))
    return Markup(
        '<svg class="chart {}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">'
        "<title>{}</title><desc>{}</desc>{}{}{}</svg>"
    ).format(
        size.name,
        size.width,
        size.height,
        size.width,
        size.height,
        f"{chart.title}: {chart.says}",
        chart.title,
        chart.says,
        _axis(chart, size, top),
        shapes,
        _labels(chart, size),
    )


def _top(chart: Chart) -> float:
    if chart.kind == "bars":
        values = [sum(one or 0.0 for one in step) for step in zip(*chart.series.values(), strict=True)]
    else:
        values = [one for series in chart.series.values() for one in series if one is not None]
    highest = max(values, default=0.0)
    # A limit that is far away would press what is measured to the ground.
    if chart.limit is not None and highest * 4 >= chart.limit:
        highest = max(highest, chart.limit)
    return nice_time(highest) if chart.axis is time_in_short else nice_ceiling(highest)


def _axis(chart: Chart, size: Size, top: float) -> Markup:
    def tick(place: int) -> Markup:
        value = top * place / _TICKS
        y = _y(value, top, size)
        return Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(_LEFT, size.width - _RIGHT, y, y, _LEFT - 6, y + 4, chart.axis(value))

    return _join(tick(place) for place in range(_TICKS + 1))


def _labels(chart: Chart, size: Size) -> Markup:
    """Return the words below the axis: as many as have room, the last step among them."""
    count = len(chart.moments)
    step = _step(chart, size)
    every = max(1, round((len(chart.label(chart.moments[0])) * _LETTER + _LABEL_GAP) / step + 0.5)) if count else 1
    drawn = []
    for place in range(count - 1, -1, -every):
        # Half a label is wide enough to be cut off at either end.
        x = _LEFT + (place + 0.5) * step
        half = len(chart.label(chart.moments[place])) * _LETTER / 2
        x = min(max(x, half), size.width - half)
        drawn.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x, size.height - 7, chart.label(chart.moments[place])
            )
        )
    return _join(drawn)


def _bars(chart: Chart, size: Size, top: float) -> Markup:
    step = _step(chart, size)
    gap = min(2.0, step * 0.2)
    drawn = []
    for place, at in enumerate(chart.moments):
        below, ground = 0.0, float(size.height - _BOTTOM)
        for name, values in chart.series.items():
            value = values[place] or 0.0
            if value <= 0:
                continue
            below += value
            # What is there at all is seen, however little it is; above all what is bad.
            least = _LEAST_BAD if chart.class_of(name) == "bad" else 1.0
            y = max(float(_TOP), min(_y(below, top, size), ground - least))
            drawn.append(
                Markup(
                    '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}, {}: {}</title></rect>"
                ).format(
                    chart.class_of(name),
                    _LEFT + place * step + gap / 2,
                    y,
                    step - gap,
                    max(0.0, ground - y),
                    chart.label(at),
                    name,
                    chart.tell(value),
                )
            )
            ground = y
    return _join(drawn)


def _lines(chart: Chart, size: Size, top: float) -> Markup:
    step = _step(chart, size)
    drawn = []
    for name, values in chart.series.items():
        for points in _unbroken(values):
            place = [(_LEFT + (at + 0.5) * step, _y(value, top, size)) for at, value in points]
            if len(place) == 1:
                # A single point would be no line.
                place = [(place[0][0] - step / 2, place[0][1]), (place[0][0] + step / 2, place[0][1])]
            drawn.append(
                Markup('<polyline class="line {}" points="{}"/>').format(
                    chart.class_of(name), " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
                )
            )
    return _join(drawn)


def _unbroken(values: Values) -> list[list[tuple[int, float]]]:
    """Return the runs of measured values, each with its place: where nothing was measured the line is broken."""
    runs: list[list[tuple[int, float]]] = []
    going = False
    for place, value in enumerate(values):
        if value is None:
            going = False
            continue
        if not going:
            runs.append([])
        runs[-1].append((place, value))
        going = True
    return runs


def _step(chart: Chart, size: Size) -> float:
    return (size.width - _LEFT - _RIGHT) / max(1, len(chart.moments))


def _y(value: float, top: float, size: Size) -> float:
    return size.height - _BOTTOM - min(1.0, max(0.0, value / top)) * (size.height - _TOP - _BOTTOM)


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)
