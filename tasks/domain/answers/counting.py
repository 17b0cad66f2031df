"""Counting: the figures of any records, by the definitions that the documents of figures are made by.

What no document holds (the months of two years, the visits of one country) is counted from the stored facts of the
records, so that a figure means the same wherever it comes from. Beside it stand figures that can't be merged from days:
the median visit, and the wallets that sent most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from statistics import median
from typing import Any

from tasks.domain.aggregates.figures import TOP, average, staking_figures, transaction_figures, visit_figures
from tasks.domain.aggregates.periods import Calendar
from tasks.domain.aggregates.transactions import Row, StakeCall, TransactionFigures
from tasks.domain.aggregates.visits import Visit, VisitFigures
from tasks.domain.aggregates.volumes import SUMS
from tasks.domain.amounts import plain
from tasks.domain.transactions import FAILED, PENDING

Facts = dict[str, Any]
Stored = Mapping[str, Any]
_NOT_MOVED = frozenset({FAILED, PENDING})
_ZERO_ADDRESS = "0x" + "0" * 40


def count_visits(rows: Iterable[Stored], calendar: Calendar) -> Facts:
    """Return the figures of stored sessions, each counted once, and ``medianSeconds``; those new are not known here."""
    by_day: dict[date, list[Visit]] = defaultdict(list)
    for row in rows:
        visit = _visit(row)
        by_day[calendar.place(visit.start_ms)[0]].append(visit)
    days = [VisitFigures.of_visits(visits, day, calendar) for day, visits in sorted(by_day.items())]
    lengths = [visit.duration_ms for visits in by_day.values() for visit in visits if visit.duration_ms is not None]
    facts = visit_figures(VisitFigures.merged(days), new_visitors=None)
    facts["medianSeconds"] = average(Fraction(median(map(Fraction, lengths))) / 1000, 1) if lengths else None
    return facts


def count_transactions(rows: Iterable[Stored], calendar: Calendar) -> Facts:
    """Return the figures of stored transactions; ``topSenders`` of a volume are those that sent most of its unit."""
    found = _transactions(rows, calendar)
    facts = transaction_figures(TransactionFigures.merged(found.days), new_wallets=None)
    sent = _sent(found.rows)
    for volume in facts["volumes"]:
        wallets = sorted(sent[volume["unit"]].items(), key=lambda item: (-item[1], item[0]))
        volume["topSenders"] = [{"wallet": wallet, "amount": plain(amount)} for wallet, amount in wallets[:TOP]]
    return facts


def count_staking(rows: Iterable[Stored], calendar: Calendar) -> Facts:
    """Return what stored calls of escrow contracts locked and withdrew."""
    return staking_figures(TransactionFigures.merged(_transactions(rows, calendar).days))


class _Days:
    """Transactions with the figures of each chain's days: a hash on two chains is two transactions."""

    def __init__(self, rows: Sequence[Row], days: Sequence[TransactionFigures]) -> None:
        self.rows, self.days = rows, days


def _transactions(rows: Iterable[Stored], calendar: Calendar) -> _Days:
    by_day: dict[tuple[str, date], list[Row]] = defaultdict(list)
    undated: dict[str, list[Row]] = defaultdict(list)
    for stored in rows:
        row, chain = _row(stored, calendar), str(stored["metadata"]["facts"].get("chain"))
        if row.block_ms is None:
            undated[chain].append(row)
        else:
            by_day[chain, calendar.place(row.block_ms)[0]].append(row)
    days = [TransactionFigures.of_rows(some, day) for (_, day), some in sorted(by_day.items())]
    days += [TransactionFigures.of_rows(some, None) for _, some in sorted(undated.items())]
    everything = [row for some in (*by_day.values(), *undated.values()) for row in some]
    return _Days(everything, days)


def _sent(rows: Iterable[Row]) -> dict[str, dict[str, Decimal]]:
    """Return what each wallet sent of each unit: one transaction's equal amounts count once, as in a volume."""
    sent: dict[str, dict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    seen: set[tuple[str, str, str, Decimal]] = set()
    for row in rows:
        if row.amount is None or row.below or row.unlimited or row.wallet is None or row.status in _NOT_MOVED:
            continue
        one = (row.tx_hash, row.wallet, row.unit, row.amount)
        if one not in seen:
            seen.add(one)
            sent[row.unit][row.wallet] = SUMS.add(sent[row.unit][row.wallet], row.amount)
    return sent


def _visit(row: Stored) -> Visit:
    facts = row["metadata"]["facts"]
    start = row["metadata"]["timeframe"]["start"]
    seconds = facts.get("durationSeconds")
    wallet = facts.get("wallet")
    return Visit(
        record_id=str(row["sourceId"]),
        site_id=row["siteId"],
        session_id=facts["sessionId"],
        start_ms=_milliseconds(start),
        visitor=facts.get("visitor"),
        web3=facts.get("web3User") is True,
        wallet=wallet,
        duration_ms=None if seconds is None else round(seconds * 1000),
        bounced=facts.get("bounced"),
        pages_viewed=facts.get("pagesViewed"),
        pages=tuple(page["path"] for page in facts.get("pages") or ()),
        entry_page=facts.get("entryPage"),
        exit_page=facts.get("exitPage"),
        source=facts.get("trafficSource"),
        country=facts.get("country"),
        device=facts.get("device"),
        system=facts.get("system"),
        browser=facts.get("browser"),
        wallet_type=facts.get("walletType") if wallet is not None else None,
        wallet_chain=facts.get("walletChain") if wallet is not None else None,
    )


def _row(stored: Stored, calendar: Calendar) -> Row:
    metadata = stored["metadata"]
    facts = metadata["facts"]
    start = (metadata.get("timeframe") or {}).get("start")
    moment = None if start is None else _milliseconds(start)
    recipient = facts.get("to")
    stake = None
    if "stakingType" in facts:
        amount = facts.get("stakingAmount")
        stake = StakeCall(facts["stakingType"], None if amount is None else Decimal(amount), facts.get("lockDays"))
    amount = facts.get("amount")
    return Row(
        tx_hash=facts["txHash"],
        contract_id=facts["contractId"],
        record_id=str(stored["sourceId"]),
        category=metadata["category"],
        method=facts.get("method") or facts.get("selector"),
        status=facts.get("status") or "unknown",
        wallet=None if facts.get("from") == _ZERO_ADDRESS else facts.get("from"),
        recipient=None if recipient in (_ZERO_ADDRESS, metadata.get("contractAddress")) else recipient,
        gas=facts.get("gasUsed"),
        unit=facts.get("unit") or "",
        amount=None if amount is None else Decimal(amount),
        below=facts.get("amountBelow") is True,
        unlimited=facts.get("amountUnlimited") is True,
        block_ms=moment,
        hour=None if moment is None else calendar.place(moment)[1],
        stake=stake,
        digest=0,
    )


def _milliseconds(moment: datetime) -> int:
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round(aware.timestamp() * 1000)
