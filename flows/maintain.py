"""Maintain: what is told of the system every day, week, month and quarter, and what is swept while looking.

Each flow makes an artifact, and a message where somebody listens. A part that can't be read says so in the report and
keeps none of the others back.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL
from prefect.states import Completed

from blocks.log_files import sweep_logs
from blocks.monitor import Monitor
from blocks.monitor_book import MonitorBook
from blocks.prefect_server import PrefectServer
from blocks.rollups import read_daily_storage, read_tallies
from blocks.upkeep import find_unexpired, read_slow_queries
from blocks.vector_store import VectorStore
from flows.blocks import load_alerts, load_backups, load_embedder, load_monitor, load_shards, load_vectors
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from tasks.domain.alerts import OBJECTIVE
from tasks.domain.backups import newest_good
from tasks.domain.errors import PipelineError
from tasks.domain.incidents import in_words
from tasks.domain.log_lines import read_file_name
from tasks.domain.reports import Report, by_count, compared, in_order, trend_of
from tasks.domain.stats import Bucket, Period, Tally, bucket_of

_DAY = timedelta(days=1)
#: Readings and alerts are kept as long as requests are counted, and a little longer than availability looks back.
_READINGS_KEPT = timedelta(days=35)
_QUARTER = timedelta(days=92)
_NANO = 1e9
_STATES = ("COMPLETED", "RUNNING", "PAUSED", "CANCELLED", "FAILED", "CRASHED")


@dataclass(frozen=True, slots=True)
class _Parts:
    vectors: VectorStore
    monitor: Monitor
    book: MonitorBook
    now: datetime


def _parts() -> _Parts:
    vectors, monitor = load_vectors(), load_monitor()
    return _Parts(vectors, monitor, monitor.open_book(), vectors.read_time())


Section = Callable[[_Parts], Iterator[str]]


def _report(title: str, key: str, sections: Sequence[Section]) -> State[dict[str, Any]]:
    """Write the report of these sections, tell it, and return its lines."""
    parts = _parts()
    lines: list[str] = []
    for section in sections:
        try:
            lines += section(parts)
        except PipelineError as error:
            lines.append(f"! {section.__name__.strip('_').replace('_', ' ')} can't be read: {in_words(str(error))}")
    report = Report(f"{title}, {parts.now:%d %B %Y}", in_order(lines))
    create_markdown_artifact(report.as_markdown(), key=key, description=title)
    notifier = load_alerts()
    if notifier is not None:
        delivery = notifier.send(report.payload(notifier.kind))
        if not delivery.delivered:
            get_run_logger().warning("the report was not told: %s", delivery.says)
    wants = "something wants a person" if report.wants_a_person else "nothing wants a person"
    return Completed(message=f"{len(report.lines)} lines; {wants}", data={"lines": list(report.lines)})


_HOOKS: dict[str, Any] = {
    "on_failure": [alert_on_failure],
    "on_crashed": [alert_on_crashed],
    "on_completion": [resolve_on_completion],
}


@flow(name="daily-report", **_HOOKS)
def daily_report() -> State[dict[str, Any]]:
    """Tell how the last day was, and sweep: old log files, files of runs that were given up, old readings.

    Runs every morning. Looks whether indexes differ from the design and whether what should expire does; changes no
    index. The result holds the report's ``lines``; those that begin with ``!`` want a person.
    """
    sections = (_runs, _work, _letters, _open_alerts, _availability, _last_backup, _drift, _expiry, _sweep)
    return _report("Daily health report", "daily-report", sections)


@flow(name="weekly-review", **_HOOKS)
def weekly_review() -> State[dict[str, Any]]:
    """Tell throughput, cost and quality of the last seven days beside those of the seven before, and what was slow.

    Runs on Mondays. By the daily rows of ``embeddingstats``: where ``rollup`` did not run, days are missing.
    """
    return _report("Weekly performance review", "weekly-review", (_week, _slow))


@flow(name="capacity-forecast", **_HOOKS)
def capacity_forecast() -> State[dict[str, Any]]:
    """Tell how the store, its cost and the disk grow, and when they reach their limits if they go on so.

    Runs on the first of each month: a straight line through the days of the last quarter, from seven days on.
    """
    return _report("Capacity forecast", "capacity-forecast", (_growth, _disk_growth))


@flow(name="audit-report", **_HOOKS)
def audit_report() -> State[dict[str, Any]]:
    """Tell who did what that matters in the last quarter, which alerts there were, and what backups proved.

    Runs on the first day of each quarter, by the stream ``security`` of this machine's logs, which is kept for 90 days.
    """
    return _report("Quarterly audit", "audit-report", (_audited, _alerts_of_quarter, _backups_of_quarter))


# -- the day ---------------------------------------------------------------------------------------------------------


def _runs(parts: _Parts) -> Iterator[str]:
    url = PREFECT_API_URL.value()
    if not url:
        yield "runs: no Prefect server is named"
        return
    server = PrefectServer(url, auth=PREFECT_API_AUTH_STRING.value())
    counts = {state.lower(): server.count_runs([state], since=parts.now - _DAY) for state in _STATES}
    bad = counts["failed"] + counts["crashed"]
    said = by_count({state: number for state, number in counts.items() if number})
    yield f"{'! ' if bad else ''}runs that began in the last day: {said}"


def _day_of(parts: _Parts) -> Bucket:
    return bucket_of("daily", parts.now - _DAY)


def _work(parts: _Parts) -> Iterator[str]:
    tally = _tally(parts, "daily", _day_of(parts).start, _day_of(parts).end)
    if tally is None:
        yield "yesterday was not counted: did rollup run?"
        return
    sums = tally.sums
    yield (
        f"yesterday: {sums.get('read', 0):,} records read, {sums.get('created', 0):,} vectors made, "
        f"{sums.get('updated', 0):,} changed, {sums.get('refused', 0):,} dead-lettered"
    )
    yield f"cost yesterday: ${sums.get('nano_usd', 0) / _NANO:,.4f} for {sums.get('tokens', 0):,} tokens"


def _letters(parts: _Parts) -> Iterator[str]:
    yield f"open dead letters: {by_count(parts.vectors.at().count_letters_by_code())}"


def _open_alerts(parts: _Parts) -> Iterator[str]:
    for alert in parts.book.read_open_alerts():
        yield f"! {alert.title} since {alert.began:%Y-%m-%d %H:%M} UTC: {alert.says}"


def _availability(parts: _Parts) -> Iterator[str]:
    looks = parts.book.count_looks(parts.now - timedelta(days=30), parts.now)
    if looks.availability is None:
        yield "availability: nobody looked in 30 days"
        return
    left = looks.budget_left_s() / 60
    mark = "! " if left < 0 else ""
    yield (
        f"{mark}availability of 30 days: {looks.availability:.3%} (objective {OBJECTIVE:.1%}), {left:,.1f} min of the "
        f"error budget left, {looks.unknown_s / 3_600:,.0f} hours in which nobody looked"
    )


def _last_backup(parts: _Parts) -> Iterator[str]:
    good = newest_good(load_backups().list_backups())
    if good is None or good.manifest is None:
        yield "! there is no good backup"
        return
    age = parts.now - good.manifest.taken
    late = "! " if age.total_seconds() > parts.monitor.limits.backup_age_s else ""
    yield f"{late}last good backup: {good.id}, {age.total_seconds() / 3_600:,.1f} hours ago"


def _drift(parts: _Parts) -> Iterator[str]:
    vectors = parts.vectors.at()
    drift = vectors.initialise(load_embedder(vectors).facts.dimensions)
    yield from (f"! index drift: {line}" for line in drift.differs)
    yield from (f"made what was missing: {line}" for line in drift.created)
    if not drift.differs and not drift.created:
        yield "indexes and validators: as designed"


def _expiry(parts: _Parts) -> Iterator[str]:
    wrong = find_unexpired(parts.vectors)
    yield from (f"! {line}" for line in wrong)
    if not wrong:
        yield "what should expire does"


def _sweep(parts: _Parts) -> Iterator[str]:
    files = load_shards().sweep(now_s=parts.now.timestamp())
    logs = sweep_logs(parts.monitor.logs)
    readings = parts.book.prune(parts.now - _READINGS_KEPT)
    yield (
        f"swept: files of {files or 0:,} runs, {len(logs.removed):,} log files ({len(logs.compressed):,} compressed), "
        f"{readings:,} old readings"
    )


# -- the week, the month, the quarter --------------------------------------------------------------------------------


def _tally(parts: _Parts, period: Period, since: datetime, until: datetime) -> Tally | None:
    """Return what all teams together come to in the buckets of a span, or None where none was counted."""
    found = [tally for team, tally in read_tallies(parts.vectors, period, since, until) if team is None]
    if not found:
        return None
    whole = Tally()
    for tally in found:
        whole.merge(tally)
    return whole


def _week(parts: _Parts) -> Iterator[str]:
    today = bucket_of("daily", parts.now).start
    now = _tally(parts, "daily", today - 7 * _DAY, today)
    before = _tally(parts, "daily", today - 14 * _DAY, today - 7 * _DAY)
    if now is None:
        yield "! no day of this week was counted: does rollup run?"
        return
    for name, read, unit in _FIGURES:
        yield compared(name, read(now), None if before is None else read(before), unit)
    if now.errors:
        yield f"errors by code: {by_count(now.errors)}"


def _ratio(part: str, whole: str, scale: float = 1.0) -> Callable[[Tally], float | None]:
    def read(tally: Tally) -> float | None:
        divisor = tally.sums.get(whole)
        return None if not divisor or part not in tally.sums else scale * tally.sums[part] / divisor

    return read


def _sum(name: str, scale: float = 1.0) -> Callable[[Tally], float | None]:
    return lambda tally: None if name not in tally.sums else scale * tally.sums[name]


_FIGURES: tuple[tuple[str, Callable[[Tally], float | None], str], ...] = (
    ("records read", _sum("read"), ""),
    ("vectors made", _sum("created"), ""),
    ("records a second of run time", _ratio("read", "took_ms", 1_000), ""),
    ("tokens", _sum("tokens"), ""),
    ("dollars", _sum("nano_usd", 1 / _NANO), ""),
    ("texts that had a vector already", _sum("reused"), ""),
    ("dead letters", _ratio("refused", "read", 100), " %"),
    ("embed requests that failed", _ratio("embed_failed", "embed_calls", 100), " %"),
    ("an embed request", _ratio("embed_ms", "embed_calls"), " ms"),
    ("searches", _sum("search_calls"), ""),
    ("a search", _ratio("search_ms", "search_calls"), " ms"),
    ("best score of a search", _ratio("scores_millionths", "scored", 1e-6), ""),
)


def _slow(parts: _Parts) -> Iterator[str]:
    slow = read_slow_queries(parts.vectors, parts.now - 7 * _DAY)
    if slow is None:
        yield "slow queries: the server writes none down (profiling is off)"
        return
    yield from (f"slow query: {line}" for line in slow)
    if not slow:
        yield "slow queries: none"


def _growth(parts: _Parts) -> Iterator[str]:
    rows = read_daily_storage(parts.vectors, parts.now - _QUARTER)
    for name, figure, unit in (
        ("vector documents", "totalVectorDocuments", ""),
        ("bytes of vectors", "totalStorageSize", ""),
    ):
        trend = trend_of([(at, storage[figure]) for at, storage, _ in rows if figure in storage])
        if trend is None:
            yield f"{name}: not enough history yet, seven days are needed"
        else:
            yield f"{name}: {trend.last:,.0f}{unit} now, {trend.per_day:+,.0f} a day over {trend.days} days"
    cost = trend_of([(at, usd) for at, _, usd in rows])
    if cost is not None:
        yield f"cost: ${cost.last:,.4f} a day now, {30 * max(0.0, cost.last):,.2f} dollars in the next 30 days at that"


def _disk_growth(parts: _Parts) -> Iterator[str]:
    readings = parts.book.read_readings(parts.now - _READINGS_KEPT, probe="disk")
    last_of_day = {one.at.date(): one for one in readings if "used_bytes" in one.figures}
    trend = trend_of([(one.at, one.figures["used_bytes"]) for one in last_of_day.values()])
    if trend is None:
        yield "disk: not enough history yet, seven days are needed"
        return
    whole = list(last_of_day.values())[-1].figures["whole_bytes"]
    days = trend.days_until(whole * parts.monitor.limits.disk)
    if days is None:
        yield "disk: does not grow"
    else:
        mark = "! " if days < 30 else ""
        yield f"{mark}disk: {trend.per_day / 1e9:,.2f} GB a day; the alert's limit in {days:,.0f} days"


def _audited(parts: _Parts) -> Iterator[str]:
    events = Counter(str(line.get("event")) for line in _security_lines(parts.monitor.logs, parts.now - _QUARTER))
    yield f"audited on this machine: {by_count(events)}"


def _security_lines(folder: Path, since: datetime) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("security-*")) if folder.is_dir() else ():
        found = read_file_name(path.name)
        if found is None or found[1] < since.astimezone(UTC).date():
            continue
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # what a full disk cut off


def _alerts_of_quarter(parts: _Parts) -> Iterator[str]:
    alerts = Counter(alert.name for alert in parts.book.read_alerts(parts.now - _QUARTER))
    yield f"alerts that are still on record ({_READINGS_KEPT.days} days): {by_count(alerts)}"


def _backups_of_quarter(parts: _Parts) -> Iterator[str]:
    stored = [
        one
        for one in load_backups().list_backups()
        if one.manifest is not None and one.manifest.taken >= parts.now - _QUARTER
    ]
    drills = sum(one.verification is not None and one.verification.drill and one.state == "good" for one in stored)
    bad = sum(one.state == "damaged" for one in stored)
    states = by_count(Counter(one.state for one in stored))
    yield f"{'! ' if bad else ''}backups that are kept: {states}; {drills} restored whole"
