"""Every figure a second time, the slow and obvious way: plain loops over all rows, sets, and decimals.

Nothing here knows of partial figures or of merging, and nothing is imported from the package under test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cache
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

from tasks.domain.transaction_documents import describe_transaction
from tasks.domain.transactions import Transaction

ZERO_ADDRESS = "0x" + "0" * 40
WIDE = Context(prec=500)
UNKNOWN = "unknown"


@cache
def local(moment_ms: int, zone: str) -> datetime:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=moment_ms)).astimezone(ZoneInfo(zone))


def day_of(moment_ms: int | None, zone: str) -> date | None:
    return None if moment_ms is None else local(moment_ms, zone).date()


@cache
def label(day: date, level: str) -> str:
    return day.strftime({"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m", "all": "all"}[level])


def label_before(day: date, level: str) -> str:
    """Return the label of the period before the one that the day is in."""
    if level == "month":
        return label(day.replace(day=1) - timedelta(days=1), level)
    return label(day - timedelta(days=7 if level == "week" else 1), level)


def text(value: Decimal | int) -> str:
    """Return a figure without exponent and without zeros at its end."""
    shown = format(Decimal(value), "f")
    if "." in shown:
        while shown.endswith("0"):
            shown = shown[:-1]
        shown = shown.removesuffix(".")
    return "0" if shown == "-0" else shown


def two_places(value: Decimal) -> str:
    return text(value.quantize(Decimal("0.01"), ROUND_HALF_EVEN, WIDE))


def share(part: int | Decimal, whole: int) -> str | None:
    if whole == 0:
        return None
    return two_places(WIDE.divide(Decimal(part), Decimal(whole)))


def change(now: Any, before: Any) -> dict[str, Any]:
    if before is None:
        return {"before": None, "absolute": None, "percent": None}
    difference = now - before if isinstance(now, int) else WIDE.subtract(now, before)
    percent = None
    if before != 0:
        percent = two_places(WIDE.divide(WIDE.multiply(Decimal(difference), 100), Decimal(before)))
    if isinstance(now, int):
        return {"before": before, "absolute": difference, "percent": percent}
    return {"before": text(before), "absolute": text(difference), "percent": percent}


def top_ten(counts: Counter[str], name: str, counted: str) -> list[dict[str, Any]]:
    ordered = sorted(counts, key=lambda key: (-counts[key], key))
    return [{name: key, counted: counts[key]} for key in ordered[:10]]


def hours_and_weekdays(moments: Iterable[int | None], zone: str) -> dict[str, Any]:
    hours, weekdays = [0] * 24, [0] * 7
    for moment in moments:
        if moment is not None:
            hours[local(moment, zone).hour] += 1
            weekdays[local(moment, zone).weekday()] += 1
    busiest = sorted((hour for hour in range(24) if hours[hour] > 0), key=lambda hour: (-hours[hour], hour))
    return {"hours": hours, "weekdays": weekdays, "busiestHours": busiest[:3]}


def retained(name: str, now: set[str], before: set[str] | None) -> dict[str, Any]:
    if before is None:
        return {"of": None, name: None, "rate": None}
    again = [one for one in before if one in now]
    return {"of": len(before), name: len(again), "rate": share(len(again) * 100, len(before))}


# volumes


def volumes(entries: Iterable[tuple[str, str, bool, bool, bool]]) -> list[dict[str, Any]]:
    """Return the volume per unit of ``(unit, amount, below, unlimited, moved)``."""
    by_unit: dict[str, list[tuple[str, bool, bool, bool]]] = {}
    for unit, *rest in entries:
        by_unit.setdefault(unit, []).append(tuple(rest))  # type: ignore[arg-type]
    found = []
    for unit in sorted(by_unit, key=lambda unit: (-len(by_unit[unit]), unit)):
        total, largest = Decimal(0), None
        counts = Counter[str]()
        for amount, below, unlimited, moved in by_unit[unit]:
            value = Decimal(amount)
            if not moved:
                counts["notMoved"] += 1
                continue
            if unlimited:
                counts["unlimited"] += 1
                continue
            if below:
                counts["below"] += 1
                if value <= Decimal("0.1"):
                    counts["under0_1"] += 1
                continue
            counts["amounts"] += 1
            total = WIDE.add(total, value)
            largest = value if largest is None else max(largest, value)
            if value == 0:
                counts["zeros"] += 1
            elif value < Decimal("0.1"):
                counts["under0_1"] += 1
            elif value < 1:
                counts["from0_1To1"] += 1
            elif value <= 10:
                counts["from1To10"] += 1
            else:
                counts["over10"] += 1
        found.append(
            {
                "unit": unit,
                "amount": text(total),
                **{name: counts[name] for name in ("amounts", "zeros", "below", "unlimited", "notMoved")},
                "largest": None if largest is None else text(largest),
                "sizes": {name: counts[name] for name in ("under0_1", "from0_1To1", "from1To10", "over10")},
            }
        )
    return found


# transactions


def chosen(rows: Iterable[Transaction], kind: str, holder_id: str, chain: str = "") -> list[Transaction]:
    """Return the transactions of a scope."""
    if kind == "contract":
        return [row for row in rows if row.contract_id == holder_id]
    return [row for row in rows if row.team_id == holder_id and (kind == "team" or (row.chain or UNKNOWN) == chain)]


def without_doubles(rows: Iterable[Transaction], kind: str, zone: str) -> dict[tuple[Any, ...], list[Transaction]]:
    """Return the rows by transaction: one record for each contract of a hash, on one day (and chain, for teams)."""
    first: dict[tuple[Any, ...], Transaction] = {}
    for row in rows:
        chain = None if kind == "contract" else row.chain
        key = (day_of(row.block_time_ms, zone), chain, row.tx_hash, row.contract_id)
        if key not in first or row.record_id < first[key].record_id:
            first[key] = row
    found: dict[tuple[Any, ...], list[Transaction]] = {}
    for key in sorted(first, key=repr):
        found.setdefault(key[:3], []).append(first[key])
    return found


def status_of(group: Sequence[Transaction]) -> str:
    statuses = [row.status for row in group]
    for status in ("failed", "success", "pending"):
        if status in statuses:
            return status
    return UNKNOWN


def wallets_of(group: Iterable[Transaction]) -> set[str]:
    return {row.from_address for row in group if row.from_address and row.from_address != ZERO_ADDRESS}


def first_days(rows: Iterable[Transaction], kind: str, zone: str) -> dict[str, date]:
    """Return the day of each wallet's first transaction in the scope."""
    found: dict[str, date] = {}
    for (day, _, _), group in without_doubles(rows, kind, zone).items():
        for wallet in wallets_of(group):
            if day is not None:
                found[wallet] = min(day, found.get(wallet, day))
    return found


def transaction_figures(
    scope_rows: Sequence[Transaction], kind: str, level: str, wanted: str, zone: str
) -> dict[str, Any] | None:
    """Return the figures of the period with that label, or None where it has no rows."""
    rows = in_period(scope_rows, lambda row: row.block_time_ms, level, wanted, zone)
    if not rows:
        return None
    by_transaction = without_doubles(rows, kind, zone)
    statuses, methods, senders, recipients = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    categories, failed_categories = Counter[str](), Counter[str]()
    gas: list[int] = []
    moved: list[tuple[str, str, bool, bool, bool]] = []
    moments: list[int | None] = []
    stakes: dict[str, list[tuple[Any, bool]]] = {}
    for group in by_transaction.values():
        status = status_of(group)
        took_effect = status not in ("failed", "pending")
        statuses[status] += 1
        for category in {category_of(row) for row in group}:
            categories[category] += 1
            failed_categories[category] += status == "failed"
        methods.update({row.method or row.selector or "" for row in group} - {""})
        senders.update(wallets_of(group))
        recipients.update(
            {row.to_address for row in group if row.to_address not in (None, ZERO_ADDRESS, row.contract_address)}
        )
        gas += [max(row.gas_used for row in group if row.gas_used is not None)] if any_gas(group) else []
        amounts = {
            (row.unit or "", row.amount, row.amount_below, row.amount_unlimited)
            for row in group
            if row.amount is not None
        }
        moved += [(*amount, took_effect) for amount in amounts]
        moments.append(min((row.block_time_ms for row in group if row.block_time_ms is not None), default=None))
        told = set()
        for row in sorted(group, key=lambda row: row.contract_id):
            call = (row.staking_type, row.staking_amount, row.staking_lock_days)
            if row.contract_type == "escrow" and row.staking_type is not None and call not in told:
                told.add(call)
                stakes.setdefault(row.contract_id, []).append((row, took_effect))
    figures = {
        "transactions": len(by_transaction),
        "succeeded": statuses["success"],
        "failed": statuses["failed"],
        "pending": statuses["pending"],
        "statusUnknown": statuses[UNKNOWN],
        "undated": sum(moment is None for moment in moments),
        "wallets": len(senders),
        "repeatWallets": sum(count > 1 for count in senders.values()),
        "recipients": len(recipients),
        "categories": [
            {"category": name, "transactions": categories[name], "failed": failed_categories[name]}
            for name in sorted(categories, key=lambda name: (-categories[name], name))
        ],
        "methods": len(methods),
        "topMethods": top_ten(methods, "method", "transactions"),
        "topWallets": top_ten(senders, "wallet", "transactions"),
        "topRecipients": top_ten(recipients, "wallet", "transactions"),
        "units": len({entry[0] for entry in moved}),
        "volumes": volumes(moved)[:50],
        "gas": {
            "total": str(sum(gas)),
            "known": len(gas),
            "average": share(sum(gas), len(gas)),
            "largest": str(max(gas)) if gas else None,
        },
        **hours_and_weekdays(moments, zone),
    }
    if level != "all":
        firsts = first_days(scope_rows, kind, zone)
        new = sum(label(day, level) == wanted for day in firsts.values())
        figures |= {"newWallets": new, "returningWallets": len(senders) - new}
    figures["_volumes"] = {unit["unit"]: Decimal(unit["amount"]) for unit in volumes(moved)}
    figures["_entries"] = Counter(entry[0] for entry in moved)
    figures["_stakes"] = stakes
    figures["_wallets"] = set(senders)
    return figures


@cache
def category_of(row: Transaction) -> str:
    category: str = describe_transaction(row).metadata["category"]
    return category


def any_gas(group: Iterable[Transaction]) -> bool:
    return any(row.gas_used is not None for row in group)


def in_period(
    rows: Iterable[Any], moment: Callable[[Any], int | None], level: str, wanted: str, zone: str
) -> list[Any]:
    found = []
    for row in rows:
        day = day_of(moment(row), zone)
        if level == "all" or (day is not None and label(day, level) == wanted):
            found.append(row)
    return found


def change_of_volumes(now: dict[str, Any], before: dict[str, Any] | None) -> list[dict[str, Any]]:
    units = set(now["_volumes"]) | set(before["_volumes"] if before else ())
    ordered = sorted(units, key=lambda unit: (-now["_entries"][unit], unit))
    return [
        {
            "unit": unit,
            **change(
                now["_volumes"].get(unit, Decimal(0)),
                None if before is None else before["_volumes"].get(unit, Decimal(0)),
            ),
        }
        for unit in ordered[:50]
    ]


def change_of_transactions(now: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    changes = {
        name: change(now[name], None if before is None else before[name])
        for name in ("transactions", "failed", "wallets", "newWallets")
    }
    gas_before = None if before is None else Decimal(before["gas"]["total"])
    changes["gas"] = change(Decimal(now["gas"]["total"]), gas_before)
    changes["retained"] = retained("wallets", now["_wallets"], None if before is None else before["_wallets"])
    return {**changes, "volumes": change_of_volumes(now, before)}


def staking_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the staking figures of a period, from the calls that ``transaction_figures`` found in it."""
    stakes = []
    for contract_id, calls in figures["_stakes"].items():
        done = [row for row, took_effect in calls if took_effect]
        kinds = Counter(row.staking_type for row in done)
        locks = [row for row in done if row.staking_type in ("create_lock", "increase_amount")]
        exits = [row for row in done if row.staking_type in ("withdraw", "withdraw_early")]
        locked, withdrawn = (
            [Decimal(row.staking_amount) for row in side if row.staking_amount is not None] for side in (locks, exits)
        )
        known = len(locked) == len(locks) and len(withdrawn) == len(exits)
        net = WIDE.subtract(total(locked), total(withdrawn))
        stakes.append(
            {
                "contractId": contract_id,
                "calls": dict(kinds),
                "notDone": len(calls) - len(done),
                "locked": text(total(locked)),
                "lockedAmounts": len(locked),
                "lockedUnknown": len(locks) - len(locked),
                "withdrawn": text(total(withdrawn)),
                "withdrawnAmounts": len(withdrawn),
                "withdrawnUnknown": len(exits) - len(withdrawn),
                "withdrawnEarly": kinds["withdraw_early"],
                "net": text(net) if known else None,
                "netOfKnown": text(net),
                "lockDays": lengths([row.staking_lock_days for row in done if row.staking_type == "create_lock"]),
                "extendedDays": lengths(
                    [row.staking_lock_days for row in done if row.staking_type == "increase_unlock_time"]
                ),
            }
        )
    stakes.sort(key=lambda stake: (-sum(stake["calls"].values()), stake["contractId"]))
    return {
        "calls": sum(sum(stake["calls"].values()) for stake in stakes),
        "notDone": sum(stake["notDone"] for stake in stakes),
        "contracts": len(stakes),
        "lockingWallets": len(stakers(figures, ("create_lock", "increase_amount"))),
        "withdrawingWallets": len(stakers(figures, ("withdraw", "withdraw_early"))),
        "stakes": stakes,
    }


def stakers(figures: dict[str, Any], kinds: tuple[str, ...]) -> set[str]:
    calls = [row for found in figures["_stakes"].values() for row, took_effect in found if took_effect]
    return wallets_of(row for row in calls if row.staking_type in kinds)


def total(values: Iterable[Decimal]) -> Decimal:
    whole = Decimal(0)
    for value in values:
        whole = WIDE.add(whole, value)
    return whole


def lengths(days: Sequence[int | None]) -> dict[str, Any]:
    known = sorted(length for length in days if length is not None)
    return {
        "known": len(known),
        "unknown": len(days) - len(known),
        "shortest": known[0] if known else None,
        "longest": known[-1] if known else None,
        "average": share(sum(known), len(known)),
        "median": two_places(Decimal(median(known))) if known else None,
        "bands": {
            "under30Days": sum(length < 30 for length in known),
            "from30To90Days": sum(30 <= length < 90 for length in known),
            "from90To180Days": sum(90 <= length < 180 for length in known),
            "from180To365Days": sum(180 <= length < 365 for length in known),
            "from1To2Years": sum(365 <= length < 730 for length in known),
            "from2To4Years": sum(730 <= length < 1460 for length in known),
            "from4Years": sum(length >= 1460 for length in known),
        },
    }


# visits


def one_each(visits: Iterable[Any], zone: str) -> list[Any]:
    """Return one record of each session of a day of a website."""
    first: dict[tuple[Any, ...], Any] = {}
    for visit in visits:
        key = (day_of(visit.start_ms, zone), visit.site_id, visit.session_id)
        if key not in first or visit.record_id < first[key].record_id:
            first[key] = visit
    return list(first.values())


def visit_figures(scope_visits: Sequence[Any], level: str, wanted: str, zone: str) -> dict[str, Any] | None:
    rows = in_period(scope_visits, lambda visit: visit.start_ms, level, wanted, zone)
    if not rows:
        return None
    sessions = one_each(rows, zone)

    def count(field: str) -> Counter[str]:
        return Counter(getattr(session, field) for session in sessions if getattr(session, field) is not None)

    def connected(field: str) -> Counter[str]:
        with_wallet = [session for session in sessions if session.wallet is not None]
        return Counter(getattr(session, field) for session in with_wallet if getattr(session, field) is not None)

    def visitors(keep: Callable[[Any], bool]) -> set[str]:
        return {session.visitor for session in sessions if session.visitor is not None and keep(session)}

    by_visitor = count("visitor")
    seconds = [Decimal(session.duration_ms) / 1000 for session in sessions if session.duration_ms is not None]
    views = [session.pages_viewed for session in sessions if session.pages_viewed is not None]
    bounces = [session.bounced for session in sessions if session.bounced is not None]
    pages = Counter(page for session in sessions for page in session.pages)
    figures = {
        "sessions": len(sessions),
        "visitors": len(by_visitor),
        "repeatVisitors": sum(number > 1 for number in by_visitor.values()),
        "anonymousSessions": sum(session.visitor is None for session in sessions),
        "web3Users": len(visitors(lambda session: session.web3)),
        "web3Sessions": sum(session.web3 for session in sessions),
        "walletUsers": len(visitors(lambda session: session.wallet is not None)),
        "walletConnections": sum(session.wallet is not None for session in sessions),
        "wallets": len({session.wallet for session in sessions} - {None}),
        "pageViews": sum(views),
        "pageViewsKnown": len(views),
        "pageViewsPerSession": share(sum(views), len(views)),
        "bounces": sum(bounces),
        "bouncesKnown": len(bounces),
        "bounceRate": share(sum(bounces) * 100, len(bounces)),
        "durationKnown": len(seconds),
        "durationSeconds": text(total(seconds)),
        "averageSeconds": share(total(seconds), len(seconds)),
        "pages": len(pages),
        "topPages": top_ten(pages, "page", "views"),
        "topEntryPages": top_ten(count("entry_page"), "page", "sessions"),
        "topExitPages": top_ten(count("exit_page"), "page", "sessions"),
        "sources": len(count("source")),
        "topSources": top_ten(count("source"), "source", "sessions"),
        "countries": len(count("country")),
        "topCountries": top_ten(count("country"), "country", "sessions"),
        "devices": top_ten(count("device"), "device", "sessions"),
        "systems": top_ten(count("system"), "system", "sessions"),
        "browsers": top_ten(count("browser"), "browser", "sessions"),
        "walletSources": top_ten(connected("source"), "source", "sessions"),
        "walletCountries": top_ten(connected("country"), "country", "sessions"),
        "walletTypes": top_ten(count("wallet_type"), "walletType", "sessions"),
        "walletChains": top_ten(count("wallet_chain"), "chain", "sessions"),
        **hours_and_weekdays((session.start_ms for session in sessions), zone),
    }
    if level != "all":
        firsts: dict[str, date] = {}
        for session in one_each(scope_visits, zone):
            day = local(session.start_ms, zone).date()
            if session.visitor is not None:
                firsts[session.visitor] = min(day, firsts.get(session.visitor, day))
        new = sum(label(day, level) == wanted for day in firsts.values())
        figures |= {"newVisitors": new, "returningVisitors": len(by_visitor) - new}
    figures["_visitors"] = set(by_visitor)
    return figures


def change_of_visits(now: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    names = (
        "sessions",
        "visitors",
        "newVisitors",
        "web3Users",
        "walletConnections",
        "wallets",
        "pageViews",
        "bounces",
    )
    changes = {name: change(now[name], None if before is None else before[name]) for name in names}
    changes["retained"] = retained("visitors", now["_visitors"], None if before is None else before["_visitors"])
    return changes


def funnel_figures(
    scope_visits: Sequence[Any], transactions: Sequence[Transaction], level: str, wanted: str, zone: str
) -> dict[str, Any] | None:
    """Return the funnel of a period: ``transactions`` are those of the website's team."""
    visits = visit_figures(scope_visits, level, wanted, zone)
    if visits is None:
        return None
    sessions = one_each(in_period(scope_visits, lambda visit: visit.start_ms, level, wanted, zone), zone)
    rows = in_period(transactions, lambda row: row.block_time_ms, level, wanted, zone)
    waits: list[Decimal] = []
    won: dict[tuple[str | None, str], list[Transaction]] = {}
    for wallet in {session.wallet for session in sessions} - {None}:
        since = min(session.start_ms for session in sessions if session.wallet == wallet)
        later = [
            row
            for row in rows
            if row.from_address == wallet and row.block_time_ms is not None and row.block_time_ms >= since
        ]
        if later:
            first = min(row.block_time_ms for row in later if row.block_time_ms is not None)
            waits.append(Decimal(first - since) / 1000)
        for row in later:
            won.setdefault((row.chain, row.tx_hash), []).append(row)
    moved: list[tuple[str, str, bool, bool, bool]] = []
    for group in won.values():
        took_effect = status_of(group) not in ("failed", "pending")
        amounts = {
            (row.unit or "", row.amount, row.amount_below, row.amount_unlimited)
            for row in group
            if row.amount is not None
        }
        moved += [(*amount, took_effect) for amount in amounts]
    return {
        "sessions": visits["sessions"],
        "visitors": visits["visitors"],
        "web3Users": visits["web3Users"],
        "walletUsers": visits["walletUsers"],
        "wallets": visits["wallets"],
        "transactedWallets": len(waits),
        "transactions": len(won),
        "failed": sum(status_of(group) == "failed" for group in won.values()),
        "visitorToWalletRate": share(visits["walletUsers"] * 100, visits["visitors"]),
        "walletToTransactionRate": share(len(waits) * 100, visits["wallets"]),
        "volumes": volumes(moved)[:50],
        "secondsToTransaction": {
            "average": share(total(waits), len(waits)),
            "median": two_places(median(waits)) if waits else None,
        },
        "_volumes": {unit["unit"]: Decimal(unit["amount"]) for unit in volumes(moved)},
        "_entries": Counter(entry[0] for entry in moved),
    }


def campaign_figures(visited: dict[str, Any], funnel: dict[str, Any], campaign: Any) -> dict[str, Any]:
    """Return the figures of a campaign, with its cost where ``campaign`` is given and has one."""
    figures = {name: figure for name, figure in funnel.items() if name[0] != "_" and name != "transactions"}
    figures["conversions"] = funnel["transactions"]
    names = (
        "walletConnections",
        "bounces",
        "bouncesKnown",
        "bounceRate",
        "durationKnown",
        "averageSeconds",
        "topCountries",
    )
    figures |= {name: visited[name] for name in names}
    if campaign is not None and campaign.cost is not None:
        figures["cost"] = {
            "amount": text(campaign.cost),
            "currency": campaign.currency,
            "perVisitor": share(campaign.cost, funnel["visitors"]),
            "perWallet": share(campaign.cost, funnel["wallets"]),
            "perTransactedWallet": share(campaign.cost, funnel["transactedWallets"]),
            "perConversion": share(campaign.cost, funnel["transactions"]),
            **return_on(campaign.cost, campaign.currency, funnel),
        }
    return figures


def campaign_of(visit: Any, campaigns: Iterable[Any]) -> str | None:
    """Return the campaign of a visit: by its utm_id, else by the campaign's list of sessions, else by its name."""

    def same(one: str | None, other: str | None) -> bool:
        return (one or "").strip().lower() == (other or "").strip().lower()

    mine = [campaign for campaign in campaigns if campaign.site_id == visit.site_id]
    fitting = [campaign for campaign in mine if visit.utm_id and same(campaign.utm_id, visit.utm_id)]
    if not fitting:
        fitting = [campaign for campaign in mine if visit.record_id in campaign.session_ids]
    if not fitting and visit.utm_campaign:
        named = [campaign for campaign in mine if same(campaign.utm_campaign, visit.utm_campaign)]
        fitting = [campaign for campaign in named if not (visit.utm_id and campaign.utm_id)]
    if len(fitting) > 1:
        alike = [one for one in fitting if same(one.source, visit.utm_source) and same(one.medium, visit.utm_medium)]
        fitting = alike if len(alike) == 1 else []
    return fitting[0].campaign_id if fitting else None


def return_on(cost: Decimal, currency: str | None, funnel: dict[str, Any]) -> dict[str, Any]:
    """Return what a campaign brought in the currency of its cost, and the return in per cent."""
    if currency not in funnel["_volumes"]:
        return {"value": None, "roi": None}
    value = funnel["_volumes"][currency]
    percent = None if not cost else two_places(WIDE.divide(WIDE.multiply(WIDE.subtract(value, cost), 100), cost))
    return {"value": text(value), "roi": percent}


def change_of_funnel(
    now: dict[str, Any], before: dict[str, Any] | None, conversions: str = "transactions"
) -> dict[str, Any]:
    names = ("sessions", "visitors", "wallets", "transactedWallets", "transactions")
    changes = {
        conversions if name == "transactions" else name: change(now[name], None if before is None else before[name])
        for name in names
    }
    return {**changes, "volumes": change_of_volumes(now, before)}
