"""Which figures a late or changed row touches: row -> partial figures -> documents. Only those are made again.

Partial figures of a row: ``transaction_keys``, ``move_key`` and ``visit_keys``, of the row as it was and as it is (one
that moves to another day touches both). From there on the functions below say what must be described again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date

from tasks.domain.aggregates.periods import ALL_TIME, LEVELS, Level, Period
from tasks.domain.aggregates.scopes import AggregateKey, PartialKey, Scope, Topic


def touched_periods(days: Iterable[date | None], levels: Collection[Level] = LEVELS) -> set[Period]:
    """Return the periods whose documents change with the rows of these days; None stands for rows without a time.

    They are the periods that hold a day, and those after them, which tell the change against the period before.
    """
    periods: set[Period] = set()
    for day in days:
        if "all" in levels:
            periods.add(ALL_TIME)
        if day is not None:
            for level in levels:
                period = Period.of(level, day)
                after = period.next()
                periods.update({period} if after is None else {period, after})
    return periods


def touched_aggregates(
    keys: Iterable[PartialKey],
    *,
    levels: Collection[Level] = LEVELS,
    site_teams: Mapping[str, str] | None = None,
    campaigns: Collection[Scope] = (),
) -> set[AggregateKey]:
    """Return the documents that change with these partial figures.

    ``site_teams`` names the team of each website, ``campaigns`` are the scopes of all campaigns: transactions of
    wallets that a team's websites know end their funnels. A team with several websites has documents of them together.
    Where a document's period has no rows, there is none, or it must go.

    New and returning wallets of other periods may change too: give ``touched_periods`` the days that ``changed_days``
    found, for the scope.
    """
    sites_by_team: dict[str, list[str]] = {}
    for site_id, team_id in (site_teams or {}).items():
        sites_by_team.setdefault(team_id, []).append(site_id)
    found: set[AggregateKey] = set()
    for key in keys:
        for period in touched_periods([key.day], levels):
            for topic, scope in _told_by(key, site_teams or {}, sites_by_team, campaigns):
                found.add(AggregateKey(topic, scope, period, key.zone))
    return found


def _told_by(
    key: PartialKey,
    site_teams: Mapping[str, str],
    sites_by_team: Mapping[str, Collection[str]],
    campaigns: Collection[Scope],
) -> Iterator[tuple[Topic, Scope]]:
    scope = key.scope
    if key.topic == "transactions":
        for told in (scope, Scope.team(scope.holder_id)) if scope.kind == "chain" else (scope,):
            yield "transactions", told
            yield "staking", told
    elif scope.kind == "campaign":
        yield "campaign", scope
    elif key.topic == "visits":
        team_id = site_teams.get(scope.holder_id, "")
        several = len(sites_by_team.get(team_id, ())) > 1
        for told in (scope, Scope.team(team_id)) if several else (scope,):
            yield "visits", told
            yield "funnel", told
    else:
        site_ids = sites_by_team.get(scope.holder_id, ())
        for told in (*map(Scope.site, site_ids), *([scope] if len(site_ids) > 1 else [])):
            yield "funnel", told
        for campaign in campaigns:
            if campaign.holder_id in site_ids:
                yield "campaign", campaign
