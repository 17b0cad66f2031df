"""The demo source's sites and visits: the same everywhere, true where they are clean, dirty where they say so."""

from __future__ import annotations

import hashlib
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import bson
import pytest
from bson import DatetimeMS, Decimal128, Int64, ObjectId

from deployments.sample import sample_contracts, sample_teams, sample_transactions, sample_websites
from deployments.sample_sites.dirt import (
    OWNERLESS,
    SURVIVING_ANALYTICS,
    SURVIVING_CAMPAIGNS,
    SURVIVING_EVENTS,
    SURVIVING_JOURNEYS,
    SURVIVING_SESSIONS,
    SURVIVING_STATISTICS,
    UNMIGRATABLE_ANALYTICS,
    UNMIGRATABLE_CAMPAIGNS,
    UNMIGRATABLE_EVENTS,
    UNMIGRATABLE_JOURNEYS,
    UNMIGRATABLE_SESSIONS,
    UNMIGRATABLE_STATISTICS,
    planted_in_event,
    planted_in_journey,
    planted_in_session,
)
from deployments.sample_sites.sessions import (
    LONG_PATH_CHARS,
    MANY_PAGES,
    NO_WALLETS,
    sample_events,
    sample_sessions,
)
from deployments.sample_sites.sites import (
    SURVIVING_CONTRACTS,
    SURVIVING_WEBSITES,
    TEAM_DIRT,
    UNMIGRATABLE_CONTRACTS,
    UNMIGRATABLE_WEBSITES,
    planted_in_campaign,
    planted_in_contract,
    planted_in_team,
    planted_in_website,
    sample_campaign_list,
    sample_site_contracts,
    sample_site_list,
    sample_site_teams,
    sample_site_websites,
)
from deployments.sample_sites.totals import (
    PERIODS,
    planted_in_analytics,
    planted_in_statistics,
    sample_analytics,
    sample_campaigns,
    sample_statistics,
)
from deployments.sample_sites.visits import (
    BRIDGE_ROWS,
    PERSONAL_MARKS,
    Visit,
    sample_purchases,
    sample_user_ids,
    sample_visits,
)
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners

Record = dict[str, Any]
Records = list[Record]

SESSIONS = 600
#: Digest of the BSON of all that 600 visits of seed 1 make. Changes together with SITES_VERSION, never alone.
DIGEST_OF_600_VISITS = "65b9e3552da50b0a27a17080afec7d45e89ed24355444a31f422067696a24c51"
DAY_MS = 86_400_000


def digest(records: Iterable[Record]) -> str:
    total = hashlib.sha256()
    for record in records:
        total.update(bson.encode(record))
    return total.hexdigest()


def everything(visits: tuple[Visit, ...]) -> Iterable[Record]:
    yield from sample_site_teams()
    yield from sample_site_websites()
    yield from sample_site_contracts()
    yield from sample_sessions(visits)
    yield from sample_events(visits)
    yield from sample_campaigns(visits)
    yield from sample_analytics(visits)
    for period in PERIODS:
        yield from sample_statistics(period, visits)


@pytest.fixture(scope="module")
def whole() -> tuple[Visit, ...]:
    """Return the visits of a sample of the source's own size."""
    return tuple(sample_visits())


@pytest.fixture(scope="module")
def visits(whole: tuple[Visit, ...]) -> tuple[Visit, ...]:
    return whole[:SESSIONS]


@pytest.fixture(scope="module")
def sessions(visits: tuple[Visit, ...]) -> Records:
    return list(sample_sessions(visits))


@pytest.fixture(scope="module")
def events(visits: tuple[Visit, ...]) -> Records:
    return list(sample_events(visits))


@pytest.fixture(scope="module")
def campaigns(visits: tuple[Visit, ...]) -> Records:
    return list(sample_campaigns(visits))


@pytest.fixture(scope="module")
def analytics(visits: tuple[Visit, ...]) -> Records:
    return list(sample_analytics(visits))


@pytest.fixture(scope="module")
def journeys(analytics: Records) -> list[Any]:
    return [journey for row in analytics for journey in row.get("userJourneys", [])]


@pytest.fixture(scope="module")
def owners() -> Owners:
    return Owners.from_records(
        [*sample_contracts(), *sample_site_contracts()],
        [*sample_teams(), *sample_site_teams()],
        [*sample_websites(), *sample_site_websites()],
    )


def milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1_000)


def started_ms(session: Record) -> int:
    """Return the start of a session whose time can be known, as somebody who reads the record would."""
    time = session["startTime"]
    return milliseconds(datetime.fromisoformat(time) if isinstance(time, str) else time)


def sound(visits: tuple[Visit, ...], sessions: Records) -> Records:
    """Return the sessions that have an owner, an identity and a time."""
    return [session for visit, session in zip(visits, sessions, strict=True) if visit.counts]


# --- the same everywhere


def test_the_same_seed_gives_the_same_bytes_everywhere() -> None:
    visits = tuple(sample_visits(SESSIONS))
    assert digest(everything(visits)) == DIGEST_OF_600_VISITS
    assert digest(everything(visits)) == DIGEST_OF_600_VISITS


def test_a_longer_sample_begins_with_a_shorter_one(whole: tuple[Visit, ...]) -> None:
    short, long = tuple(sample_visits(500)), whole[:1_000]
    assert digest(sample_sessions(short)) == digest(sample_sessions(long[:500]))
    some = list(sample_events(short))
    assert len(some) > 200
    assert digest(some) == digest(list(sample_events(long))[: len(some)])


def test_another_seed_gives_other_visits_with_the_same_dirt(visits: tuple[Visit, ...]) -> None:
    others = list(sample_visits(300, seed=2))
    assert not {visit.session_id for visit in others} & {visit.session_id for visit in visits}
    assert [visit.dirt for visit in others] == [visit.dirt for visit in visits[:300]]


def test_every_record_can_be_stored_and_has_an_id_of_its_own(visits: tuple[Visit, ...]) -> None:
    records = list(everything(visits))
    assert all(bson.encode(record) for record in records)
    assert len({record["_id"] for record in records}) == len(records)


def test_events_are_cut_off_at_the_number_asked_for(visits: tuple[Visit, ...], events: Records) -> None:
    assert digest(sample_events(visits, 100)) == digest(events[:100])
    assert list(sample_events(visits, 0)) == []


# --- the shape of the source


def test_five_of_48_sites_carry_89_percent_of_the_visits(whole: tuple[Visit, ...]) -> None:
    sites = sample_site_list()
    assert len(sites) == len({site.site_id for site in sites}) == 48
    uuid = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
    assert sum(uuid.fullmatch(site.site_id) is None for site in sites) == 5
    busiest = Counter(visit.site.slug for visit in whole).most_common(5)
    assert {slug for slug, _ in busiest} == {site.slug for site in sites[:5]}
    assert sum(number for _, number in busiest) / len(whole) == pytest.approx(0.89, abs=0.015)


def test_a_sample_of_the_usual_size_is_as_large_as_the_source(whole: tuple[Visit, ...]) -> None:
    rows = list(sample_analytics(whole))
    totals = [row["totalVisitors"] for row in rows if not isinstance(row["totalVisitors"], Decimal128)]
    assert sum(total for total in totals if total == total) == pytest.approx(11_077, rel=0.01)
    assert len(sample_user_ids(whole)) == pytest.approx(3_900, rel=0.05)
    assert sum(1 for _ in sample_events(whole)) == pytest.approx(3_500, rel=0.05)
    assert sum(len(row.get("userJourneys", ())) for row in rows) == 634
    assert 200_000 < max(len(bson.encode(row)) for row in rows) < 230_000


def test_visits_come_in_the_order_of_time_over_a_leap_day_and_changes_of_the_clock(
    whole: tuple[Visit, ...], visits: tuple[Visit, ...]
) -> None:
    starts = [visit.started_ms for visit in whole if visit.dirt != "duplicate_key"]
    assert all(earlier < later for earlier, later in pairwise(starts))
    assert starts[0] >= milliseconds(datetime(2024, 2, 26, tzinfo=UTC))
    assert starts[-1] < milliseconds(datetime(2025, 7, 1, tzinfo=UTC))
    days = {datetime.fromtimestamp(visit.started_ms / 1_000, UTC).date() for visit in visits}
    assert date(2024, 2, 29) in days  # a leap day
    assert {date(2024, 3, 10), date(2024, 3, 31)} <= days  # clocks change in America and in Europe


def test_visits_of_the_afternoon_are_more_than_those_of_the_night(whole: tuple[Visit, ...]) -> None:
    hours = Counter(visit.started_ms // 3_600_000 % 24 for visit in whole)
    assert hours.most_common(1)[0][0] in {15, 16, 17}
    assert sum(hours[hour] for hour in range(13, 19)) > 8 * sum(hours[hour] for hour in range(1, 4)) > 0


def test_nobody_is_in_two_visits_at_once(whole: tuple[Visit, ...]) -> None:
    last: dict[tuple[str, str], Visit] = {}
    for visit in whole:
        if visit.dirt == "duplicate_key":
            continue
        who = (visit.site.site_id, visit.visitor.user_id)
        before = last.get(who)
        assert visit.nth == (1 if before is None else before.nth + 1)
        assert (visit.before is None) == (before is None)
        if before is not None:
            assert before.ended_ms < visit.started_ms
        last[who] = visit


# --- personal data


def test_user_ids_look_personal(visits: tuple[Visit, ...], sessions: Records, events: Records) -> None:
    ids = sample_user_ids(visits)
    assert sum(any(mark in user for mark in PERSONAL_MARKS) for user in ids) > 0.2 * len(ids)
    assert {session["userId"] for session in sound(visits, sessions) if "userId" in session} <= ids
    texts = [event["eventData"]["innerText"] for event in events if isinstance(event.get("eventData"), dict)]
    assert any(user in text for user in ids for text in texts)
    assert {mark for mark in PERSONAL_MARKS for text in texts if mark in text} == set(PERSONAL_MARKS)


def test_marks_of_personal_data_stand_in_nothing_that_may_be_stored(sessions: Records) -> None:
    for session in sessions:
        rest = {name: value for name, value in session.items() if name not in {"userId", "entryPage", "visitedPages"}}
        assert not any(mark in repr(rest) for mark in PERSONAL_MARKS)


# --- relations


def test_every_site_has_its_owner_or_none_for_the_reason_it_says(owners: Owners) -> None:
    reasons = dict(
        zip(OWNERLESS, ("site_unknown", "site_unknown", "owner_missing", "owner_unknown", "site_conflict"), strict=True)
    )
    for site in sample_site_list():
        if site.dirt is None:
            assert owners.find_site(site.site_id).team_id == str(site.team_id)
        else:
            with pytest.raises(RecordError) as refused:
                owners.find_site(site.site_id)
            assert refused.value.code == reasons[site.dirt]
    assert {site.dirt for site in sample_site_list()} == {None, *OWNERLESS}


def test_new_teams_and_websites_change_nothing_for_those_of_the_transactions(owners: Owners) -> None:
    before = Owners.from_records(sample_contracts(), sample_teams(), sample_websites())
    assert len(before.by_contract_id) > 40
    for contract_id, contract in before.by_contract_id.items():
        now = owners.by_contract_id[contract_id]
        assert (now.team_id, now.site_id) == (contract.team_id, contract.site_id)
        assert (now.owner_error is None) == (contract.owner_error is None)


def test_who_buys_connects_the_wallet_that_signs_a_transaction_of_the_team(visits: tuple[Visit, ...]) -> None:
    contracts = {record["contractId"]: record for record in sample_contracts()}
    signed: dict[str, Records] = {}
    for transaction in sample_transactions(BRIDGE_ROWS):
        signed.setdefault(transaction.get("tx_hash") or "", []).append(transaction)
    bought = [visit for visit in visits if visit.purchase is not None]
    assert len(bought) > 50
    assert len({visit.purchase for visit in bought}) == len(bought)
    for visit in bought:
        assert visit.purchase is not None
        own = [
            transaction
            for transaction in signed[visit.purchase.tx_hash]
            if contracts[transaction["contractId"]].get("team") == visit.site.team_id
        ]
        assert len(own) == 1
        assert own[0]["from_address"].lower() == visit.wallet == visit.purchase.wallet
        assert visit.started_ms < visit.purchase.at_ms <= visit.started_ms + 14 * DAY_MS


def test_the_funnel_narrows_from_visits_over_wallets_to_transactions(
    visits: tuple[Visit, ...], sessions: Records
) -> None:
    senders = {
        record["from_address"].lower() for record in sample_transactions(BRIDGE_ROWS) if record.get("from_address")
    }
    wallets = set()
    for session in sound(visits, sessions):
        address = ((session.get("wallet") or {}).get("walletAddress") or "").lower()
        if re.fullmatch("0x[0-9a-f]{40}", address):
            wallets.add(address)
    assert len(sessions) > 3 * len(wallets) > 3 * len(wallets & senders) > 150
    assert wallets - senders  # connected, and never signed anything


def test_wallets_are_spelled_in_every_form_of_the_source(whole: tuple[Visit, ...]) -> None:
    stored = [session.get("wallet") for session in sample_sessions(whole)]
    addresses = [wallet["walletAddress"] for wallet in stored if isinstance(wallet, dict)]
    assert {address for address, _, _ in NO_WALLETS} < set(addresses)
    hexadecimal = [address for address in addresses if address and address.startswith("0x")]
    mixed = sum(address != address.lower() for address in hexadecimal)
    assert mixed / len(hexadecimal) == pytest.approx(13 / 90, abs=0.05)
    chains = {wallet["chainName"] for wallet in stored if isinstance(wallet, dict)}
    assert {"Ethereum Mainnet", "Binance Smart Chain", "Unknown (ID: 56)", "Error", "No Chain Detected"} <= chains


def test_users_of_software_without_a_wallet_count_as_web3(visits: tuple[Visit, ...], sessions: Records) -> None:
    flagged = [session["wallet"]["walletAddress"] for session in sessions if session.get("isWeb3User")]
    assert {"No Wallet Detected", "No Wallet Connected"} <= set(flagged)
    assert sum(address.startswith("0x") for address in flagged) > len(flagged) / 2


def test_campaigns_are_named_in_sessions_by_utm_id_and_older_ones_by_name(
    visits: tuple[Visit, ...], sessions: Records, campaigns: Records
) -> None:
    by_oid = {session["_id"]: session for session in sound(visits, sessions)}
    led = 0
    for number, campaign in enumerate(campaigns):
        if not campaign.get("sessions") or planted_in_campaign(number) == "sessions_dangling":
            continue
        for oid in campaign["sessions"]:
            session = by_oid[oid]
            led += 1
            assert session["siteId"] == campaign["siteId"]
            assert session["utmData"]["campaign"] == campaign["campaign"]
            assert session["utmData"]["utm_id"] == campaign.get("utm_id")
            assert sample_campaign_list()[number].created_ms <= started_ms(session)
    named = sum(bool((session.get("utmData") or {}).get("campaign")) for session in by_oid.values())
    assert led == named - sum(visit.dirt == "utm_id_unknown" for visit in visits) > 100


def test_what_a_campaign_brought_follows_from_sessions_and_transactions(
    visits: tuple[Visit, ...], sessions: Records, campaigns: Records
) -> None:
    contracts = {record["contractId"]: record for record in sample_contracts()}
    teams = {site.site_id: site.team_id for site in sample_site_list()}
    by_oid = {session["_id"]: session for session in sound(visits, sessions)}
    clean = {row.tx_hash: row for rows in sample_purchases().values() for row in rows}
    transactions = [record for record in sample_transactions(BRIDGE_ROWS) if record.get("tx_hash") in clean]
    compared = 0
    for number, campaign in enumerate(campaigns):
        if planted_in_campaign(number) not in {None, "mixed_units", "no_utm_id"} or not campaign["sessions"]:
            continue
        since: dict[str, int] = {}
        for session in (by_oid[oid] for oid in campaign["sessions"]):
            address = ((session.get("wallet") or {}).get("walletAddress") or "").lower()
            if re.fullmatch("0x[0-9a-f]{40}", address):
                since.setdefault(address, started_ms(session))
        made = {
            record["tx_hash"]
            for record in transactions
            if (sender := record["from_address"].lower()) in since
            and contracts[record["contractId"]].get("team") == teams[campaign["siteId"]]
            and clean[record["tx_hash"]].at_ms >= since[sender]
        }
        stats = campaign["stats"]
        assert {row["txHash"] for row in stats["transactions"]} == made
        assert stats["conversions"] == len(stats["transactions"])
        assert stats["visitors"] == len(campaign["sessions"])
        assert stats["uniqueWallets"] == len(since)
        assert stats["bounceRate"] <= 100
        compared += len(made)
    assert compared > 30


def test_clicks_happen_within_a_session_and_on_its_pages(
    visits: tuple[Visit, ...], sessions: Records, events: Records
) -> None:
    by_id = {visit.session_id: visit for visit in visits if visit.counts and visit.dirt != "session_id_of_another_site"}
    checked = 0
    for number, event in enumerate(events):
        if planted_in_event(number) is not None or event["sessionId"] not in by_id:
            continue
        visit = by_id[event["sessionId"]]
        assert event["siteId"] == visit.site.site_id
        assert event["userId"] == visit.visitor.user_id
        assert visit.started_ms <= milliseconds(event["timestamp"]) <= visit.ended_ms
        assert event["pagePath"] in {visit.spelled(page.path) for page in visit.pages}
        checked += 1
    assert checked > 250


def test_journeys_are_those_of_users_of_sessions(
    visits: tuple[Visit, ...], analytics: Records, journeys: list[Any]
) -> None:
    made: dict[tuple[str, str], list[Visit]] = {}
    for visit in visits:
        if visit.counts:
            made.setdefault((visit.site.site_id, visit.visitor.user_id), []).append(visit)
    rows = [(row["siteId"], journey) for row in analytics if "userJourneys" in row for journey in row["userJourneys"]]
    assert [journey for _, journey in rows] == journeys
    segments = set()
    for number, (site, journey) in enumerate(rows):
        if planted_in_journey(number) is not None:
            continue
        own = made[site, journey["userId"]]
        assert milliseconds(journey["firstVisit"]) == own[0].started_ms
        assert milliseconds(journey["lastVisit"]) == own[-1].started_ms
        assert journey["totalSessions"] == len(own)
        assert journey["totalPageViews"] == sum(len(visit.pages) for visit in own)
        assert journey["hasConverted"] == any(visit.wallet for visit in own)
        assert ("daysToConversion" in journey) == journey["hasConverted"]
        segments.add(journey["userSegment"])
    assert segments >= {"converter", "bounced", "browser"}


def test_retention_follows_from_when_users_came_again(whole: tuple[Visit, ...]) -> None:
    row = next(sample_analytics(whole))
    first: dict[str, int] = {}
    again: dict[int, set[str]] = {}
    for visit in whole:
        if visit.site.number == 0 and visit.counts:
            user = visit.visitor.user_id
            day = (visit.started_ms - first.setdefault(user, visit.started_ms)) // DAY_MS
            again.setdefault(day, set()).add(user)
    assert len(again[1]) > 5
    assert {entry["day"]: entry["count"] for entry in row["retentionByDay"]} == {
        day: len(again.get(day, ())) for day in range(1, 31)
    }


@pytest.mark.parametrize("period", ["hourly", "daily"])
@pytest.mark.parametrize("number", [30, 250, SESSIONS])
def test_statistics_are_running_totals_of_the_sessions(whole: tuple[Visit, ...], period: str, number: int) -> None:
    # The rings of 30 visits hold the leap day; those of 250, a change of the clocks in Europe.
    visits = whole[:number]
    starts: dict[str, list[int]] = {}
    for session in sound(visits, list(sample_sessions(visits))):
        starts.setdefault(session["siteId"], []).append(started_ms(session))
    for site, row in zip(sample_site_list()[:5], sample_statistics(period, visits), strict=False):
        assert row["siteId"] == site.site_id
        own = starts.get(site.site_id, [])
        ends = [end_of(period, entry["timestamp"], row.get("timezone", "UTC")) for entry in row["analyticsSnapshot"]]
        assert ends == sorted(ends, reverse=True)
        for (later, earlier), (end, start) in zip(pairwise(row["analyticsSnapshot"]), pairwise(ends), strict=True):
            assert later["visitors"] - earlier["visitors"] == bisect_left(own, end) - bisect_left(own, start)


def end_of(period: str, written: datetime, timezone: str) -> int:
    """Return the end of the hour (UTC) or day (there) that an entry counts up to: it is written soon after it."""
    local = written.astimezone(UTC if period == "hourly" else ZoneInfo(timezone))
    end = local.replace(hour=local.hour if period == "hourly" else 0, minute=0, second=0, microsecond=0)
    assert milliseconds(written) - milliseconds(end) < 60_000
    return milliseconds(end)


def test_page_views_and_wallets_are_running_totals_too(visits: tuple[Visit, ...]) -> None:
    row = next(sample_statistics("daily", visits))
    own = [visit for visit in visits if visit.site.number == 0 and visit.counts]
    views = sorted(page.at_ms for visit in own for page in visit.pages)
    newest, oldest = row["analyticsSnapshot"][0], row["analyticsSnapshot"][-1]
    end, start = (end_of("daily", entry["timestamp"], row["timezone"]) for entry in (newest, oldest))
    assert newest["pageViews"] - oldest["pageViews"] == bisect_left(views, end) - bisect_left(views, start) > 50
    wallets = {visit.wallet for visit in own if visit.wallet and visit.started_ms < end}
    assert newest["walletsConnected"] == len(wallets)


def test_analytics_count_what_the_sessions_hold(
    visits: tuple[Visit, ...], sessions: Records, analytics: Records
) -> None:
    kept = sound(visits, sessions)
    for site, row in zip(sample_site_list()[:5], analytics, strict=False):
        own = [visit for visit in visits if visit.counts and visit.site is site]
        assert row["sessions"] == [session["_id"] for session in kept if session["siteId"] == site.site_id]
        assert row["totalVisitors"] == site.counted_before + len(own)
        assert row["uniqueVisitors"] == len(row["userId"]) == len({visit.visitor.user_id for visit in own})
        assert row["newVisitors"] + row["returningVisitors"] == row["totalVisitors"]
        assert row["walletsConnected"] == len(row["wallets"])
        assert sum(row["pageViews"].values()) == row["totalPageViews"]
        assert sum(row["entryPages"].values()) == sum(row["exitPages"].values()) == row["totalVisitors"]


def test_page_keys_have_no_dots_keep_their_escapes_and_are_urls_sometimes(whole: tuple[Visit, ...]) -> None:
    keys = {key for row in sample_analytics(whole) for key in row["pageViews"] or ()}
    assert not any("." in key for key in keys)
    assert {"/docs/v1_2/start", "/about%20us", "/caf%C3%A9"} <= keys
    assert any(key.startswith("https://") for key in keys)


def test_nearly_no_hour_changes_anything(whole: tuple[Visit, ...]) -> None:
    rings = [
        row["analyticsSnapshot"]
        for site, row in zip(sample_site_list(), sample_statistics("hourly", whole), strict=False)
        if planted_in_statistics("hourly", site.number) is None
    ]
    pairs = [later["visitors"] == earlier["visitors"] for ring in rings for later, earlier in pairwise(ring)]
    assert 0.94 < sum(pairs) / len(pairs) < 0.99


def test_weekly_and_monthly_rows_are_broken_as_in_the_source(visits: tuple[Visit, ...]) -> None:
    for period, entries, zeros in (("weekly", 581, 554), ("monthly", 170, 143)):
        ring = [entry for row in sample_statistics(period, visits) for entry in row["analyticsSnapshot"]]
        assert len(ring) == entries
        assert sum(entry.keys() == {"hour"} for entry in ring) == 18
        timeless = [entry for entry in ring if "timestamp" not in entry and "hour" not in entry]
        assert len(timeless) == zeros
        assert all(entry["visitors"] == entry["pageViews"] == 0 for entry in timeless)


def test_235_rows_are_analytics_and_statistics(visits: tuple[Visit, ...], analytics: Records) -> None:
    rows = {period: list(sample_statistics(period, visits)) for period in PERIODS}
    assert len(analytics) + sum(map(len, rows.values())) == 235
    assert all(sum("timezone" not in row for row in of_period) == 18 for of_period in rows.values())
    assert {len(row.get("analyticsSnapshot") or ()) for row in rows["hourly"]} >= {24}
    assert {len(row.get("analyticsSnapshot") or ()) for row in rows["daily"]} >= {30}


# --- dirt


def test_every_class_of_dirt_is_in_the_first_sessions_and_events() -> None:
    assert Counter(filter(None, map(planted_in_session, range(400)))) == Counter(
        UNMIGRATABLE_SESSIONS + SURVIVING_SESSIONS
    )
    assert Counter(filter(None, map(planted_in_event, range(170)))) == Counter(UNMIGRATABLE_EVENTS + SURVIVING_EVENTS)
    assert Counter(filter(None, map(planted_in_journey, range(40)))) == Counter(
        UNMIGRATABLE_JOURNEYS + SURVIVING_JOURNEYS
    )


def test_every_class_of_dirt_of_the_small_lists_is_there() -> None:
    assert set(filter(None, map(planted_in_campaign, range(len(sample_campaign_list()))))) == {
        *UNMIGRATABLE_CAMPAIGNS,
        *SURVIVING_CAMPAIGNS,
    }
    assert {name for number in range(48) for name in planted_in_analytics(number)} == {
        *UNMIGRATABLE_ANALYTICS,
        *SURVIVING_ANALYTICS,
    }
    for period in ("hourly", "daily"):
        assert {planted_in_statistics(period, number) for number in range(48)} == {
            None,
            *UNMIGRATABLE_STATISTICS,
            *SURVIVING_STATISTICS,
        }
    websites, teams, contracts = sample_site_websites(), sample_site_teams(), sample_site_contracts()
    assert set(map(planted_in_website, range(len(websites)))) == {None, *UNMIGRATABLE_WEBSITES, *SURVIVING_WEBSITES}
    assert set(map(planted_in_team, range(len(teams)))) == {None, *TEAM_DIRT}
    assert set(map(planted_in_contract, range(len(contracts)))) == {*UNMIGRATABLE_CONTRACTS, *SURVIVING_CONTRACTS}


def test_sessions_that_cannot_be_migrated_are_what_their_name_says(sessions: Records) -> None:
    def planted(dirt: str) -> Record:
        return next(session for row, session in enumerate(sessions) if planted_in_session(row) == dirt)

    sites = {site.site_id: site.dirt for site in sample_site_list()}
    assert "sessionId" not in planted("missing_session_id")
    assert isinstance(planted("text_id")["_id"], str)
    assert "siteId" not in planted("missing_site_id")
    for dirt in OWNERLESS:
        assert sites[planted(dirt)["siteId"]] == dirt
    assert "startTime" not in planted("start_time_missing")
    with pytest.raises(ValueError):
        datetime.fromisoformat(planted("start_time_not_a_date")["startTime"])
    assert planted("start_time_2099")["startTime"].year == 2099
    assert isinstance(planted("start_time_after_9999")["startTime"], DatetimeMS)
    assert planted("only_id").keys() == {"_id"}
    empty = planted("all_null")
    assert len(empty) > 20
    assert [name for name, value in empty.items() if value is not None] == ["_id"]
    places = [row for row in range(len(sessions)) if planted_in_session(row) == "duplicate_key"]
    assert places
    for row in places:
        first, second = sessions[row - 1], sessions[row]
        assert {name for name in first if first[name] != second[name]} == {"_id"}


def test_only_planted_sessions_share_site_and_id(visits: tuple[Visit, ...], sessions: Records) -> None:
    keys = Counter((session["siteId"], session["sessionId"]) for session in sound(visits, sessions))
    assert set(keys.values()) == {1}
    shared = Counter(session["sessionId"] for session in sound(visits, sessions))
    assert sum(number > 1 for number in shared.values()) == sum(
        visit.dirt == "session_id_of_another_site" for visit in visits
    )


def test_sessions_that_survive_are_what_their_name_says(visits: tuple[Visit, ...], sessions: Records) -> None:
    def planted(dirt: str) -> Record:
        return next(session for row, session in enumerate(sessions) if planted_in_session(row) == dirt)

    assert datetime.fromisoformat(planted("start_time_text")["startTime"]).tzinfo is not None
    assert planted("end_before_start")["endTime"] < planted("end_before_start")["startTime"]
    assert not {"endTime", "lastActivity", "exitPage"} & planted("no_end").keys()
    late = planted("late_row")
    assert late["createdAt"] - late["startTime"] > timedelta(days=8)
    assert late["_id"].generation_time - late["startTime"] > timedelta(days=8)
    assert planted("duration_text")["duration"] == "37.20"
    assert math.isnan(planted("duration_nan")["duration"])
    assert planted("duration_negative")["duration"] < 0
    assert isinstance(planted("duration_decimal128")["duration"], Decimal128)
    assert planted("duration_huge")["duration"] > 2_000_000
    assert isinstance(planted("pages_viewed_text")["pagesViewed"], str)
    odd = planted("pages_viewed_disagrees")
    assert odd["pagesViewed"] != len(odd["visitedPages"])
    odd = planted("bounce_disagrees")
    assert odd["isBounce"] != (odd["duration"] < 30 and len(odd["visitedPages"]) <= 1)
    assert planted("web3_without_wallet")["isWeb3User"] is True
    assert planted("web3_without_wallet")["wallet"]["walletAddress"] == "No Wallet Detected"
    assert not planted("wallet_not_evm")["wallet"]["walletAddress"].startswith("0x")
    shared = planted("wallet_shared")
    others = [visit for visit in visits if visit.wallet == shared["wallet"]["walletAddress"].lower()]
    assert len({(visit.site.site_id, visit.visitor.user_id) for visit in others}) > 1
    assert planted("wallet_null")["wallet"] is None
    assert planted("utm_null")["utmData"] is None
    known = {campaign.utm_id for campaign in sample_campaign_list()}
    assert planted("utm_id_unknown")["utmData"]["utm_id"] not in known
    assert len(planted("country_not_iso")["country"]) > 2
    assert planted("browser_null")["browser"] is None
    assert isinstance(planted("device_text")["device"], str)
    ids = {session.get("sessionId") for session in sessions} | {str(session["_id"]) for session in sessions}
    assert planted("previous_session_unknown")["previousSessionId"] not in ids
    assert planted("session_number_zero")["sessionNumber"] == 0
    assert planted("time_since_last_negative")["timeSinceLastSession"] < 0
    assert "userId" not in planted("user_id_missing")
    odd = planted("user_id_in_path")
    assert odd["userId"] in odd["entryPage"]
    assert planted("visited_pages_null")["visitedPages"] is None
    assert isinstance(planted("visited_pages_not_a_list")["visitedPages"], str)
    assert None in planted("visited_pages_odd")["visitedPages"]
    assert "\0" in planted("nul_characters")["entryPage"]
    assert "\u202e" in planted("bidi_override")["entryPage"]
    assert "\u200b" in planted("zero_width")["entryPage"]
    assert max(planted("emoji_path")["entryPage"]) > "\U0001f000"
    assert "\u0600" < planted("rtl_path")["entryPage"][1] < "\u06ff"
    assert len(planted("long_path")["exitPage"]) == LONG_PATH_CHARS
    assert len(planted("many_pages")["visitedPages"]) == MANY_PAGES
    assert isinstance(planted("unknown_extra_fields")["tracker"], dict)


def test_events_are_what_the_name_of_their_dirt_says(events: Records) -> None:
    def planted(dirt: str) -> Record:
        return next(event for number, event in enumerate(events) if planted_in_event(number) == dirt)

    sites = {site.site_id: site.dirt for site in sample_site_list()}
    assert isinstance(planted("text_id")["_id"], str)
    assert "siteId" not in planted("missing_site_id")
    for dirt in OWNERLESS:
        assert sites[planted(dirt)["siteId"]] == dirt
    assert "timestamp" not in planted("timestamp_missing")
    with pytest.raises(ValueError):
        datetime.fromisoformat(planted("timestamp_not_a_date")["timestamp"])
    assert planted("timestamp_2099")["timestamp"].year == 2099
    assert isinstance(planted("timestamp_after_9999")["timestamp"], DatetimeMS)
    assert planted("only_id").keys() == {"_id"}
    assert set(map(type, planted("all_null").values())) == {ObjectId, type(None)}
    assert datetime.fromisoformat(planted("timestamp_text")["timestamp"]).tzinfo is not None
    assert "eventType" not in planted("no_event_type")
    assert planted("unknown_event_type")["eventType"] != "ELEMENT_CLICK"
    personal = planted("personal_inner_text")
    assert personal["userId"] in personal["eventData"]["innerText"]
    assert any(mark in planted("personal_link")["eventData"]["href"] for mark in PERSONAL_MARKS)
    assert len(planted("long_inner_text")["eventData"]["innerText"]) > 10_000
    assert "sessionId" not in planted("session_missing")
    assert planted("session_unknown")["sessionId"].endswith("_000000000")
    assert "userId" not in planted("user_id_missing")
    assert planted("event_data_null")["eventData"] is None
    assert isinstance(planted("event_data_text")["eventData"], str)
    assert isinstance(planted("session_duration_text")["eventData"]["sessionDuration"], str)
    assert math.isnan(planted("session_duration_nan")["eventData"]["sessionDuration"])
    assert planted("pages_per_visit_negative")["eventData"]["pagesPerVisit"] < 0
    assert "undefined" in planted("resolution_odd")["eventData"]["resolution"]
    assert "pagePath" not in planted("page_path_missing")
    assert planted("page_path_whole_url")["pagePath"].startswith("https://")
    assert "\0" in planted("nul_characters")["pagePath"]
    assert "\u202e" in planted("bidi_override")["eventData"]["className"]
    assert "\u0600" < planted("rtl_text")["eventData"]["innerText"][0] < "\u06ff"
    assert "tracker" in planted("unknown_extra_fields")


def test_journeys_are_what_the_name_of_their_dirt_says(journeys: list[Any]) -> None:
    def planted(dirt: str) -> Any:
        return next(journey for number, journey in enumerate(journeys) if planted_in_journey(number) == dirt)

    assert planted("not_an_object") is None
    assert planted("only_id").keys() == {"_id"}
    assert "userId" not in planted("user_id_missing")
    assert "firstVisit" not in planted("first_visit_missing")
    assert isinstance(planted("first_visit_not_a_date")["firstVisit"], str)
    assert planted("first_visit_2099")["firstVisit"].year == 2099
    doubled = planted("duplicate_key")
    assert sum(isinstance(journey, dict) and journey.get("userId") == doubled["userId"] for journey in journeys) == 2
    assert "_id" not in planted("no_id")
    assert planted("last_before_first")["lastVisit"] < planted("last_before_first")["firstVisit"]
    assert planted("segment_unknown")["userSegment"] == "whale"
    assert "userSegment" not in planted("segment_missing")
    assert planted("days_to_conversion_negative")["daysToConversion"] < 0
    assert isinstance(planted("time_spent_text")["totalTimeSpent"], str)
    assert math.isnan(planted("time_spent_nan")["totalTimeSpent"])
    assert planted("time_spent_huge")["totalTimeSpent"] > 2_000_000
    assert planted("converted_text")["hasConverted"] == "yes"
    assert "acquisitionSource" not in planted("source_missing")
    assert "\u202e" in planted("source_bidi_override")["acquisitionSource"]
    assert planted("pages_disagree")["totalPageViews"] == 0


def test_campaigns_are_what_the_name_of_their_dirt_says(campaigns: Records) -> None:
    def planted(dirt: str) -> Record:
        return next(row for number, row in enumerate(campaigns) if planted_in_campaign(number) == dirt)

    sites = {site.site_id: site.dirt for site in sample_site_list()}
    assert isinstance(planted("text_id")["_id"], str)
    assert "siteId" not in planted("missing_site_id")
    for dirt in OWNERLESS:
        assert sites[planted(dirt)["siteId"]] == dirt
    assert planted("only_id").keys() == {"_id"}
    assert set(map(type, planted("all_null").values())) == {ObjectId, type(None)}
    assert "utm_id" not in planted("no_utm_id")
    doubled = [row for row in campaigns if row.get("utm_id") == planted("doubled_utm_id")["utm_id"]]
    assert len({row["siteId"] for row in doubled}) == len(doubled) == 2
    hashes = {row["txHash"] for row in planted("mixed_units")["stats"]["transactions"]}
    shown = [row.shown for rows in sample_purchases().values() for row in rows if row.tx_hash in hashes]
    assert len({text.partition(" ")[2] for text in shown}) > 1
    assert planted("bounce_rate_over_100")["stats"]["bounceRate"] > 100
    assert "budget" not in planted("budget_missing")
    assert isinstance(planted("budget_text")["budget"]["amount"], str)
    assert math.isnan(planted("budget_nan")["budget"]["amount"])
    assert planted("budget_negative")["budget"]["amount"] < 0
    assert isinstance(planted("budget_decimal128")["budget"]["amount"], Decimal128)
    assert planted("budget_unknown_currency")["budget"]["currency"] == "shells"
    assert math.isnan(planted("roi_nan")["stats"]["roi"])
    assert "stats" not in planted("stats_missing")
    assert isinstance(planted("stats_text")["stats"]["visitors"], str)
    assert planted("sessions_dangling")["sessions"]
    assert planted("transactions_null")["stats"]["transactions"] is None
    assert "createdAt" not in planted("created_missing")
    assert isinstance(planted("created_text")["createdAt"], str)
    assert "\0" in planted("nul_name")["name"]
    assert "\u202e" in planted("bidi_name")["name"]
    assert len(planted("long_name")["name"]) > 2_000


def test_analytics_are_what_the_name_of_their_dirt_says(analytics: Records) -> None:
    def planted(dirt: str) -> Records:
        return [row for number, row in enumerate(analytics) if dirt in planted_in_analytics(number)]

    assert len(planted("journey_fields_missing")) == sum("userJourneys" not in row for row in analytics) == 31
    assert len(planted("hourly_stats_missing")) == sum("hourlyStats" not in row for row in analytics) == 28
    assert len(planted("daily_stats_missing")) == sum("dailyStats" not in row for row in analytics) == 32
    assert len(planted("unique_visitors_disagree")) == 7
    assert all(row["uniqueVisitors"] != len(row["userId"]) for row in planted("unique_visitors_disagree"))
    assert len(planted("wallets_disagree")) == 3
    assert all(row["walletsConnected"] != len(row["wallets"]) for row in planted("wallets_disagree"))
    assert len(planted("new_and_returning_disagree")) == 3
    for row in planted("new_and_returning_disagree"):
        assert row["newVisitors"] + row["returningVisitors"] != row["totalVisitors"]
    assert planted("bounce_rate_text")[0]["bounceRate"] == "37.20"
    assert isinstance(planted("counter_text")[0]["totalPageViews"], str)
    assert math.isnan(planted("counter_nan")[0]["totalVisitors"])
    assert planted("counter_negative")[0]["returningVisitors"] < 0
    assert isinstance(planted("counter_decimal128")[0]["totalVisitors"], Decimal128)
    assert planted("page_map_null")[0]["pageViews"] is None
    assert "many" in planted("page_map_odd")[0]["pageViews"].values()
    assert max(map(len, planted("long_page_key")[0]["pageViews"])) == 5_000
    assert any("\u202e" in key for key in planted("bidi_page_key")[0]["pageViews"])
    assert planted("user_ids_null")[0]["userId"] is None
    assert "websiteUrl" not in planted("url_missing")[0]
    assert isinstance(planted("pathways_odd")[0]["commonPathways"], str)
    assert "tracker" in planted("unknown_extra_fields")[0]
    assert isinstance(planted("text_id")[0]["_id"], str)
    assert "siteId" not in planted("missing_site_id")[0]
    assert all("createdAt" not in row and "teamId" not in row for row in analytics)


@pytest.mark.parametrize("period", ["hourly", "daily"])
def test_statistics_are_what_the_name_of_their_dirt_says(visits: tuple[Visit, ...], period: str) -> None:
    numbers = {site.site_id: site.number for site in sample_site_list()}
    found = {}
    for row in sample_statistics(period, visits):
        if "siteId" not in row:
            found["missing_site_id"] = row
        elif (dirt := planted_in_statistics(period, numbers[row["siteId"]])) is not None:
            found[dirt] = row
    rings = {dirt: row.get("analyticsSnapshot") for dirt, row in found.items()}

    def times(dirt: str) -> list[datetime]:
        return [entry["timestamp"] for entry in rings[dirt] or ()]

    assert set(found) == {*UNMIGRATABLE_STATISTICS, *SURVIVING_STATISTICS}
    assert isinstance(found["text_id"]["_id"], str)
    assert times("oldest_first") == sorted(times("oldest_first"))
    assert times("shuffled") not in (sorted(times("shuffled")), sorted(times("shuffled"), reverse=True))
    assert any(later["visitors"] < earlier["visitors"] for later, earlier in pairwise(rings["total_falls"] or ()))
    assert any(isinstance(entry["visitors"], str) for entry in rings["figure_text"] or ())
    assert any(math.isnan(entry["pageViews"]) for entry in rings["figure_nan"] or ())
    assert any(entry["web3Users"] < 0 for entry in rings["figure_negative"] or ())
    assert any(isinstance(entry["visitors"], Decimal128) for entry in rings["figure_decimal128"] or ())
    assert any("pageViews" not in entry for entry in rings["figure_missing"] or ())
    assert None in (rings["entry_null"] or ())
    assert any("timestamp" not in entry for entry in rings["entry_without_time"] or ())
    assert any(time.year == 2099 for time in times("entry_in_2099"))
    assert any(isinstance(time, str) for time in times("time_as_text"))
    assert len(set(times("same_time_twice"))) == len(times("same_time_twice")) - 1
    steps = [later - earlier for later, earlier in pairwise(times("gap"))]
    assert max(steps) > 4 * min(steps)
    assert len(rings["one_entry"] or ()) == 1
    assert rings["empty_ring"] == []
    assert "analyticsSnapshot" not in found["ring_missing"]
    assert found["ring_null"]["analyticsSnapshot"] is None
    with pytest.raises(KeyError):
        ZoneInfo(found["timezone_unknown"]["timezone"])
    assert "lastSnapshotAt" not in found["last_snapshot_missing"]


def test_websites_teams_and_contracts_are_what_the_name_of_their_dirt_says() -> None:
    websites = {planted_in_website(number): row for number, row in enumerate(sample_site_websites())}
    assert isinstance(websites["team_as_text"]["team"], str)
    assert "Name" not in websites["no_name"]
    assert "Domain" not in websites["no_domain"]
    assert websites["domain_with_scheme"]["Domain"].startswith("https://")
    assert "team" not in websites["only_listed"]
    assert "\u202e" in websites["bidi_name"]["Name"]
    assert websites["not_verified"]["isVerified"] is False
    assert "\0" in websites["nul_name"]["Name"]
    assert websites["analytics_dangling"]["analytics"] not in {site.analytics_oid for site in sample_site_list()}
    assert websites["name_number"]["Name"] == 404
    assert len(websites["long_name"]["Name"]) > 2_000
    assert "siteId" not in websites["missing_site_id"]
    teams = {planted_in_team(number): row for number, row in enumerate(sample_site_teams())}
    known = {row["_id"] for row in sample_site_websites()}
    assert not set(teams["listed_website_gone"]["websites"]) <= known
    assert "subscription" not in teams["no_subscription"]
    assert "websites" not in teams["no_websites"]
    assert sum(row["name"] == teams["doubled_name"]["name"] for row in sample_site_teams()) == 2
    assert websites["listed_by_another_team"]["_id"] in teams["lists_a_website_of_another"]["websites"]
    contracts = {planted_in_contract(number): row for number, row in enumerate(sample_site_contracts())}
    assert contracts["chain_alias"]["blockchain"] == "Ethereum Mainnet"
    assert contracts["chain_lower_case"]["blockchain"] == "base"
    assert "blockchain" not in contracts["chain_missing"]
    assert contracts["chain_unknown"]["blockchain"] == "Zetrix"
    assert "name" not in contracts["no_name"]
    assert "tokenSymbol" not in contracts["no_symbol"]
    assert "contractType" not in contracts["no_type"]
    assert contracts["address_mixed_case"]["address"] != contracts["address_mixed_case"]["address"].lower()
    assert len(contracts["address_short"]["address"]) == 38
    assert not contracts["address_not_hex"]["address"].startswith("0x")
    assert isinstance(contracts["last_block_text"]["lastBlock"], str)
    assert isinstance(contracts["last_block_double"]["lastBlock"], float)
    assert "createdAt" not in contracts["created_missing"]
    assert isinstance(contracts["created_text"]["createdAt"], str)
    assert math.isnan(contracts["staking_details_odd"]["stakingDetails"]["lockPeriod"])
    assert contracts["staking_details_on_main"]["contractType"] == "main"
    assert "stakingDetails" in contracts["staking_details_on_main"]
    assert "\0" in contracts["nul_name"]["name"]
    assert "\u202e" in contracts["bidi_name"]["name"]
    assert "contractId" not in contracts["contract_id_missing"]
    assert isinstance(contracts["text_id"]["_id"], str)
    assert "team" not in contracts["team_missing"]
    assert contracts["team_unknown"]["team"] not in {row["_id"] for row in sample_site_teams()}


def test_numbers_come_in_every_type_of_the_source(visits: tuple[Visit, ...], sessions: Records) -> None:
    kept = sound(visits, sessions)
    for field in ("duration", "pagesViewed", "sessionNumber"):
        assert {type(session[field]) for session in kept} >= {int, Int64, float}
    assert {type(session.get("referrer")) for session in kept} == {str, type(None)}
    assert {"direct", "Direct", ""} <= {session.get("referrer") for session in kept}
    assert any(len(session["browser"]["version"]) > 50 for session in kept if session["browser"])
    assert {type(session.get("previousSessionId")) for session in kept} == {str, type(None)}
