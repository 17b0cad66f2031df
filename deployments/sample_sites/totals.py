"""What the source counts of visits: analytics with its journeys, the four kinds of statistics, campaigns.

All are as of ``taken_at``: the midnight (UTC) after the last visit. Counters know every visit that ``counts``, and
some visits and page views from before the oldest session that is left, so only differences agree with the sessions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from math import fsum
from typing import Any, Final
from zoneinfo import ZoneInfo

from bson import Binary, Decimal128, Int64, ObjectId

from deployments.sample_sites.dirt import (
    SURVIVING_STATISTICS,
    UNMIGRATABLE_STATISTICS,
    planted_in_journey,
)
from deployments.sample_sites.draws import (
    DAY_MS,
    HOUR_MS,
    SECOND_MS,
    Record,
    hex_of,
    mixed,
    moment,
    object_id,
)
from deployments.sample_sites.sites import FIRST_DAY_MS, Campaign, Site, sample_campaign_list, sample_site_list
from deployments.sample_sites.visits import BRIDGE_ROWS, Purchase, Visit, sample_purchases

#: As many as the source holds.
JOURNEYS: Final = 634
PERIODS: Final = ("hourly", "daily", "weekly", "monthly")

_JOURNEY_SITES: Final = 17  # the others were written before their rows had the field
_RINGS: Final = {"hourly": 24, "daily": 30}
#: The sites that have no row.
_WITHOUT: Final = {"hourly": (47,), "daily": (41,), "weekly": (45,), "monthly": (43, 44)}
#: Rows of before the rings had times: their weekly and monthly rings hold an hour only, and they name no time zone.
_OLD_ROWS: Final = range(4, 22)
#: The few weekly and monthly entries that are sound.
_SOUND_ENDS: Final = range(25, 34)
_RETENTION_DAYS: Final = 30
#: How often somebody has looked at the campaign whose bounces are too many: each time they were added once more.
_READS: Final = 8


@dataclass(slots=True)
class _Ledger:
    """What happened on one site, in the order of time."""

    visits: list[Visit] = field(default_factory=list)
    users: dict[str, list[Visit]] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    web3_users: dict[str, int] = field(default_factory=dict)
    wallets: dict[str, Visit] = field(default_factory=dict)


def _ledgers(visits: Iterable[Visit]) -> dict[int, _Ledger]:
    ledgers = {site.number: _Ledger() for site in sample_site_list()}
    for visit in visits:
        if not visit.counts:
            continue
        ledger = ledgers[visit.site.number]
        user = visit.visitor.user_id
        ledger.visits.append(visit)
        ledger.users.setdefault(user, []).append(visit)
        ledger.starts.append(visit.started_ms)
        ledger.views.extend(page.at_ms for page in visit.pages)
        if visit.web3:
            ledger.web3_users.setdefault(user, visit.started_ms)
        if visit.wallet is not None:
            ledger.wallets.setdefault(visit.wallet, visit)
    for ledger in ledgers.values():
        ledger.views.sort()
    return ledgers


def taken_at(visits: Sequence[Visit]) -> int:
    """Return when the counters were read, in epoch milliseconds: the midnight after the last visit."""
    return (visits[-1].started_ms // DAY_MS + 1) * DAY_MS if visits else FIRST_DAY_MS


# --- campaigns


def sample_campaigns(visits: Sequence[Visit], *, seed: int = 1, transactions: int = BRIDGE_ROWS) -> Iterator[Record]:
    """Yield the campaigns with what they brought; ``planted_in_campaign`` names the dirt of each.

    A campaign's transactions are those of the sample's first ``transactions`` that a wallet of its sessions made on
    a contract of the site's team after the wallet's first session of that campaign.
    """
    purchases = sample_purchases(transactions, seed=seed)
    brought: dict[int, list[Visit]] = {}
    for visit in visits:
        if visit.counts and visit.campaign is not None:
            brought.setdefault(visit.campaign.number, []).append(visit)
    for campaign in sample_campaign_list():
        sessions = brought.get(campaign.number, [])
        record = _campaign(campaign, sessions, purchases)
        yield record if campaign.dirt is None else _spoiled_campaign(record, campaign)


def _campaign(campaign: Campaign, visits: list[Visit], purchases: dict[ObjectId, tuple[Purchase, ...]]) -> Record:
    site = next(site for site in sample_site_list() if site.slug == campaign.slug)
    first_ms: dict[str, int] = {}
    for visit in visits:
        if visit.wallet is not None:
            first_ms.setdefault(visit.wallet, visit.started_ms)
    made = [
        purchase
        for purchase in (purchases.get(site.team_id, ()) if site.team_id is not None else ())
        if purchase.at_ms >= first_ms.get(purchase.wallet, purchase.at_ms + 1)
    ]
    users = list(dict.fromkeys(visit.visitor.user_id for visit in visits))
    web3_users = list(dict.fromkeys(visit.visitor.user_id for visit in visits if visit.web3))
    buyers = list(dict.fromkeys(purchase.wallet for purchase in made))
    seconds = sum(visit.seconds for visit in visits)
    bounces = sum(visit.bounced for visit in visits)
    value = fsum(purchase.value for purchase in made)  # `sum` differs between versions of Python
    currency, _, amount = campaign.budget.partition(" ")
    cost = float(amount or 0)
    short = f"go.{site.domain}"
    record: Record = {
        "_id": campaign.oid,
        "siteId": site.site_id,
        "name": campaign.name,
        "domain": site.domain,
        "path": campaign.path,
        "source": campaign.source,
        "medium": campaign.medium,
        "campaign": campaign.campaign,
        "shortenedDomain": short,
        "longUrl": f"https://{site.domain}{campaign.path}?utm_source={campaign.source}&utm_medium={campaign.medium}"
        f"&utm_campaign={campaign.campaign}" + (f"&utm_id={campaign.utm_id}" if campaign.utm_id else ""),
        "shortUrl": f"https://{short}/{hex_of('short', campaign.slug, campaign.campaign)[:6]}",
        "budget": {"currency": currency, "amount": int(cost) if cost.is_integer() else cost},
        "sessions": [visit.oid for visit in visits],
        "createdAt": moment(campaign.created_ms),
        "updatedAt": moment(max([campaign.created_ms, *(visit.ended_ms for visit in visits)])),
        "stats": {
            "visitors": len(visits),
            "uniqueVisitors": users,
            "web3Users": len(web3_users),
            "uniqueWeb3Users": web3_users,
            "uniqueWallets": len(first_ms),
            "uniqueWalletAddresses": list(first_ms),
            "transactedUsers": len(buyers),
            "uniqueTransactedWallets": buyers,
            "conversions": len(made),
            "conversionsValue": value,
            "totalTransactionValue": value,
            "averageTransactionValue": value / len(made) if made else 0,
            "cac": cost / len(buyers) if buyers else 0,
            "roi": (value - cost) / cost * 100 if cost else 0,
            "totalDuration": seconds,
            "averageDuration": seconds / len(visits) if visits else 0,
            "visitDuration": seconds,
            "bounces": bounces,
            "bounceRate": bounces * 100 / len(visits) if visits else 0,
            "sessionDurations": {visit.session_id: visit.seconds for visit in visits},
            "transactions": [
                {
                    "txHash": purchase.tx_hash,
                    "contractAddress": purchase.contract_address,
                    "walletAddress": purchase.wallet,
                    "value": purchase.value,
                    "timestamp": moment(purchase.at_ms),
                    "chainId": _CHAIN_IDS[purchase.chain],
                    "chainName": purchase.chain,
                }
                for purchase in made
            ],
        },
    }
    if campaign.utm_id is not None:
        record["utm_id"] = campaign.utm_id
    if campaign.number % 5 == 2:
        record |= {"term": "harbour", "content": "banner 1"}
    return record


_CHAIN_IDS: Final = {
    "Ethereum": 1,
    "BNB Chain": 56,
    "Base": 8453,
    "Polygon": 137,
    "Arbitrum": 42161,
    "Optimism": 10,
}


def _spoiled_campaign(record: Record, campaign: Campaign) -> Record:
    """Return the campaign with its dirt; changes the record given."""
    stats = record["stats"]
    match campaign.dirt:
        case "text_id":
            record["_id"] = f"imported-{record['_id']}"
        case "missing_site_id":
            del record["siteId"]
        case "only_id":
            return {"_id": record["_id"]}
        case "all_null":
            return {"_id": record["_id"]} | dict.fromkeys(list(record)[1:])
        case "bounce_rate_over_100":
            stats["bounces"] = max(stats["bounces"], 1) * _READS
            stats["bounceRate"] = stats["bounces"] * 100 / max(stats["visitors"], 1)
        case "budget_missing":
            del record["budget"]
        case "budget_text":
            record["budget"]["amount"] = "1,250.50"
        case "budget_nan":
            record["budget"]["amount"] = float("nan")
        case "budget_negative":
            record["budget"]["amount"] = -40
        case "budget_decimal128":
            record["budget"]["amount"] = Decimal128("300.10")
        case "roi_nan":
            stats |= {"roi": float("nan"), "cac": float("inf")}
        case "stats_missing":
            del record["stats"]
        case "stats_text":
            stats |= {"visitors": "12", "totalDuration": "37.20", "uniqueVisitors": "user_1"}
        case "sessions_dangling":
            record["sessions"] = [object_id(1_708_000_000, "session", "deleted", str(i)) for i in range(3)]
        case "transactions_null":
            stats["transactions"] = None
        case "created_missing":
            for name in ("createdAt", "updatedAt"):
                del record[name]
        case "created_text":
            record["createdAt"] = record["createdAt"].isoformat()
        case "long_name":
            record["name"] = ", ".join(f"{campaign.name} {part}" for part in range(1, 400))
        case _:  # in the campaign itself, or in the sessions that it brought
            pass
    return record


# --- analytics

_DISAGREE: Final = {
    # Among the rows of owned sites after the five busy ones, in their order.
    "unique_visitors_disagree": range(7),
    "wallets_disagree": range(7, 10),
    "new_and_returning_disagree": range(10, 13),
}
_ODD_ANALYTICS: Final = (
    "bounce_rate_text",
    "counter_text",
    "counter_nan",
    "counter_negative",
    "counter_decimal128",
    "page_map_null",
    "page_map_odd",
    "long_page_key",
    "bidi_page_key",
    "user_ids_null",
    "url_missing",
    "pathways_odd",
    "unknown_extra_fields",
    "text_id",
    "missing_site_id",
)


def _quiet(number: int) -> int | None:
    """Return the place of the site among those that have an owner and are not busy, or None."""
    sites = sample_site_list()
    if number < 5 or sites[number].dirt is not None:
        return None
    return sum(site.dirt is None for site in sites[5:number])


def planted_in_analytics(number: int) -> tuple[str, ...]:
    """Return the classes of dirt in the analytics of that site (from 0): most have several."""
    site = sample_site_list()[number]
    found = [] if site.dirt is None else [site.dirt]
    if number >= _JOURNEY_SITES:
        found.append("journey_fields_missing")
    # 28 and 32 of the 48 rows, spread over them: both factors are prime to 48.
    if number * 5 % 48 >= 20:
        found.append("hourly_stats_missing")
    if number * 11 % 48 >= 16:
        found.append("daily_stats_missing")
    place = _quiet(number)
    if place is not None:
        found += [name for name, places in _DISAGREE.items() if place in places]
        if 13 <= place < 13 + len(_ODD_ANALYTICS):
            found.append(_ODD_ANALYTICS[place - 13])
    return tuple(found)


def sample_analytics(visits: Sequence[Visit], journeys: int = JOURNEYS) -> Iterator[Record]:
    """Yield one row per site, in the order of ``sample_site_list``, with at most ``journeys`` journeys in all.

    ``planted_in_analytics`` names the dirt of a row, ``planted_in_journey`` that of a journey, by its number over
    all rows.
    """
    ledgers = _ledgers(visits)
    travellers = _travellers(ledgers, journeys)
    first = 0
    for site in sample_site_list():
        dirt = planted_in_analytics(site.number)
        record = _analytics(site, ledgers[site.number])
        if "journey_fields_missing" not in dirt:
            users = travellers.get(site.number, [])
            rows = [_journey(site, ledgers[site.number].users[user]) for user in users]
            record |= _journey_fields(ledgers[site.number])
            record["userJourneys"] = [_spoiled_journey(rows, place, first + place) for place in range(len(rows))]
            first += len(rows)
        for name in dirt:
            record = _spoiled_analytics(record, name)
        yield record


def _analytics(site: Site, ledger: _Ledger) -> Record:
    visits, users = ledger.visits, ledger.users
    views: Counter[str] = Counter({"/": 3 * site.counted_before})
    entries: Counter[str] = Counter({"/": site.counted_before})
    exits: Counter[str] = Counter({"/": site.counted_before})
    for visit in visits:
        # A dot can't stand in a key of the source's maps.
        keys = [visit.spelled(page.path).replace(".", "_") for page in visit.pages]
        views.update(keys)
        entries[keys[0]] += 1
        exits[keys[-1]] += 1
    total = site.counted_before + len(visits)
    gaps = [visit.started_ms - visit.before.ended_ms for visit in visits if visit.before is not None]
    days = sum(len({visit.started_ms // DAY_MS for visit in made}) for made in users.values())
    number = site.number
    record: Record = {
        "_id": site.analytics_oid,
        "siteId": site.site_id,
        "websiteUrl": f"https://{site.domain}",
        "totalVisitors": mixed(total, number),
        "uniqueVisitors": mixed(len(users), number + 1),
        "web3Visitors": len(ledger.web3_users),
        "totalPageViews": mixed(views.total(), number + 2),
        "newVisitors": len(users),
        "returningVisitors": total - len(users),
        "walletsConnected": len(ledger.wallets),
        "crossDeviceUsers": sum(len({visit.device for visit in made}) > 1 for made in users.values()),
        "avgSessionsPerUser": len(visits) / len(users) if users else 0,
        "avgTimeBetweenSessions": sum(gaps) / len(gaps) / SECOND_MS if gaps else 0,
        "avgDaysActive": days / len(users) if users else 0,
        "userId": list(users),
        "web3UserId": list(ledger.web3_users),
        "userAgents": list(dict.fromkeys(visit.visitor.user_agent for visit in visits)),
        "pageViews": dict(views),
        "entryPages": dict(entries),
        "exitPages": dict(exits),
        "sessions": [visit.oid for visit in visits],
        "wallets": [
            {"walletAddress": wallet, "walletType": visit.wallet_type, "chainName": visit.wallet_chain}
            for wallet, visit in ledger.wallets.items()
        ],
    }
    return record | {f"{period}Stats": statistics_oid(period, site) for period in PERIODS}


def _journey_fields(ledger: _Ledger) -> Record:
    users = ledger.users
    ways: dict[tuple[str, ...], list[Visit]] = {}
    buys: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for visit in ledger.visits:
        paths = tuple(page.path for page in visit.pages)
        if len(paths) > 1:
            ways.setdefault(paths[:3], []).append(visit)
    for made in users.values():
        for visit in made:
            if visit.wallet is not None:
                way = (made[0].source, tuple(page.path for page in visit.pages)[:4])
                buys.setdefault(way, []).append(visit.started_ms - made[0].started_ms)
                break
    again = Counter(day for made in users.values() for day in {_day_of(made, visit) for visit in made[1:]} - {0})
    often = sorted(ways.items(), key=lambda way: (-len(way[1]), way[0]))[:8]
    return {
        "commonPathways": [
            {
                "sequence": list(sequence),
                "count": len(made),
                "conversionCount": sum(visit.wallet is not None for visit in made),
                "averageDuration": sum(visit.seconds for visit in made) / len(made),
            }
            for sequence, made in often
        ],
        "retentionByDay": [
            {"day": day, "count": again[day], "percentage": round(again[day] * 100 / len(users), 2) if users else 0}
            for day in range(1, _RETENTION_DAYS + 1)
        ],
        "conversionPaths": [
            {
                "sourceMedium": source,
                "pathToConversion": list(path),
                "conversionCount": len(waits),
                "avgTimeToConversion": sum(waits) / len(waits) / SECOND_MS,
            }
            for (source, path), waits in sorted(buys.items(), key=lambda way: (-len(way[1]), way[0]))[:8]
        ],
    }


def _day_of(made: list[Visit], visit: Visit) -> int:
    """Return how many whole days after the user's first visit this one began."""
    return (visit.started_ms - made[0].started_ms) // DAY_MS


def _travellers(ledgers: dict[int, _Ledger], journeys: int) -> dict[int, list[str]]:
    """Return by site the users who have a journey: who came back or connected a wallet, and every ninth other."""
    found = [
        (made[0].row, number, user)
        for number in range(_JOURNEY_SITES)
        for place, (user, made) in enumerate(ledgers[number].users.items())
        if made[0].dirt != "user_id_missing" and (len(made) > 1 or made[0].wallet is not None or place % 9 == 0)
    ]
    travellers: dict[int, list[str]] = {}
    # Where there are too many, those who came last have none.
    for _row, number, user in sorted(found)[:journeys]:
        travellers.setdefault(number, []).append(user)
    return travellers


def _journey(site: Site, made: list[Visit]) -> Record:
    first, last = made[0], made[-1]
    converted = next((place for place, visit in enumerate(made) if visit.wallet is not None), None)
    if converted is not None:
        segment = "converter"
    elif len(made) > 3:
        segment = "engaged"
    elif len(made) == 1 and first.bounced:
        segment = "bounced"
    else:
        segment = "browser"
    record: Record = {
        "_id": object_id(first.started_ms // SECOND_MS, "journey", site.slug, first.visitor.user_id),
        "userId": first.visitor.user_id,
        "firstVisit": moment(first.started_ms),
        "lastVisit": moment(last.started_ms),
        "totalSessions": mixed(len(made), first.row),
        "totalPageViews": sum(len(visit.pages) for visit in made),
        "totalTimeSpent": mixed(sum(visit.seconds for visit in made), first.row + 5),
        "hasConverted": converted is not None,
        "userSegment": segment,
        "acquisitionSource": first.source,
    }
    if converted is not None:
        record["daysToConversion"] = _day_of(made, made[converted])
        record["sessionsBeforeConversion"] = converted
    return record


def _spoiled_journey(rows: list[Record], place: int, number: int) -> Any:
    """Return the journey of that place with the dirt of its number."""
    record = dict(rows[place])
    match planted_in_journey(number):
        case "not_an_object":
            return None
        case "only_id":
            return {"_id": record["_id"]}
        case "user_id_missing":
            del record["userId"]
        case "first_visit_missing":
            del record["firstVisit"]
        case "first_visit_not_a_date":
            record["firstVisit"] = "last spring"
        case "first_visit_2099":
            record |= dict.fromkeys(("firstVisit", "lastVisit"), datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC))
        case "duplicate_key" if place > 0:
            return {**rows[place - 1], "_id": record["_id"]}
        case "no_id":
            del record["_id"]
        case "last_before_first":
            record["lastVisit"] = record["firstVisit"] - timedelta(days=2)
        case "segment_unknown":
            record["userSegment"] = "whale"
        case "segment_missing":
            del record["userSegment"]
        case "days_to_conversion_negative":
            record |= {"hasConverted": True, "daysToConversion": -3}
        case "time_spent_text":
            record["totalTimeSpent"] = "37.20"
        case "time_spent_nan":
            record["totalTimeSpent"] = float("nan")
        case "time_spent_huge":
            record["totalTimeSpent"] = Int64(2_180_000)
        case "converted_text":
            record["hasConverted"] = "yes"
        case "source_missing":
            del record["acquisitionSource"]
        case "source_bidi_override":
            record["acquisitionSource"] = "referral/\u202eelpmaxe.swen\u202c"
        case "pages_disagree":
            record["totalPageViews"] = 0
    return record


def _spoiled_analytics(record: Record, dirt: str) -> Record:
    """Return the row with dirt of the class; changes the record given."""
    match dirt:
        case "text_id":
            record["_id"] = f"imported-{record['_id']}"
        case "missing_site_id":
            del record["siteId"]
        case "hourly_stats_missing":
            del record["hourlyStats"]
        case "daily_stats_missing":
            del record["dailyStats"]
        case "unique_visitors_disagree":
            record["uniqueVisitors"] += 3
        case "wallets_disagree":
            record["walletsConnected"] += 2
        case "new_and_returning_disagree":
            record["returningVisitors"] += 1
        case "bounce_rate_text":
            record["bounceRate"] = "37.20"
        case "counter_text":
            record["totalPageViews"] = str(int(record["totalPageViews"]))
        case "counter_nan":
            record["totalVisitors"] = float("nan")
        case "counter_negative":
            record["returningVisitors"] = -1
        case "counter_decimal128":
            record["totalVisitors"] = Decimal128(str(int(record["totalVisitors"])))
        case "page_map_null":
            record["pageViews"] = None
        case "page_map_odd":
            record["pageViews"] |= {"/odd": "many", "/worse": None, "/worst": float("nan")}
        case "long_page_key":
            record["pageViews"]["/deep" * 1_000] = 1
        case "bidi_page_key":
            record["pageViews"]["/\u202eecirp\u202c"] = 2
        case "user_ids_null":
            record |= {"userId": None, "userAgents": None}
        case "url_missing":
            del record["websiteUrl"]
        case "pathways_odd":
            record["commonPathways"] = "none"
        case "unknown_extra_fields":
            record["tracker"] = {"raw": Binary(b"\0" * 16), "nested": {"a": [{"b": Int64(3)}]}}
    return record


# --- hourly, daily, weekly and monthly statistics


def statistics_oid(period: str, site: Site) -> ObjectId:
    """Return the id of the site's row of that period."""
    return object_id(1_707_100_000, f"{period}stats", site.slug)


def planted_in_statistics(period: str, number: int) -> str | None:
    """Return the class of dirt in the row of the site of that number (from 0), or None.

    Hourly and daily rows hold every class; weekly and monthly ones are broken anyhow.
    """
    site = sample_site_list()[number]
    if site.dirt is not None or period not in _RINGS:
        return site.dirt
    place = _quiet(number)
    names = (*UNMIGRATABLE_STATISTICS[:2], *SURVIVING_STATISTICS)
    return None if place is None or place >= len(names) else names[place]


def sample_statistics(period: str, visits: Sequence[Visit]) -> Iterator[Record]:
    """Yield the rows of ``hourlystats``, ``dailystats``, ``weeklystats`` or ``monthlystats``: not every site has one.

    Entries are running totals as of the hour, or of the midnight in the row's time zone (UTC where it has none),
    written some seconds later.
    """
    ledgers = _ledgers(visits)
    end_ms = taken_at(visits)
    broken = 0
    for site in sample_site_list():
        if site.number in _WITHOUT[period]:
            continue
        old = site.number in _OLD_ROWS
        record: Record = {"_id": statistics_oid(period, site), "siteId": site.site_id}
        if period in _RINGS:
            marks = _marks(period, "UTC" if old else site.timezone, end_ms)
            entries = [_entry(period, site, ledgers[site.number], mark) for mark in marks]
        else:
            long_rows, size = (17, 13) if period == "weekly" else (32, 4)
            entries = _broken(period, site, ledgers[site.number], size if broken < long_rows else size - 1, end_ms)
            broken += 1
        record["analyticsSnapshot"] = entries
        if any("timestamp" in entry for entry in entries):
            record["lastSnapshotAt"] = max(entry["timestamp"] for entry in entries if "timestamp" in entry)
        if not old:
            record["timezone"] = site.timezone
        dirt = planted_in_statistics(period, site.number)
        yield record if dirt is None else _spoiled_statistics(record, dirt)


def _marks(period: str, timezone: str, end_ms: int) -> list[int]:
    """Return the ends of the hours or days of a full ring, the newest first."""
    if period == "hourly":
        return [end_ms - turn * HOUR_MS for turn in range(_RINGS[period])]
    zone = ZoneInfo(timezone)
    last = moment(end_ms).astimezone(zone).date()
    ends = (datetime.combine(last - timedelta(days=turn), time(), zone) for turn in range(_RINGS[period]))
    return [round(end.timestamp()) * SECOND_MS for end in ends]


def _entry(period: str, site: Site, ledger: _Ledger, mark_ms: int) -> Record:
    key = hex_of("entry", period, site.slug, str(mark_ms))
    late_ms = int(key[:8], 16) % 50_000
    visitors = site.counted_before + bisect_right(ledger.starts, mark_ms - 1)
    views = 3 * site.counted_before + bisect_right(ledger.views, mark_ms - 1)
    return {
        "_id": ObjectId(key[8:32]),
        "analyticsId": site.analytics_oid,
        "timestamp": moment(mark_ms + late_ms),
        "visitors": mixed(visitors, late_ms),
        "web3Users": sum(since < mark_ms for since in ledger.web3_users.values()),
        "walletsConnected": sum(visit.started_ms < mark_ms for visit in ledger.wallets.values()),
        "pageViews": mixed(views, late_ms + 1),
    }


def _broken(period: str, site: Site, ledger: _Ledger, size: int, end_ms: int) -> list[Record]:
    """Return a ring without times and figures, as the source writes it; in a few sites the newest entry is sound."""
    entries: list[Record] = [
        {
            "_id": object_id(1_707_200_000, "entry", period, site.slug, str(place)),
            "analyticsId": site.analytics_oid,
            "visitors": 0,
            "web3Users": 0,
            "walletsConnected": 0,
            "pageViews": 0,
        }
        for place in range(size)
    ]
    if site.number in _OLD_ROWS:
        entries[-1] = {"hour": site.number % 24}
    if site.number in _SOUND_ENDS:
        entries[0] = _entry(period, site, ledger, end_ms)
    return entries


def _spoiled_statistics(record: Record, dirt: str) -> Record:
    """Return the row with dirt of the class; changes the record given."""
    entries: list[Any] = record["analyticsSnapshot"]
    # Only full rings are spoiled: the others are broken as they are.
    entry: Record = entries[3] if len(entries) > 3 else {}
    match dirt:
        case "text_id":
            record["_id"] = f"imported-{record['_id']}"
        case "missing_site_id":
            del record["siteId"]
        case "oldest_first":
            entries.reverse()
        case "shuffled":
            record["analyticsSnapshot"] = entries[7:] + entries[3:7] + entries[:3]
        case "total_falls":  # a counter that began anew
            for name in ("visitors", "pageViews", "web3Users", "walletsConnected"):
                start = entries[5][name]
                for later in entries[:6]:
                    later[name] -= start
        case "figure_text":
            entry["visitors"] = str(int(entry["visitors"]))
        case "figure_nan":
            entry["pageViews"] = float("nan")
        case "figure_negative":
            entry["web3Users"] = -1
        case "figure_decimal128":
            entry["visitors"] = Decimal128(str(int(entry["visitors"])))
        case "figure_missing":
            del entry["pageViews"]
        case "entry_null":
            entries[3] = None
        case "entry_without_time":
            del entry["timestamp"]
        case "entry_in_2099":
            entry["timestamp"] = datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC)
        case "time_as_text":
            entry["timestamp"] = entry["timestamp"].isoformat()
        case "same_time_twice":
            entries.insert(3, {**entry, "_id": ObjectId(hex_of("twice", str(entry["_id"]))[:24])})
            entries.pop()
        case "gap":
            del entries[4:9]
        case "one_entry":
            del entries[1:]
        case "empty_ring":
            entries.clear()
        case "ring_missing":
            del record["analyticsSnapshot"]
        case "ring_null":
            record["analyticsSnapshot"] = None
        case "timezone_unknown":
            record["timezone"] = "Mars/Olympus"
        case "last_snapshot_missing":
            del record["lastSnapshotAt"]
    return record
