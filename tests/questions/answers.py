"""The answers a second time, from the golden set's rows: plain loops, a question at a time, and no document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

from tasks.domain.aggregates.visits import Visit
from tasks.domain.transactions import Transaction
from tests.golden import Golden
from tests.questions.questions import ARENA, AURORA, MINT, QUILLON, SAFFRON
from tests.unit.aggregates import naive

Group = Sequence[Transaction]

#: Selector of create_lock(uint256,uint256).
CREATE_LOCK = "0x65fc3873"
#: Selector of castVote(uint256,uint8).
CAST_VOTE = "0x56781388"


def site_ids(golden: Golden) -> dict[str, str]:
    """Return the siteId of each website by the first part of its domain."""
    return {
        record["Domain"].removesuffix(".example"): record["siteId"]
        for record in golden.records["websites"]
        if isinstance(record.get("Domain"), str) and record.get("siteId")
    }


def team_ids(golden: Golden) -> dict[str, str]:
    """Return the id of each team by its name; one of those that share a name."""
    return {record["name"]: str(record["_id"]) for record in golden.records["teams"]}


def contract_id(golden: Golden, name: str, chain: str | None = None) -> str:
    (record,) = (
        record
        for record in golden.records["smartcontracts"]
        if record.get("name") == name and chain in (None, record["blockchain"])
    )
    found: str = record["contractId"]
    return found


def level_of(label: str) -> str:
    return "all" if label == "all" else "week" if "W" in label else "month" if len(label) == 7 else "day"


def sessions(golden: Golden, site: str | None, label: str = "all", *, zone: str = "UTC", team: str = "") -> list[Visit]:
    """Return the sessions of a website, or of all websites of a team, each once."""
    owners = golden.owners.by_site_id
    mine = [
        visit
        for visit in golden.visits
        if visit.site_id == site_ids(golden).get(site or "") or owners[visit.site_id].team_id == team
    ]
    return naive.one_each(naive.in_period(mine, lambda visit: visit.start_ms, level_of(label), label, zone), zone)


def transactions(
    golden: Golden, label: str = "all", *, team: str = "", contract: str = "", chain: str = ""
) -> list[Group]:
    """Return the transactions of a contract, or of a team (on a chain), each with its rows."""
    if contract:
        kind, holder_id, chain = "contract", contract, ""
    else:
        kind, holder_id = "chain" if chain else "team", team_ids(golden)[team]
    mine = naive.chosen(golden.transactions, kind, holder_id, chain)
    rows = naive.in_period(mine, lambda row: row.block_time_ms, level_of(label), label, "UTC")
    return list(naive.without_doubles(rows, kind, "UTC").values())


def statuses(groups: Iterable[Group]) -> Counter[str]:
    return Counter(map(naive.status_of, groups))


def wallets(groups: Iterable[Group]) -> Counter[str]:
    return Counter(wallet for group in groups for wallet in naive.wallets_of(group))


def took_effect(group: Group) -> bool:
    return naive.status_of(group) not in ("failed", "pending")


def volumes(groups: Iterable[Group]) -> dict[str, list[Decimal]]:
    """Return the amounts that moved, by unit; those of most entries first."""
    found: dict[str, list[Decimal]] = {}
    entries = Counter[str]()
    for group in groups:
        for unit, amount, below, unlimited in {
            (row.unit or "", row.amount, row.amount_below, row.amount_unlimited)
            for row in group
            if row.amount is not None
        }:
            entries[unit] += 1
            amounts = found.setdefault(unit, [])
            if took_effect(group) and not below and not unlimited:
                amounts.append(Decimal(amount))
    return {unit: found[unit] for unit in sorted(found, key=lambda unit: (-entries[unit], unit))}


def total(amounts: Iterable[Decimal]) -> str:
    return naive.text(naive.total(amounts))


def most(values: Iterable[str | None], name: str, counted: str, first: int = 10) -> list[dict[str, Any]]:
    return naive.top_ten(Counter(value for value in values if value is not None), name, counted)[:first]


def won(golden: Golden, mine: Sequence[Visit], team_id: str, label: str = "all") -> tuple[dict[str, int], list[Group]]:
    """Return what the wallets of these sessions did since: how long each took to begin, in ms, and the transactions."""
    since: dict[str, int] = {}
    for visit in mine:
        if visit.wallet is not None:
            since[visit.wallet] = min(visit.start_ms, since.get(visit.wallet, visit.start_ms))
    rows = naive.in_period(golden.transactions, lambda row: row.block_time_ms, level_of(label), label, "UTC")
    waits: dict[str, int] = {}
    found: dict[tuple[Any, ...], dict[Any, Transaction]] = {}
    for row in rows:
        wallet, moment = row.from_address, row.block_time_ms
        if row.team_id == team_id and wallet in since and moment is not None and moment >= since[wallet]:
            waits[wallet] = min(moment - since[wallet], waits.get(wallet, moment - since[wallet]))
            found.setdefault((row.chain, row.tx_hash), {})[row.record_id] = row
    return waits, [list(group.values()) for group in found.values()]


def team_of(golden: Golden, site: str) -> str:
    team_id = golden.owners.by_site_id[site_ids(golden)[site]].team_id
    assert team_id is not None
    return team_id


def of_campaign(golden: Golden, name: str) -> tuple[Any, list[Visit]]:
    """Return a campaign by its name, with the sessions that came through it."""
    (campaign,) = (campaign for campaign in golden.campaigns if campaign.name == name)
    mine = [visit for visit in golden.visits if visit.site_id == campaign.site_id]
    return campaign, naive.one_each(
        [visit for visit in mine if naive.campaign_of(visit, golden.campaigns) == campaign.campaign_id], "UTC"
    )


def people(mine: Iterable[Visit]) -> set[str]:
    return {visit.visitor for visit in mine if visit.visitor is not None}


def per_cent(part: int, whole: int) -> str | None:
    return naive.share(part * 100, whole)


def bounce(mine: Sequence[Visit]) -> tuple[str | None, int, int]:
    known = [visit.bounced for visit in mine if visit.bounced is not None]
    return per_cent(sum(known), len(known)), sum(known), len(known)


def with_wallet(mine: Iterable[Visit]) -> list[Visit]:
    return [visit for visit in mine if visit.wallet is not None]


def newcomers(golden: Golden, site: str, month: str) -> tuple[int, int]:
    """Return how many visitors of a month had not been there before, and how many had."""
    firsts: dict[str, str] = {}
    for visit in sessions(golden, site):
        if visit.visitor is not None:
            label = naive.label(naive.local(visit.start_ms, "UTC").date(), "month")
            firsts[visit.visitor] = min(label, firsts.get(visit.visitor, label))
    seen = people(sessions(golden, site, month))
    new = sum(firsts[visitor] == month for visitor in seen)
    return new, len(seen) - new


def new_wallets(golden: Golden, team: str, month: str) -> tuple[int, int]:
    firsts: dict[str, str] = {}
    for group in transactions(golden, team=team):
        for wallet in naive.wallets_of(group):
            day = naive.day_of(group[0].block_time_ms, "UTC")
            if day is not None:
                label = naive.label(day, "month")
                firsts[wallet] = min(label, firsts.get(wallet, label))
    seen = set(wallets(transactions(golden, month, team=team)))
    new = sum(firsts[wallet] == month for wallet in seen)
    return new, len(seen) - new


def hours(mine: Iterable[Visit], zone: str) -> list[int]:
    counts = Counter(naive.local(visit.start_ms, zone).hour for visit in mine)
    return [counts[hour] for hour in range(24)]


def busiest(counts: Sequence[int]) -> int:
    return max(range(len(counts)), key=lambda place: (counts[place], -place))


def hour_of_clock(golden: Golden, site: str, hour: datetime) -> tuple[int, int]:
    """Return the page views and visitors of an hour: what the running totals grew by in it."""
    (record,) = (row for row in golden.records["hourlystats"] if row.get("siteId") == site_ids(golden)[site])
    before, after = (
        next(
            entry
            for entry in record["analyticsSnapshot"]
            if moment <= entry["timestamp"] < moment + timedelta(minutes=5)
        )
        for moment in (hour, hour + timedelta(hours=1))
    )
    return int(after["pageViews"] - before["pageViews"]), int(after["visitors"] - before["visitors"])


def sent(golden: Golden, tx_hash: str) -> tuple[str, str, str, str]:
    (record,) = (row for row in golden.records["transactions"] if row.get("tx_hash") == tx_hash)
    amount, _, unit = record["value_eth"].replace(",", "").partition(" ")
    return record["from_address"].lower(), amount, unit or record["token_symbol"], record["status"].lower()


def sizes(amounts: Iterable[Decimal], below: int) -> dict[str, int]:
    """Return how many amounts lie in each band; ``below`` are less than 0.0001."""
    moved = [amount for amount in amounts if amount]
    return {
        "under0_1": sum(amount < Decimal("0.1") for amount in moved) + below,
        "from0_1To1": sum(Decimal("0.1") <= amount < 1 for amount in moved),
        "from1To10": sum(1 <= amount <= 10 for amount in moved),
        "over10": sum(amount > 10 for amount in moved),
    }


def tiny(groups: Iterable[Group], unit: str) -> int:
    return sum(any(row.amount_below and row.unit == unit for row in group) for group in groups if took_effect(group))


def calls(groups: Iterable[Group], *kinds: str) -> list[Transaction]:
    return [row for group in groups if took_effect(group) for row in group if row.staking_type in kinds]


def locks_in_call_data(golden: Golden, contract: str, first: datetime, end: datetime) -> list[tuple[datetime, int]]:
    """Return when the locks end that were made between two moments, and their days, from the words of the calls."""
    found = set()
    for record in golden.records["transactions"]:
        time, data = record.get("block_time"), record.get("input") or ""
        if (
            record.get("contractId") != contract
            or data[:10] != CREATE_LOCK
            or str(record.get("status")).lower() != "success"
        ):
            continue
        made = datetime.fromisoformat(time) if isinstance(time, str) else time
        if isinstance(made, int):
            made = datetime.fromtimestamp(made, UTC)
        if made is not None and first <= made < end:
            unlock = datetime.fromtimestamp(int(data[74:138], 16), UTC)
            found.add((record["tx_hash"], unlock, (unlock - made).days))
    return sorted((unlock, days) for _, unlock, days in found)


def change(now: int, before: int) -> dict[str, Any]:
    return naive.change(now, before)


def days_of_locks(groups: Iterable[Group]) -> dict[str, Any]:
    return naive.lengths([row.staking_lock_days for row in calls(groups, "create_lock")])


def site_with_most_buyers(golden: Golden, team: str) -> tuple[str, int]:
    team_id = team_ids(golden)[team]
    number, name = max(
        (len(won(golden, mine, team_id)[0]), f"{site.name} ({site.domain})")
        for site in golden.owners.by_site_id.values()
        if site.team_id == team_id and (mine := sessions(golden, (site.domain or "").removesuffix(".example")))
    )
    return name, number


def busiest_campaign(golden: Golden, site: str) -> tuple[str, int]:
    holder = golden.owners.by_site_id[site_ids(golden)[site]]
    found = [
        (len(people(of_campaign(golden, campaign.name or "")[1])), campaign.name)
        for campaign in golden.campaigns
        if campaign.site_id == holder.site_id
    ]
    number, name = max(found)
    return f"{name} of {holder.name} ({holder.domain})", number


def value_by_unit(groups: Sequence[Group]) -> tuple[list[str], list[str]]:
    moved = volumes(groups)
    return list(moved), [total(amounts) for amounts in moved.values()]


def largest_chain(golden: Golden, team: str, month: str) -> tuple[str, int]:
    chains = {row.chain or "unknown" for row in golden.transactions if row.team_id == team_ids(golden)[team]}
    number, chain = max((len(transactions(golden, month, team=team, chain=chain)), chain) for chain in chains)
    return chain, number


def reported_retention(golden: Golden, site: str, day: int) -> tuple[float, int]:
    (record,) = (row for row in golden.records["analytics"] if row.get("siteId") == site_ids(golden)[site])
    (entry,) = (entry for entry in record["retentionByDay"] if entry["day"] == day)
    return entry["percentage"], entry["count"]


def converted_journeys(golden: Golden, site: str) -> int:
    (record,) = (row for row in golden.records["analytics"] if row.get("siteId") == site_ids(golden)[site])
    users = {
        journey["userId"]
        for journey in record["userJourneys"]
        if isinstance(journey, dict)
        and journey.get("userSegment") == "converter"
        and journey.get("userId")
        and isinstance(journey.get("firstVisit"), datetime)
        and journey["firstVisit"].year < 2099
    }
    return len(users)


def views(mine: Iterable[Visit]) -> list[int]:
    return [visit.pages_viewed for visit in mine if visit.pages_viewed is not None]


def gas(groups: Iterable[Group]) -> list[int]:
    known = [[row.gas_used for row in group if row.gas_used is not None] for group in groups]
    return [max(used) for used in known if used]


def stayed(golden: Golden, site: str, month: str, before: str) -> tuple[int, int, str | None]:
    then, now = people(sessions(golden, site, before)), people(sessions(golden, site, month))
    return len(then & now), len(then), per_cent(len(then & now), len(then))


def a1(golden: Golden) -> Any:
    mine = sessions(golden, AURORA, "2024-03")
    return len(mine), len(people(mine))


def a2(golden: Golden) -> Any:
    viewed = views(sessions(golden, QUILLON, "2024-11"))
    return sum(viewed), naive.share(sum(viewed), len(viewed))


def a4(golden: Golden) -> Any:
    mine = sessions(golden, AURORA, "2024-02-29")
    return len(mine), sum(views(mine)), len(people(mine))


def a5(golden: Golden) -> Any:
    mine = sessions(golden, None, "2024-05", team=team_ids(golden)["Aurora Markets"])
    return len(people(mine)), len(mine)


def a6(golden: Golden) -> Any:
    lengths = [visit.duration_ms for visit in sessions(golden, ARENA) if visit.duration_ms is not None]
    return (naive.two_places(Decimal(median(lengths)) / 1000),)


def a8(golden: Golden) -> Any:
    (top,) = most((visit.entry_page for visit in sessions(golden, MINT)), "page", "sessions", 1)
    return top["page"], top["sessions"]


def a14(golden: Golden) -> Any:
    mine = [visit for visit in sessions(golden, AURORA, "2024-05") if visit.web3]
    return len(people(mine)), len(mine)


def a15(golden: Golden) -> Any:
    mine = with_wallet(sessions(golden, QUILLON))
    return len(mine), len({visit.wallet for visit in mine}), len(people(mine))


def a17(golden: Golden) -> Any:
    groups = transactions(golden, "2025-03", team="Quillon Finance")
    return len(wallets(groups)), len(groups)


def a19(golden: Golden) -> Any:
    by_wallet: dict[str, list[Decimal]] = {}
    for (row,) in transactions(golden, contract=contract_id(golden, "Saffron")):
        bare = not row.amount_below and not row.amount_unlimited
        if took_effect([row]) and row.unit == "SFRN" and row.amount is not None and bare and row.from_address:
            by_wallet.setdefault(row.from_address, []).append(Decimal(row.amount))
    amount, wallet = max((naive.total(amounts), wallet) for wallet, amounts in by_wallet.items())
    return wallet, naive.text(amount)


def a20(golden: Golden) -> Any:
    seen = wallets(transactions(golden, contract=contract_id(golden, "Aurora Swap: Router", "Ethereum")))
    return sum(number > 1 for number in seen.values()), len(seen)


def a23(golden: Golden) -> Any:
    moved = volumes(transactions(golden, contract=contract_id(golden, "Quillon Dollar", "Ethereum")))["QUSD"]
    return total(moved), len(moved)


def a24(golden: Golden) -> Any:
    governor = contract_id(golden, "Orchard Governor")
    by_oid = {record["_id"]: record.get("contractId") for record in golden.records["smartcontracts"]}
    return (
        len(
            {
                record["tx_hash"]
                for record in golden.records["transactions"]
                if governor in (record.get("contractId"), by_oid.get(record.get("contract")))
                and (
                    record.get("method_name") == "castVote"
                    or record.get("method_signature") == CAST_VOTE
                    or (record.get("functionName") or "").startswith("castVote(")
                    or (record.get("input") or "")[:10] == CAST_VOTE
                )
            }
        ),
    )


def a25(golden: Golden) -> Any:
    found = statuses(transactions(golden, contract=contract_id(golden, "Aurora Swap: Router", "Ethereum")))
    return found["failed"], found["success"], found["unknown"], found["pending"]


def a26(golden: Golden) -> Any:
    used = gas(transactions(golden, "2024-10", team="Tidewater Collective"))
    return str(sum(used)), naive.share(sum(used), len(used))


def a27(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Orchard Governor"))
    return sum(
        naive.status_of(group) == "failed"
        and (day := naive.day_of(group[0].block_time_ms, "UTC")) is not None
        and 2023 <= day.year <= 2025
        for group in groups
    )


def a28(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Quillon Dollar", "Polygon"))
    return (sizes(volumes(groups)["QUSD"], tiny(groups, "QUSD")),)


def a29(golden: Golden) -> Any:
    groups = transactions(golden, "2025-04", contract=contract_id(golden, "Copperleaf Coin"))
    return (sum(amount > 10 for amount in volumes(groups)["CPRL"]),)


def a30(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Northwind Name Registry", "Ethereum"))
    paid = volumes(groups)["ETH"]
    return sizes(paid, tiny(groups, "ETH"))["under0_1"], sum(amount == 0 for amount in paid)


def a31(golden: Golden) -> Any:
    mine = sessions(golden, AURORA, "2024-06")
    waits, _ = won(golden, mine, team_of(golden, AURORA), "2024-06")
    return len(people(mine)), len(people(with_wallet(mine))), len(waits)


def a32(golden: Golden) -> Any:
    mine = sessions(golden, QUILLON)
    connected = with_wallet(mine)
    waits, _ = won(golden, mine, team_of(golden, QUILLON))
    return (
        per_cent(len(people(connected)), len(people(mine))),
        per_cent(len(waits), len({visit.wallet for visit in connected})),
    )


def a33(golden: Golden) -> Any:
    _, groups = won(golden, sessions(golden, AURORA, "2024-07"), team_of(golden, AURORA), "2024-07")
    return len(groups), *value_by_unit(groups)


def a34(golden: Golden) -> Any:
    waits, _ = won(golden, sessions(golden, AURORA), team_of(golden, AURORA))
    return (naive.two_places(median(Decimal(wait) / 1000 for wait in waits.values())),)


def a37(golden: Golden) -> Any:
    campaign, mine = of_campaign(golden, "Borrow week")
    waits, _ = won(golden, mine, team_of(golden, QUILLON))
    return naive.share(campaign.cost, len(waits)), naive.text(campaign.cost), campaign.currency


def a38(golden: Golden) -> Any:
    campaign, mine = of_campaign(golden, "Lighthouse mint")
    _, groups = won(golden, mine, team_of(golden, MINT))
    value = naive.total(volumes(groups)["ETH"])
    returned = (value - campaign.cost) * 100 / campaign.cost
    return naive.text(campaign.cost), naive.text(value), naive.two_places(returned)


def a40(golden: Golden) -> Any:
    _, groups = won(golden, of_campaign(golden, "Spring liquidity")[1], team_of(golden, AURORA))
    return len(groups), *value_by_unit(groups)


def a41(golden: Golden) -> Any:
    _, mine = of_campaign(golden, "Leap day swap")
    return bounce(mine)[0], len(mine)


def a44(golden: Golden) -> Any:
    then, now = (set(wallets(transactions(golden, month, team="Saffron Reserve"))) for month in ("2025-04", "2025-05"))
    return len(then & now), len(then)


def a45(golden: Golden) -> Any:
    visits = Counter(visit.visitor for visit in sessions(golden, SAFFRON) if visit.visitor is not None)
    return sum(number > 1 for number in visits.values()), len(visits)


def a51(golden: Golden) -> Any:
    counts = hours(sessions(golden, QUILLON, "2024-03", zone="Asia/Kolkata"), "Asia/Kolkata")
    return busiest(counts), counts


def a52(golden: Golden) -> Any:
    days = [naive.day_of(group[0].block_time_ms, "UTC") for group in transactions(golden, team="Basalt Guild")]
    counts = Counter(day.weekday() for day in days if day is not None)
    return ([counts[weekday] for weekday in range(7)],)


def a54(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Saffron Vote Escrow"))
    locked = [row.staking_amount for row in calls(groups, "create_lock", "increase_amount")]
    freed = [row.staking_amount for row in calls(groups, "withdraw", "withdraw_early")]
    known = [Decimal(amount) for amount in locked if amount is not None]
    return total(known), total(Decimal(amount) for amount in freed if amount is not None), freed.count(None)


def a55(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Orchard Vote Escrow"))
    lengths = days_of_locks(groups)
    return len(calls(groups, "create_lock")), lengths["average"], lengths["bands"]


def a56(golden: Golden) -> Any:
    groups = transactions(golden, contract=contract_id(golden, "Orchard Rewards"))
    return (
        len(naive.wallets_of(calls(groups, "create_lock", "increase_amount"))),
        len(naive.wallets_of(calls(groups, "withdraw", "withdraw_early"))),
    )


def a57(golden: Golden) -> Any:
    contract = contract_id(golden, "Saffron Vote Escrow")
    return locks_in_call_data(golden, contract, datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 5, 1, tzinfo=UTC))


def a58(golden: Golden) -> Any:
    before, now = (transactions(golden, month, team="Quillon Finance") for month in ("2025-04", "2025-05"))
    return (change(len(now), len(before)),)


def a60(golden: Golden) -> Any:
    before, now = (people(sessions(golden, AURORA, week)) for week in ("2024-W10", "2024-W11"))
    return (change(len(now), len(before)),)


#: By the number of the question.
ANSWERS: dict[int, Callable[[Golden], Any]] = {
    1: a1,
    2: a2,
    3: lambda golden: bounce(sessions(golden, SAFFRON, "2024-W11")),
    4: a4,
    5: a5,
    6: a6,
    7: lambda golden: (
        most((page for visit in sessions(golden, AURORA, "2024-04") for page in visit.pages), "page", "views", 3),
    ),
    8: a8,
    9: lambda golden: (sum(visit.pages.count("/docs/v1.2/start") for visit in sessions(golden, AURORA)),),
    10: lambda golden: hour_of_clock(golden, QUILLON, datetime(2025, 6, 27, 12, tzinfo=UTC)),
    11: lambda golden: tuple(
        most((visit.source for visit in sessions(golden, AURORA, "2024-06")), "source", "sessions", 1)
    ),
    12: lambda golden: (sum(visit.source == "google/cpc" for visit in sessions(golden, AURORA, "2024-11")),),
    13: lambda golden: tuple(
        most((visit.source for visit in with_wallet(sessions(golden, AURORA))), "source", "sessions", 1)
    ),
    14: a14,
    15: a15,
    16: lambda golden: (
        most((visit.wallet_type for visit in with_wallet(sessions(golden, AURORA))), "walletType", "sessions"),
    ),
    17: a17,
    18: lambda golden: new_wallets(golden, "Basalt Guild", "2024-09"),
    19: a19,
    20: a20,
    21: lambda golden: sent(golden, "0x5a42ac1be0d065c6e9fe3a0e3378681a5a382c88d4fc752b69ccd7cbe20bc5cf"),
    22: lambda golden: value_by_unit(transactions(golden, "2025-01", team="Quillon Finance", chain="Polygon")),
    23: a23,
    24: a24,
    25: a25,
    26: a26,
    27: a27,
    28: a28,
    29: a29,
    30: a30,
    31: a31,
    32: a32,
    33: a33,
    34: a34,
    35: lambda golden: site_with_most_buyers(golden, "Tidewater Collective"),
    36: lambda golden: converted_journeys(golden, AURORA),
    37: a37,
    38: a38,
    39: lambda golden: busiest_campaign(golden, AURORA),
    40: a40,
    41: a41,
    42: lambda golden: stayed(golden, AURORA, "2024-05", "2024-04"),
    43: lambda golden: newcomers(golden, QUILLON, "2024-06"),
    44: a44,
    45: a45,
    46: lambda golden: reported_retention(golden, AURORA, 7),
    47: lambda golden: (
        most((visit.country for visit in sessions(golden, AURORA, "2024-10")), "country", "sessions", 3),
    ),
    48: lambda golden: (sum(visit.country == "DE" for visit in sessions(golden, QUILLON, "2024-10")),),
    49: lambda golden: tuple(
        most((visit.country for visit in with_wallet(sessions(golden, AURORA))), "country", "sessions", 1)
    ),
    50: lambda golden: (busiest(hours(sessions(golden, AURORA), "UTC")),),
    51: a51,
    52: a52,
    53: lambda golden: (len(sessions(golden, AURORA, "2024-03-31", zone="Europe/Berlin")),),
    54: a54,
    55: a55,
    56: a56,
    57: a57,
    58: a58,
    59: lambda golden: largest_chain(golden, "Aurora Markets", "2025-03"),
    60: a60,
}
