"""Time frames: when a question is about, from its words; half-open windows in UTC.

A month of a trailing window has 30 days and a quarter 90, as in the application (``30d``). ``this`` and ``last`` before
them mean the calendar. A week of a month is the n-th that begins in it; seasons are the north's, by whole months.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from tasks.domain.aggregates.periods import Period

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan",
            "february feb",
            "march mar",
            "april apr",
            "may",
            "june jun",
            "july jul",
            "august aug",
            "september sep sept",
            "october oct",
            "november nov",
            "december dec",
        ),
        1,
    )
    for name in names.split()
}
#: These are words of other meanings too: a month only with a year or a day beside them, or in a place of time.
_DOUBTFUL = frozenset({"may", "march", "mar", "dec", "sep", "jan", "august"})
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "1st": 1, "2nd": 2, "3rd": 3, "4th": 4}
_NUMBERS = {
    name: number
    for number, name in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 1
    )
}
_SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
_FIRST_YEAR, _LAST_YEAR = 2009, 2099

_MONTH = r"(?P<month>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\.?"
_YEAR = r"(?P<year>20\d\d)"
_DAY = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
_UNIT = r"(?P<unit>hour|day|week|month|quarter|year)s?"
_ORDINAL = r"(?P<ordinal>" + "|".join(_ORDINALS) + r"|last)"
_WEEK_OF = r"week (?:from|of|starting|beginning|commencing)(?: on| with)?(?: monday,?)?(?: the)? "
#: The first that fits at a place wins: narrow ones stand above wide ones.
_EXPRESSIONS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(rf"(?<![\w.,-])(?:{pattern})(?![\w-]|[.,]\d)", re.IGNORECASE))
    for name, pattern in (
        ("weekof", _WEEK_OF + _DAY + r"(?: of)? " + _MONTH + r",? (?:of )?" + _YEAR),
        ("weekof", _WEEK_OF + _MONTH + r" " + _DAY + r",? " + _YEAR),
        ("weekof", _WEEK_OF + r"(?P<iso>20\d\d[-/]\d\d?[-/]\d\d?)"),
        ("moment", r"(?P<iso>20\d\d-\d\d-\d\d)[t ](?P<hour>\d\d):(?P<minute>\d\d)(?::\d\d(?:\.\d+)?)?z?"),
        ("isoweek", _YEAR + r"-?w(?P<number>\d\d?)"),
        ("iso", r"(?P<iso>20\d\d[-/]\d\d?[-/]\d\d?)"),
        ("isomonth", _YEAR + r"-(?P<number>\d\d)"),
        ("day", _DAY + r"(?: of)? " + _MONTH + r"(?:,? (?:of )?" + _YEAR + r")?"),
        ("day", _MONTH + r" " + _DAY + r"(?:,? " + _YEAR + r")?"),
        ("leapday", r"leap day(?:,? (?:of |in )?" + _YEAR + r")?"),
        ("monthweek", _ORDINAL + r" (?:full )?week (?:of|in) " + _MONTH + r"(?:,? (?:of )?" + _YEAR + r")?"),
        ("week", r"(?:calendar )?week (?P<number>\d\d?)(?: of|,| in)? " + _YEAR),
        ("half", r"(?:(?P<which>first|second) half (?:of )?|h(?P<number>[12])[ /-]?)" + _YEAR),
        (
            "quarter",
            r"(?:(?P<ordinal>first|second|third|fourth|last) quarter(?: of)? |q(?P<number>[1-4])[ /-]?(?:of )?)"
            + _YEAR,
        ),
        ("quarter", _YEAR + r"[ -]?q(?P<number>[1-4])"),
        ("season", r"(?P<season>spring|summer|autumn|fall|winter)(?: of|,)? " + _YEAR),
        ("months", r"(?P<edge>early|mid|late|beginning of|end of)[ -](?:the year )?" + _YEAR),
        ("month", _MONTH + r"(?:'s)?(?:,? (?:of )?" + _YEAR + r")?"),
        ("last", r"(?:the )?(?:last|past|previous|trailing) (?P<count>\d+|" + "|".join(_NUMBERS) + r") " + _UNIT),
        ("last", r"(?P<count>\d+) ?(?P<unit>h|d|w|y)"),
        ("ago", r"(?P<count>\d+|" + "|".join(_NUMBERS) + r") " + _UNIT + r" ago"),
        ("calendar", r"(?:the )?(?P<which>this|current|last|previous|past) (?P<unit>day|week|month|quarter|year)"),
        ("named", r"(?P<named>today|yesterday)"),
        ("alltime", r"all[- ]time|(?:of|for|since) all time|ever since the start|in all of time"),
        ("year", _YEAR),
    )
)
_CLOCK = re.compile(
    r"\b(?:from|between) (?P<first>\d\d?):(?P<first_minute>\d\d) (?:to|and|until) "
    r"(?P<last>\d\d?):(?P<last_minute>\d\d)\b"
)
_BEFORE = re.compile(
    r"\b(?P<word>before|prior to|earlier than|until|till|up to|through|by the end of|after|later than|since|from|"
    r"between|starting|as of)(?: the)?\s+$"
)
_JOIN = re.compile(r"\s*(?:and|to|until|till|through|up to)(?: the)?\s+|\s*[-–—]\s*", re.IGNORECASE)
_PLACE_OF_TIME = re.compile(
    r"\b(?:in|during|of|since|until|till|before|after|from|to|for|on|and|between|through|by|this|last)\s+$"
)
_AFTERWARDS = re.compile(r"\s*(?P<word>onwards?|or later|and later|or earlier|and before|on)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TimeFrame:
    """A window with the words that said it, at ``span`` of the question. None is unbounded on that side.

    ``label`` is that of a day, a week, a month or all time, where the window is exactly one.
    ``assumed`` says in words what had to be assumed, such as a year.
    """

    start: datetime | None
    end: datetime | None
    words: str
    span: tuple[int, int]
    label: str | None = None
    assumed: str = ""

    def seconds(self) -> tuple[float, float]:
        """Return both ends in seconds since 1970, infinite where there is none."""
        start = float("-inf") if self.start is None else self.start.timestamp()
        return start, float("inf") if self.end is None else self.end.timestamp()

    def __str__(self) -> str:
        """Return ``2025-06-01..2025-07-01``; a time of day where it is not midnight; ``all time``."""
        if self.start is None and self.end is None:
            return "all time"
        return "..".join("" if moment is None else _said(moment) for moment in (self.start, self.end))


def find_time_frames(text: str, *, now: datetime) -> list[TimeFrame]:
    """Return the windows that a question names, in their order; what says nothing about time has none.

    A month without a year is in the year that another one names, or else the last such month that has begun.
    """
    found = list(_join(text, list(_points(text, now))))
    clock = _CLOCK.search(text)
    if clock is not None and len(found) == 1 and found[0].label is not None and found[0].start is not None:
        found = [_at_clock(found[0], clock)]
    return found


@dataclass(frozen=True, slots=True)
class _Point:
    span: tuple[int, int]
    start: datetime
    end: datetime
    label: str | None = None
    month: int | None = None
    day: int | None = None
    has_year: bool = True
    assumed: str = ""
    all_time: bool = False


def _points(text: str, now: datetime) -> Iterator[_Point]:
    taken: list[_Point] = []
    for kind, pattern in _EXPRESSIONS:
        for match in pattern.finditer(text):
            if any(match.start() < one.span[1] and one.span[0] < match.end() for one in taken):
                continue
            point = _read(kind, match, text, now)
            if point is not None:
                taken.append(point)
    taken.sort(key=lambda one: one.span)
    years = [one.start.year for one in taken if one.has_year and not one.all_time]
    for one in taken:
        placed = one if one.has_year else _with_year(one, years, now)
        if placed is not None:
            yield placed


def _with_year(point: _Point, years: list[int], now: datetime) -> _Point | None:
    assert point.month is not None
    if years:
        year, assumed = years[-1], ""
    else:
        year = now.year if (point.month, point.day or 1) <= (now.month, now.day) else now.year - 1
        assumed = f"the year {year} is assumed"
    try:
        start, end, label = _month(year, point.month) if point.day is None else _one_day(year, point.month, point.day)
    except ValueError:
        return None  # 29 February of another year
    return replace(point, start=start, end=end, label=label, assumed=assumed)


_Span = tuple[datetime, datetime, str | None]


def _read(kind: str, match: re.Match[str], text: str, now: datetime) -> _Point | None:
    found = {name: value for name, value in match.groupdict().items() if value is not None}
    span = match.span()
    if kind in ("month", "day") and "year" not in found:
        month = _MONTHS[found["month"].lower()]
        day = int(found["day"]) if "day" in found else None
        if day is None:
            doubtful = found["month"].lower() in _DOUBTFUL
            capital = found["month"][0].isupper()
            placed = _PLACE_OF_TIME.search(text[: span[0]].lower()) is not None
            if not (capital and placed if doubtful else capital or placed):
                return None
        try:
            period = _month(2000, month) if day is None else _one_day(2000, month, day)
        except ValueError:
            return None  # the thirtieth of February
        return _Point(span, *period, month=month, day=day, has_year=False)
    if kind == "alltime":
        return _Point(span, now, now, "all", all_time=True)
    window = _window(kind, found, now)
    return None if window is None else _Point(span, *window)


def _window(kind: str, found: dict[str, str], now: datetime) -> _Span | None:
    year = int(found.get("year", now.year))
    month = _MONTHS.get(found.get("month", "").lower(), 0)
    number = int(found.get("number", 0))
    try:
        match kind:
            case "moment":
                start = datetime.fromisoformat(found["iso"]).replace(
                    hour=int(found["hour"]), minute=int(found["minute"]), tzinfo=UTC
                )
                return start, start + timedelta(minutes=1), None
            case "iso":
                parts = [int(part) for part in re.split("[-/]", found["iso"])]
                return _one_day(*parts)
            case "day":
                return _one_day(year, month, int(found["day"]))
            case "weekof":
                parts = [int(part) for part in re.split("[-/]", found["iso"])] if "iso" in found else []
                first = date(*parts) if parts else date(year, month, int(found["day"]))
                if first.weekday() == 0:
                    return _period("week", first)
                return _midnight(first), _midnight(first + timedelta(days=7)), None
            case "leapday":
                while "year" not in found and date(year, 12, 31).timetuple().tm_yday != 366:
                    year -= 1
                return _one_day(year, 2, 29)
            case "isomonth":
                return _month(year, number)
            case "month":
                return _month(year, month)
            case "isoweek" | "week":
                return _period("week", date.fromisocalendar(year, number, 1))
            case "monthweek":
                return _week_of_month(year if "year" in found else now.year, month, found["ordinal"].lower())
            case "half":
                second = found.get("which", "").lower() == "second" or number == 2
                return _months(year, 7 if second else 1, 6)
            case "quarter":
                nth = number or {**_ORDINALS, "last": 4}[found["ordinal"].lower()]
                return _months(year, 3 * nth - 2, 3)
            case "season":
                return _months(year, _SEASONS[found["season"].lower()], 3)
            case "months":
                edge = found["edge"].lower()
                return _months(year, 1 if edge.startswith(("ear", "beg")) else 5 if edge == "mid" else 9, 4)
            case "last":
                return _trailing(_count(found["count"]), found["unit"], now)
            case "ago":
                start = _trailing(_count(found["count"]), found["unit"], now)[0]
                return _period("day", start.date())
            case "calendar":
                return _calendar(found["which"].lower(), found["unit"].lower(), now)
            case "named":
                back = 1 if found["named"].lower() == "yesterday" else 0
                return _period("day", (now - timedelta(days=back)).date())
            case _:
                return _months(year, 1, 12) if _FIRST_YEAR <= year <= _LAST_YEAR else None
    except ValueError:
        return None  # the thirtieth of February


def _join(text: str, points: list[_Point]) -> Iterator[TimeFrame]:
    position = 0
    while position < len(points):
        first = points[position]
        before = _BEFORE.search(text[: first.span[0]].lower())
        word = before.group("word") if before else ""
        begins = before.start() if before else first.span[0]
        position += 1
        last = first
        if position < len(points):
            between = text[first.span[1] : points[position].span[0]]
            joined = _JOIN.fullmatch(between)
            if joined and (
                word in ("between", "from", "since", "") and (between.strip().lower() != "and" or word == "between")
            ):
                last = points[position]
                position += 1
        yield _frame(text, word, first, last, begins)


def _frame(text: str, word: str, first: _Point, last: _Point, begins: int) -> TimeFrame:
    after = _AFTERWARDS.match(text[last.span[1] :])
    end_of_words = last.span[1]
    start: datetime | None = first.start
    end: datetime | None = last.end
    label = first.label if first is last else None
    if first.all_time:
        start = end = None
    elif first is last:
        if word in ("before", "prior to", "earlier than"):
            start, end, label = None, first.start, None
        elif word in ("until", "till", "up to", "through", "by the end of"):
            start, label = None, None
        elif word in ("after", "later than"):
            start, end, label = first.end, None, None
        elif word in ("since", "starting", "as of") or (
            word == "from" and after and after.group("word").lower() == "on"
        ):
            end, label = None, None
            end_of_words += after.end() if after and word == "from" else 0
        elif after and after.group("word").lower() != "on":
            later = "late" in after.group("word").lower() or "onward" in after.group("word").lower()
            start, end, label = (first.start, None, None) if later else (None, first.end, None)
            end_of_words += after.end()
    words = text[begins:end_of_words].strip()
    assumed = first.assumed or last.assumed
    if start is not None and end is not None and start >= end:
        start, end = last.start, first.end
    return TimeFrame(start, end, words, (begins, end_of_words), label, assumed)


def _at_clock(frame: TimeFrame, clock: re.Match[str]) -> TimeFrame:
    assert frame.start is not None
    hours = [(int(clock.group(name)), int(clock.group(f"{name}_minute"))) for name in ("first", "last")]
    start, end = (frame.start + timedelta(hours=hour, minutes=minute) for hour, minute in hours)
    if start >= end:
        return frame
    span = min(frame.span[0], clock.start()), max(frame.span[1], clock.end())
    return replace(frame, start=start, end=end, label=None, words=f"{clock.group()} {frame.words}", span=span)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _period(level: str, day: date) -> _Span:
    period = Period.of(level, day)  # type: ignore[arg-type]
    return _midnight(period.first), _midnight(period.end), period.label


def _one_day(year: int, month: int, day: int) -> _Span:
    return _period("day", date(year, month, day))


def _month(year: int, month: int) -> _Span:
    return _period("month", date(year, month, 1))


def _months(year: int, month: int, count: int) -> _Span:
    last = month - 1 + count
    return _midnight(date(year, month, 1)), _midnight(date(year + last // 12, last % 12 + 1, 1)), None


def _week_of_month(year: int, month: int, which: str) -> _Span | None:
    first = date(year, month, 1)
    monday = first + timedelta(days=-first.weekday() % 7)
    mondays = [day for week in range(5) if (day := monday + timedelta(weeks=week)).month == month]
    place = -1 if which == "last" else _ORDINALS[which] - 1
    return _period("week", mondays[place]) if place < len(mondays) else None


def _count(text: str) -> int:
    return int(text) if text.isdigit() else _NUMBERS[text.lower()]


def _trailing(count: int, unit: str, now: datetime) -> _Span:
    days = {"h": 1 / 24, "d": 1, "w": 7, "m": 30, "q": 90, "y": 365}[unit.lower()[0]]
    return now - timedelta(days=min(36_500.0, count * days)), now, None


def _calendar(which: str, unit: str, now: datetime) -> _Span | None:
    back = 0 if which in ("this", "current") else 1
    today = now.date()
    match unit[0]:
        case "d":
            return _period("day", today - timedelta(days=back))
        case "w":
            return _period("week", today - timedelta(weeks=back))
        case "m":
            month = today.year * 12 + today.month - 1 - back
            return _month(month // 12, month % 12 + 1)
        case "q":
            quarter = today.year * 4 + (today.month - 1) // 3 - back
            return _months(quarter // 4, quarter % 4 * 3 + 1, 3)
        case _:
            return _months(today.year - back, 1, 12)


def _said(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if moment == _midnight(moment.date()) else f"{moment:%Y-%m-%d %H:%M}"
