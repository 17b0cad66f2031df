"""Analytics: what the source has counted on a website since it is tracked, one cumulative row per website.

- The row has no time but the one in its ``_id``, when counting began. The newest ``_id`` among its sessions says until
  when it has counted. All-time totals answer no question about a day or a month: the statistics do.
- Counters are kept by several producers and disagree; each is told as it stands, with a warning.
- A dot can't stand in a key of the source's maps of pages and became ``_``; percent-encoding was kept. Encoding is
  undone. A ``_`` is a dot where nothing else is possible (in a host) or likely (before the ending of a file); anywhere
  else nobody can tell, and it stays. Keys that then name one page are added up.
- User ids are read to be hidden, and to be counted; user agents and journeys are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from bson import ObjectId

from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.figures import (
    as_datetime,
    confidence_of,
    counted,
    in_time_words,
    read_count,
    read_number,
    rounded,
    warn,
)
from tasks.domain.owners import Owners
from tasks.domain.personal import (
    FUTURE_TOLERANCE_MS,
    MAX_LABEL_CHARS,
    clean_path,
    find_host,
    hide_people,
    hide_tokens,
    read_user_id,
)
from tasks.domain.sources import Record, Source
from tasks.domain.wallets import Wallet, parse_wallet
from tasks.domain.websites import (
    created_ms,
    find_site,
    one_line,
    owner_of,
    read_record_id,
    shown_day,
    shown_site,
    time_in_id,
)

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1

#: Counters, as facts name them and as a text does.
COUNTERS = {
    "totalVisitors": "visitor",
    "uniqueVisitors": "unique visitor",
    "newVisitors": "new visitor",
    "returningVisitors": "returning visitor",
    "web3Visitors": "web3 visitor",
    "walletsConnected": "wallet connection",
    "totalPageViews": "page view",
    "crossDeviceUsers": "cross-device user",
}
AVERAGES = ("avgSessionsPerUser", "avgTimeBetweenSessions", "avgDaysActive")
#: A thousand times what any website counts; more is damage, and sums must stay whole numbers of BSON.
MAX_TOTAL = 10**12
#: How many entries of each list facts hold, and texts name.
FACT_PAGES, TEXT_PAGES, TEXT_ENTRIES = 20, 5, 3
FACT_PATHWAYS, TEXT_PATHWAYS = 10, 3
FACT_WALLETS = 100
MAX_RETENTION_DAYS = 366
#: The days after a first visit that analysts compare.
TOLD_RETENTION_DAYS = (1, 7, 14, 30)
_MAX_TEXT_PAGE_CHARS = 60
_MAX_STEPS = 10
_MOST_DECODINGS = 3
_READ_CHARS = 1_000
_URL = re.compile(r"(https?:/{1,2})([^/]+)", re.IGNORECASE)
_FILE_ENDING = re.compile(r"(?<=[^/_])_(html?|php|aspx?|jsp|pdf|txt|xml|json)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PageCount:
    """How often a page was seen; ``page`` is its path, without anything personal."""

    page: str
    views: int


@dataclass(frozen=True, slots=True)
class Pathway:
    """Pages that were visited in this order. ``seconds`` is the average duration, or time to conversion."""

    steps: tuple[str, ...]
    count: int | None
    conversions: int | None
    seconds: float | None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How many came back that many days after their first visit, and their share in percent."""

    day: int
    count: int | None
    percent: float | None


@dataclass(frozen=True, slots=True)
class Analytics:
    """All that was counted on one website, with its owner. Times are epoch milliseconds, UTC.

    ``counters`` and ``averages`` have the source's names, without those that are missing. Lists are in the order of
    importance, whatever theirs was; ``pages`` is how many different pages were seen.
    """

    record_id: str
    site_id: str
    team_id: str
    site: str
    host: str | None
    since_ms: int
    until_ms: int
    counters: tuple[tuple[str, int], ...]
    averages: tuple[tuple[str, float], ...]
    bounce_rate: float | None
    sessions: int | None
    pages: int
    top_pages: tuple[PageCount, ...]
    entry_pages: tuple[PageCount, ...]
    exit_pages: tuple[PageCount, ...]
    pathways: tuple[Pathway, ...]
    conversion_paths: tuple[Pathway, ...]
    retention: tuple[Retention, ...]
    wallets: tuple[Wallet, ...]
    warnings: tuple[str, ...]


class PageNames:
    """Makes names of pages from the keys of a row's maps, and hides the row's users in all that it returns."""

    def __init__(self, user_ids: Iterable[str] = ()) -> None:
        forms = {form for user_id in user_ids for form in (user_id, _undotted(user_id))}
        self._probes = [(_probe(form), form) for form in sorted(forms)]

    def page(self, key: object) -> str | None:
        """Return the path that a key of a map of pages means, or None where it names no page."""
        if not isinstance(key, str):
            return None
        key = key[:_READ_CHARS]
        url = _URL.match(key)
        if url is not None:
            # No host has a "_", so each was a dot; and joining paths leaves one slash of two.
            key = "https://" + url.group(2).replace("_", ".") + key[url.end() :]
        path = self.path(key)
        return None if path is None else _FILE_ENDING.sub(r".\1", path)

    def path(self, raw: object) -> str | None:
        """Return the path of a page as the tracker wrote it, or None where it names none."""
        return clean_path(raw, self._named_in(raw)) if isinstance(raw, str) else None

    def label(self, raw: object) -> str | None:
        """Return words from outside on one line, without users."""
        text = one_line(raw[:_READ_CHARS]) if isinstance(raw, str) else None
        return None if text is None else hide_people(text, self._named_in(text))[:MAX_LABEL_CHARS] or None

    def _named_in(self, text: str) -> list[str]:
        # Most names hold no user: looking for all of them as they are written elsewhere would take long.
        probe = _probe(text)
        return [form for needle, form in self._probes if needle in probe]


def _undotted(text: str) -> str:
    return text.replace(".", "_")


def _probe(text: str) -> str:
    for _ in range(_MOST_DECODINGS):
        if "%" not in text:
            break
        text = unquote(text, errors="replace")
    return _undotted("".join(text.lower().split()))


def parse_analytics(record: Mapping[str, Any], owners: Owners, *, now_ms: int) -> Analytics:
    """Return the analytics of a record. ``now_ms`` bounds its times; it is the start of the run.

    Raises ``RecordError`` where its identity or its owner can't be told.
    """
    get = record.get
    warnings: list[str] = []
    record_id = read_record_id(record)
    site = owners.find_site(get("siteId"))
    users, web3_users = (
        read_user_ids(get("userId"), "userId", warnings),
        read_user_ids(get("web3UserId"), "web3UserId", warnings),
    )
    names = PageNames({*(users or ()), *(web3_users or ())})
    counters = {
        name: number
        for name in COUNTERS
        if (number := read_count(get(name), name, warnings, most=MAX_TOTAL)) is not None
    }
    averages = {
        name: average
        for name in AVERAGES
        if (average := read_number(get(name), name, warnings, least=0, most=MAX_TOTAL)) is not None
    }
    views = _read_pages(get("pageViews"), "pageViews", names, warnings)
    entries = _read_pages(get("entryPages"), "entryPages", names, warnings)
    exits = _read_pages(get("exitPages"), "exitPages", names, warnings)
    wallets, listed = _read_wallets(get("wallets"), warnings)
    _compare(counters, users, listed, warnings)
    host = find_host(get("websiteUrl"))
    if host is None and get("websiteUrl") not in (None, ""):
        warnings.append("websiteUrl is no address and is left out")
    since_ms = created_ms(record_id)
    sessions = get("sessions")
    if sessions is not None and not isinstance(sessions, list):
        warn("sessions", sessions, warnings)
    session_ids = [held for held in sessions if isinstance(held, ObjectId)] if isinstance(sessions, list) else []
    ends = [made for held in session_ids if (made := created_ms(held)) <= now_ms + FUTURE_TOLERANCE_MS]
    return Analytics(
        record_id=str(record_id),
        site_id=site.site_id,
        team_id=owner_of(site),
        site=shown_site(site),
        host=host,
        since_ms=since_ms,
        until_ms=max([since_ms, *ends]),
        counters=tuple(counters.items()),
        averages=tuple(averages.items()),
        bounce_rate=read_number(get("bounceRate"), "bounceRate", warnings, least=0, most=100),
        sessions=len(set(session_ids)) if isinstance(sessions, list) else None,
        pages=len(views),
        top_pages=_top(views),
        entry_pages=_top(entries),
        exit_pages=_top(exits),
        pathways=_read_pathways(record, "commonPathways", names, warnings),
        conversion_paths=_read_pathways(record, "conversionPaths", names, warnings),
        retention=_read_retention(get("retentionByDay"), warnings),
        wallets=wallets,
        warnings=tuple(warnings),
    )


def read_user_ids(raw: object, name: str, warnings: list[str]) -> frozenset[str] | None:
    """Return the user ids of a list, None where there is none; a warning never shows what stood there."""
    if raw is None or raw == "":
        return None
    if not isinstance(raw, list):
        warnings.append(f"{name} of type {type(raw).__name__} left out")
        return None
    return frozenset(filter(None, map(read_user_id, raw)))


def _read_pages(raw: object, name: str, names: PageNames, warnings: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    if raw is None or raw == "":
        return found
    if not isinstance(raw, Mapping):
        warn(name, raw, warnings)
        return found
    bad = 0
    for key, value in raw.items():
        page = names.page(key)
        count = read_count(value, name, [], most=MAX_TOTAL)
        if page is None or count is None:
            bad += 1
        else:
            found[page] += count
    if bad:
        # A page's name may be anything: it is not repeated.
        warnings.append(f"{name}: {counted(bad, 'entry') if bad == 1 else f'{bad:,} entries'} left out")
    return found


def _top(pages: Counter[str]) -> tuple[PageCount, ...]:
    ordered = sorted(pages.items(), key=_most_first)
    return tuple(PageCount(page, views) for page, views in ordered[:FACT_PAGES] if views)


def _read_wallets(raw: object, warnings: list[str]) -> tuple[tuple[Wallet, ...], int | None]:
    """Return the wallets, each address once, and how many entries the source lists, None where it has no list."""
    if raw is None or raw == "":
        return (), None
    if not isinstance(raw, list):
        warn("wallets", raw, warnings)
        return (), None
    found: dict[str, Wallet] = {}
    said: list[str] = []
    for entry in raw:
        wallet = parse_wallet(entry, said)
        if wallet is not None and wallet.address is not None:
            twin = found.get(wallet.address)
            found[wallet.address] = wallet if twin is None else min(twin, wallet, key=repr)
    warnings.extend(dict.fromkeys(said))
    return tuple(found[address] for address in sorted(found)), len(raw)


def _compare(
    counters: Mapping[str, int], users: Iterable[str] | None, wallets: int | None, warnings: list[str]
) -> None:
    """Add what the source counts in two ways, where the two differ."""
    unique, connected = counters.get("uniqueVisitors"), counters.get("walletsConnected")
    new, returning, total = (counters.get(f"{name}Visitors") for name in ("new", "returning", "total"))
    if users is not None and unique is not None and unique != (listed := len(set(users))):
        warnings.append(f"uniqueVisitors says {unique}, and the list of users has {listed}")
    if wallets is not None and connected is not None and connected != wallets:
        warnings.append(f"walletsConnected says {connected}, and the list of wallets has {wallets}")
    if new is not None and returning is not None and total is not None and new + returning != total:
        warnings.append(f"newVisitors and returningVisitors are {new + returning} together, totalVisitors {total}")


def _read_entries(raw: object, name: str, warnings: list[str]) -> list[Mapping[str, Any]]:
    if raw is None or raw == "":
        return []
    if not isinstance(raw, list):
        warnings.append(f"{name} of type {type(raw).__name__} left out")
        return []
    entries = [entry for entry in raw if isinstance(entry, Mapping)]
    if len(entries) < len(raw):
        warnings.append(f"{name}: what is no document left out")
    return entries


def _read_pathways(record: Record, name: str, names: PageNames, warnings: list[str]) -> tuple[Pathway, ...]:
    is_common = name == "commonPathways"
    steps_field, count_field, conversions_field, seconds_field = (
        ("sequence", "count", "conversionCount", "averageDuration")
        if is_common
        else ("pathToConversion", None, "conversionCount", "avgTimeToConversion")
    )
    found = []
    said: list[str] = []
    for entry in _read_entries(record.get(name), name, warnings):
        steps = _steps(entry.get(steps_field), names)
        if not steps:
            said.append(f"{name}: a path without pages left out")
            continue
        seconds = read_number(entry.get(seconds_field), f"{name}.{seconds_field}", said, least=0, most=MAX_TOTAL)
        found.append(
            Pathway(
                steps,
                read_count(entry.get(count_field), f"{name}.{count_field}", said, most=MAX_TOTAL)
                if count_field
                else None,
                read_count(entry.get(conversions_field), f"{name}.{conversions_field}", said, most=MAX_TOTAL),
                seconds,
                None if is_common else names.label(entry.get("sourceMedium")),
            )
        )
    warnings.extend(dict.fromkeys(said))
    ordered = sorted(found, key=lambda way: (-(way.count or 0), -(way.conversions or 0), repr(way)))
    return tuple(ordered[:FACT_PATHWAYS])


def _steps(raw: object, names: PageNames) -> tuple[str, ...]:
    """Return the pages of a pathway: a list, or a text with arrows between them."""
    if isinstance(raw, str):
        raw = re.split(r"\s*(?:->|→|>|,)\s*", raw)
    if not isinstance(raw, list):
        return ()
    pages = (names.path(step) for step in raw[:_MAX_STEPS])
    return tuple(page for page in pages if page is not None)


def _read_retention(raw: object, warnings: list[str]) -> tuple[Retention, ...]:
    found: dict[int, Retention] = {}
    said: list[str] = []
    for entry in _read_entries(raw, "retentionByDay", warnings):
        day = read_count(entry.get("day"), "retentionByDay.day", said, most=MAX_RETENTION_DAYS)
        count = read_count(entry.get("count"), "retentionByDay.count", said, most=MAX_TOTAL)
        percent = read_number(entry.get("percentage"), "retentionByDay.percentage", said, least=0, most=100)
        if day is None or (count is None and percent is None):
            continue
        twin = found.get(day)
        if twin is not None and twin != (told := Retention(day, count, percent)):
            said.append(f"retentionByDay: two entries of day {day} disagree")
            found[day] = min(twin, told, key=repr)
        elif twin is None:
            found[day] = Retention(day, count, percent)
    warnings.extend(dict.fromkeys(said))
    return tuple(found[day] for day in sorted(found))


def describe_analytics(analytics: Analytics) -> Document:
    """Return the document of a website's totals. Pure: the same analytics give the same document, to the byte."""
    since, until = as_datetime(analytics.since_ms), as_datetime(analytics.until_ms)
    told = ", ".join(counted(number, COUNTERS[name]) for name, number in analytics.counters) or "no totals"
    parts = [f"{analytics.site}, all-time totals since {shown_day(since)}: {told}."]
    parts.append(_average_words(analytics))
    parts.append(_page_words("Top pages", analytics.top_pages, TEXT_PAGES))
    parts.append(_page_words("Entry pages", analytics.entry_pages, TEXT_ENTRIES))
    parts.append(_page_words("Exit pages", analytics.exit_pages, TEXT_ENTRIES))
    parts.append(_pathway_words(analytics.pathways))
    parts.append(_conversion_words(analytics.conversion_paths))
    parts.append(_retention_words(analytics.retention))
    parts.append(_wallet_words(analytics.wallets))
    return Document(
        source_type="analytics",
        source_id=analytics.record_id,
        key=make_key("analytics", analytics.site_id),
        holder_id=analytics.site_id,
        team_id=analytics.team_id,
        site_id=analytics.site_id,
        content=" ".join(filter(None, parts)),
        summary=" · ".join((analytics.site, "all-time totals", told))[:MAX_SUMMARY_CHARS],
        metadata={
            "timeframe": {"start": since, "end": until},
            "dataType": "metric",
            "tags": _tags(analytics),
            "category": "traffic",
            "metricType": "totals",
            "importance": 8,
            "confidence": confidence_of(analytics.warnings),
            "facts": _facts(analytics),
        },
    )


def _average_words(analytics: Analytics) -> str:
    averages = dict(analytics.averages)
    words = []
    if (sessions := averages.get("avgSessionsPerUser")) is not None:
        words.append(f"{rounded(sessions)} sessions per user")
    if (days := averages.get("avgDaysActive")) is not None:
        words.append(f"{rounded(days)} active days per user")
    if between := averages.get("avgTimeBetweenSessions"):
        words.append(f"{in_time_words(between)} between sessions")
    if analytics.bounce_rate is not None:
        words.append(f"bounce rate {rounded(analytics.bounce_rate)} %")
    return f"On average {', '.join(words)}." if words else ""


def _shown_page(page: str) -> str:
    return page if len(page) <= _MAX_TEXT_PAGE_CHARS else page[: _MAX_TEXT_PAGE_CHARS - 1] + "…"


def _page_words(title: str, pages: Sequence[PageCount], most: int) -> str:
    told = ", ".join(f"{_shown_page(page.page)} ({page.views:,})" for page in pages[:most])
    return f"{title}: {told}." if told else ""


def _way(pathway: Pathway) -> str:
    return " > ".join(map(_shown_page, pathway.steps[:5]))


def _in_brackets(words: Sequence[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def _pathway_words(pathways: Sequence[Pathway]) -> str:
    told = []
    for pathway in pathways[:TEXT_PATHWAYS]:
        figures = [] if pathway.count is None else [counted(pathway.count, "time")]
        if pathway.conversions:
            figures.append(f"{pathway.conversions:,} converted")
        told.append(f"{_way(pathway)}{_in_brackets(figures)}")
    return f"Common pathways: {'; '.join(told)}." if told else ""


def _conversion_words(paths: Sequence[Pathway]) -> str:
    told = []
    for path in paths[:TEXT_PATHWAYS]:
        figures = [] if path.conversions is None else [counted(path.conversions, "conversion")]
        if path.seconds is not None:
            figures.append(f"after {in_time_words(path.seconds)}" if round(path.seconds) else "on the first visit")
        source = f"{hide_tokens(path.source)}: " if path.source else ""
        told.append(f"{source}{_way(path)}{_in_brackets(figures)}")
    return f"Paths to conversion: {'; '.join(told)}." if told else ""


def _retention_words(retention: Sequence[Retention]) -> str:
    by_day = {entry.day: entry for entry in retention if entry.percent is not None}
    told = [
        f"{rounded(by_day[day].percent or 0)} % after {counted(day, 'day')}"
        for day in TOLD_RETENTION_DAYS
        if day in by_day
    ]
    return f"Retention: {', '.join(told)}." if told else ""


def _wallet_words(wallets: Sequence[Wallet]) -> str:
    told = [
        ", ".join(f"{name} {number:,}" for name, number in sorted(names.items(), key=_most_first)[:TEXT_ENTRIES])
        for names in (
            Counter(wallet.kind for wallet in wallets if wallet.kind),
            Counter(wallet.chain for wallet in wallets if wallet.chain),
        )
        if names
    ]
    return f"Wallets: {'; on '.join(told)}." if told else ""


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _tags(analytics: Analytics) -> list[str]:
    counters = dict(analytics.counters)
    words = ["traffic", "totals", "pages"]
    if analytics.retention:
        words.append("retention")
    if analytics.pathways or analytics.conversion_paths:
        words.append("pathways")
    if counters.get("web3Visitors"):
        words.append("web3")
    if counters.get("walletsConnected") or analytics.wallets:
        words.append("wallets")
    return words


def _facts(analytics: Analytics) -> dict[str, Any]:
    """Return the exact figures, without those that are missing: what an answer cites and filters read."""
    facts: dict[str, Any] = {
        "host": analytics.host,
        "cumulative": True,
        "since": as_datetime(analytics.since_ms),
        "until": as_datetime(analytics.until_ms),
        **dict(analytics.counters),
        **dict(analytics.averages),
        "bounceRate": analytics.bounce_rate,
        "sessions": analytics.sessions,
        "pages": analytics.pages,
        "topPages": [{"page": page.page, "views": page.views} for page in analytics.top_pages],
        "entryPages": [{"page": page.page, "visits": page.views} for page in analytics.entry_pages],
        "exitPages": [{"page": page.page, "visits": page.views} for page in analytics.exit_pages],
        "pathways": [
            _present(pages=list(way.steps), count=way.count, conversions=way.conversions, averageSeconds=way.seconds)
            for way in analytics.pathways
        ],
        "conversionPaths": [
            _present(
                sourceMedium=way.source,
                pages=list(way.steps),
                conversions=way.conversions,
                averageSecondsToConversion=way.seconds,
            )
            for way in analytics.conversion_paths
        ],
        "retention": [
            _present(day=entry.day, count=entry.count, percent=entry.percent) for entry in analytics.retention
        ],
        "walletsListed": len(analytics.wallets),
        "wallets": [
            _present(address=wallet.address, kind=wallet.kind, chain=wallet.chain)
            for wallet in analytics.wallets[:FACT_WALLETS]
        ],
        "warnings": "; ".join(analytics.warnings),
    }
    return {name: value for name, value in facts.items() if value is not None and value != [] and value != ""}


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _describe(record: Record, owners: Owners, now_ms: int) -> Document:
    return describe_analytics(parse_analytics(record, owners, now_ms=now_ms))


ANALYTICS = Source(
    name="analytics",
    source_type="analytics",
    collection="analytics",
    fields=(
        "siteId",
        "websiteUrl",
        *COUNTERS,
        *AVERAGES,
        "bounceRate",
        "userId",
        "web3UserId",
        "pageViews",
        "entryPages",
        "exitPages",
        "sessions",
        "wallets",
        "commonPathways",
        "conversionPaths",
        "retentionByDay",
    ),
    version=DESCRIBER_VERSION,
    find_holder=find_site,
    describe=_describe,
    time_field=None,
    read_time=time_in_id,
    columns=Columns(figures=("sessions", "pages"), warnings="warnings", required=("host",)),
)
