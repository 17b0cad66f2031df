"""Statistics: what happened on a website in an hour, a day, an ISO week or a month, from the source's snapshots.

A row of ``hourlystats`` or ``dailystats`` is a ring of at most 24 or 30 snapshots of one website's running totals, in
any order. What happened is the difference of two neighbours in time; the oldest snapshot has no neighbour before it,
so it makes no record. A difference belongs to the hour or day in which it begins: snapshots are taken when an hour or
a day is over. Hours and days are those of the row's time zone, UTC where it has none that is valid.

- Hours in which no total changed make no record: they are nearly all, and say nothing that the day doesn't. Days do.
- A total that falls began anew: the new total counts, with a warning. A total that is missing or can't be read leaves
  its figure out; the next difference then counts from the last total known, with a warning.
- Two snapshots of one moment are one; where they disagree, the larger total is the later one.
- Snapshots without a time, or with a clock far from that of the others, are left out, with a warning.

Weeks and months are sums of days. The source's own rings of them hold no times and only zeros, and are never read.

**A full ring forgets.** Its oldest snapshot goes with each new one, so the figures of a period would shrink from run
to run. What is left of a period that the ring has begun to forget makes no record: what an earlier run stored of it is
more. Only a month may miss the two days that a ring of 30 snapshots can't hold, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bson import ObjectId

from tasks.domain.aggregates.periods import MONTHS, WEEKDAYS, Period
from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.errors import RecordError
from tasks.domain.figures import LAST_MS, as_datetime, confidence_of, counted, read_count, read_moment_ms
from tasks.domain.owners import Owners
from tasks.domain.personal import EARLIEST_MS, FUTURE_TOLERANCE_MS
from tasks.domain.sources import Record, Source, derived_id
from tasks.domain.websites import find_site, owner_of, read_record_id, shown_site

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1

Level = Literal["hourly", "daily", "weekly", "monthly"]
Totals = tuple[int | None, ...]

#: The running totals of a snapshot, and the nouns of their differences.
FIGURES = ("visitors", "web3Users", "walletsConnected", "pageViews")
_NOUNS = ("visitor", "web3 user", "wallet connection", "page view")
#: As many snapshots as the source keeps.
RING_SNAPSHOTS: dict[str, int] = {"hourlystats": 24, "dailystats": 30}
#: A thousand times what any website counts; more is damage, and sums must stay whole numbers of BSON.
MAX_TOTAL = 10**12
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_UNIT_MS: dict[Level, int] = {"hourly": _HOUR_MS, "daily": _DAY_MS, "weekly": 7 * _DAY_MS, "monthly": 28 * _DAY_MS}
_IMPORTANCE: dict[Level, int] = {"hourly": 3, "daily": 5, "weekly": 6, "monthly": 7}
#: Snapshots come some seconds late, and a day is an hour shorter once a year.
_NEARLY_WHOLE = 0.95
#: A ring spans a month: what lies a year from the others has a wrong clock.
_FAR_MS = 366 * _DAY_MS


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A website's running totals at a moment (epoch milliseconds), in the order of ``FIGURES``; None: not known."""

    at_ms: int
    totals: Totals
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """What came between two neighbouring snapshots, in the order of ``FIGURES``; None: not known."""

    start_ms: int
    end_ms: int
    figures: Totals
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Return whether any total is known to have grown."""
        return any(self.figures)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What happened on a website in one period, with its owner. Times are epoch milliseconds, UTC.

    ``label`` names the period on the clocks of ``zone``. ``start_ms`` and ``end_ms`` are the snapshots that it was
    measured between. ``busiest_day`` is that of most page views, for weeks and months.
    """

    record_id: str
    site_id: str
    team_id: str
    site: str
    level: Level
    label: str
    zone: str
    start_ms: int
    end_ms: int
    visitors: int | None
    web3_users: int | None
    wallets_connected: int | None
    page_views: int | None
    busiest_day: str | None
    busiest_page_views: int | None
    warnings: tuple[str, ...]

    @property
    def figures(self) -> Totals:
        """Return the figures in the order of ``FIGURES``."""
        return (self.visitors, self.web3_users, self.wallets_connected, self.page_views)


# --- from a ring to differences


def read_ring(raw: Sequence[object], warnings: list[str]) -> list[Snapshot]:
    """Return the snapshots of a ring in the order of time, each moment once, whatever their order was.

    What is left out is named in ``warnings`` without a number: that would change every record of the row each time the
    ring moves on.
    """
    found: dict[int, Snapshot] = {}
    left_out: set[str] = set()
    for entry in raw:
        if not isinstance(entry, Mapping):
            left_out.add("a snapshot that is no document left out")
            continue
        written = entry.get("timestamp")
        at_ms = read_moment_ms(written)
        if written is None or written == "":
            left_out.add("a snapshot without a time left out")
        elif at_ms is None or not EARLIEST_MS <= at_ms <= LAST_MS - _FAR_MS:
            left_out.add("a snapshot whose time can't be read or isn't one of this age left out")
        else:
            snapshot = _read_snapshot(entry, at_ms)
            twin = found.get(at_ms)
            found[at_ms] = snapshot if twin is None else _joined(twin, snapshot)
    snapshots = _neighbours([found[at_ms] for at_ms in sorted(found)])
    if len(snapshots) < len(found):
        left_out.add("a snapshot more than a year from the others left out")
    warnings.extend(sorted(left_out))
    return snapshots


def take_differences(snapshots: Sequence[Snapshot]) -> list[Difference]:
    """Return the differences of neighbours, which are in the order of time; a single snapshot has none."""
    known: list[tuple[int, int] | None] = [None] * len(FIGURES)  # the last known total, and its moment
    if snapshots:
        known = [None if total is None else (total, snapshots[0].at_ms) for total in snapshots[0].totals]
    found: list[Difference] = []
    for before, after in pairwise(snapshots):
        figures: list[int | None] = []
        warnings = [*(before.warnings if not found else ()), *after.warnings]
        for place, total in enumerate(after.totals):
            last = known[place]
            if total is None or last is None:
                figures.append(None)
            elif total < last[0]:
                warnings.append(f"{FIGURES[place]} fell from {last[0]} to {total}: counted anew from 0")
                figures.append(total)
            else:
                if last[1] != before.at_ms:
                    warnings.append(f"{FIGURES[place]} also counts the time before, when no total was known")
                figures.append(total - last[0])
            if total is not None:
                known[place] = (total, after.at_ms)
        found.append(Difference(before.at_ms, after.at_ms, tuple(figures), tuple(warnings)))
    return found


def _read_snapshot(entry: Mapping[str, Any], at_ms: int) -> Snapshot:
    warnings: list[str] = []
    totals = tuple(read_count(entry.get(name), name, warnings, most=MAX_TOTAL) for name in FIGURES)
    return Snapshot(at_ms, totals, tuple(warnings))


def _joined(one: Snapshot, other: Snapshot) -> Snapshot:
    """Return two snapshots of one moment as one, whichever came first in the ring."""
    warnings = {*one.warnings, *other.warnings}
    totals: list[int | None] = []
    for pair in zip(one.totals, other.totals, strict=True):
        present = [total for total in pair if total is not None]
        if len(set(present)) > 1:
            warnings.add("two snapshots of one moment disagree: the larger total counts")
        totals.append(max(present, default=None))
    return Snapshot(one.at_ms, tuple(totals), tuple(sorted(warnings)))


def _neighbours(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Return the largest group of snapshots without a gap of a year; the earliest of equal ones."""
    groups: list[list[Snapshot]] = []
    for snapshot in snapshots:
        if groups and snapshot.at_ms - groups[-1][-1].at_ms <= _FAR_MS:
            groups[-1].append(snapshot)
        else:
            groups.append([snapshot])
    return max(groups, key=len, default=[])


# --- from differences to periods


@lru_cache(maxsize=1_000)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def read_zone(raw: object, warnings: list[str]) -> str:
    """Return the IANA name of a row's time zone; UTC where it is missing, or, with a warning, where it is none."""
    if raw is None or raw == "":
        return "UTC"
    if isinstance(raw, str) and len(raw) <= 60 and _zone(raw) is not None:
        return raw
    warnings.append("timezone is no IANA name: UTC is used")
    return "UTC"


def _place(zone: str) -> ZoneInfo:
    found = _zone(zone)
    if found is None:
        raise RecordError("timezone_unknown", f"{zone[:60]!r} is no time zone")
    return found


def hour_label(moment_ms: int, zone: str) -> str:
    """Return ``2025-06-01T13``; the second of two hours that clocks show alike has its offset behind it."""
    local = as_datetime(moment_ms).astimezone(_place(zone))
    return f"{local:%Y-%m-%dT%H}{f'{local:%z}' if local.fold else ''}"


def day_of(moment_ms: int, zone: str) -> date:
    """Return the date that clocks in the zone show."""
    return as_datetime(moment_ms).astimezone(_place(zone)).date()


def group_by_hour(differences: Iterable[Difference], zone: str) -> dict[str, list[Difference]]:
    """Return the differences of each hour that has any, by its label, in the order of time."""
    return _grouped(differences, lambda difference: hour_label(difference.start_ms, zone))


def group_by_day(differences: Iterable[Difference], zone: str) -> dict[str, list[Difference]]:
    """Return the differences of each day that has any, by its label, in the order of time."""
    return _grouped(differences, lambda difference: day_of(difference.start_ms, zone).isoformat())


def group_by_week(differences: Iterable[Difference], zone: str) -> dict[str, list[Difference]]:
    """Return the differences of each ISO week that has any, by its label (``2025-W23``), in the order of time."""
    return _grouped(differences, lambda difference: Period.of("week", day_of(difference.start_ms, zone)).label)


def group_by_month(differences: Iterable[Difference], zone: str) -> dict[str, list[Difference]]:
    """Return the differences of each month that has any, by its label (``2025-06``), in the order of time."""
    return _grouped(differences, lambda difference: Period.of("month", day_of(difference.start_ms, zone)).label)


def add_up(differences: Sequence[Difference]) -> Totals:
    """Return the sum of each figure where it is known; None where no difference knows it."""
    columns = zip(*(difference.figures for difference in differences), strict=True)
    sums = []
    for column in columns:
        known = [figure for figure in column if figure is not None]
        sums.append(sum(known) if known else None)
    return tuple(sums)


def _grouped(differences: Iterable[Difference], label_of: Callable[[Difference], str]) -> dict[str, list[Difference]]:
    groups: dict[str, list[Difference]] = {}
    for difference in differences:
        groups.setdefault(label_of(difference), []).append(difference)
    return groups


def _is_rest(level: Level, label: str, parts: Sequence[Difference], zone: str, ring: int) -> bool:
    """Return whether a full ring has begun to forget the period of its oldest differences."""
    if level in ("hourly", "daily"):
        return parts[-1].end_ms - parts[0].start_ms < _NEARLY_WHOLE * _UNIT_MS[level]
    period = Period.from_label(label)
    forgotten = (day_of(parts[0].start_ms, zone) - period.first).days
    too_many = (period.end - period.first).days - (ring - 1)
    return forgotten > max(0, too_many)


_GROUPERS: dict[Level, Callable[[Iterable[Difference], str], dict[str, list[Difference]]]] = {
    "hourly": group_by_hour,
    "daily": group_by_day,
    "weekly": group_by_week,
    "monthly": group_by_month,
}


def split_row(row: Record, *, name: str, level: Level, ring: int) -> Iterator[dict[str, Any]]:
    """Yield a record for each period of a website's row, the oldest first; ``ring`` is how many snapshots it keeps.

    A row whose ``_id`` is no ObjectId, or whose snapshots are no list, is one record, which parsing refuses.
    """
    site_id, raw = row.get("siteId"), row.get("analyticsSnapshot")
    if not isinstance(row.get("_id"), ObjectId):
        yield {"_id": row.get("_id"), "siteId": site_id}
        return
    if raw is None or raw == "":
        return
    if not isinstance(raw, list):
        yield {"_id": derived_id(name, site_id, "no ring"), "siteId": site_id, "notAList": type(raw).__name__}
        return
    warnings: list[str] = []
    zone = read_zone(row.get("timezone"), warnings)
    differences = take_differences(read_ring(raw, warnings))
    is_full = len(raw) >= ring
    groups = _GROUPERS[level](differences, zone)
    for place, (label, parts) in enumerate(groups.items()):
        if level == "hourly" and not any(part.changed for part in parts):
            continue
        if place == 0 and is_full and _is_rest(level, label, parts, zone, ring):
            continue
        yield {
            "_id": derived_id(name, site_id, label),
            "siteId": site_id,
            "label": label,
            "zone": zone,
            "differences": [
                {
                    "startMs": part.start_ms,
                    "endMs": part.end_ms,
                    "figures": list(part.figures),
                    "warnings": list(part.warnings),
                }
                for part in parts
            ],
            "warnings": warnings.copy(),
        }


# --- from a period's record to its document


def parse_traffic(record: Record, owners: Owners, *, level: Level, now_ms: int) -> Traffic:
    """Return the traffic of a record that ``split_row`` made. ``now_ms`` bounds its times; it is the run's start.

    Raises ``RecordError`` where its owner can't be told, or where all of it would lie in the future.
    """
    site = owners.find_site(record.get("siteId"))
    record_id = read_record_id(record)
    if "notAList" in record:
        raise RecordError("snapshots_unreadable", f"analyticsSnapshot is of type {record['notAList']}, not a list")
    label, zone = record.get("label"), record.get("zone")
    parts = _read_parts(record.get("differences"))
    if not isinstance(label, str) or not isinstance(zone, str) or not parts:
        raise RecordError("not_a_period", "the record is no period of a website's statistics, but perhaps a whole row")
    said = record.get("warnings")
    warnings = list(map(str, said)) if isinstance(said, list) else []
    past = [part for part in parts if part.end_ms <= now_ms + FUTURE_TOLERANCE_MS]
    if not past:
        raise RecordError("time_in_future", f"the snapshots of {label[:30]} lie in the future")
    if len(past) < len(parts):
        warnings.append("snapshots in the future left out")
    for part in past:
        warnings.extend(part.warnings)
    end_ms = past[-1].end_ms
    sums = add_up(past)
    busiest, most_views = None, None
    if level in ("weekly", "monthly"):
        busiest, most_views = _busiest(past, zone)
        if day_of(end_ms - _DAY_MS, zone) >= Period.from_label(label).end:
            warnings.append(f"days without a snapshot: the last figure reaches beyond the {_PERIOD_NOUNS[level]}")
    return Traffic(
        record_id=str(record_id),
        site_id=site.site_id,
        team_id=owner_of(site),
        site=shown_site(site),
        level=level,
        label=label,
        zone=zone,
        start_ms=past[0].start_ms,
        end_ms=end_ms,
        visitors=sums[0],
        web3_users=sums[1],
        wallets_connected=sums[2],
        page_views=sums[3],
        busiest_day=busiest,
        busiest_page_views=most_views,
        warnings=tuple(dict.fromkeys(warnings)),
    )


_PERIOD_NOUNS: dict[Level, str] = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month"}


def _read_parts(raw: object) -> list[Difference]:
    """Return the differences as ``split_row`` wrote them, or nothing where it didn't."""
    parts = []
    for part in raw if isinstance(raw, list) else ():
        if not isinstance(part, Mapping):
            return []
        start_ms, end_ms, figures = part.get("startMs"), part.get("endMs"), part.get("figures")
        if (
            not isinstance(start_ms, int)
            or not isinstance(end_ms, int)
            or not EARLIEST_MS <= start_ms < end_ms < LAST_MS
        ):
            return []
        if not isinstance(figures, list) or len(figures) != len(FIGURES):
            return []
        if not all(figure is None or isinstance(figure, int) for figure in figures):
            return []
        # Whole numbers that have been through BSON may have another type, and would be stored as other bytes.
        totals = tuple(None if figure is None else int(figure) for figure in figures)
        warnings = part.get("warnings")
        said = tuple(map(str, warnings)) if isinstance(warnings, list) else ()
        parts.append(Difference(int(start_ms), int(end_ms), totals, said))
    return parts


def _busiest(parts: Sequence[Difference], zone: str) -> tuple[str | None, int | None]:
    """Return the day of most page views and their number: the earliest of equal days, None where there were none."""
    views = {day: add_up(held)[-1] or 0 for day, held in group_by_day(parts, zone).items()}
    day = max(views, key=lambda one: views[one])
    return (day, views[day]) if views[day] else (None, None)


def describe_traffic(traffic: Traffic, *, source_name: str) -> Document:
    """Return the document of a period's traffic. Pure: the same traffic gives the same document, to the byte.

    Its timeframe begins with the first snapshot and ends with the period, though the last snapshot came seconds later:
    a search for the next day must not find this one.
    """
    level, figures = traffic.level, traffic.figures
    told = _figure_words(figures)
    parts = [f"{traffic.site}, {level} traffic of {_period_words(traffic)}: {told}."]
    if traffic.busiest_day is not None and traffic.busiest_page_views is not None:
        views = counted(traffic.busiest_page_views, "page view")
        parts.append(f" Busiest day {_day_words(date.fromisoformat(traffic.busiest_day))} with {views}.")
    start = as_datetime(traffic.start_ms)
    facts: dict[str, Any] = {
        "period": traffic.label,
        "timezone": traffic.zone,
        "visitors": traffic.visitors,
        "web3Users": traffic.web3_users,
        "walletsConnected": traffic.wallets_connected,
        "pageViews": traffic.page_views,
        "from": start,
        "to": as_datetime(traffic.end_ms),
        "hours" if level == "hourly" else "days": _units(traffic),
        "daysInPeriod": _days_in_period(traffic),
        "busiestDay": traffic.busiest_day,
        "busiestDayPageViews": traffic.busiest_page_views,
        "warnings": "; ".join(traffic.warnings) or None,
    }
    return Document(
        source_type="analytics",
        source_id=traffic.record_id,
        key=make_key(source_name, traffic.site_id, traffic.label),
        holder_id=traffic.site_id,
        team_id=traffic.team_id,
        site_id=traffic.site_id,
        content="".join(parts),
        summary=" · ".join((traffic.site, level, traffic.label, told))[:MAX_SUMMARY_CHARS],
        metadata={
            "timeframe": {"start": start, "end": as_datetime(_frame_end(traffic))},
            "dataType": "metric",
            "tags": _tags(traffic),
            "category": "traffic",
            "metricType": "traffic",
            "importance": _IMPORTANCE[level] - (0 if any(figures) else 2),
            "aggregationLevel": level,
            "confidence": confidence_of(traffic.warnings),
            "facts": {name: value for name, value in facts.items() if value is not None},
        },
    )


def _figure_words(figures: Totals) -> str:
    """Return the figures for a text. Few hours see a wallet: where none came, only the facts say so."""
    known = [
        counted(figure, noun)
        for name, figure, noun in zip(FIGURES, figures, _NOUNS, strict=True)
        if figure or (figure == 0 and name in ("visitors", "pageViews"))
    ]
    if not known:
        return "no figure is known"
    return ", ".join(known) if any(figures) or None in figures else "no visitors and no page views"


def _local(moment_ms: int, zone: str) -> datetime:
    return as_datetime(moment_ms).astimezone(_place(zone))


def _units(traffic: Traffic) -> int:
    """Return how many hours (of an hour's record) or days lie between its first and its last snapshot."""
    unit_ms = _HOUR_MS if traffic.level == "hourly" else _DAY_MS
    return max(1, round((traffic.end_ms - traffic.start_ms) / unit_ms))


def _days_in_period(traffic: Traffic) -> int | None:
    if traffic.level not in ("weekly", "monthly"):
        return None
    period = Period.from_label(traffic.label)
    return (period.end - period.first).days


def _period_words(traffic: Traffic) -> str:
    """Return the period in words; where it is longer or shorter than its name says, that too."""
    units, zone = _units(traffic), traffic.zone
    if traffic.level == "hourly":
        start, end = _local(traffic.start_ms, zone), _local(traffic.end_ms, zone)
        longer = f", {units} hours without a snapshot between," if units > 1 else ""
        return f"{start:%H:%M} to {end:%H:%M}{longer} on {_day_words(start.date())}, {zone} time"
    place = "" if zone == "UTC" else f", {zone} time"
    if traffic.level == "daily":
        first = day_of(traffic.start_ms, zone)
        longer = f" to {_day_words(first + timedelta(days=units - 1))}, {units} days together" if units > 1 else ""
        return f"{_day_words(first)}{longer}{place}"
    whole = _days_in_period(traffic) or 0
    part = f", {units} of {whole} days" if units < whole else ""
    return f"{Period.from_label(traffic.label).words}{part}{place}"


def _day_words(day: date) -> str:
    return f"{WEEKDAYS[day.weekday()]}, {day.day} {MONTHS[day.month - 1]} {day.year}"


def _frame_end(traffic: Traffic) -> int:
    """Return the period's last millisecond where the last snapshot came a little later, else the snapshot's time."""
    if traffic.level == "hourly":
        local = _local(traffic.start_ms, traffic.zone)
        into_ms = (local.minute * 60 + local.second) * 1000 + local.microsecond // 1000
        end_ms, unit_ms = traffic.start_ms - into_ms + _HOUR_MS, _HOUR_MS
    else:
        day = day_of(traffic.start_ms, traffic.zone)
        last = day + timedelta(days=1) if traffic.level == "daily" else Period.from_label(traffic.label).end
        begins = datetime(last.year, last.month, last.day, tzinfo=_place(traffic.zone))
        end_ms, unit_ms = round(begins.timestamp()) * 1000, _DAY_MS
    late_ms = traffic.end_ms - end_ms
    is_late = 0 <= late_ms <= (1 - _NEARLY_WHOLE) * unit_ms
    return max(traffic.start_ms, end_ms - 1) if is_late else traffic.end_ms


def _tags(traffic: Traffic) -> list[str]:
    words = ["traffic", traffic.level]
    if traffic.level in ("hourly", "daily"):
        local = _local(traffic.start_ms, traffic.zone)
        words.append(WEEKDAYS[local.weekday()].lower())
        if traffic.level == "hourly":
            words.append(f"{local:%H}:00")
    if traffic.web3_users:
        words.append("web3")
    if traffic.wallets_connected:
        words.append("wallets")
    return words


# --- the sources


def _read_time(record: Record) -> int | None:
    """Return when a period's record begins; a whole row of the collection has no single time."""
    parts = _read_parts(record.get("differences"))
    return parts[0].start_ms if parts else None


def _make_source(name: str, level: Level, collection: str) -> Source:
    def split(row: Record) -> Iterator[dict[str, Any]]:
        return split_row(row, name=name, level=level, ring=RING_SNAPSHOTS[collection])

    def describe(record: Record, owners: Owners, now_ms: int) -> Document:
        return describe_traffic(parse_traffic(record, owners, level=level, now_ms=now_ms), source_name=name)

    return Source(
        name=name,
        source_type="analytics",
        collection=collection,
        fields=("siteId", "analyticsSnapshot", "timezone"),
        version=DESCRIBER_VERSION,
        find_holder=find_site,
        describe=describe,
        # A row's times are those of its snapshots: which periods a window holds is only told after splitting.
        time_field=None,
        read_time=_read_time,
        split=split,
        forgets=True,
        columns=Columns(
            time_ms="time_ms",
            figures=("visitors", "pageViews", "walletsConnected"),
            warnings="warnings",
            required=("time_ms", "period"),
        ),
    )


HOURLY_STATS = _make_source("hourly_stats", "hourly", "hourlystats")
DAILY_STATS = _make_source("daily_stats", "daily", "dailystats")
#: Weeks and months are built from the days: ``weeklystats`` and ``monthlystats`` hold nothing that could be read.
WEEKLY_STATS = _make_source("weekly_stats", "weekly", "dailystats")
MONTHLY_STATS = _make_source("monthly_stats", "monthly", "dailystats")
