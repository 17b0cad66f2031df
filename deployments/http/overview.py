"""Overview: all that the monitoring page shows, as one value; the same that its JSON holds.

Every section is read beside the others, within its own time. One that can't be read says so and keeps none back: with
MongoDB and the Prefect server both gone, what the monitor's book holds is still there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from blocks.code_version import read_code_version
from blocks.operations import read_errors, read_refused, read_team_days
from deployments.http.health import OpenAlert, Probed, read_details
from deployments.http.parts import HttpParts, asked
from tasks.domain.alerts import OBJECTIVE, query_of, runbook_link
from tasks.domain.errors import PipelineError
from tasks.domain.incidents import in_words
from tasks.domain.meters import Measure

DAY, MONTH = timedelta(days=1), timedelta(days=30)
_WITHIN_S = 4.0
_RUNS_SHOWN = 15
_STATES_FIRST = ("CRASHED", "FAILED", "PENDING", "RUNNING")


class Section(BaseModel):
    """A part of the page. ``problem`` says why it is empty, where it couldn't be read."""

    problem: str | None = None


class ShownAlert(OpenAlert):
    """An alert with where it is written what to do, and the command that shows more."""

    runbook: str
    look: str
    ended: datetime | None = None


class Health(Section):
    """The state now: what each probe found last, and what is wrong."""

    status: Literal["ok", "warning", "critical", "unknown"] = "unknown"
    probes: dict[str, Probed] = {}
    alerts: list[ShownAlert] = []


class Objective(Section):
    """Availability over 30 days by what probes saw, against 99.9 %; times in seconds."""

    objective: float = OBJECTIVE
    availability: float | None = None
    good_s: float = 0.0
    bad_s: float = 0.0
    unknown_s: float = 0.0
    budget_left_s: float = 0.0


class Sample(BaseModel):
    """A value at a moment."""

    at: datetime
    value: float | None


class Throughput(Section):
    """Texts embedded and reused in each hour of the last day, ingestion lag in seconds, p95 of requests by kind."""

    texts: list[Sample] = []
    reused: list[Sample] = []
    lag_s: list[Sample] = []
    lag_limit_s: float = 0.0
    p95_s: dict[str, float] = {}
    error_rate: dict[str, float] = {}


class ShownRun(BaseModel):
    """A flow run; ``link`` leads to it in the Prefect UI."""

    name: str
    state: str
    says: str
    expected: datetime
    seconds: float
    link: str


class Runs(Section):
    """The runs of the last day by state, and those that a person would look at first."""

    waiting: int = 0
    states: dict[str, int] = {}
    shown: list[ShownRun] = []


class ShownError(BaseModel):
    """Errors of runs by code and kind of job, of seven days."""

    code: str
    kind: str
    number: int
    newest: datetime
    says: str


class Errors(Section):
    """What failed: runs by code, requests by kind and code."""

    runs: list[ShownError] = []
    requests: dict[str, dict[str, int]] = {}


class DayCost(BaseModel):
    """What a day's embeddings were and cost."""

    day: datetime
    texts: int
    tokens: int
    usd: float


class TeamCost(BaseModel):
    """A team's share in 30 days, by ``embeddingstats``."""

    team_id: str
    documents: int
    tokens: int
    usd: float


class Cost(Section):
    """Thirty days, day by day and by team."""

    days: list[DayCost] = []
    teams: list[TeamCost] = []
    usd_today: float = 0.0
    budget_usd: float | None = None


class ShownLetters(BaseModel):
    """Open dead letters of one reason, with some of the records."""

    code: str
    stage: str
    number: int
    newest: datetime
    reason: str
    samples: list[str]


class Letters(Section):
    """The dead letters that are open."""

    open: int = 0
    reasons: list[ShownLetters] = []


class ShownBackup(BaseModel):
    """A backup in the catalogue."""

    id: str
    state: str
    classes: list[str]
    taken: datetime | None
    documents: int | None
    stored_bytes: int | None
    drill: bool


class Backups(Section):
    """The backups, the newest first."""

    newest_good: datetime | None = None
    shown: list[ShownBackup] = []


class History(Section):
    """The alerts of 30 days, the newest first."""

    alerts: list[ShownAlert] = []


class Overview(BaseModel):
    """Everything on the page."""

    at: datetime
    version: str
    environment: str
    health: Health
    objective: Objective
    throughput: Throughput
    runs: Runs
    errors: Errors
    cost: Cost
    letters: Letters
    backups: Backups
    history: History


Part = TypeVar("Part", bound=Section)


def read_overview(parts: HttpParts, *, now: datetime) -> Overview:
    """Return everything, in as long as the slowest section may take."""
    reads: dict[str, tuple[type[Section], Callable[[HttpParts, datetime], Section]]] = {
        "health": (Health, _health),
        "objective": (Objective, _objective),
        "throughput": (Throughput, _throughput),
        "runs": (Runs, _runs),
        "errors": (Errors, _errors),
        "cost": (Cost, _cost),
        "letters": (Letters, _letters),
        "backups": (Backups, _backups),
        "history": (History, _history),
    }
    started = {
        name: asked(_WITHIN_S, lambda read=read: read(parts, now))  # type: ignore[misc]
        for name, (_, read) in reads.items()
    }
    found: dict[str, Any] = {}
    for name, (kind, _) in reads.items():
        try:
            found[name] = started[name].result(timeout=_WITHIN_S + 0.5)
        except TimeoutError:
            found[name] = kind(problem=f"No answer within {_WITHIN_S:g} s.")
        except PipelineError as error:
            found[name] = kind(problem=in_words(str(error)))
        except Exception as error:  # noqa: BLE001 - one section must not take the page away; its words may hold anything
            found[name] = kind(problem=f"It can't be read ({type(error).__name__}).")
    return Overview(at=now, version=read_code_version(), environment=parts.settings.cryptique_environment, **found)


def _health(parts: HttpParts, now: datetime) -> Health:
    details = read_details(parts, started=now, now=now)
    return Health(
        status=details.status,
        probes=details.probes,
        alerts=[_shown(parts, **alert.model_dump()) for alert in details.alerts],
        problem=details.problem,
    )


def _shown(parts: HttpParts, *, name: str, **values: Any) -> ShownAlert:
    # On the page itself the runbook is beside it, whatever the public address is.
    link = runbook_link(name, "")
    return ShownAlert(
        name=name, runbook=link.replace("deployments/runbook.md", "/admin/runbook"), look=query_of(name), **values
    )


def _objective(parts: HttpParts, now: datetime) -> Objective:
    looks = parts.book.count_looks(now - MONTH, now)
    return Objective(
        availability=looks.availability,
        good_s=looks.good_s,
        bad_s=looks.bad_s,
        unknown_s=looks.unknown_s,
        budget_left_s=looks.budget_left_s(),
    )


def _throughput(parts: HttpParts, now: datetime) -> Throughput:
    measures = parts.vectors.read_measures(now - DAY)
    hours = [now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=back) for back in range(23, -1, -1)]
    readings = parts.book.read_readings(now - DAY, probe="ingest")
    window = now - timedelta(seconds=parts.settings.limits.window_s)
    kinds: dict[str, Measure] = {}
    for one in measures:
        if one.minute >= window:
            kinds[one.kind] = kinds[one.kind] + one if one.kind in kinds else one
    return Throughput(
        texts=[Sample(at=hour, value=_sum(measures, "texts", hour)) for hour in hours],
        reused=[Sample(at=hour, value=_sum(measures, "reused", hour)) for hour in hours],
        lag_s=[Sample(at=one.at, value=one.figures.get("lag_s")) for one in readings],
        lag_limit_s=parts.settings.limits.ingest_lag_s,
        p95_s={kind: round(value, 3) for kind, one in kinds.items() if (value := one.quantile_s(0.95)) is not None},
        error_rate={kind: round(one.error_rate, 4) for kind, one in kinds.items() if one.error_rate is not None},
    )


def _sum(measures: list[Measure], figure: str, hour: datetime) -> float:
    return float(sum(getattr(one, figure) for one in measures if hour <= one.minute < hour + timedelta(hours=1)))


def _runs(parts: HttpParts, now: datetime) -> Runs:
    if parts.prefect is None:
        return Runs(problem="No Prefect server is named.")
    found = [run for run in parts.prefect.read_runs(now - DAY) if run.expected <= now]
    states: dict[str, int] = {}
    for run in found:
        states[run.state_name] = states.get(run.state_name, 0) + 1
    rank = {state: place for place, state in enumerate(_STATES_FIRST)}
    first = sorted(found, key=lambda run: rank.get(run.state_type, len(rank)))[:_RUNS_SHOWN]
    return Runs(
        waiting=parts.prefect.count_waiting(now),
        states=dict(sorted(states.items())),
        shown=[
            ShownRun(
                name=run.name,
                state=run.state_name,
                says=in_words(run.message, limit_chars=200),
                expected=run.expected,
                seconds=round(run.seconds, 1),
                link=f"{parts.prefect_ui}/runs/flow-run/{run.id}",
            )
            for run in first
        ],
    )


def _errors(parts: HttpParts, now: datetime) -> Errors:
    requests: dict[str, dict[str, int]] = {}
    for one in parts.vectors.read_measures(now - DAY):
        for code, number in one.errors.items():
            of_kind = requests.setdefault(one.kind, {})
            of_kind[code] = of_kind.get(code, 0) + number
    return Errors(
        runs=[
            ShownError(
                code=one.code,
                kind=one.kind,
                number=one.number,
                newest=one.newest,
                says=in_words(one.says, limit_chars=200),
            )
            for one in read_errors(parts.vectors, now - timedelta(days=7))
        ],
        requests=requests,
    )


def _cost(parts: HttpParts, now: datetime) -> Cost:
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [today - timedelta(days=back) for back in range(29, -1, -1)]
    sums = {day: [0, 0, 0.0] for day in days}
    for one in parts.vectors.read_measures(days[0]):
        row = sums.get(one.minute.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
        if row is not None and one.kind == "embed":
            row[0] += one.texts
            row[1] += one.tokens
            row[2] += one.usd
    teams: dict[str, TeamCost] = {}
    for found in read_team_days(parts.vectors, days[0]):
        if found.team_id is None:
            continue
        team = teams.setdefault(found.team_id, TeamCost(team_id=found.team_id, documents=0, tokens=0, usd=0.0))
        team.documents += found.documents
        team.tokens += found.tokens
        team.usd += found.usd
    shown = [DayCost(day=day, texts=int(row[0]), tokens=int(row[1]), usd=float(row[2])) for day, row in sums.items()]
    return Cost(
        days=shown,
        teams=sorted(teams.values(), key=lambda team: (-team.usd, -team.documents, team.team_id)),
        usd_today=shown[-1].usd,
        budget_usd=parts.settings.limits.usd_per_day,
    )


def _letters(parts: HttpParts, now: datetime) -> Letters:
    found = read_refused(parts.vectors)
    return Letters(
        open=sum(one.number for one in found),
        reasons=[
            ShownLetters(
                code=one.code,
                stage=one.stage,
                number=one.number,
                newest=one.newest,
                reason=in_words(one.reason, limit_chars=200),
                samples=list(one.samples),
            )
            for one in found
        ],
    )


def _backups(parts: HttpParts, now: datetime) -> Backups:
    stored = parts.backups.list_backups()
    shown = [
        ShownBackup(
            id=one.id,
            state=one.state,
            classes=list(one.manifest.classes) if one.manifest is not None else [],
            taken=None if one.manifest is None else one.manifest.taken,
            documents=None if one.manifest is None else one.manifest.documents,
            stored_bytes=None if one.manifest is None else one.manifest.stored_bytes,
            drill=one.verification is not None and one.verification.drill,
        )
        for one in stored
    ]
    good = [one.taken for one in shown if one.state == "good" and one.taken is not None]
    return Backups(newest_good=max(good, default=None), shown=shown)


def _history(parts: HttpParts, now: datetime) -> History:
    alerts = parts.book.read_alerts(now - MONTH)
    return History(
        alerts=[
            _shown(
                parts,
                name=one.name,
                severity=one.severity,
                title=one.title,
                says=one.says,
                began=one.began,
                ended=one.ended,
            )
            for one in alerts
        ]
    )
