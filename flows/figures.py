"""Figures: the aggregates of all teams brought up to date, day by day, from the rows that changed since."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from blocks.aggregates import AggregateStore, Written
from flows.blocks import Parts
from flows.jobs import at_work, job_origin, new_run, take_up
from flows.report import never_stopping
from flows.stages import whole
from tasks.aggregate import (
    TOPICS,
    Telling,
    Visited,
    Withheld,
    compute_days,
    describe_team,
    find_subject,
    look_at_sessions,
    look_at_transactions,
    read_campaigns,
    seal_of,
)
from tasks.domain.aggregates.campaigns import TrackedCampaign
from tasks.domain.aggregates.periods import Calendar, Period
from tasks.domain.aggregates.scopes import UTC_ZONE, AggregateKey, PartialKey, Scope
from tasks.domain.aggregates.storage import OutdatedPartialError
from tasks.domain.aggregates.touched import touched_aggregates
from tasks.domain.aggregates.units import Reading, Readings, Unit, UnitKey, in_batches
from tasks.domain.errors import InputError
from tasks.domain.manifests import Owner
from tasks.domain.owners import Owners
from tasks.domain.runs import Scope as RunScope

FiguresOf = Literal["transactions", "sessions"]
#: What is summed up day by day for the figures of each source.
_TOPICS_OF: dict[FiguresOf, tuple[str, ...]] = {"transactions": ("transactions",), "sessions": ("visits", "moves")}
_FAMILIES: dict[FiguresOf, str] = {"transactions": "transactions", "sessions": "visits"}
#: Rows whose figures are computed at once: some 100 MB.
_ROWS_AT_ONCE = 20_000
_NOBODY = Visited(Readings(), {}, ())


@dataclass(frozen=True, slots=True)
class FiguresReport:
    """What bringing the figures up to date did.

    ``rows`` were looked at, of which ``left_out`` belong to nobody or can't be read; they are dead letters of loading
    them. ``days`` of teams and websites have figures, ``computed`` of them anew, from ``computed_rows``. ``written``,
    ``unchanged`` and ``removed`` are documents: of those that were touched, and of ``documents`` in all.
    """

    rows: int
    left_out: int
    days: int
    computed: int
    computed_rows: int
    documents: int
    written: int
    unchanged: int
    removed: int
    time_zones: list[str]
    seconds: float

    def __str__(self) -> str:
        """Return it as one line."""
        return (
            f"{self.computed:,} of {self.days:,} days computed from {self.computed_rows:,} of {self.rows:,} rows; "
            f"{self.written:,} documents written, {self.unchanged:,} unchanged, {self.removed:,} removed, "
            f"{self.documents:,} in all"
        )


def require_figures(sources: Collection[str]) -> list[FiguresOf]:
    """Return of which of the sources figures are made. Raises ``InputError`` if of none."""
    found = [source for source in _TOPICS_OF if source in sources]
    if not found:
        raise InputError("figures are made of transactions and sessions: choose one of them, or documents=rows")
    return found


def bring_up_to_date(
    parts: Parts,
    of: Collection[FiguresOf],
    *,
    time_zones: Iterable[str] = (),
    forget_time_zones: Collection[str] = (),
    rebuild: bool = False,
) -> FiguresReport:
    """Compute the days whose rows changed, and make the documents that tell them; embeds nothing.

    Figures are kept on UTC's clocks, and on those of every zone that was asked for once, until it is forgotten. A run
    that was cut off is gone on with by the next one: what was computed stays. Raises ``WorkTakenError``
    while another run is at it, ``InputError`` for a zone that there isn't.
    """
    began = time.monotonic()
    aggregates = AggregateStore(parts.vectors)
    if UTC_ZONE in forget_time_zones:
        raise InputError("figures on UTC's clocks are always kept: forget other zones")
    kept = {UTC_ZONE, *aggregates.find_zones(), *time_zones} - set(forget_time_zones)
    zones = [Calendar(zone).zone for zone in sorted(kept)]
    job = take_up(new_run(RunScope("aggregate"), parts), job_origin("aggregate", "figures"), parts, resume=False)
    with at_work(job, parts, bulk=False):
        removed = sum(aggregates.forget_zone(zone) for zone in forget_time_zones)
        work = _Work(parts, aggregates, list(of), zones, job.run.started_ms)
        try:
            report = work.do(rebuild=rebuild, removed=removed, began=began)
        except OutdatedPartialError as error:
            get_run_logger().warning("%s; all figures are computed anew", error)
            report = work.do(rebuild=True, removed=removed, began=began)
        job.total = report.rows
        job.manifest.add(Owner(None, None), read=report.rows, unchanged=report.rows)
    _publish(report)
    return report


class _Work:
    """One run's way from rows to documents."""

    def __init__(
        self, parts: Parts, aggregates: AggregateStore, of: list[FiguresOf], zones: list[str], now_ms: int
    ) -> None:
        self._parts, self._aggregates, self._zones, self._now_ms = parts, aggregates, zones, now_ms
        self._topics = {topic for source in of for topic in _TOPICS_OF[source]}
        self._families = [_FAMILIES[source] for source in of]
        self._withheld = Withheld()

    def do(self, *, rebuild: bool, removed: int, began: float) -> FiguresReport:
        vectors = self._parts.vectors
        self._withheld = Withheld(*(frozenset(vectors.find_withheld(name)) for name in ("transaction", "session")))
        visited, looked_at = self._look()
        rows, left_out = sum(one.rows for one in looked_at), sum(one.left_out for one in looked_at)
        now = {
            key: reading
            for readings in looked_at
            for key, reading in readings.by_unit.items()
            if key.topic in self._topics
        }
        units = {
            key: unit for key, unit in self._aggregates.read_units(self._zones).items() if key.topic in self._topics
        }
        changed = [
            (key, reading)
            for key, reading in now.items()
            if rebuild or key not in units or units[key].digest != reading.digest
        ]
        changed += [(key, Reading()) for key in units.keys() - now.keys()]
        get_run_logger().info("%s of %s days have changed", f"{len(changed):,}", f"{len(now):,}")
        units |= self._compute(changed, units, visited)
        saved = Written()
        for zone in self._zones:
            saved += self._describe(zone, {key: unit for key, unit in units.items() if key.zone == zone}, visited)
        self._aggregates.note_described(key for key, unit in units.items() if not unit.described)
        return FiguresReport(
            rows=rows,
            # On each zone's clocks a row is in some day: it is counted on one's.
            left_out=left_out
            + sum(unit.refused for key, unit in units.items() if key.topic != "moves" and key.zone == self._zones[0]),
            days=len(now),
            computed=len(changed),
            computed_rows=sum(reading.rows for _, reading in changed),
            documents=self._aggregates.count(),
            written=saved.written,
            unchanged=saved.unchanged,
            removed=saved.deleted + removed,
            time_zones=self._zones,
            seconds=round(time.monotonic() - began, 1),
        )

    def _look(self) -> tuple[Visited, list[Readings]]:
        """Return what all rows are now; sessions first, because they say whose transactions are won by a visit."""
        parts, retries = self._parts, self._parts.retries
        owners, visited, found = whole(parts.owners), _NOBODY, []
        if "visits" in self._topics:
            campaigns = read_campaigns.with_options(retries=retries)(parts.source, owners, self._now_ms)
            visited = look_at_sessions.with_options(retries=retries)(
                parts.source, owners, whole(campaigns), whole(self._withheld), self._zones, self._now_ms
            )
            found.append(visited.readings)
        if "transactions" in self._topics or visited.wallets:
            found.append(
                look_at_transactions.with_options(retries=retries)(
                    parts.source, owners, whole(visited.wallets), whole(self._withheld), self._zones, self._now_ms
                )
            )
        return visited, found

    def _compute(
        self, changed: Iterable[tuple[UnitKey, Reading]], units: Mapping[UnitKey, Unit], visited: Visited
    ) -> dict[UnitKey, Unit]:
        parts = self._parts
        computed: dict[UnitKey, Unit] = {}
        for number, batch in enumerate(in_batches(changed, rows=_ROWS_AT_ONCE)):
            before = {key: units[key] for key, _ in batch if key in units}
            computed |= compute_days.with_options(retries=parts.retries)(
                number,
                whole(batch),
                whole(before),
                parts.source,
                whole(parts.owners),
                whole(visited),
                whole(self._withheld),
                parts.vectors,
                self._now_ms,
            )
        return computed

    def _describe(self, zone: str, units: Mapping[UnitKey, Unit], visited: Visited) -> Written:
        """Make the documents that changed on one zone's clocks."""
        campaigns = {campaign.campaign_id: campaign for campaign in visited.campaigns}
        by_team: dict[str, list[Telling]] = {}
        for telling in self._find_tellings(zone, units, campaigns):
            team_id = "nobody" if telling.subject is None else telling.subject.team_id
            by_team.setdefault(team_id, []).append(telling)
        saved = Written()
        for team_id, tellings in sorted(by_team.items()):
            saved += describe_team.with_options(retries=self._parts.retries)(
                team_id, zone, whole(tellings), self._parts.vectors, self._now_ms
            )
        return saved

    def _find_tellings(
        self, zone: str, units: Mapping[UnitKey, Unit], campaigns: Mapping[str, TrackedCampaign]
    ) -> list[Telling]:
        owners = self._parts.owners
        site_teams = _teams_of_sites(owners)
        parts = _parts_of_scopes(units, site_teams)
        known = {key: found for key, found in self._aggregates.read_scopes(zone).items() if key[0] in self._families}
        touched = touched_aggregates(
            (
                PartialKey(key.topic, scope, key.day, zone)
                for key, unit in units.items()
                if not unit.described
                for scope in unit.scopes
            ),
            site_teams=site_teams,
            campaigns=[scope for family, scope in parts if family == "visits" and scope.kind == "campaign"],
        )
        touched |= self._aggregates.find_ended(zone, self._parts.vectors.read_time())
        periods = _by_scope(touched)
        tellings = []
        for family, scope in sorted(parts.keys() | known.keys() | periods.keys(), key=repr):
            told = (family, scope) in parts or (family, scope) in known
            if family not in self._families or not told:
                continue
            seal, newcomers = known.get((family, scope), ("", {}))
            made_of = parts.get((family, scope))
            subject = find_subject(family, scope, made_of, owners, campaigns) if made_of else None
            campaign = campaigns.get(scope.part) if scope.kind == "campaign" else None
            wanted = seal_of(subject, campaign)
            chosen = frozenset(periods.get((family, scope), ()))
            if chosen or wanted != seal:
                tellings.append(
                    Telling(
                        family,
                        scope,
                        subject,
                        wanted,
                        tuple(made_of or ()),
                        chosen,
                        newcomers,
                        everything=wanted != seal,
                        campaign=campaign,
                    )
                )
        return tellings


def _teams_of_sites(owners: Owners) -> dict[str, str]:
    return {
        site.site_id: site.team_id
        for site in owners.by_site_id.values()
        if site.owner_error is None and site.team_id is not None
    }


def _parts_of_scopes(
    units: Mapping[UnitKey, Unit], site_teams: Mapping[str, str]
) -> dict[tuple[str, Scope], list[Scope]]:
    """Return the scopes of which documents tell, by family, with those whose stored figures each is made of."""
    scopes = {
        (key.topic, scope) for key, unit in units.items() if unit.rows and key.topic != "moves" for scope in unit.scopes
    }
    found: dict[tuple[str, Scope], list[Scope]] = {}
    sites = Counter(site_teams.values())
    for topic, scope in sorted(scopes, key=repr):
        found[topic, scope] = [scope]
        if scope.kind == "chain":
            found.setdefault((topic, Scope.team(scope.holder_id)), []).append(scope)
        elif scope.kind == "site":
            team_id = site_teams.get(scope.holder_id)
            if team_id is not None and sites[team_id] > 1:
                found.setdefault((topic, Scope.team(team_id)), []).append(scope)
    # A team's only chain is told with the team.
    alone = {(topic, parts[0]) for (topic, scope), parts in found.items() if _is_team_of_chains(scope, parts)}
    return {key: parts for key, parts in found.items() if key not in alone}


def _is_team_of_chains(scope: Scope, parts: Sequence[Scope]) -> bool:
    return scope.kind == "team" and len(parts) == 1 and parts[0].kind == "chain"


def _by_scope(keys: Iterable[AggregateKey]) -> dict[tuple[str, Scope], set[Period]]:
    families = {topic: family for family, topics in TOPICS.items() for topic in topics}
    found: dict[tuple[str, Scope], set[Period]] = {}
    for key in keys:
        found.setdefault((families[key.topic], key.scope), set()).add(key.period)
    return found


def _publish(report: FiguresReport) -> None:
    """Put what was done beside the run in the UI."""
    lines = [f"# {report}", "", "| | |", "|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {', '.join(value) if isinstance(value, list) else f'{value:,}'} |"
        for name, value in asdict(report).items()
    ]
    with never_stopping("the summary of the figures"):
        create_markdown_artifact("\n".join(lines), key="figures-summary", description="How the figures were brought up")
