"""The golden set: every figure of every scope is the naive one, on the clocks of several zones and over a leap day."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import date
from functools import cache
from typing import Any

import pytest

from tasks.domain.aggregates.periods import LEVELS, Period
from tasks.domain.aggregates.scopes import Scope
from tasks.domain.aggregates.visits import Visit
from tasks.domain.documents import Document
from tasks.domain.transactions import Transaction
from tests.golden import Golden, make_golden
from tests.questions.documents import GoldenFigures
from tests.unit.aggregates import naive

#: Whole hours and half ones, east and west of Greenwich; two of them change their clocks.
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns")
#: Days at which a mistake would show: a leap day, changes of the clocks in spring and autumn, an ISO week that belongs
#: to another year than its days.
DAYS = (
    date(2024, 2, 29),
    date(2024, 3, 10),
    date(2024, 3, 31),
    date(2024, 10, 27),
    date(2024, 11, 3),
    date(2024, 12, 30),
)
PERIODS = frozenset(Period.of(level, day) for day in DAYS for level in LEVELS)


@cache
def golden() -> Golden:
    # Visits until January 2025. The naive computation looks at all rows of a scope for each of its periods.
    return make_golden(transactions=4_000, sessions=2_800)


@cache
def of_zone(zone: str) -> GoldenFigures:
    return GoldenFigures(golden(), zone)


def wanted(scope: Scope, period: Period) -> bool:
    return period in PERIODS


def figures_of(document: Document) -> dict[str, Any]:
    return {name: figure for name, figure in document.metadata["facts"]["figures"].items() if name != "series"}


def shown(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figure for name, figure in figures.items() if name[0] != "_"}


def in_scope(rows: Iterable[Transaction]) -> dict[tuple[str, str, str], list[Transaction]]:
    """Return the transactions of each contract, chain and team."""
    found: dict[tuple[str, str, str], list[Transaction]] = defaultdict(list)
    for row in rows:
        found["contract", row.contract_id, ""].append(row)
        found["chain", row.team_id, row.chain or "unknown"].append(row)
        found["team", row.team_id, ""].append(row)
    return found


@cache
def transactions() -> dict[tuple[str, str, str], list[Transaction]]:
    return in_scope(golden().transactions)


@cache
def visits() -> dict[tuple[str, str, str], list[Visit]]:
    """Return the visits of each website, of each team with several, and of each campaign, by a naive attribution."""
    owners = golden().owners.by_site_id
    found: dict[tuple[str, str, str], list[Visit]] = defaultdict(list)
    for visit in golden().visits:
        found["site", visit.site_id, ""].append(visit)
        found["team", owners[visit.site_id].team_id or "", ""].append(visit)
        campaign_id = naive.campaign_of(visit, golden().campaigns)
        if campaign_id is not None:
            found["campaign", visit.site_id, campaign_id].append(visit)
    return found


def told(document: Document) -> tuple[tuple[str, str, str], str, str]:
    """Return whom a document is about, and the level and label of its period."""
    facts = document.metadata["facts"]
    part = facts.get("chain") or facts.get("campaignId") or ""
    return (facts["scope"], document.holder_id, part), facts["period"], facts["label"]


def labels_of(moments: Iterable[int | None], zone: str) -> Iterator[tuple[str, str]]:
    """Yield level and label of each wanted period that holds one of the moments; all time holds each."""
    for moment in moments:
        day = naive.day_of(moment, zone)
        for level in LEVELS:
            if level == "all" or (day is not None and Period.of(level, day) in PERIODS):
                yield level, naive.label(day or date.min, level)


@pytest.mark.parametrize("zone", ZONES)
def test_every_figure_of_transactions_and_staking_is_the_naive_one(zone: str) -> None:
    made: dict[tuple[str, tuple[str, str, str], str, str], Document] = {}
    for document in of_zone(zone).of_transactions(wanted):
        made[document.metadata["metricType"], *told(document)] = document
    expected = 0
    for scope, rows in transactions().items():
        for level, label in set(labels_of((row.block_time_ms for row in rows), zone)):
            figures = naive.transaction_figures(rows, scope[0], level, label, zone)
            assert figures is not None
            document = made["transactions", scope, level, label]
            assert figures_of(document) == shown(figures), document.key
            staking = made.get(("staking", scope, level, label))
            if figures["_stakes"]:
                assert staking is not None
                assert figures_of(staking) == naive.staking_figures(figures), staking.key
                expected += 1
            else:
                assert staking is None
            expected += 1
            if level != "all":
                earlier = naive.label_before(Period.from_label(label).first, level)
                before = naive.transaction_figures(rows, scope[0], level, earlier, zone)
                change = naive.change_of_transactions(figures, before)
                assert document.metadata["facts"]["change"] == {"against": earlier, **change}, document.key
    assert len(made) == expected > 700


@pytest.mark.parametrize("zone", ZONES)
def test_every_figure_of_visits_funnels_and_campaigns_is_the_naive_one(zone: str) -> None:
    made: dict[tuple[str, tuple[str, str, str], str, str], Document] = {}
    for document in of_zone(zone).of_visits(wanted):
        made[document.metadata["metricType"], *told(document)] = document
    owners = golden().owners.by_site_id
    sites = [site for site in owners.values() if site.owner_error is None]
    campaigns = {campaign.campaign_id: campaign for campaign in golden().campaigns}
    expected = 0
    for scope, mine in visits().items():
        team_id = scope[1] if scope[0] == "team" else owners[scope[1]].team_id
        if scope[0] == "team" and sum(site.team_id == team_id for site in sites) == 1:
            continue
        rows = transactions().get(("team", team_id or "", ""), [])
        for level, label in set(labels_of((visit.start_ms for visit in mine), zone)):
            visited = naive.visit_figures(mine, level, label, zone)
            funnel = naive.funnel_figures(mine, rows, level, label, zone)
            earlier = None if level == "all" else naive.label_before(Period.from_label(label).first, level)
            funnel_before = None if earlier is None else naive.funnel_figures(mine, rows, level, earlier, zone)
            assert visited is not None
            assert funnel is not None
            if scope[0] == "campaign":
                document = made["campaign", scope, level, label]
                cost = campaigns[scope[2]] if level == "all" else None
                assert figures_of(document) == naive.campaign_figures(visited, funnel, cost), document.key
                change = naive.change_of_funnel(funnel, funnel_before, "conversions")
                expected += 1
            else:
                document = made["funnel", scope, level, label]
                assert figures_of(document) == shown(funnel), document.key
                change = naive.change_of_funnel(funnel, funnel_before)
                traffic = made["visits", scope, level, label]
                assert figures_of(traffic) == shown(visited), traffic.key
                if earlier is not None:
                    visited_before = naive.visit_figures(mine, level, earlier, zone)
                    changes = naive.change_of_visits(visited, visited_before)
                    assert traffic.metadata["facts"]["change"] == {"against": earlier, **changes}, traffic.key
                expected += 2
            if earlier is not None:
                assert document.metadata["facts"]["change"] == {"against": earlier, **change}, document.key
    assert len(made) == expected > 500


def test_the_days_that_are_looked_at_hold_transactions_and_visits_in_every_zone() -> None:
    for zone in ZONES:
        for topic, moments in (
            ("transactions", [row.block_time_ms for row in golden().transactions]),
            ("visits", [visit.start_ms for visit in golden().visits]),
        ):
            days = {naive.day_of(moment, zone) for moment in moments}
            assert set(DAYS) <= days, (zone, topic)


def test_the_leap_day_is_one_day_and_begins_and_ends_as_each_clock_says() -> None:
    def on_the_leap_day(scope: Scope, period: Period) -> bool:
        return scope.kind == "site" and period == Period.of("day", date(2024, 2, 29))

    starts = {}
    for zone in ZONES:
        (document,) = (
            document
            for document in of_zone(zone).of_visits(on_the_leap_day)
            if document.metadata["metricType"] == "visits"
            and document.metadata["facts"]["subject"].startswith("Quillon")
        )
        window = document.metadata["facts"]["window"]
        assert (window["end"] - window["start"]).total_seconds() == 86_400
        starts[zone] = window["start"].strftime("%d %H:%M")
    assert starts == {
        "UTC": "29 00:00",
        "Europe/Berlin": "28 23:00",
        "Asia/Kolkata": "28 18:30",
        "America/St_Johns": "29 03:30",
    }


def test_zones_see_other_days() -> None:
    """So that equality in four zones says more than in one."""
    figures = {
        zone: [
            figures_of(document)["sessions"]
            for document in of_zone(zone).of_visits(
                lambda scope, period: scope.kind == "site" and period == Period.of("day", date(2024, 3, 31))
            )
            if document.metadata["metricType"] == "visits"
        ]
        for zone in ZONES
    }
    assert len({tuple(found) for found in figures.values()}) > 2
