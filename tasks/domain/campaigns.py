"""Campaign: a record of the source's ``campaigns``, with what the application has counted for it.

- A campaign has no start and no end, no type and no status: its time is from its creation to its last update.
- ``bounces`` are added once more each time somebody looks, so the bounce rate may pass 100 %: it is left out then.
- Values of transactions are amounts of whichever token was moved, without its name. The application adds them up as if
  they were one currency, and compares the sum with the budget (``roi``). No text tells such a total, and the ROI only
  with what it is worth; facts hold them under ``mixedTokens``, with a note. What is added up here is only ever of one
  contract on one chain.
- A transaction counts once by its hash. ``conversions`` is how many the application lists: where the two differ, a
  warning says so.
- Users are only counted; wallets are public and stand in the facts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from bson.decimal128 import Decimal128

from tasks.domain.amounts import EXACT, plain
from tasks.domain.analytics import PageNames, read_user_ids
from tasks.domain.chains import find_chain
from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.figures import (
    as_datetime,
    confidence_of,
    counted,
    in_time_words,
    read_count,
    read_moment_ms,
    read_number,
    read_time_ms,
    rounded,
)
from tasks.domain.owners import Owners
from tasks.domain.personal import (
    EARLIEST_MS,
    FUTURE_TOLERANCE_MS,
    MAX_SECONDS,
    find_host,
    hide_tokens,
)
from tasks.domain.sources import Record, Source
from tasks.domain.wallets import parse_address
from tasks.domain.websites import find_site, one_line, owner_of, read_record_id, shown_day, shown_site, warn_unless_text

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1

MIXED_NOTE = "amounts of different tokens added up by the application: no currency, and no sum of money"
MAX_TOTAL = 10**12
#: How many entries of each list facts hold.
FACT_WALLETS, FACT_HASHES, FACT_SUMS = 100, 100, 20
MAX_LABEL_CHARS = 80
_HASH = re.compile(r"(?:0x)?([0-9a-f]{64})")
_NO_WORD = re.compile(r"[\W_]+")
_CURRENCY = re.compile(r"[A-Za-z0-9$€£¥₹₿.]{1,12}")
#: A sum needs no more digits than a uint256 has.
_LARGEST_VALUE, _SMALLEST_VALUE = Decimal("1e78"), Decimal("1e-30")


@dataclass(frozen=True, slots=True)
class ContractSum:
    """What a campaign's transactions moved under one contract on one chain; ``value`` is an exact decimal."""

    contract_address: str | None
    chain: str | None
    transactions: int
    value: str | None


@dataclass(frozen=True, slots=True)
class Campaign:
    """One campaign with its owner. Times are epoch milliseconds, UTC; durations seconds.

    ``cost`` is its budget, in ``currency``. ``counters`` and ``durations`` have the source's names, without those that
    are missing; ``mixed`` are its figures that add up different tokens. ``transactions`` counts hashes, None where the
    application has listed none.
    """

    record_id: str
    site_id: str
    team_id: str
    site: str
    name: str | None
    source: str | None
    medium: str | None
    utm_campaign: str | None
    utm_id: str | None
    term: str | None
    content: str | None
    host: str | None
    path: str | None
    cost: float | None
    currency: str | None
    created_ms: int | None
    updated_ms: int | None
    sessions: int | None
    unique_visitors: int | None
    unique_web3_users: int | None
    counters: tuple[tuple[str, int], ...]
    durations: tuple[tuple[str, float], ...]
    bounce_rate: float | None
    cac: float | None
    mixed: tuple[tuple[str, float], ...]
    wallets: tuple[str, ...]
    transacted_wallets: tuple[str, ...]
    transactions: int | None
    hashes: tuple[str, ...]
    sums: tuple[ContractSum, ...]
    warnings: tuple[str, ...]


COUNTERS = ("visitors", "web3Users", "uniqueWallets", "transactedUsers", "conversions", "bounces")
DURATIONS = ("totalDuration", "averageDuration", "visitDuration")
#: Figures that add up or compare amounts of different tokens.
MIXED = ("conversionsValue", "totalTransactionValue", "averageTransactionValue", "roi")
_LABELS = ("name", "source", "medium", "campaign", "utm_id", "term", "content")


def parse_campaign(record: Mapping[str, Any], owners: Owners, *, now_ms: int) -> Campaign:
    """Return the campaign of a record. ``now_ms`` bounds its times; it is the start of the run.

    Raises ``RecordError`` where its identity or its owner can't be told.
    """
    get = record.get
    warnings: list[str] = []
    record_id = read_record_id(record)
    site = owners.find_site(get("siteId"))
    stats = _inner(get("stats"), "stats", warnings)
    users = read_user_ids(stats.get("uniqueVisitors"), "stats.uniqueVisitors", warnings)
    web3_users = read_user_ids(stats.get("uniqueWeb3Users"), "stats.uniqueWeb3Users", warnings)
    names = PageNames({*(users or ()), *(web3_users or ())})
    warn_unless_text(record, _LABELS, warnings)
    labels = {field: names.label(get(field)) for field in _LABELS}
    cost, currency = _read_budget(get("budget"), warnings)
    bounds = {"earliest_ms": EARLIEST_MS, "latest_ms": now_ms + FUTURE_TOLERANCE_MS}
    created_ms = read_time_ms(get("createdAt"), "createdAt", warnings, **bounds)
    updated_ms = read_time_ms(get("updatedAt"), "updatedAt", warnings, **bounds)
    if created_ms is not None and updated_ms is not None and updated_ms < created_ms:
        warnings.append("updatedAt lies before createdAt and is left out")
        updated_ms = None
    sessions = get("sessions")
    if sessions is not None and not isinstance(sessions, list):
        warnings.append(f"sessions of type {type(sessions).__name__} left out")
    counters = {
        name: number
        for name in COUNTERS
        if (number := read_count(stats.get(name), f"stats.{name}", warnings, most=MAX_TOTAL)) is not None
    }
    durations = {
        name: seconds
        for name in DURATIONS
        if (seconds := _read_seconds(stats.get(name), f"stats.{name}", warnings)) is not None
    }
    mixed = {
        name: figure
        for name in MIXED
        if (figure := read_number(stats.get(name), f"stats.{name}", warnings)) is not None
        # Without a budget the application writes 0, which is no return.
        and (cost or name != "roi")
    }
    # What the budget comes to for each wallet with a transaction.
    cac = read_number(stats.get("cac"), "stats.cac", warnings, least=0)
    bounce_rate = read_number(stats.get("bounceRate"), "stats.bounceRate", warnings, least=0, most=100)
    hashes, sums = _read_transactions(stats.get("transactions"), warnings)
    listed = counters.get("conversions")
    if hashes is not None and listed is not None and listed != len(hashes):
        warnings.append(f"conversions says {listed}, and the list has {len(hashes)} different transactions")
    return Campaign(
        record_id=str(record_id),
        site_id=site.site_id,
        team_id=owner_of(site),
        site=shown_site(site),
        name=labels["name"],
        source=labels["source"],
        medium=labels["medium"],
        utm_campaign=labels["campaign"],
        utm_id=labels["utm_id"],
        term=labels["term"],
        content=labels["content"],
        host=find_host(get("domain")),
        path=names.path(get("path")),
        cost=cost,
        currency=currency,
        created_ms=created_ms,
        updated_ms=updated_ms,
        sessions=len({str(held) for held in sessions}) if isinstance(sessions, list) else None,
        unique_visitors=None if users is None else len(users),
        unique_web3_users=None if web3_users is None else len(web3_users),
        counters=tuple(counters.items()),
        durations=tuple(durations.items()),
        bounce_rate=bounce_rate,
        cac=cac if cost else None,
        mixed=tuple(mixed.items()),
        wallets=_read_wallets(stats, "uniqueWalletAddresses", warnings),
        transacted_wallets=_read_wallets(stats, "uniqueTransactedWallets", warnings),
        transactions=None if hashes is None else len(hashes),
        hashes=tuple(sorted(hashes or ())),
        sums=sums,
        warnings=tuple(warnings),
    )


def _inner(raw: object, name: str, warnings: list[str]) -> Mapping[str, Any]:
    if isinstance(raw, Mapping):
        return raw
    if raw is not None and raw != "":
        warnings.append(f"{name} of type {type(raw).__name__} left out")
    return {}


def _read_budget(raw: object, warnings: list[str]) -> tuple[float | None, str | None]:
    budget = _inner(raw, "budget", warnings)
    cost = read_number(budget.get("amount"), "budget.amount", warnings, least=0)
    written = one_line(budget.get("currency"))
    currency = written if written and _CURRENCY.fullmatch(written) else None
    if currency is None and budget.get("currency") not in (None, ""):
        warnings.append("budget.currency is no name of a currency and is left out")
    return cost, currency


def _read_seconds(raw: object, name: str, warnings: list[str]) -> float | None:
    return read_number(raw, name, warnings, least=0, most=MAX_SECONDS * 1_000)


def _read_wallets(stats: Mapping[str, Any], name: str, warnings: list[str]) -> tuple[str, ...]:
    """Return the addresses of a list, each once, in their order; words that only say "no wallet" are no warning."""
    raw = stats.get(name)
    if raw is None or raw == "":
        return ()
    if not isinstance(raw, list):
        warnings.append(f"stats.{name} of type {type(raw).__name__} left out")
        return ()
    return tuple(sorted(set(filter(None, map(parse_address, raw)))))


def _read_transactions(raw: object, warnings: list[str]) -> tuple[set[str] | None, tuple[ContractSum, ...]]:
    """Return the different hashes, None where there is no list, and what was moved under each contract."""
    if raw is None or raw == "":
        return None, ()
    if not isinstance(raw, list):
        warnings.append(f"stats.transactions of type {type(raw).__name__} left out")
        return None, ()
    hashes: set[str] = set()
    values: dict[tuple[str, str], dict[str, Decimal | None]] = {}
    said: list[str] = []
    for entry in raw:
        tx_hash = _tx_hash(entry.get("txHash")) if isinstance(entry, Mapping) else None
        if tx_hash is None or not isinstance(entry, Mapping):
            said.append("stats.transactions: what has no hash left out")
            continue
        hashes.add(tx_hash)
        chain = find_chain(entry.get("chainName")) or find_chain(read_count(entry.get("chainId"), "chainId", []))
        value = _read_value(entry.get("value"), said)
        place = (parse_address(entry.get("contractAddress")) or "", chain.name if chain else "")
        held = values.setdefault(place, {})
        if tx_hash in held and held[tx_hash] != value:
            said.append("stats.transactions: two entries of one transaction disagree, the larger value counts")
            value = max(known for known in (held[tx_hash], value) if known is not None)
        held[tx_hash] = value
    warnings.extend(dict.fromkeys(said))
    sums = [
        ContractSum(address or None, chain or None, len(held), _sum(held.values()))
        for (address, chain), held in values.items()
    ]
    sums.sort(key=lambda one: (-one.transactions, one.contract_address or "", one.chain or ""))
    return hashes, tuple(sums)


def _tx_hash(raw: object) -> str | None:
    found = _HASH.fullmatch(raw.strip().lower()) if isinstance(raw, str) else None
    return f"0x{found.group(1)}" if found else None


def _read_value(raw: object, warnings: list[str]) -> Decimal | None:
    """Return an exact amount; a float is taken for the shortest decimal that is the same double."""
    if isinstance(raw, Decimal128):
        value = raw.to_decimal()
    elif isinstance(raw, int) and not isinstance(raw, bool):
        value = Decimal(int(raw))
    else:
        number = read_number(raw, "stats.transactions.value", warnings, least=0)
        if number is None:
            return None
        value = Decimal(repr(number))
    if not value.is_finite() or value < 0 or value > _LARGEST_VALUE or 0 < value < _SMALLEST_VALUE:
        warnings.append("stats.transactions.value that no transaction can have left out")
        return None
    return value if value else Decimal(0)


def _sum(values: Iterable[Decimal | None]) -> str | None:
    known = sorted(value for value in values if value is not None)
    total = Decimal(0)
    for value in known:
        total = EXACT.add(total, value)
    return plain(total) if known else None


def describe_campaign(campaign: Campaign) -> Document:
    """Return the document of a campaign. Pure: the same campaign gives the same document, to the byte."""
    told = ", ".join(_result_words(campaign))
    parts = [
        f"Campaign {_short(campaign.name) or 'without a name'}, {campaign.site}.",
        _origin_words(campaign),
        f"Brought {told}." if told else "Nothing is counted for it yet.",
        _visit_words(campaign),
    ]
    metadata: dict[str, Any] = {}
    if campaign.created_ms is not None:
        end_ms = campaign.created_ms if campaign.updated_ms is None else campaign.updated_ms
        metadata["timeframe"] = {"start": as_datetime(campaign.created_ms), "end": as_datetime(end_ms)}
    metadata["dataType"] = "campaign"
    metadata["tags"] = _tags(campaign)
    metadata["category"] = "campaign"
    metadata["importance"] = 8 if campaign.transactions else 7
    metadata["aggregationLevel"] = "raw"
    metadata["confidence"] = confidence_of(campaign.warnings)
    metadata["facts"] = _facts(campaign)
    return Document(
        source_type="campaign",
        source_id=campaign.record_id,
        key=make_key("campaign", campaign.site_id, campaign.record_id),
        holder_id=campaign.site_id,
        team_id=campaign.team_id,
        site_id=campaign.site_id,
        content=" ".join(filter(None, parts)),
        summary=" · ".join(
            filter(None, (f"Campaign {_short(campaign.name) or 'without a name'}", campaign.site, told))
        )[:MAX_SUMMARY_CHARS],
        metadata=metadata,
    )


def _short(text: str | None) -> str | None:
    """Return a label for a text: addresses, hashes and other numbers that find nothing are cut out of it."""
    return hide_tokens(text)[:MAX_LABEL_CHARS].strip() or None if text else None


def _said_again(text: str | None, name: str | None) -> bool:
    """Return whether a slug only repeats the name: ``spring-liquidity`` of "Spring liquidity"."""
    return text is not None and name is not None and _NO_WORD.sub("", text.lower()) == _NO_WORD.sub("", name.lower())


def _origin_words(campaign: Campaign) -> str:
    words = [
        f"{name} {_short(value)}"
        for name, value in (
            ("source", campaign.source),
            ("medium", campaign.medium),
            ("utm campaign", None if _said_again(campaign.utm_campaign, campaign.name) else campaign.utm_campaign),
            ("term", campaign.term),
            ("content", campaign.content),
            ("landing page", None if campaign.path == "/" else campaign.path),
        )
        if value
    ]
    if campaign.created_ms is not None:
        words.append(f"created {shown_day(as_datetime(campaign.created_ms))}")
    if campaign.cost is not None:
        words.append(f"budget {rounded(campaign.cost)} {campaign.currency or 'of unknown currency'}")
    text = ", ".join(words)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _result_words(campaign: Campaign) -> list[str]:
    counters = dict(campaign.counters)
    words = []
    unique = "" if campaign.unique_visitors is None else f"{campaign.unique_visitors:,} unique"
    if (visitors := counters.get("visitors")) is not None:
        words.append(counted(visitors, "visitor") + (f" ({unique})" if unique else ""))
    elif unique:
        words.append(f"{unique} visitors")
    if (web3 := counters.get("web3Users")) is not None:
        words.append(counted(web3, "web3 user"))
    if (wallets := counters.get("uniqueWallets")) is not None:
        words.append(counted(wallets, "wallet"))
    if (buyers := counters.get("transactedUsers")) is not None:
        words.append(f"{buyers:,} with transactions")
    if campaign.transactions is not None:
        chains = [chain for chain, _ in _chains(campaign)]
        words.append(counted(campaign.transactions, "transaction") + (f" on {' and '.join(chains)}" if chains else ""))
    elif (conversions := counters.get("conversions")) is not None:
        words.append(counted(conversions, "conversion"))
    return words


def _visit_words(campaign: Campaign) -> str:
    words = []
    if (roi := dict(campaign.mixed).get("roi")) is not None:
        # Above a hundred percent the fraction says nothing.
        shown = rounded(roi) if abs(roi) < 100 else f"{roi:,.0f}"
        words.append(f"ROI {shown} % (adds up different tokens)")
    if campaign.cac:
        words.append(f"{rounded(campaign.cac)} {campaign.currency or ''}".rstrip() + " per acquired wallet")
    if average := dict(campaign.durations).get("averageDuration"):
        words.append(f"average visit {in_time_words(average)}")
    if campaign.bounce_rate is not None:
        words.append(f"bounce rate {rounded(campaign.bounce_rate)} %")
    text = ", ".join(words)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _chains(campaign: Campaign) -> list[tuple[str, int]]:
    """Return the chains of most transactions, and how many each has."""
    chains: Counter[str] = Counter()
    for one in campaign.sums:
        if one.chain:
            chains[one.chain] += one.transactions
    return sorted(chains.items(), key=lambda item: (-item[1], item[0]))[:3]


def _tags(campaign: Campaign) -> list[str]:
    words: Sequence[str | None] = (
        "campaign",
        _short(campaign.source),
        _short(campaign.medium),
        _short(campaign.utm_campaign),
        "conversions" if campaign.transactions else None,
        *(chain for chain, _ in _chains(campaign)),
    )
    return list(dict.fromkeys(word.lower() for word in words if word))


def _facts(campaign: Campaign) -> dict[str, Any]:
    """Return the exact figures, without those that are missing: what an answer cites and filters read."""
    facts: dict[str, Any] = {
        "name": campaign.name,
        "source": campaign.source,
        "medium": campaign.medium,
        "utmCampaign": campaign.utm_campaign,
        "utmId": campaign.utm_id,
        "term": campaign.term,
        "content": campaign.content,
        "host": campaign.host,
        "path": campaign.path,
        "cost": campaign.cost,
        "currency": campaign.currency,
        "createdAt": None if campaign.created_ms is None else as_datetime(campaign.created_ms),
        "updatedAt": None if campaign.updated_ms is None else as_datetime(campaign.updated_ms),
        "sessions": campaign.sessions,
        "uniqueVisitors": campaign.unique_visitors,
        "uniqueWeb3Users": campaign.unique_web3_users,
        **dict(campaign.counters),
        **dict(campaign.durations),
        "bounceRate": campaign.bounce_rate,
        "cac": campaign.cac,
        "mixedTokens": {**dict(campaign.mixed), "note": MIXED_NOTE} if campaign.mixed else None,
        "transactions": campaign.transactions,
        "txHashes": list(campaign.hashes[:FACT_HASHES]) or None,
        "valueByContract": [
            {
                name: value
                for name, value in (
                    ("contractAddress", one.contract_address),
                    ("chain", one.chain),
                    ("transactions", one.transactions),
                    ("value", one.value),
                )
                if value is not None
            }
            for one in campaign.sums[:FACT_SUMS]
        ]
        or None,
        "wallets": list(campaign.wallets[:FACT_WALLETS]) or None,
        "transactedWallets": list(campaign.transacted_wallets[:FACT_WALLETS]) or None,
        "warnings": "; ".join(campaign.warnings) or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _describe(record: Record, owners: Owners, now_ms: int) -> Document:
    return describe_campaign(parse_campaign(record, owners, now_ms=now_ms))


CAMPAIGNS = Source(
    name="campaign",
    source_type="campaign",
    collection="campaigns",
    fields=(
        "siteId",
        "name",
        "domain",
        "path",
        "source",
        "medium",
        "campaign",
        "utm_id",
        "term",
        "content",
        "budget",
        "sessions",
        "createdAt",
        "updatedAt",
        # Not all of it: the map of durations by session id is as long as all the rest, and tells nothing.
        *(f"stats.{name}" for name in (*COUNTERS, *DURATIONS, *MIXED)),
        "stats.bounceRate",
        "stats.uniqueVisitors",
        "stats.uniqueWeb3Users",
        "stats.uniqueWalletAddresses",
        "stats.uniqueTransactedWallets",
        "stats.transactions",
    ),
    version=DESCRIBER_VERSION,
    find_holder=find_site,
    describe=_describe,
    time_field="createdAt",
    read_time=lambda record: read_moment_ms(record.get("createdAt")),
    columns=Columns(
        figures=("cost", "sessions"),
        kinds=("source", "medium"),
        warnings="warnings",
        required=("name",),
        optional=("source", "medium", "cost"),
    ),
)
