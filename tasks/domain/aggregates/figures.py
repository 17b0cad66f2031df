"""Figures as an answer cites them: plain BSON values under fixed names, exact, with what is unknown counted beside it.

Counts are whole numbers. Amounts, gas, rates and averages are plain text, because they have more digits than a double
or stand for a fraction: rates and averages are rounded half to even at two decimals, everything else is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

from tasks.domain.aggregates.campaigns import TrackedCampaign
from tasks.domain.aggregates.moves import Conversions
from tasks.domain.aggregates.stakes import Stake
from tasks.domain.aggregates.tallies import Tally
from tasks.domain.aggregates.transactions import STATUS_UNKNOWN, TransactionFigures
from tasks.domain.aggregates.visits import VisitFigures
from tasks.domain.aggregates.volumes import SUMS, Volume
from tasks.domain.amounts import plain
from tasks.domain.staking import WITHDRAW_EARLY
from tasks.domain.transactions import FAILED, PENDING, SUCCESS

#: How many of the most frequent stand in a document; how many there are in all stands beside them.
TOP = 10
#: A contract has one unit or a few; a team whose contracts are spammed with worthless tokens has thousands.
MOST_UNITS = 50
_LONGEST_NAME = 200
_BUSIEST = 3
_MS_PER_S = 1000
#: Names of the size bands, in the order of ``Volume.bands``.
BANDS = ("under0_1", "from0_1To1", "from1To10", "over10")
#: Lengths of locks: the name and the first length, in days, that is no longer in it.
_LOCK_BANDS: tuple[tuple[str, int | None], ...] = (
    ("under30Days", 30),
    ("from30To90Days", 90),
    ("from90To180Days", 180),
    ("from180To365Days", 365),
    ("from1To2Years", 730),
    ("from2To4Years", 1460),
    ("from4Years", None),
)

Facts = dict[str, Any]
Number = int | Decimal
_T = TypeVar("_T")


def transaction_figures(figures: TransactionFigures, *, new_wallets: int | None) -> Facts:
    """Return the figures of transactions; ``new_wallets`` is None for all time, where every wallet was new once."""
    statuses = figures.statuses
    wallets = len(figures.senders)
    facts: Facts = {
        "transactions": figures.transactions,
        "succeeded": statuses.get(SUCCESS, 0),
        "failed": statuses.get(FAILED, 0),
        "pending": statuses.get(PENDING, 0),
        "statusUnknown": statuses.get(STATUS_UNKNOWN, 0),
        "undated": figures.undated,
        "wallets": wallets,
        "repeatWallets": int((figures.senders.numbers > 1).sum()),
        "recipients": len(figures.recipients),
        "categories": _categories(figures),
        "methods": len(figures.methods),
        "topMethods": top_names(figures.methods, "method", "transactions"),
        "topWallets": _top_wallets(figures.senders),
        "topRecipients": _top_wallets(figures.recipients),
        "units": len(figures.volumes),
        "volumes": volume_figures(figures.volumes),
        "gas": {
            "total": str(figures.gas_total),
            "known": figures.gas_known,
            "average": average(figures.gas_total, figures.gas_known),
            "largest": None if figures.gas_largest is None else str(figures.gas_largest),
        },
        **_hours(figures.hours, figures.weekdays),
    }
    if new_wallets is not None:
        facts |= {"newWallets": new_wallets, "returningWallets": wallets - new_wallets}
    return facts


def volume_figures(volumes: Mapping[str, Volume]) -> list[Facts]:
    """Return the volume of each unit, those with most amounts first; a unit that isn't known is named ""."""
    ordered = sorted(volumes.items(), key=lambda item: (-_entries(item[1]), item[0]))
    return [
        {
            "unit": unit[:_LONGEST_NAME],
            "amount": plain(volume.total),
            "amounts": volume.amounts,
            "zeros": volume.zeros,
            "below": volume.below,
            "unlimited": volume.unlimited,
            "notMoved": volume.not_moved,
            "largest": None if volume.largest is None else plain(volume.largest),
            "sizes": dict(zip(BANDS, volume.bands, strict=True)),
        }
        for unit, volume in ordered[:MOST_UNITS]
    ]


def staking_figures(figures: TransactionFigures) -> Facts:
    """Return what was locked and withdrawn, contract by contract: their tokens differ, so they are never added.

    Wallets can be added: ``lockingWallets`` and ``withdrawingWallets`` are the distinct ones of all these contracts.
    """
    stakes = figures.stakes
    return {
        "calls": sum(sum(stake.calls.values()) for stake in stakes.values()),
        "notDone": sum(stake.not_done for stake in stakes.values()),
        "contracts": len(stakes),
        "lockingWallets": len(figures.lockers),
        "withdrawingWallets": len(figures.withdrawers),
        "stakes": [stake_figures(contract_id, stake) for contract_id, stake in _ordered_stakes(stakes)],
    }


def stake_figures(contract_id: str, stake: Stake) -> Facts:
    """Return the figures of one escrow contract. ``net`` is None where an amount on either side is unknown."""
    return {
        "contractId": contract_id,
        "calls": dict(sorted(stake.calls.items())),
        "notDone": stake.not_done,
        "locked": plain(stake.locked),
        "lockedAmounts": stake.locked_known,
        "lockedUnknown": stake.locked_unknown,
        "withdrawn": plain(stake.withdrawn),
        "withdrawnAmounts": stake.withdrawn_known,
        "withdrawnUnknown": stake.withdrawn_unknown,
        "withdrawnEarly": stake.calls.get(WITHDRAW_EARLY, 0),
        "net": None if stake.net is None else plain(stake.net),
        "netOfKnown": plain(stake.net_of_known),
        "lockDays": _lengths(stake.lock_days, stake.lock_unknown),
        "extendedDays": _lengths(stake.extended_days, stake.extended_unknown),
    }


def visit_figures(figures: VisitFigures, *, new_visitors: int | None) -> Facts:
    """Return the figures of visits; ``new_visitors`` is None for all time."""
    visitors = len(figures.visitors)
    facts: Facts = {
        "sessions": figures.sessions,
        "visitors": visitors,
        "repeatVisitors": int((figures.visitors.numbers > 1).sum()),
        "anonymousSessions": figures.anonymous,
        "web3Users": len(figures.web3_visitors),
        "web3Sessions": figures.web3_sessions,
        "walletUsers": len(figures.wallet_visitors),
        "walletConnections": figures.wallet_sessions,
        "wallets": len(figures.wallets),
        "pageViews": figures.page_views,
        "pageViewsKnown": figures.page_views_known,
        "pageViewsPerSession": average(figures.page_views, figures.page_views_known),
        "bounces": figures.bounced,
        "bouncesKnown": figures.bounce_known,
        "bounceRate": rate(figures.bounced, figures.bounce_known),
        "durationKnown": figures.duration_known,
        "durationSeconds": plain(_seconds(figures.duration_ms)),
        "averageSeconds": average(Fraction(figures.duration_ms, _MS_PER_S), figures.duration_known),
        "pages": len(figures.pages),
        "topPages": top_names(figures.pages, "page", "views"),
        "topEntryPages": top_names(figures.entry_pages, "page", "sessions"),
        "topExitPages": top_names(figures.exit_pages, "page", "sessions"),
        "sources": len(figures.sources),
        "topSources": top_names(figures.sources, "source", "sessions"),
        "countries": len(figures.countries),
        "topCountries": top_names(figures.countries, "country", "sessions"),
        "devices": top_names(figures.devices, "device", "sessions"),
        "systems": top_names(figures.systems, "system", "sessions"),
        "browsers": top_names(figures.browsers, "browser", "sessions"),
        "walletSources": top_names(figures.wallet_sources, "source", "sessions"),
        "walletCountries": top_names(figures.wallet_countries, "country", "sessions"),
        "walletTypes": top_names(figures.wallet_types, "walletType", "sessions"),
        "walletChains": top_names(figures.wallet_chains, "chain", "sessions"),
        **_hours(figures.hours, figures.weekdays),
    }
    if new_visitors is not None:
        facts |= {"newVisitors": new_visitors, "returningVisitors": visitors - new_visitors}
    return facts


def funnel_figures(visits: VisitFigures, conversions: Conversions) -> Facts:
    """Return the steps from visit to wallet to transaction, and what was moved at its end, unit by unit."""
    visitors, connected, wallets = len(visits.visitors), len(visits.wallet_visitors), len(visits.wallets)
    waits = conversions.waits_ms
    return {
        "sessions": visits.sessions,
        "visitors": visitors,
        "web3Users": len(visits.web3_visitors),
        "walletUsers": connected,
        "wallets": wallets,
        "transactedWallets": conversions.wallets,
        "transactions": conversions.transactions,
        "failed": conversions.failed,
        "visitorToWalletRate": rate(connected, visitors),
        "walletToTransactionRate": rate(conversions.wallets, wallets),
        "volumes": volume_figures(conversions.volumes),
        "secondsToTransaction": {
            "average": average(Fraction(sum(waits), _MS_PER_S), len(waits)),
            "median": _median([Fraction(wait, _MS_PER_S) for wait in waits]),
        },
    }


def campaign_figures(
    visits: VisitFigures, conversions: Conversions, campaign: TrackedCampaign, *, with_cost: bool
) -> Facts:
    """Return the figures of a campaign. Its cost is that of its whole life: a month of it has none.

    The value is kept in the units that moved. Few of them are the currency of the cost: ``roi`` is the return in per
    cent where one is, on its amount alone, and None elsewhere, because nothing here knows a price. What there always is
    is the cost of each wallet that transacted.
    """
    facts = funnel_figures(visits, conversions)
    facts |= {
        "conversions": facts.pop("transactions"),
        "walletConnections": visits.wallet_sessions,
        "bounces": visits.bounced,
        "bouncesKnown": visits.bounce_known,
        "bounceRate": rate(visits.bounced, visits.bounce_known),
        "durationKnown": visits.duration_known,
        "averageSeconds": average(Fraction(visits.duration_ms, _MS_PER_S), visits.duration_known),
        "topCountries": top_names(visits.countries, "country", "sessions"),
    }
    if with_cost and campaign.cost is not None:
        facts["cost"] = {
            "amount": plain(campaign.cost),
            "currency": campaign.currency,
            "perVisitor": average(Fraction(campaign.cost), len(visits.visitors)),
            "perWallet": average(Fraction(campaign.cost), len(visits.wallets)),
            "perTransactedWallet": average(Fraction(campaign.cost), conversions.wallets),
            "perConversion": average(Fraction(campaign.cost), conversions.transactions),
            **_return(campaign, conversions),
        }
    return facts


def change(now: Number, before: Number | None) -> Facts:
    """Return the figure of the period before, and the change since then: absolute, and in per cent.

    All are None where the period before has no rows; the per cent are None where its figure is zero.
    """
    if before is None:
        return {"before": None, "absolute": None, "percent": None}
    if isinstance(now, int) and isinstance(before, int):
        percent = None if not before else _rounded(Fraction((now - before) * 100, before))
        return {"before": before, "absolute": now - before, "percent": percent}
    now, before = Decimal(now), Decimal(before)
    difference = SUMS.subtract(now, before)
    percent = None if not before else _rounded(Fraction(difference) * 100 / Fraction(before))
    return {"before": plain(before), "absolute": plain(difference), "percent": percent}


def change_of_transactions(
    now: TransactionFigures, before: TransactionFigures | None, *, new_now: int, new_before: int
) -> Facts:
    """Return the changes of the figures of transactions."""
    return {
        "transactions": _change(now, before, lambda figures: figures.transactions),
        "failed": _change(now, before, lambda figures: figures.statuses.get(FAILED, 0)),
        "wallets": _change(now, before, lambda figures: len(figures.senders)),
        "newWallets": change(new_now, None if before is None else new_before),
        "gas": _change(now, before, lambda figures: Decimal(figures.gas_total)),
        "retained": _retained("wallets", now.senders, None if before is None else before.senders),
        "volumes": _change_of_volumes(now.volumes, None if before is None else before.volumes),
    }


def change_of_staking(now: Mapping[str, Stake], before: Mapping[str, Stake] | None) -> list[Facts]:
    """Return the changes of each escrow contract's known amounts; one that had calls before and has none now too."""
    changes = []
    for contract_id, stake in _ordered_stakes({**(before or {}), **now}):
        mine = stake if contract_id in now else Stake()
        then = None if before is None else before.get(contract_id, Stake())
        changes.append(
            {
                "contractId": contract_id,
                "calls": _change(mine, then, lambda stake: sum(stake.calls.values())),
                "locked": _change(mine, then, lambda stake: stake.locked),
                "withdrawn": _change(mine, then, lambda stake: stake.withdrawn),
                "netOfKnown": _change(mine, then, lambda stake: stake.net_of_known),
            }
        )
    return changes


def change_of_visits(now: VisitFigures, before: VisitFigures | None, *, new_now: int, new_before: int) -> Facts:
    """Return the changes of the figures of visits."""
    return {
        "sessions": _change(now, before, lambda figures: figures.sessions),
        "visitors": _change(now, before, lambda figures: len(figures.visitors)),
        "newVisitors": change(new_now, None if before is None else new_before),
        "web3Users": _change(now, before, lambda figures: len(figures.web3_visitors)),
        "walletConnections": _change(now, before, lambda figures: figures.wallet_sessions),
        "wallets": _change(now, before, lambda figures: len(figures.wallets)),
        "pageViews": _change(now, before, lambda figures: figures.page_views),
        "bounces": _change(now, before, lambda figures: figures.bounced),
        "retained": _retained("visitors", now.visitors, None if before is None else before.visitors),
    }


def change_of_funnel(
    now: tuple[VisitFigures, Conversions], before: tuple[VisitFigures, Conversions] | None, *, conversions: str
) -> Facts:
    """Return the changes of a funnel's steps; ``conversions`` is what its last step is called."""
    return {
        "sessions": _change(now, before, lambda steps: steps[0].sessions),
        "visitors": _change(now, before, lambda steps: len(steps[0].visitors)),
        "wallets": _change(now, before, lambda steps: len(steps[0].wallets)),
        "transactedWallets": _change(now, before, lambda steps: steps[1].wallets),
        conversions: _change(now, before, lambda steps: steps[1].transactions),
        "volumes": _change_of_volumes(now[1].volumes, None if before is None else before[1].volumes),
    }


def top_names(counts: Mapping[str, int], name: str, counted: str) -> list[Facts]:
    """Return the most frequent names; of equally frequent ones the first in the alphabet comes first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{name: key[:_LONGEST_NAME], counted: count} for key, count in ordered[:TOP]]


def rate(part: int, whole: int) -> str | None:
    """Return how many per cent of the whole the part is, with two decimals at most; None of nothing."""
    return _rounded(Fraction(part * 100, whole)) if whole else None


def average(total: int | Fraction, count: int) -> str | None:
    """Return the average with two decimals at most; None of nothing."""
    return _rounded(Fraction(total) / count) if count else None


def _rounded(value: Fraction) -> str:
    # A fraction is rounded once, half to even; a quotient of decimals would have been rounded before.
    return plain(Decimal(round(value * 100)).scaleb(-2, SUMS))


def _retained(name: str, now: Tally, before: Tally | None) -> Facts:
    """Return how many of those of the period before came again; all are None where it has no rows."""
    if before is None:
        return {"of": None, name: None, "rate": None}
    stayed = now.shared(before)
    return {"of": len(before), name: stayed, "rate": rate(stayed, len(before))}


def _return(campaign: TrackedCampaign, conversions: Conversions) -> Facts:
    """Return what came back in the currency of the cost, and the return in per cent of the cost."""
    volume = None if campaign.currency is None else conversions.volumes.get(campaign.currency)
    if volume is None or campaign.cost is None:
        return {"value": None, "roi": None}
    earned = Fraction(volume.total) - Fraction(campaign.cost)
    return {
        "value": plain(volume.total),
        "roi": _rounded(earned * 100 / Fraction(campaign.cost)) if campaign.cost else None,
    }


def _seconds(milliseconds: int) -> Decimal:
    return Decimal(milliseconds).scaleb(-3, SUMS)


def _median(ordered: Sequence[Fraction]) -> str | None:
    if not ordered:
        return None
    middle = len(ordered) // 2
    return _rounded(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def _lengths(days: Mapping[int, int], unknown: int) -> Facts:
    """Return how long locks are, in days: shortest, longest, average and median, and how many lie in each band."""
    known = sum(days.values())
    bands = {name: 0 for name, _ in _LOCK_BANDS}
    for length, count in days.items():
        bands[next(name for name, end in _LOCK_BANDS if end is None or length < end)] += count
    ordered = [Fraction(length) for length, count in sorted(days.items()) for _ in range(count)]
    return {
        "known": known,
        "unknown": unknown,
        "shortest": min(days, default=None),
        "longest": max(days, default=None),
        "average": average(sum(length * count for length, count in days.items()), known),
        "median": _median(ordered),
        "bands": bands,
    }


def _categories(figures: TransactionFigures) -> list[Facts]:
    by_category: dict[str, Facts] = {}
    for (category, status), count in sorted(figures.categories.items()):
        facts = by_category.setdefault(category, {"category": category, "transactions": 0, "failed": 0})
        facts["transactions"] += count
        if status == FAILED:
            facts["failed"] += count
    return sorted(by_category.values(), key=lambda facts: (-facts["transactions"], facts["category"]))


def _top_wallets(tally: Tally) -> list[Facts]:
    return [{"wallet": "0x" + key.hex(), "transactions": count} for key, count in tally.top(TOP)]


def _hours(hours: Sequence[int], weekdays: Sequence[int]) -> Facts:
    busiest = sorted((hour for hour, count in enumerate(hours) if count), key=lambda hour: (-hours[hour], hour))
    return {"hours": list(hours), "busiestHours": busiest[:_BUSIEST], "weekdays": list(weekdays)}


def _ordered_stakes(stakes: Mapping[str, Stake]) -> list[tuple[str, Stake]]:
    return sorted(stakes.items(), key=lambda item: (-sum(item[1].calls.values()), item[0]))[:MOST_UNITS]


def _change(now: _T, before: _T | None, read: Callable[[_T], Number]) -> Facts:
    return change(read(now), None if before is None else read(before))


def _entries(volume: Volume) -> int:
    return volume.amounts + volume.below + volume.unlimited + volume.not_moved


def _change_of_volumes(now: Mapping[str, Volume], before: Mapping[str, Volume] | None) -> list[Facts]:
    units: Iterable[str] = now if before is None else {**now, **before}
    volumes = {unit: now.get(unit, Volume()) for unit in units}
    ordered = sorted(volumes.items(), key=lambda item: (-_entries(item[1]), item[0]))[:MOST_UNITS]
    return [
        {
            "unit": unit[:_LONGEST_NAME],
            **change(volume.total, None if before is None else before.get(unit, Volume()).total),
        }
        for unit, volume in ordered
    ]
