"""Overview: all that the monitoring page shows, as one value; the same that its JSON holds.

Every section is read beside the others, within its own time. One that can't be read says so and keeps none back: with
MongoDB and the Prefect server both gone, what the monitor's book holds is still there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pymongo
from bson import ObjectId
from pydantic import BaseModel

from blocks.code_version import read_code_version
from blocks.monitor_book import LOOK_COVERS
from blocks.operations import (
    LetterReason,
    count_jobs,
    count_letter_errors,
    count_letters,
    count_request_errors,
    count_run_errors,
    read_requests,
    read_stats,
    read_team_names,
    read_work,
)
from blocks.prefect_server import PrefectRun
from deployments.http.health import OpenAlert, Probed, read_details
from deployments.http.parts import HttpParts, asked
from flows.jobs import is_alive
from tasks.domain.alerts import OBJECTIVE, Alert, query_of, runbook_link
from tasks.domain.availability import count_looks, find_outages, find_stretches
from tasks.domain.errors import PipelineError
from tasks.domain.incidents import in_words
from tasks.domain.personal import hide_people
from tasks.domain.probes import PROBES, VITAL
from tasks.domain.texts import clean_text

Status = Literal["ok", "warning", "critical", "unknown"]
HOUR, DAY, MONTH = timedelta(hours=1), timedelta(days=1), timedelta(days=30)
_WITHIN_S = 8.0
#: A question to MongoDB ends before its section does, so that its own words are told.
_ASKED_SHARE = 0.75
#: A month of a busy store takes a while to add up. That nobody is there is known sooner.
_REACHED_WITHIN_S = 1.5
_LAG_STEPS = (timedelta(minutes=10), timedelta(hours=6))
_RUNS_SHOWN, _NEXT_SHOWN, _JOBS_SHOWN, _BACKUPS_SHOWN, _OUTAGES_SHOWN, _REASONS_SHOWN = 12, 3, 10, 12, 10, 25
_ERRORS_SHOWN, _TEAMS_SHOWN, _ALERTS_SHOWN = 25, 25, 50
_WORDS_CHARS, _ID_CHARS = 240, 80
_LOGGER = logging.getLogger("cryptique.http")


class Section(BaseModel):
    """A part of the page. ``problem`` says why it is empty: it couldn't be read, or is not ``configured``."""

    problem: str | None = None
    configured: bool = True


class ShownAlert(OpenAlert):
    """An alert with where it is written what to do, and the command that shows more."""

    runbook: str
    look: str
    ended: datetime | None = None


class Health(Section):
    """The state now: what each probe found last, and what is wrong, the worst first."""

    status: Status = "unknown"
    probes: dict[str, Probed] = {}
    alerts: list[ShownAlert] = []
    looked_at: datetime | None = None


class DayOfLooks(BaseModel):
    """A day by what was seen in it, in seconds."""

    day: datetime
    good_s: float
    bad_s: float
    unknown_s: float


class Outage(BaseModel):
    """From when to when a vital part did not answer; the last one may go on."""

    began: datetime
    ended: datetime
    seconds: float


class Objective(Section):
    """Availability by what probes of the vital parts saw, against 99.9 % of 30 days; times in seconds and minutes.

    Time in which nobody looked is told apart: it is neither good nor bad.
    """

    objective: float = OBJECTIVE
    vital: list[str] = list(VITAL)
    availability: float | None = None
    availability_day: float | None = None
    availability_week: float | None = None
    good_s: float = 0.0
    bad_s: float = 0.0
    unknown_s: float = 0.0
    budget_min: float = 0.0
    budget_left_min: float = 0.0
    days: list[DayOfLooks] = []
    outages: list[Outage] = []


class StepOfWork(BaseModel):
    """What was done in an hour or a day. ``told_by`` is where ``documents`` are from; jobs count where they ended.

    ``texts`` were embedded, ``reused`` had a vector already; ``calls`` and what ``failed`` of them are by kind.
    """

    began: datetime
    documents: int = 0
    texts: int = 0
    reused: int = 0
    told_by: Literal["embeddingstats", "embeddingjobs"] = "embeddingjobs"
    calls: dict[str, int] = {}
    failed: dict[str, int] = {}


class Throughput(Section):
    """Documents written, texts embedded and requests made, by hour of 24 and by day of 30."""

    hours: list[StepOfWork] = []
    days: list[StepOfWork] = []


class Sample(BaseModel):
    """The greatest value in a step of time; None where nothing was measured."""

    at: datetime
    value: float | None


class Pace(Section):
    """How far ingestion was behind and how slow responses were, in seconds, at worst in each step of time."""

    lag_day_s: list[Sample] = []
    lag_month_s: list[Sample] = []
    p95_day_s: list[Sample] = []
    lag_limit_s: float = 0.0
    slow_limit_s: float = 0.0


class ShownRun(BaseModel):
    """A flow run; ``link`` leads to it in the Prefect UI."""

    id: str
    name: str
    flow: str
    state: str
    state_type: str
    says: str
    began: datetime | None
    expected: datetime | None
    seconds: float
    link: str


class Runs(Section):
    """Runs by the Prefect server: how many, those that run or wait, the last ones, and what comes next."""

    running: int = 0
    waiting: int = 0
    completed_day: int = 0
    failed_day: int = 0
    crashed_day: int = 0
    current: list[ShownRun] = []
    latest: list[ShownRun] = []
    next: list[ShownRun] = []


class ShownJob(BaseModel):
    """A job that is at work or waits. ``process_gone``: it says that it is at work, but its process ended."""

    id: str
    what: str
    status: str
    processed: int
    total: int
    percentage: float
    began: datetime | None
    ends_about: datetime | None
    seen: datetime | None
    process_gone: bool
    link: str | None


class Queue(Section):
    """The jobs of ``embeddingjobs`` by status, and those that are not over."""

    by_status: dict[str, int] = {}
    limit: int = 0
    open: list[ShownJob] = []


class ShownError(BaseModel):
    """Errors of one stage and code. ``of``: of records (dead letters), of requests, or of runs."""

    of: Literal["records", "requests", "runs"]
    stage: str
    code: str
    day: int
    month: int
    newest: datetime


class Errors(Section):
    """What failed, by stage and code, in 24 hours and 30 days, the most of the last day first."""

    day: int = 0
    month: int = 0
    shown: list[ShownError] = []


class DayCost(BaseModel):
    """What a day's embeddings were and cost. ``told_by`` is where that is from: its statistics, what was counted of
    its requests, or else its jobs; never two of them.
    """

    day: datetime
    tokens: int = 0
    usd: float = 0.0
    told_by: Literal["embeddingstats", "ragmeasures", "embeddingjobs"] = "embeddingjobs"


class TeamCost(BaseModel):
    """A team's share in 30 days; ``team_id`` None: runs over several teams, which no one team is charged with."""

    team_id: str | None
    name: str | None
    documents: int
    tokens: int
    usd: float


class Cost(Section):
    """Thirty days of tokens and dollars, by day and by team.

    What teams are charged with is from statistics and, for days without, from jobs; ``usd_of_no_team`` is the rest of
    ``usd``: searches, and what failed runs paid for.
    """

    usd: float = 0.0
    tokens: int = 0
    usd_today: float = 0.0
    usd_of_no_team: float = 0.0
    budget_usd: float | None = None
    days: list[DayCost] = []
    teams: list[TeamCost] = []
    names_problem: str | None = None


class LetterSample(BaseModel):
    """A refused record by its id, and why."""

    record: str
    reason: str


class ShownLetters(BaseModel):
    """Open dead letters of one source, stage and code, with some of the records."""

    source: str
    stage: str
    code: str
    number: int
    day: int
    newest: datetime
    samples: list[LetterSample]


class Letters(Section):
    """The dead letters that are open in the live generation."""

    open: int = 0
    day: int = 0
    reasons: list[ShownLetters] = []


class ShownBackup(BaseModel):
    """A backup in the catalogue; ``proof`` is how much of it was restored and compared."""

    id: str
    state: str
    classes: list[str]
    taken: datetime | None
    documents: int | None
    stored_bytes: int | None
    checked_at: datetime | None
    proof: Literal["whole", "sample", "none"]
    why: str


class Backups(Section):
    """The backups, the newest first, and the age of the newest good one."""

    newest_good: datetime | None = None
    age_s: float | None = None
    limit_s: float = 0.0
    by_state: dict[str, int] = {}
    shown: list[ShownBackup] = []


class History(Section):
    """The alerts of 30 days, the newest first."""

    alerts: list[ShownAlert] = []


class Overview(BaseModel):
    """Everything on the page. ``unread`` names the sections that couldn't be read."""

    at: datetime
    version: str
    environment: str
    status: Status
    headline: str
    since: datetime | None
    unread: list[str]
    prefect_ui: str | None
    health: Health
    objective: Objective
    throughput: Throughput
    pace: Pace
    runs: Runs
    queue: Queue
    errors: Errors
    cost: Cost
    letters: Letters
    backups: Backups
    history: History


Read = Callable[[HttpParts, datetime], Section]


def read_overview(parts: HttpParts, *, now: datetime) -> Overview:
    """Return everything, in as long as the slowest section may take."""
    now = now.astimezone(UTC)
    started = {name: _begin(name, read, parts, now) for name, (_, read) in _READS.items()}
    found: dict[str, Any] = {name: _result(name, started[name], kind) for name, (kind, _) in _READS.items()}
    unread = [name for name, section in found.items() if section.problem and section.configured]
    status, headline, since = _judge(found["health"], unread)
    return Overview(
        at=now,
        version=read_code_version(),
        environment=parts.settings.cryptique_environment,
        status=status,
        headline=headline,
        since=since,
        unread=unread,
        prefect_ui=parts.prefect_ui,
        **found,
    )


_under_way: dict[tuple[str, int], Future[Section]] = {}
_under_way_lock = threading.Lock()


def _begin(name: str, read: Read, parts: HttpParts, now: datetime) -> Future[Section]:
    """Return what a thread will have found; one that hangs is waited for again, so that no threads pile up."""
    key = (name, id(parts))
    with _under_way_lock:
        future = _under_way.get(key)
        if future is None or future.done():
            future = _under_way[key] = asked(_ASKED_SHARE * _WITHIN_S, lambda: read(parts, now))
            future.add_done_callback(lambda done: _forget(key, done))
    return future


def _forget(key: tuple[str, int], done: Future[Section]) -> None:
    # A callback that is added to what is done already runs at once, with the lock held by this very thread.
    if _under_way.get(key) is done:
        _under_way.pop(key, None)


def _result(name: str, future: Future[Section], kind: type[Section]) -> Section:
    try:
        return future.result(timeout=_WITHIN_S)
    except TimeoutError:
        return kind(problem=f"No answer within {_WITHIN_S:g} s.")
    except PipelineError as error:
        return kind(problem=in_words(str(error)))
    except Exception as error:
        # One section must not take the page away; the error's own words may hold anything.
        _LOGGER.exception("the section %s of the monitoring page can't be read", name)
        return kind(problem=f"It can't be read ({type(error).__name__}).")


def _judge(health: Health, unread: list[str]) -> tuple[Status, str, datetime | None]:
    """Return how all is, in a word and in a sentence, and since when what is worst is so."""
    status: Status = health.status
    told = [one for one in health.alerts if one.severity != "info"]
    if health.problem or status == "unknown":
        return "unknown", "Nobody can tell how it is now", health.looked_at
    if told:
        worst = told[0].severity
        of_worst = [one for one in told if one.severity == worst]
        others = len(told) - len(of_worst)
        said = f"{len(of_worst)} {worst} alerts" if len(of_worst) > 1 else f"{worst.capitalize()}: {of_worst[0].title}"
        more = f", and {others} warning{'s' if others > 1 else ''}" if others else ""
        return ("critical" if worst == "critical" else "warning"), said + more, min(one.began for one in of_worst)
    failed = [name for name, one in health.probes.items() if one.verdict == "failed"]
    if failed:
        return (
            "warning",
            f"Failing, not yet an alert: {', '.join(failed)}",
            min(health.probes[one].at for one in failed),
        )
    if unread:
        said = "one part" if len(unread) == 1 else f"{len(unread)} parts"
        return "warning", f"No alert is open, but {said} of this page can't be read", None
    return "ok", "All is well", None


# -- what the monitor's book holds -----------------------------------------------------------------------------------


_RANK = {"critical": 0, "warning": 1, "info": 2}


def _health(parts: HttpParts, now: datetime) -> Health:
    details = read_details(parts, started=now, now=now)
    ended = {one.name: one for one in parts.book.read_open_alerts()}
    alerts = [_shown(ended[one.name]) for one in details.alerts if one.name in ended]
    order = {name: place for place, name in enumerate(PROBES)}
    return Health(
        status=details.status,
        probes=dict(
            sorted(details.probes.items(), key=lambda one: (one[1].verdict != "failed", order.get(one[0], len(order))))
        ),
        alerts=sorted(alerts, key=lambda one: (_RANK[one.severity], one.began)),
        looked_at=max((one.at for one in details.probes.values()), default=None),
        problem=details.problem,
    )


def _shown(alert: Alert) -> ShownAlert:
    return ShownAlert(
        name=alert.name,
        severity=alert.severity,
        title=alert.title,
        says=in_words(alert.says, limit_chars=_WORDS_CHARS),
        began=alert.began,
        ended=alert.ended,
        # On the page itself the runbook is beside it, whatever the public address is.
        runbook="/admin/runbook#" + runbook_link(alert.name, None).partition("#")[2],
        look=query_of(alert.name),
    )


def _history(parts: HttpParts, now: datetime) -> History:
    return History(alerts=[_shown(one) for one in parts.book.read_alerts(now - MONTH)[:_ALERTS_SHOWN]])


def _objective(parts: HttpParts, now: datetime) -> Objective:
    since = now - MONTH
    looks = parts.book.read_looks(since, now)
    stretches = find_stretches(looks, until=now, covers_s=LOOK_COVERS.total_seconds())
    month = count_looks(stretches, since, now)
    days = []
    for began in _steps(now, DAY, 30):
        day = count_looks(stretches, began, min(began + DAY, now))
        days.append(DayOfLooks(day=began, good_s=day.good_s, bad_s=day.bad_s, unknown_s=day.unknown_s))
    return Objective(
        availability=month.availability,
        availability_day=count_looks(stretches, now - DAY, now).availability,
        availability_week=count_looks(stretches, now - 7 * DAY, now).availability,
        good_s=month.good_s,
        bad_s=month.bad_s,
        unknown_s=month.unknown_s,
        budget_min=(1 - OBJECTIVE) * MONTH.total_seconds() / 60,
        budget_left_min=month.budget_left_s() / 60,
        days=days,
        outages=[
            Outage(began=began, ended=ended, seconds=(ended - began).total_seconds())
            for began, ended in find_outages(stretches)[:_OUTAGES_SHOWN]
        ],
    )


def _pace(parts: HttpParts, now: datetime) -> Pace:
    def samples(probe: str, figure: str, span: timedelta, step: timedelta) -> list[Sample]:
        moments = _steps(now, step, round(span / step))
        found = parts.book.read_figure(probe, figure, moments[0], now, step)
        return [Sample(at=at, value=found.get(at)) for at in moments]

    short, long = _LAG_STEPS
    limits = parts.settings.limits
    return Pace(
        lag_day_s=samples("ingest", "lag_s", DAY, short),
        lag_month_s=samples("ingest", "lag_s", MONTH, long),
        p95_day_s=samples("requests", "p95_s", DAY, short),
        lag_limit_s=limits.ingest_lag_s,
        slow_limit_s=limits.slow_s,
    )


def _steps(now: datetime, step: timedelta, number: int) -> list[datetime]:
    """Return the beginnings of the last so many steps of time, the one that now lies in last."""
    whole = int(now.timestamp() // step.total_seconds())
    return [datetime.fromtimestamp((whole - back) * step.total_seconds(), UTC) for back in range(number - 1, -1, -1)]


# -- what the store's books hold -------------------------------------------------------------------------------------


def _of_store(read: Callable[[HttpParts, datetime], Section]) -> Read:
    """Return a read that gives up early where the store's MongoDB does not answer at all."""

    def after_a_word(parts: HttpParts, now: datetime) -> Section:
        with pymongo.timeout(_REACHED_WITHIN_S):
            parts.vectors.check()
        return read(parts, now)

    return after_a_word


def _throughput(parts: HttpParts, now: datetime) -> Throughput:
    return Throughput(hours=_work(parts, now, HOUR, 24), days=_work(parts, now, DAY, 30))


def _work(parts: HttpParts, now: datetime, step: timedelta, number: int) -> list[StepOfWork]:
    moments = _steps(now, step, number)
    steps = {at: StepOfWork(began=at) for at in moments}
    for work in read_work(parts.vectors, moments[0], step):
        if work.began in steps:
            steps[work.began].documents += work.documents
    for row in read_stats(parts.vectors, "hourly" if step == HOUR else "daily", moments[0]):
        if row.get("teamId") is None and row["startDate"] in steps:
            one = steps[row["startDate"]]
            one.documents, one.told_by = _written(row), "embeddingstats"
    for requests in read_requests(parts.vectors, moments[0], step):
        if requests.began in steps:
            one = steps[requests.began]
            one.texts, one.reused = one.texts + requests.texts, one.reused + requests.reused
            if not requests.calls:
                continue
            one.calls[requests.kind] = requests.calls
            one.failed[requests.kind] = requests.failed
    return list(steps.values())


def _written(row: Mapping[str, Any]) -> int:
    processing = row.get("processing") or {}
    return int(processing.get("documentsCreated") or 0) + int(processing.get("documentsUpdated") or 0)


def _queue(parts: HttpParts, now: datetime) -> Queue:
    wanted = {"status": {"$in": ["processing", "retrying", "pending"]}, "metadata.tags": {"$ne": "partition"}}
    found = parts.vectors.find_jobs(wanted, limit=_JOBS_SHOWN)
    return Queue(
        by_status=count_jobs(parts.vectors),
        limit=parts.settings.limits.queue,
        open=[_shown_job(job, parts, now) for job in found],
    )


def _shown_job(job: Mapping[str, Any], parts: HttpParts, now: datetime) -> ShownJob:
    progress, metadata = job.get("progress") or {}, job.get("metadata") or {}
    run_id = metadata.get("runId")
    # A job without a run is the application's own; nothing is known of its process.
    ours = job["status"] == "processing" and metadata.get("runKey")
    return ShownJob(
        id=str(job["jobId"]),
        what=clean_text(str(metadata.get("reason") or job.get("sourceType") or "")),
        status=str(job["status"]),
        processed=int(progress.get("processed") or 0),
        total=int(progress.get("total") or 0),
        percentage=float(progress.get("percentage") or 0.0),
        began=job.get("startedAt"),
        ends_about=job.get("estimatedCompletionAt"),
        seen=job.get("updatedAt"),
        process_gone=bool(ours and not is_alive(job, now=now)),
        link=f"{parts.prefect_ui}/runs/flow-run/{run_id}" if run_id and parts.prefect_ui else None,
    )


def _errors(parts: HttpParts, now: datetime) -> Errors:
    store, since, lately = parts.vectors, now - MONTH, now - DAY
    found = [
        *(_error("runs", row) for row in count_run_errors(store, since, lately)),
        *(_error("requests", row) for row in count_request_errors(store, since, lately)),
        *(_error("records", row) for row in count_letter_errors(store.at(), since, lately)),
    ]
    found.sort(key=lambda one: (-one.day, -one.month, one.of, one.stage, one.code))
    return Errors(day=sum(one.day for one in found), month=sum(one.month for one in found), shown=found[:_ERRORS_SHOWN])


def _error(of: Literal["records", "requests", "runs"], row: Mapping[str, Any]) -> ShownError:
    return ShownError(
        of=of,
        stage=clean_text(str(row.get("stage"))),
        code=clean_text(str(row.get("code"))),
        day=int(row["lately"]),
        month=int(row["count"]),
        newest=row["newest"],
    )


def _cost(parts: HttpParts, now: datetime) -> Cost:
    moments = _steps(now, DAY, 30)
    days = {at: DayCost(day=at) for at in moments}
    stats = [row for row in read_stats(parts.vectors, "daily", moments[0]) if row["startDate"] in days]
    by_stats = {row["startDate"] for row in stats if row.get("teamId") is None}
    teams: dict[str | None, TeamCost] = {}
    for work in read_work(parts.vectors, moments[0], DAY):
        if work.began in days and work.began not in by_stats:
            _tell(days[work.began], "embeddingjobs", work.tokens, work.usd)
            _charge(teams, work.team_id, work.documents, work.tokens, work.usd)
    for asked_for in read_requests(parts.vectors, moments[0], DAY):
        if asked_for.began in days and asked_for.kind == "embed":
            _tell(days[asked_for.began], "ragmeasures", asked_for.tokens, asked_for.usd)
    for row in stats:
        usage = row.get("apiUsage") or {}
        tokens, usd = int(usage.get("totalTokensUsed") or 0), float(usage.get("totalCost") or 0.0)
        if row.get("teamId") is None:
            _tell(days[row["startDate"]], "embeddingstats", tokens, usd)
        elif row["startDate"] in by_stats:
            _charge(teams, str(row["teamId"]), _written(row), tokens, usd)
    names, problem = _team_names(parts, [one for one in teams if one is not None])
    ranked = sorted(teams.values(), key=lambda one: (-one.usd, -one.tokens, str(one.team_id)))
    shown = [one for one in ranked if one.documents or one.tokens][:_TEAMS_SHOWN]
    for team in shown:
        team.name = names.get(team.team_id or "")
    return Cost(
        usd=sum(one.usd for one in days.values()),
        tokens=sum(one.tokens for one in days.values()),
        usd_today=days[moments[-1]].usd,
        usd_of_no_team=max(0.0, sum(one.usd for one in days.values()) - sum(one.usd for one in teams.values())),
        budget_usd=parts.settings.limits.usd_per_day,
        days=list(days.values()),
        teams=shown,
        names_problem=problem,
    )


def _tell(day: DayCost, by: Literal["embeddingstats", "ragmeasures", "embeddingjobs"], tokens: int, usd: float) -> None:
    """Add to a day what one of the books tells, in the place of what a weaker one told."""
    if day.told_by != by:
        day.told_by, day.tokens, day.usd = by, 0, 0.0
    day.tokens, day.usd = day.tokens + tokens, day.usd + usd


def _charge(teams: dict[str | None, TeamCost], team_id: str | None, documents: int, tokens: int, usd: float) -> None:
    team = teams.setdefault(team_id, TeamCost(team_id=team_id, name=None, documents=0, tokens=0, usd=0.0))
    team.documents, team.tokens, team.usd = team.documents + documents, team.tokens + tokens, team.usd + usd


def _team_names(parts: HttpParts, team_ids: Iterable[str]) -> tuple[dict[str, str], str | None]:
    """Return the names that people know teams by, or why there are none: the figures are shown all the same."""
    try:
        found = read_team_names(parts.source, team_ids)
    except PipelineError as error:
        return {}, in_words(str(error))
    return {team: clean_text(name)[:_ID_CHARS] for team, name in found.items()}, None


def _letters(parts: HttpParts, now: datetime) -> Letters:
    found = count_letters(parts.vectors.at(), now - DAY)
    return Letters(
        open=sum(one.count for one in found),
        day=sum(one.lately for one in found),
        reasons=[_shown_letters(one) for one in found[:_REASONS_SHOWN]],
    )


def _shown_letters(found: LetterReason) -> ShownLetters:
    return ShownLetters(
        source=clean_text(found.source),
        stage=clean_text(found.stage),
        code=clean_text(found.code),
        number=found.count,
        day=found.lately,
        newest=found.newest,
        samples=[
            LetterSample(
                record=f"{clean_text(found.source)}:{_id_in_words(record_id)}",
                reason=in_words(hide_people(clean_text(reason)), limit_chars=_WORDS_CHARS),
            )
            for record_id, reason in found.samples
        ],
    )


def _id_in_words(record_id: object) -> str:
    """Return a record's id as it may be shown. One that the application made up may be a person's, or hold one."""
    if isinstance(record_id, ObjectId | int):
        return str(record_id)
    if isinstance(record_id, Mapping):
        return "(an id of several parts)"
    return hide_people(clean_text(str(record_id)))[:_ID_CHARS]


def _backups(parts: HttpParts, now: datetime) -> Backups:
    stored = parts.backups.list_backups()
    shown = []
    states: dict[str, int] = {}
    for one in stored:
        checked, manifest = one.verification, one.manifest
        states[one.state] = states.get(one.state, 0) + 1
        shown.append(
            ShownBackup(
                id=one.id,
                state=one.state,
                classes=list(manifest.classes) if manifest is not None else [],
                taken=None if manifest is None else manifest.taken,
                documents=None if manifest is None else manifest.documents,
                stored_bytes=None if manifest is None else manifest.stored_bytes,
                checked_at=None if checked is None else checked.checked_at,
                proof="none" if checked is None or not checked.restored else "whole" if checked.drill else "sample",
                why=in_words(one.why, limit_chars=_WORDS_CHARS),
            )
        )
    shown.sort(key=lambda one: one.id, reverse=True)
    good = max((one.taken for one in shown if one.state == "good" and one.taken is not None), default=None)
    return Backups(
        newest_good=good,
        age_s=None if good is None else (now - good).total_seconds(),
        limit_s=parts.settings.limits.backup_age_s,
        by_state=dict(sorted(states.items())),
        shown=shown[:_BACKUPS_SHOWN],
    )


# -- what the Prefect server knows -----------------------------------------------------------------------------------


_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def _runs(parts: HttpParts, now: datetime) -> Runs:
    server = parts.prefect
    if server is None:
        return Runs(configured=False, problem="No Prefect server is named: set PREFECT_API_URL.")
    lately = now - DAY

    def shown(found: Iterable[PrefectRun]) -> list[ShownRun]:
        return [_shown_run(run, parts) for run in found]

    return Runs(
        running=server.count_runs(["RUNNING"]),
        waiting=server.count_waiting(now),
        completed_day=server.count_runs(["COMPLETED"], since=lately),
        failed_day=server.count_runs(["FAILED"], since=lately),
        crashed_day=server.count_runs(["CRASHED"], since=lately),
        current=shown(server.read_runs(["RUNNING", "PENDING"], sort="START_TIME_DESC", limit=_RUNS_SHOWN)),
        latest=shown(server.read_runs(_ENDED, sort="START_TIME_DESC", limit=_RUNS_SHOWN)),
        next=shown(server.read_runs(["SCHEDULED"], sort="NEXT_SCHEDULED_START_TIME_ASC", limit=_NEXT_SHOWN)),
    )


def _shown_run(run: PrefectRun, parts: HttpParts) -> ShownRun:
    return ShownRun(
        id=run.id,
        name=clean_text(run.name),
        flow=clean_text(run.flow),
        state=run.state_name,
        state_type=run.state_type.lower(),
        says=in_words(hide_people(clean_text(run.message)), limit_chars=_WORDS_CHARS),
        began=run.began,
        expected=run.expected,
        seconds=round(run.seconds, 1),
        link=f"{parts.prefect_ui}/runs/flow-run/{run.id}",
    )


_READS: Mapping[str, tuple[type[Section], Read]] = {
    "health": (Health, _health),
    "objective": (Objective, _objective),
    "throughput": (Throughput, _of_store(_throughput)),
    "pace": (Pace, _pace),
    "runs": (Runs, _runs),
    "queue": (Queue, _of_store(_queue)),
    "errors": (Errors, _of_store(_errors)),
    "cost": (Cost, _of_store(_cost)),
    "letters": (Letters, _of_store(_letters)),
    "backups": (Backups, _backups),
    "history": (History, _history),
}
