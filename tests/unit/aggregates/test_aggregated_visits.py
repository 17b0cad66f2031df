"""Figures of visits, funnels and campaigns, merged from stored days, against the naive computation over all rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.aggregates.campaigns import Attribution, TrackedCampaign, read_campaign
from tasks.domain.aggregates.compiling import Aggregate, put_together
from tasks.domain.aggregates.describe import describe_campaign, describe_funnel, describe_visits
from tasks.domain.aggregates.moves import MoveDays, Moves, convert, move_key
from tasks.domain.aggregates.newcomers import count_newcomers
from tasks.domain.aggregates.periods import LEVELS, Calendar, Level, Period
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.storage import decode_partial, encode_partial
from tasks.domain.aggregates.subjects import Subject, campaign_subject, site_subject, team_subject
from tasks.domain.aggregates.visits import Visit, VisitDays, VisitFigures, read_visit, visit_keys
from tasks.domain.campaigns import parse_campaign
from tasks.domain.owners import Owners, Site
from tasks.domain.sessions import parse_session
from tasks.domain.transactions import Transaction
from tests.builders import ESCROW_ID, NOW_MS, SITE_ID, TEAM_ID, TOKEN_ID, make_owners, make_transaction
from tests.unit.aggregates import naive
from tests.unit.aggregates.test_aggregated_transactions import AMOUNTS, HASHES, MOMENTS, ZONES, ms

Partials = dict[PartialKey, VisitFigures]

TEAM = str(TEAM_ID)
SITE = Site(SITE_ID, "Shop", "shop.example", TEAM)
OTHER_SITE = Site("site-b", None, "other.example", TEAM)
WALLETS = ["0x" + digit * 40 for digit in "12ab"]
CAMPAIGN = TrackedCampaign(
    "64d000000000000000000001",
    SITE_ID,
    "Spring",
    utm_id="spring-1",
    utm_campaign="spring",
    cost=Decimal("1250.50"),
    currency="EUR",
)
STARTS = [moment for moment in MOMENTS if moment is not None]
PAGES = ["/", "/stake", "/docs", "/über uns", "$a.b"]


def make_visit(**changes: Any) -> Visit:
    visit = Visit(
        record_id="64e000000000000000000001",
        site_id=SITE_ID,
        session_id="s-1",
        start_ms=ms(2025, 6, 10, 14, 5),
        visitor="v-1",
        duration_ms=61_500,
        bounced=False,
        pages_viewed=3,
        pages=("/", "/stake", "/"),
        entry_page="/",
        exit_page="/stake",
        source="google/cpc",
        country="DE",
        device="desktop",
        system="macOS",
        browser="Firefox",
    )
    return replace(visit, **changes)


@st.composite
def visits(draw: st.DrawFn) -> list[Visit]:
    """Return sessions of two websites; sessions, visitors and wallets meet again and again."""
    found = []
    for number in range(draw(st.integers(0, 14))):
        wallet = draw(st.sampled_from([None, None, *WALLETS]))
        found.append(
            make_visit(
                record_id=f"64e000000000000000{number * 7919 % 1_000_000:06}",
                site_id=draw(st.sampled_from([SITE_ID, SITE_ID, "site-b"])),
                session_id=draw(st.sampled_from(["s-1", "s-2", "s-3", "s-4", f"s-{number + 5}"])),
                start_ms=draw(st.sampled_from(STARTS)) + draw(st.sampled_from([0, 0, 1])),
                visitor=draw(st.sampled_from(["v-1", "v-2", "v-3", None])),
                web3=wallet is not None or draw(st.booleans()),
                wallet=wallet,
                wallet_type=draw(st.sampled_from([None, "MetaMask", "Rabby"])) if wallet else None,
                wallet_chain=draw(st.sampled_from([None, "Ethereum", "Base"])) if wallet else None,
                duration_ms=draw(st.sampled_from([None, 0, 1, 61_500, 2_180_000_000])),
                bounced=draw(st.sampled_from([None, True, False])),
                pages_viewed=draw(st.sampled_from([None, 0, 1, 7])),
                pages=tuple(draw(st.lists(st.sampled_from(PAGES), max_size=3))),
                entry_page=draw(st.sampled_from([None, *PAGES])),
                source=draw(st.sampled_from([None, "direct", "google/cpc", "referral/x.example"])),
                country=draw(st.sampled_from([None, "DE", "US"])),
                utm_id=draw(st.sampled_from([None, None, "spring-1"])),
            )
        )
    return found


@st.composite
def bought(draw: st.DrawFn) -> list[Transaction]:
    """Return transactions of wallets that websites know, and of one that they don't."""
    rows = []
    for number in range(draw(st.integers(0, 10))):
        amount, below, unlimited = draw(st.sampled_from(AMOUNTS))
        rows.append(
            make_transaction(
                record_id=f"64c0000000000000000{number:05}",
                contract_id=draw(st.sampled_from([TOKEN_ID, ESCROW_ID])),
                tx_hash=draw(st.sampled_from(HASHES)),
                chain=draw(st.sampled_from(["Ethereum", "Base", None])),
                block_time_ms=draw(st.sampled_from(MOMENTS)),
                status=draw(st.sampled_from(["success", "failed", "pending", None])),
                from_address=draw(st.sampled_from([*WALLETS, "0x" + "9" * 40, None])),
                amount=amount,
                amount_below=below,
                amount_unlimited=unlimited,
                unit=draw(st.sampled_from(["ETH", "USDT", None])),
            )
        )
    return rows


def partials(found: Iterable[Visit], zone: str = "UTC") -> Partials:
    """Return the days of all visits, each as it comes back from the store."""
    days, attribution = VisitDays(Calendar(zone)), Attribution([CAMPAIGN])
    for visit in found:
        days.add(visit, attribution.find(visit))
    return {key: decode_partial("visits", encode_partial("visits", figures)) for key, figures in days.finish()}


def all_moves(rows: Iterable[Transaction], found: Partials, zone: str = "UTC") -> Moves:
    """Return the moves of all wallets that the websites know, as they come back from the store."""
    known = {wallet for figures in found.values() for wallet in figures.wallets.addresses()}
    days = MoveDays(Calendar(zone), {TEAM: known})
    for row in rows:
        days.add(row)
    return Moves.merged([decode_partial("moves", encode_partial("moves", moves)) for _, moves in days.finish()])


def aggregate(found: Partials, subject: Subject, period: Period, zone: str = "UTC") -> Aggregate[VisitFigures] | None:
    mine = (subject.scope,)
    if subject.scope.kind == "team":
        mine = (Scope.site(SITE_ID), Scope.site("site-b"))
    parts = [(Period.of("day", key.day), figures) for key, figures in found.items() if key.scope in mine and key.day]
    newcomers = count_newcomers((part.first, figures.visitors) for part, figures in parts)
    return put_together(subject, period, Calendar(zone), parts, newcomers, kind=VisitFigures, now_ms=NOW_MS)


SUBJECTS = [site_subject(SITE), site_subject(OTHER_SITE), team_subject(TEAM, of="websites")]


def of_subject(found: Iterable[Visit], subject: Subject) -> list[Visit]:
    return [visit for visit in found if subject.scope.kind == "team" or visit.site_id == subject.scope.holder_id]


def shown(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figure for name, figure in figures.items() if name[0] != "_" and name != "series"}


def labels(found: Sequence[Visit], level: Level, zone: str) -> dict[str, date]:
    """Return the labels of all periods with visits, each with one of its days, and one without."""
    days = [naive.local(visit.start_ms, zone).date() for visit in found]
    return {naive.label(day, level): day for day in (*days, date(2031, 1, 6))}


@given(
    found=visits(),
    rows=bought(),
    zone=st.sampled_from(ZONES),
    level=st.sampled_from(LEVELS),
    subject=st.sampled_from(SUBJECTS),
)
def test_every_figure_of_visits_and_funnels_is_that_of_the_naive_computation(
    found: list[Visit], rows: list[Transaction], zone: str, level: Level, subject: Subject
) -> None:
    days, mine = partials(found, zone), of_subject(found, subject)
    moves = all_moves(rows, days, zone)
    for wanted, day in labels(mine, level, zone).items():
        made = aggregate(days, subject, Period.from_label(wanted), zone)
        expected = naive.visit_figures(mine, level, wanted, zone)
        funnel = naive.funnel_figures(mine, rows, level, wanted, zone)
        if made is None or expected is None or funnel is None:
            assert (made, expected, funnel) == (None, None, None)
            continue
        facts = describe_visits(made).metadata["facts"]
        end = describe_funnel(made, moves).metadata["facts"]
        assert shown(facts["figures"]) == shown(expected)
        assert end["figures"] == shown(funnel)
        if level == "all":
            assert "change" not in {**facts, **end}
            continue
        earlier = naive.label_before(day, level)
        before = naive.visit_figures(mine, level, earlier, zone)
        assert facts["change"] == {"against": earlier, **naive.change_of_visits(expected, before)}
        funnel_before = naive.funnel_figures(mine, rows, level, earlier, zone)
        assert end["change"] == {"against": earlier, **naive.change_of_funnel(funnel, funnel_before)}


@given(
    found=visits(), rows=bought(), level=st.sampled_from(LEVELS), currency=st.sampled_from(["EUR", "USDT", "ETH", None])
)
def test_every_figure_of_a_campaign_is_that_of_its_own_visits(
    found: list[Visit], rows: list[Transaction], level: Level, currency: str | None
) -> None:
    days = partials(found)
    moves = all_moves(rows, days)
    mine = [visit for visit in found if visit.site_id == SITE_ID and visit.utm_id == "spring-1"]
    subject = campaign_subject(SITE, CAMPAIGN)
    for wanted, day in labels(mine, level, "UTC").items():
        made = aggregate(days, subject, Period.from_label(wanted))
        funnel = naive.funnel_figures(mine, rows, level, wanted, "UTC")
        if made is None or funnel is None:
            assert (made, funnel) == (None, None)
            continue
        facts = describe_campaign(made, replace(CAMPAIGN, currency=currency), moves).metadata["facts"]
        visited = naive.visit_figures(mine, level, wanted, "UTC")
        assert visited is not None
        campaign = replace(CAMPAIGN, currency=currency)
        expected = naive.campaign_figures(visited, funnel, campaign if level == "all" else None)
        if level != "all":
            earlier = naive.label_before(day, level)
            before = naive.funnel_figures(mine, rows, level, earlier, "UTC")
            change = naive.change_of_funnel(funnel, before, "conversions")
            assert facts["change"] == {"against": earlier, **change}
        assert facts["figures"] == expected


@given(found=visits(), order=st.randoms(use_true_random=False))
def test_the_order_of_sessions_changes_nothing(found: list[Visit], order: Any) -> None:
    shuffled = list(found)
    order.shuffle(shuffled)
    first, second = partials(found), partials(shuffled)
    assert first == second
    for key, figures in first.items():
        assert encode_partial("visits", figures) == encode_partial("visits", second[key])


@given(found=visits(), late=visits())
def test_a_late_session_changes_only_the_days_that_its_keys_name(found: list[Visit], late: list[Visit]) -> None:
    before, after = partials(found), partials([*found, *late])
    attribution = Attribution([CAMPAIGN])
    touched = {key for visit in late for key in visit_keys(visit, attribution.find(visit), Calendar())}
    assert {key for key in after if before.get(key) != after[key]} == touched


# the wallet bridge

WALLET = WALLETS[0]
VISITED = make_visit(web3=True, wallet=WALLET, start_ms=ms(2025, 6, 10, 12))


def conversions(*rows: Transaction, visited: Sequence[Visit] = (VISITED,)) -> Any:
    days = partials(visited)
    site = VisitFigures.merged([figures for key, figures in days.items() if key.scope.kind == "site"])
    return convert(site.wallets, all_moves(rows, days))


def buy(*when: int, **changes: Any) -> Transaction:
    return make_transaction(**{"from_address": WALLET, "block_time_ms": ms(*when), **changes})


def test_a_transaction_before_the_visit_was_not_won_by_it() -> None:
    found = conversions(buy(2025, 6, 10, 11, 59), buy(2025, 6, 10, 12, tx_hash=HASHES[0]))
    assert (found.wallets, found.transactions, found.waits_ms) == (1, 1, (0,))


def test_the_first_session_with_the_wallet_counts() -> None:
    earlier = replace(VISITED, record_id="64e000000000000000000002", session_id="s-2", start_ms=ms(2025, 6, 9))
    assert conversions(buy(2025, 6, 9, 6), visited=[VISITED, earlier]).waits_ms == (6 * 3_600_000,)


def test_a_hash_under_two_contracts_is_won_once_with_each_of_its_amounts() -> None:
    found = conversions(
        buy(2025, 6, 11, amount="5"),
        buy(2025, 6, 11, contract_id=ESCROW_ID, amount="5"),
        buy(2025, 6, 11, contract_id="other", amount="2", unit="ETH"),
    )
    assert found.transactions == 1
    assert {unit: str(volume.total) for unit, volume in found.volumes.items()} == {"USDT": "5", "ETH": "2"}


def test_a_failed_transaction_is_won_but_moves_nothing() -> None:
    found = conversions(buy(2025, 6, 11, status="failed"))
    assert (found.transactions, found.failed, found.volumes["USDT"].not_moved) == (1, 1, 1)
    assert found.volumes["USDT"].amounts == 0


def test_a_wallet_that_no_website_knows_is_not_kept() -> None:
    stranger = buy(2025, 6, 11, from_address="0x" + "9" * 40)
    assert all_moves([stranger], partials([VISITED])).rows == ()


def test_a_transaction_without_a_time_can_not_be_won() -> None:
    undated = make_transaction(from_address=WALLET, block_time_ms=None)
    assert conversions(undated).transactions == 0
    assert move_key(undated, Calendar()) is None


# campaigns


def attributed(*campaigns: TrackedCampaign, **changes: Any) -> str | None:
    return Attribution(campaigns).find(make_visit(**changes))


def campaign(number: int, **changes: Any) -> TrackedCampaign:
    return TrackedCampaign(f"64d00000000000000000000{number}", SITE_ID, None, **changes)


def test_the_utm_id_decides_before_the_list_and_the_name() -> None:
    by_id = campaign(1, utm_id="one")
    listed = campaign(2, session_ids=frozenset({"64e000000000000000000001"}))
    named = campaign(3, utm_campaign="spring")
    everything = (by_id, listed, named)
    assert attributed(*everything, utm_id="one", utm_campaign="spring") == by_id.campaign_id
    assert attributed(*everything, utm_campaign="spring") == listed.campaign_id
    assert attributed(*everything, record_id="x", utm_campaign="Spring") == named.campaign_id
    assert attributed(*everything, record_id="x") is None


def test_a_visit_with_another_utm_id_is_not_given_to_a_campaign_that_has_its_own() -> None:
    assert attributed(campaign(1, utm_id="one", utm_campaign="spring"), utm_id="two", utm_campaign="spring") is None
    older = campaign(2, utm_campaign="spring")
    assert attributed(older, utm_id="two", utm_campaign="spring") == older.campaign_id


def test_source_and_medium_choose_between_campaigns_of_one_name() -> None:
    mail = campaign(1, utm_campaign="spring", source="news", medium="Email")
    ads = campaign(2, utm_campaign="spring", source="google", medium="cpc")
    visit = {"utm_campaign": "spring", "utm_source": "News", "utm_medium": "email"}
    assert attributed(mail, ads, **visit) == mail.campaign_id


def test_a_visit_that_fits_two_campaigns_counts_for_neither() -> None:
    assert (
        attributed(campaign(1, utm_campaign="spring"), campaign(2, utm_campaign="spring"), utm_campaign="spring")
        is None
    )


def test_a_campaign_of_another_website_is_not_found() -> None:
    assert attributed(CAMPAIGN, site_id="site-b", utm_id="spring-1") is None


# sessions as they are parsed


def session_record(**changes: Any) -> dict[str, Any]:
    return {
        "_id": ObjectId("64e000000000000000000001"),
        "sessionId": "s-1",
        "userId": "user-17",
        "siteId": SITE_ID,
        "startTime": "2025-06-10T12:00:00Z",
        "duration": 61.5,
        "pagesViewed": 2,
        "visitedPages": [{"path": "/"}, {"path": "/stake"}],
        "wallet": {
            "walletAddress": WALLET.upper().replace("X", "x"),
            "walletType": "MetaMask",
            "chainName": "Ethereum",
        },
        "isWeb3User": True,
        "utmData": {"source": "google", "medium": "cpc", "campaign": "spring", "utm_id": "spring-1"},
        "country": "DE",
        "device": {"type": "Desktop", "os": "macOS"},
        **changes,
    }


def visit_of(owners: Owners, **changes: Any) -> Visit:
    return read_visit(parse_session(session_record(**changes), owners, key=b"k" * 32, now_ms=NOW_MS))


def test_a_parsed_session_becomes_a_visit_without_its_user_id() -> None:
    visit = visit_of(make_owners())
    assert (visit.wallet, visit.web3, visit.duration_ms, visit.pages) == (WALLET, True, 61_500, ("/", "/stake"))
    assert (visit.source, visit.utm_id, visit.country, visit.device) == ("google/cpc", "spring-1", "DE", "desktop")
    assert visit.visitor is not None
    assert "user-17" not in repr(visit)


@pytest.mark.parametrize("sentinel", ["", "No Wallet Detected", "Not Connected", "Error", "Unknown"])
def test_a_wallet_that_is_none_connects_nobody(sentinel: str) -> None:
    visit = visit_of(make_owners(), wallet={"walletAddress": sentinel}, isWeb3User=True)
    figures = VisitFigures.of_visits([visit], date(2025, 6, 10), Calendar())
    assert (visit.wallet, len(figures.wallets), figures.wallet_sessions, figures.web3_sessions) == (None, 0, 0, 0)


def test_a_parsed_campaign_finds_the_visits_that_carry_its_id_or_its_name() -> None:
    name = "Summer of staking, " * 10
    record = {
        "_id": ObjectId("64d000000000000000000009"),
        "siteId": SITE_ID,
        "name": "Summer",
        "campaign": name,
        "utm_id": "b1f9c1de-75a1-4a8e-9a7e-0d6a3f1c2b4d",
        "budget": {"currency": "USD", "amount": 99.9},
        "sessions": [ObjectId("64e000000000000000000007")],
    }
    owners = make_owners()
    campaign = read_campaign(parse_campaign(record, owners, now_ms=NOW_MS), record["sessions"])
    assert (campaign.cost, campaign.currency) == (Decimal("99.9"), "USD")
    find = Attribution([campaign]).find
    assert find(visit_of(owners, utmData={"utm_id": record["utm_id"]})) == "64d000000000000000000009"
    assert find(visit_of(owners, utmData={"campaign": name.upper()})) == "64d000000000000000000009"
    assert find(visit_of(owners, utmData=None, _id=record["sessions"][0])) == "64d000000000000000000009"
    assert find(visit_of(owners, utmData=None)) is None
