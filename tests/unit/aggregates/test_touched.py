"""What a late row touches: the periods of its day and those after them, of every scope that it is in."""

from __future__ import annotations

from datetime import date

from hypothesis import given

from tasks.domain.aggregates.newcomers import changed_days
from tasks.domain.aggregates.periods import LEVELS, Calendar, Period
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.touched import touched_aggregates, touched_periods
from tasks.domain.aggregates.transactions import transaction_keys
from tasks.domain.transactions import Transaction
from tests.builders import TEAM_ID, TOKEN_ID, make_transaction
from tests.unit.aggregates import test_aggregated_transactions as made

TEAM = str(TEAM_ID)
SITES = {"site-a": TEAM, "site-b": TEAM, "site-c": "somebody else's"}


def labels(*days: date | None) -> set[str]:
    return {period.label for period in touched_periods(days)}


def test_a_day_touches_its_periods_and_those_after_them() -> None:
    assert labels(date(2024, 12, 31)) == {
        *("2024-12-31", "2025-01-01"),
        *("2025-W01", "2025-W02"),
        *("2024-12", "2025-01"),
        "all",
    }


def test_a_row_without_a_time_touches_all_time_alone() -> None:
    assert labels(None) == {"all"}


def test_only_the_levels_that_are_asked_for_are_touched() -> None:
    assert {period.label for period in touched_periods([date(2024, 2, 29)], ["month"])} == {"2024-02", "2024-03"}


def test_a_transaction_touches_its_contract_its_chain_and_its_team() -> None:
    keys = transaction_keys(make_transaction(), Calendar())
    texts = {key.text for key in touched_aggregates(keys, levels=["month"])}
    assert texts == {
        f"aggregate:{holder}:{topic}:month:{month}{chain}"
        for topic in ("transactions", "staking")
        for month in ("2022-05", "2022-06")
        for holder, chain in ((TOKEN_ID, ""), (TEAM, ":chain=Ethereum"), (TEAM, ""))
    }


def test_a_visit_touches_its_website_and_its_team_where_that_has_several() -> None:
    day = date(2025, 6, 10)
    for site_id, holders in (("site-a", {"site-a", TEAM}), ("site-c", {"site-c"})):
        key = PartialKey("visits", Scope.site(site_id), day)
        texts = {key.text for key in touched_aggregates([key], levels=["all"], site_teams=SITES)}
        assert texts == {f"aggregate:{holder}:{topic}:all:all" for holder in holders for topic in ("visits", "funnel")}


def test_a_move_touches_the_funnels_of_its_team_and_its_campaigns() -> None:
    campaigns = [Scope.campaign("site-a", "64d1"), Scope.campaign("site-c", "64d2")]
    key = PartialKey("moves", Scope.team(TEAM), date(2025, 6, 10))
    found = touched_aggregates([key], levels=["all"], site_teams=SITES, campaigns=campaigns)
    assert {key.text for key in found} == {
        "aggregate:site-a:funnel:all:all",
        "aggregate:site-b:funnel:all:all",
        f"aggregate:{TEAM}:funnel:all:all",
        "aggregate:site-a:campaign:all:all:campaign=64d1",
    }


def test_a_visit_through_a_campaign_touches_the_campaign() -> None:
    key = PartialKey("visits", Scope.campaign("site-a", "64d1"), date(2025, 6, 10), "Asia/Tokyo")
    assert {key.text for key in touched_aggregates([key], levels=["all"], site_teams=SITES)} == {
        "aggregate:site-a:campaign:all:all:campaign=64d1:zone=Asia/Tokyo"
    }


@given(rows=made.transactions(), late=made.transactions())
def test_every_document_that_a_late_row_changes_is_touched(rows: list[Transaction], late: list[Transaction]) -> None:
    """Made again are the touched ones, and those that hold a day whose number of newcomers changed."""
    before, after = made.partials(rows), made.partials([*rows, *late])
    touched = touched_aggregates(key for row in late for key in transaction_keys(row, Calendar()))
    for subject in made.SUBJECTS:
        newcomers = [
            made.count_newcomers(
                (part.first, figures.senders)
                for part, figures in made.parts_of(found, subject.scope)
                if part is not None
            )
            for found in (before, after)
        ]
        said = {key.period for key in touched if key.scope == subject.scope}
        said |= touched_periods(changed_days(*newcomers))
        days = [part.first for part, _ in made.parts_of(after, subject.scope) if part is not None]
        for period in {Period.of(level, day) for day in days for level in LEVELS}:
            old, new = (made.aggregate(found, subject, period) for found in (before, after))
            if new is not None and (old is None or made.describe_transactions(old) != made.describe_transactions(new)):
                assert period in said
