"""What figures are described as: a text in an analyst's words, and every figure in ``metadata.facts``.

An answer cites ``facts.figures`` and ``facts.change``; the text is what a question finds. It rounds where the facts are
exact, names the few largest of each kind, shortens wallets to eight characters, and stays below some 200 tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any

from tasks.domain.aggregates import figures as made
from tasks.domain.aggregates.campaigns import TrackedCampaign
from tasks.domain.aggregates.compiling import Aggregate
from tasks.domain.aggregates.figures import Facts
from tasks.domain.aggregates.moves import Conversions, Moves, convert
from tasks.domain.aggregates.periods import AGGREGATION_LEVELS, WEEKDAYS, Calendar, Period
from tasks.domain.aggregates.scopes import AggregateKey, Topic, record_id
from tasks.domain.aggregates.storage import PARTIAL_VERSION
from tasks.domain.aggregates.transactions import TransactionFigures
from tasks.domain.aggregates.visits import VisitFigures
from tasks.domain.amounts import plain, readable
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document
from tasks.domain.texts import split_words

_SOURCE_TYPES: dict[Topic, str] = {
    "transactions": "transaction",
    "staking": "transaction",
    "visits": "analytics",
    "funnel": "user_journey",
    "campaign": "campaign",
}
_COLLECTIONS: dict[Topic, tuple[str, ...]] = {
    "transactions": ("transactions",),
    "staking": ("transactions",),
    "visits": ("sessions",),
    "funnel": ("sessions", "transactions"),
    "campaign": ("campaigns", "sessions", "transactions"),
}
_IMPORTANCE = {"day": 6, "week": 7, "month": 8, "all": 9}
#: How many of a kind a text names.
_NAMED = 3
_LONGEST_NAME = 40
_WALLET_CHARS = 8
_ROUGH_PERCENT = 10
#: Of fewer rows nobody asks for the busiest hour.
_FEW = 5
_BAND_WORDS = ("<0.1", "0.1-1", "1-10", ">10")
_ADVERBS = {"day": "Daily", "week": "Weekly", "month": "Monthly", "all": "All-time"}


def describe_transactions(aggregate: Aggregate[TransactionFigures]) -> Document:
    """Return the document of a period's transactions."""
    figures = aggregate.figures
    all_time = aggregate.period.level == "all"
    facts = made.transaction_figures(figures, new_wallets=None if all_time else aggregate.new_now)
    change = None
    if not all_time:
        change = made.change_of_transactions(
            figures, aggregate.before, new_now=aggregate.new_now, new_before=aggregate.new_before
        )
    moved = [volume for volume in facts["volumes"] if volume["amount"] != "0"]
    wallets = f"{_counted(figures.transactions, 'transaction')} by {_counted(facts['wallets'], 'wallet')}"
    if not all_time:
        wallets += f" ({facts['newWallets']:,} new, {facts['returningWallets']:,} returning)"
    sentences = [
        wallets,
        _states(facts),
        _listing("Kinds", facts["categories"], "category", "transactions"),
        "Volume " + ", ".join(_amount(volume) for volume in moved[:_NAMED]) if moved else "",
        _sizes(moved),
        f"Gas used {_round(figures.gas_total)}" if figures.gas_known else "",
        _busiest(facts, aggregate, figures.transactions),
        _listing("Top methods", _named_methods(facts)[:2], "method", "transactions"),
        _listing("Most active wallets", _active(facts)[:2], "wallet", "transactions"),
    ]
    if change is not None:
        changes = [(name, change[name]) for name in ("transactions", "wallets")]
        changes += [(f"volume in {_unit(volume)}", volume) for volume in change["volumes"] if _moved(volume)][:1]
        sentences.append(_compared(aggregate, changes))
    short = [_counted(figures.transactions, "transaction"), _counted(facts["wallets"], "wallet")]
    return _document(
        "transactions",
        aggregate,
        title="transactions",
        sentences=sentences,
        short=[*short, *map(_amount, moved[:2])],
        figures=facts,
        change=change,
        tags=[entry["category"] for entry in facts["categories"][:_NAMED]],
    )


def describe_staking(aggregate: Aggregate[TransactionFigures]) -> Document | None:
    """Return the document of what was locked and withdrawn; None where the period has no call of an escrow contract."""
    stakes = aggregate.figures.stakes
    if not stakes:
        return None
    facts = made.staking_figures(aggregate.figures)
    change = None
    if aggregate.period.level != "all":
        before = aggregate.before
        change = {"stakes": made.change_of_staking(stakes, None if before is None else before.stakes)}
    sentences = [f"{_counted(facts['calls'], 'staking call')}, {facts['notDone']:,} failed or pending"]
    if len(stakes) > 1:
        sentences[0] += f", in {len(stakes)} staking contracts, whose tokens are not added"
    if facts["lockingWallets"] or facts["withdrawingWallets"]:
        sentences.append(
            f"{_counted(facts['lockingWallets'], 'wallet')} locked, {facts['withdrawingWallets']:,} withdrew"
        )
    if len(stakes) == 1:
        stake = facts["stakes"][0]
        sentences += _told(stake)
        if change is not None:
            changes = change["stakes"][0]
            told = [("calls", changes["calls"]), ("locked", changes["locked"]), ("withdrawn", changes["withdrawn"])]
            sentences.append(_compared(aggregate, told))
    unknown = any(stake.locked_unknown or stake.withdrawn_unknown for stake in stakes.values())
    return _document(
        "staking",
        aggregate,
        title="staking, locked and withdrawn tokens",
        sentences=sentences,
        short=[_counted(facts["calls"], "staking call")],
        figures=facts,
        change=change,
        tags=["staking"],
        confidence=0.8 if unknown else 1.0,
    )


def describe_visits(aggregate: Aggregate[VisitFigures]) -> Document:
    """Return the document of a period's visits."""
    figures = aggregate.figures
    all_time = aggregate.period.level == "all"
    facts = made.visit_figures(figures, new_visitors=None if all_time else aggregate.new_now)
    change = None
    if not all_time:
        change = made.change_of_visits(
            figures, aggregate.before, new_now=aggregate.new_now, new_before=aggregate.new_before
        )
    visitors = f"{_counted(figures.sessions, 'session')} by {_counted(facts['visitors'], 'visitor')}"
    if not all_time:
        visitors += f" ({facts['newVisitors']:,} new, {facts['returningVisitors']:,} returning)"
    views = f"{_counted(figures.page_views, 'page view')}"
    if facts["bounceRate"] is not None:
        views += f", bounce rate {facts['bounceRate']} %"
    if facts["averageSeconds"] is not None:
        views += f", average visit {Decimal(facts['averageSeconds']):,.0f} seconds"
    sentences = [
        visitors,
        f"{_counted(facts['web3Users'], 'web3 user')}, {_counted(figures.wallet_sessions, 'wallet connection')} "
        f"with {_counted(facts['wallets'], 'wallet')}",
        views,
        _listing("Traffic sources", facts["topSources"], "source", "sessions"),
        _listing("Countries", facts["topCountries"], "country", "sessions"),
        _listing("Devices", facts["devices"], "device", "sessions"),
        _listing("Top pages", facts["topPages"], "page", "views"),
        _busiest(facts, aggregate, figures.sessions),
    ]
    if change is not None:
        names = ("sessions", "visitors", "wallets")
        sentences.append(_compared(aggregate, [(name, change[name]) for name in names]))
        sentences.append(_came_again(aggregate, change["retained"]))
    return _document(
        "visits",
        aggregate,
        title="visits and website traffic",
        sentences=sentences,
        short=[_counted(figures.sessions, "session"), _counted(facts["visitors"], "visitor")],
        figures=facts,
        change=change,
        tags=[],
    )


def describe_funnel(aggregate: Aggregate[VisitFigures], moves: Moves) -> Document:
    """Return the document of the way from visit to wallet to transaction, within the period.

    ``moves`` are those of the website's team, of this period and the one before; others are left out. A transaction
    counts if its wallet was connected in a session of the same period before it, or at the same moment.
    """
    end, end_before = _conversions(aggregate, moves)
    facts = made.funnel_figures(aggregate.figures, end)
    change = None
    if aggregate.period.level != "all":
        before = None if aggregate.before is None or end_before is None else (aggregate.before, end_before)
        change = made.change_of_funnel((aggregate.figures, end), before, conversions="transactions")
    return _document(
        "funnel",
        aggregate,
        title="conversion funnel from visit to wallet to transaction",
        sentences=[*_steps(facts, "transactions"), _compared_funnel(aggregate, change, "transactions")],
        short=[_counted(facts["visitors"], "visitor"), f"{facts['transactedWallets']:,} wallets transacted"],
        figures=facts,
        change=change,
        tags=["funnel", "conversion"],
        moves=end,
    )


def describe_campaign(aggregate: Aggregate[VisitFigures], campaign: TrackedCampaign, moves: Moves) -> Document:
    """Return the document of a campaign: who came through it, and what their wallets did since, within the period.

    ``aggregate`` is made of the campaign's own visits, ``moves`` are as for the funnel. A wallet that came through two
    campaigns counts for both: figures of campaigns are not to be added.
    """
    end, end_before = _conversions(aggregate, moves)
    all_time = aggregate.period.level == "all"
    facts = made.campaign_figures(aggregate.figures, end, campaign, with_cost=all_time)
    change = None
    if not all_time:
        before = None if aggregate.before is None or end_before is None else (aggregate.before, end_before)
        change = made.change_of_funnel((aggregate.figures, end), before, conversions="conversions")
    sentences = _steps(facts, "conversions")
    cost = facts.get("cost")
    if cost is not None:
        words = f"Cost {readable(Decimal(cost['amount']))} {cost['currency'] or 'of an unknown currency'}"
        if cost["perTransactedWallet"] is not None:
            words += f", {cost['perTransactedWallet']} for each wallet that transacted"
        if cost["roi"] is not None:
            words += f", return on it (ROI) {cost['roi']} %"
        sentences.append(words)
    if facts["bounceRate"] is not None:
        sentences.append(f"Bounce rate {facts['bounceRate']} %")
    sentences.append(_listing("Countries", facts["topCountries"], "country", "sessions"))
    sentences.append(_compared_funnel(aggregate, change, "conversions"))
    return _document(
        "campaign",
        aggregate,
        title="marketing campaign",
        sentences=sentences,
        short=[_counted(facts["visitors"], "visitor"), _counted(facts["conversions"], "conversion")],
        figures=facts,
        change=change,
        tags=["campaign"],
        moves=end,
    )


def _document(
    topic: Topic,
    aggregate: Aggregate[TransactionFigures] | Aggregate[VisitFigures],
    *,
    title: str,
    sentences: Iterable[str],
    short: Iterable[str],
    figures: Facts,
    change: Facts | None,
    tags: Sequence[str],
    confidence: float = 1.0,
    moves: Conversions | None = None,
) -> Document:
    subject, period = aggregate.subject, aggregate.period
    key = AggregateKey(topic, subject.scope, period, aggregate.calendar.zone).text
    so_far = " so far" if aggregate.complete is False else ""
    when = f"{period.words}{so_far}"
    if period.level == "all" and aggregate.window is not None:
        when += f" ({_span(aggregate.window, aggregate.calendar)})"
    head = f"{_ADVERBS[period.level]} figures, {when}: {title}, {subject.name}."
    told = [sentence for sentence in sentences if sentence]
    level = AGGREGATION_LEVELS.get(period.level)
    metadata: dict[str, Any] = {}
    if aggregate.window is not None:
        metadata["timeframe"] = {"start": aggregate.window[0], "end": aggregate.window[1]}
    metadata["dataType"] = "insight" if topic == "funnel" else "metric"
    words = ["aggregate", topic, level or "all time", *subject.tags, *tags]
    metadata["tags"] = list(dict.fromkeys(word.lower() for word in words))
    metadata["category"] = topic
    metadata["metricType"] = topic
    if subject.chain_id is not None:
        metadata["chainId"] = str(subject.chain_id)
    metadata["importance"] = _IMPORTANCE[period.level]
    if level is not None:
        metadata["aggregationLevel"] = level
    metadata["confidence"] = confidence
    metadata["facts"] = _facts(topic, aggregate, figures, change, moves)
    return Document(
        source_type=_SOURCE_TYPES[topic],
        source_id=str(record_id(key)),
        key=key,
        holder_id=subject.scope.holder_id,
        team_id=subject.team_id,
        site_id=subject.site_id,
        content=" ".join([head, *(f"{sentence}." for sentence in told)]),
        summary=" · ".join([title, subject.name, when, *short])[:MAX_SUMMARY_CHARS],
        metadata=metadata,
    )


def _facts(
    topic: Topic,
    aggregate: Aggregate[TransactionFigures] | Aggregate[VisitFigures],
    figures: Facts,
    change: Facts | None,
    moves: Conversions | None,
) -> Facts:
    scope, period, source = aggregate.subject.scope, aggregate.period, aggregate.figures
    facts: Facts = {
        "aggregate": True,
        "topic": topic,
        "scope": scope.kind,
        "subject": aggregate.subject.name,
        "period": period.level,
        "label": period.label,
        "timeZone": aggregate.calendar.zone,
    }
    if scope.kind == "contract":
        facts["contractId"] = scope.holder_id
    elif scope.part:
        facts["chain" if scope.kind == "chain" else "campaignId"] = scope.part
    if aggregate.complete is not None:
        facts["complete"] = aggregate.complete
    if aggregate.window is not None:
        facts["window"] = {"start": aggregate.window[0], "end": aggregate.window[1]}
    read: Facts = {
        "collections": list(_COLLECTIONS[topic]),
        "rows": source.rows,
        "doubledRows": source.doubled,
        "newestRecord": source.newest_id,
        "digest": f"{source.digest:032x}",
        "version": PARTIAL_VERSION,
    }
    if source.oldest_ms is not None and source.newest_ms is not None:
        read |= {"oldest": _moment(source.oldest_ms), "newest": _moment(source.newest_ms)}
    if moves is not None:
        read |= {"moves": moves.rows, "movesDigest": f"{moves.digest:032x}"}
    facts["computedFrom"] = read
    facts["figures"] = figures
    if aggregate.series and topic in ("transactions", "visits"):
        counted = "transactions" if topic == "transactions" else "sessions"
        facts["figures"] = {
            **figures,
            "series": [{"period": part.label, counted: count} for part, count in aggregate.series],
        }
    previous = period.previous()
    if change is not None and previous is not None:
        facts["change"] = {"against": previous.label, **change}
    return facts


def _conversions(aggregate: Aggregate[VisitFigures], moves: Moves) -> tuple[Conversions, Conversions | None]:
    """Return what the period's wallets did in it, and the same of the period before where it has visits."""
    period, previous = aggregate.period, aggregate.period.previous()
    mine = convert(aggregate.figures.wallets, _moves_in(moves, period, aggregate.calendar))
    if previous is None or aggregate.before is None:
        return mine, None
    return mine, convert(aggregate.before.wallets, _moves_in(moves, previous, aggregate.calendar))


def _moves_in(moves: Moves, period: Period, calendar: Calendar) -> Moves:
    if period.level == "all":
        return moves
    # They are sorted by time: of years of moves a day's are found without a look at the others.
    first, end = (
        bisect_left(moves.rows, moment.timestamp() * 1000, key=attrgetter("block_ms"))
        for moment in calendar.window(period.first, period.end)
    )
    return Moves(moves.rows[first:end])


def _steps(facts: Mapping[str, Any], conversions: str) -> list[str]:
    steps = (
        f"{_counted(facts['sessions'], 'session')} by {_counted(facts['visitors'], 'visitor')}, "
        f"{facts['walletUsers']:,} connected a wallet ({_counted(facts['wallets'], 'wallet')}), "
        f"{facts['transactedWallets']:,} of the wallets made {_counted(facts[conversions], 'transaction')}"
    )
    moved = [volume for volume in facts["volumes"] if volume["amount"] != "0"]
    rates = [
        f"{facts[name]} % {words}"
        for name, words in (
            ("visitorToWalletRate", "of visitors connected a wallet"),
            ("walletToTransactionRate", "of wallets transacted"),
        )
        if facts[name] is not None
    ]
    value = "Transaction value " + ", ".join(map(_amount, moved[:_NAMED])) if moved else ""
    return [steps, ", ".join(rates), value]


def _compared_funnel(aggregate: Aggregate[VisitFigures], change: Facts | None, conversions: str) -> str:
    if change is None:
        return ""
    return _compared(aggregate, [(name, change[name]) for name in ("visitors", "wallets", conversions)])


def _compared(
    aggregate: Aggregate[TransactionFigures] | Aggregate[VisitFigures], changes: Iterable[tuple[str, Facts]]
) -> str:
    """Return the changes in words; one whose figure was zero before is told as a difference."""
    previous = aggregate.period.previous()
    told = [f"{name} {_difference(change)}" for name, change in changes if change["before"] is not None]
    if not told or previous is None:
        return ""
    return f"Compared with the {previous.level} before: {', '.join(told)}"


def _came_again(aggregate: Aggregate[VisitFigures], retained: Facts) -> str:
    previous = aggregate.period.previous()
    if previous is None or not retained["of"]:
        return ""
    visitors = f"{retained['visitors']:,} of {_counted(retained['of'], 'visitor')}"
    return f"Retention: {visitors} of the {previous.level} before came again ({retained['rate']} %)"


def _difference(change: Facts) -> str:
    if change["percent"] is not None:
        percent = Decimal(change["percent"])
        # A tenth of a per cent says nothing of a change by more than ten; the facts have two decimals of all.
        size = f"{abs(percent):,.0f}" if abs(percent) >= _ROUGH_PERCENT else plain(abs(percent))
        return "unchanged" if not percent else f"{'up' if percent > 0 else 'down'} {size} %"
    return f"up from 0 to {_readable(change['absolute'])}" if Decimal(change["absolute"]) else "unchanged"


def _told(stake: Facts) -> list[str]:
    """Return what one escrow contract's figures say."""
    known = ("lockedAmounts", "lockedUnknown", "withdrawnAmounts", "withdrawnUnknown")
    kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in stake["calls"].items())
    if not any(stake[name] for name in known):
        return ["No call is known to have locked or withdrawn tokens", f"Calls: {kinds}" if kinds else ""]
    locked = f"Locked {readable(Decimal(stake['locked']))} tokens"
    if stake["lockedUnknown"]:
        locked += f" and {_counted(stake['lockedUnknown'], 'unknown amount')}"
    withdrawn = f"withdrew {readable(Decimal(stake['withdrawn']))} tokens"
    if stake["withdrawnUnknown"]:
        withdrawn += f" and {_counted(stake['withdrawnUnknown'], 'unknown amount')}"
    net = "net change unknown" if stake["net"] is None else f"net change {_signed(stake['net'])} tokens"
    sentences = [f"{locked}, {withdrawn}, {net}"]
    sentences.append(f"Calls: {kinds}" if kinds else "")
    days = stake["lockDays"]
    if days["known"]:
        sentences.append(
            f"Lock lengths of {days['shortest']:,} to {days['longest']:,} days, average {days['average']}, "
            f"median {days['median']}"
        )
    extended = stake["extendedDays"]
    if extended["known"] + extended["unknown"]:
        sentences.append(_counted(extended["known"] + extended["unknown"], "lock") + " extended")
    return sentences


def _states(facts: Facts) -> str:
    states = [
        f"{facts[name]:,} {words}"
        for name, words in (("succeeded", "succeeded"), ("failed", "failed"), ("pending", "pending"))
        if facts[name]
    ]
    return ", ".join(states)


def _sizes(moved: Sequence[Facts]) -> str:
    """Return how many transactions of the most frequent unit lie in each size band."""
    if not moved:
        return ""
    sizes = [
        f"{words}: {count:,}" for count, words in zip(moved[0]["sizes"].values(), _BAND_WORDS, strict=True) if count
    ]
    return f"Sizes in {_unit(moved[0])} {', '.join(sizes)}" if sizes else ""


def _busiest(facts: Facts, aggregate: Aggregate[TransactionFigures] | Aggregate[VisitFigures], count: int) -> str:
    """Return the busiest hour and day of the week, where there are enough rows to have one and it is the only one."""
    if count < _FEW:
        return ""
    words = []
    hour, weekday = _peak(facts["hours"]), _peak(facts["weekdays"])
    if hour is not None:
        words.append(f"busiest hour {hour:02}:00 {aggregate.calendar.zone}")
    if weekday is not None and aggregate.period.level != "day":
        words.append(f"busiest day {WEEKDAYS[weekday]}")
    told = ", ".join(words)
    return told[:1].upper() + told[1:]


def _peak(counts: Sequence[int]) -> int | None:
    highest = max(counts)
    return counts.index(highest) if counts.count(highest) == 1 else None


def _named_methods(facts: Facts) -> list[Facts]:
    """Return the top methods in words, without those that have only a number."""
    return [
        {**entry, "method": split_words(entry["method"])}
        for entry in facts["topMethods"]
        if not entry["method"].startswith("0x")
    ]


def _active(facts: Facts) -> list[Facts]:
    """Return the top wallets that did more than one thing: the others are on top by chance."""
    return [entry for entry in facts["topWallets"] if entry["transactions"] > 1]


def _round(count: int) -> str:
    """Return three digits of a large count: the exact one is in the facts."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{plain(Decimal(f'{count / size:.3g}'))} {word}"
    return f"{count:,}"


def _listing(title: str, entries: Sequence[Facts], name: str, counted: str) -> str:
    named = ", ".join(f"{_shown(entry[name], name)} {entry[counted]:,}" for entry in entries[:_NAMED])
    return f"{title}: {named}" if named else ""


def _shown(value: str, name: str) -> str:
    return value[:_WALLET_CHARS] if name == "wallet" else value[:_LONGEST_NAME]


def _amount(volume: Facts) -> str:
    return f"{readable(Decimal(volume['amount']))} {_unit(volume)}"


def _unit(volume: Facts) -> str:
    return volume["unit"][:_LONGEST_NAME] or "of an unknown unit"


def _moved(change: Facts) -> bool:
    return change["before"] is not None and (change["before"] != "0" or change["absolute"] != "0")


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _readable(figure: int | str) -> str:
    return f"{figure:,}" if isinstance(figure, int) else readable(Decimal(figure))


def _signed(figure: str) -> str:
    value = Decimal(figure)
    return f"{'+' if value > 0 else '-' if value < 0 else ''}{readable(abs(value))}"


def _span(window: tuple[datetime, datetime], calendar: Calendar) -> str:
    first = calendar.place(round(window[0].timestamp() * 1000))[0]
    last = calendar.place(round(window[1].timestamp() * 1000) - 1)[0]
    return f"{Period.of('day', first).words} to {Period.of('day', last).words}"


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
