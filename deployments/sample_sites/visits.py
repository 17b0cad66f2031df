"""Visits: what happened on the sites, before the source wrote it down and before any dirt.

Everything that the source holds of visits is made from these: sessions, clicks, journeys, counters, campaigns. So
what an answer should say can be computed from ``sample_visits`` without a look at a record.

The wallet bridge: a visitor who buys connects the wallet that signs one of the sample's transactions, on a contract
of the site's team, within two weeks after the visit.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from itertools import count
from typing import Any, Final
from urllib.parse import urlsplit

from bson import ObjectId

from deployments.sample import planted_at, sample_contracts, sample_transactions
from deployments.sample_sites.dirt import OWNERLESS, UNMIGRATABLE_SESSIONS, planted_in_session
from deployments.sample_sites.draws import DAY_MS, HOUR_MS, SECOND_MS, dice_of, hex_of, pick, roll
from deployments.sample_sites.sites import FIRST_DAY_MS, Campaign, Site, sample_site_list

#: As many as the source holds.
SESSIONS: Final = 5_250
#: Visitors may make these of the sample's transactions. A sample with fewer knows a part of the wallets only.
BRIDGE_ROWS: Final = 2_000

#: What some user ids and texts of buttons are made with, and nothing else of the sample: none may ever be stored.
PERSONAL_MARKS: Final = ("@harborpost.example", "@quaymail.example", "+44 7700 900")

_BUYS_WITHIN_MS: Final = 14 * DAY_MS
_READS_BEFORE_BUYING_MS: Final = 60 * SECOND_MS
#: A producer that wrote "now" into a block's time did so within seconds of the import.
_STAMPED_WITHIN_MS: Final = 5_000

#: How busy the hours of a day are, UTC: two peaks, the higher one in the European and American afternoon.
_HOURS: Final = (2, 1, 1, 1, 2, 3, 4, 5, 7, 8, 7, 6, 6, 8, 10, 12, 13, 12, 10, 8, 7, 6, 4, 3)
_HOUR_STARTS: Final = tuple(sum(_HOURS[:hour]) * HOUR_MS for hour in range(24))
_BUSY_MS: Final = sum(_HOURS) * HOUR_MS

# fmt: off
_FIRST_NAMES: Final = (
    "mira", "tomas", "adaeze", "jun", "priya", "lars", "noor", "mateo",
    "ingrid", "kofi", "yuki", "elena", "omar", "siobhan", "rafael", "hana",
)
_LAST_NAMES: Final = (
    "okafor", "lindqvist", "tanaka", "moreau", "castellanos", "haugen", "rahimi",
    "bianchi", "novak", "mensah", "sato", "petrova", "farouk", "doyle",
)
# fmt: on
_COUNTRIES: Final = (
    *("US",) * 14,
    *("DE",) * 8,
    *("IN",) * 8,
    *("GB",) * 6,
    *("NG",) * 5,
    *("BR", "FR", "JP") * 3,
    *("VN", "TR", "PL") * 2,
    *("SG", "AU", "CA", "ES"),
)
_DEVICES: Final = (
    *(("desktop", "Windows"),) * 5,
    *(("desktop", "macOS"),) * 3,
    ("desktop", "Linux"),
    *(("mobile", "Android"),) * 4,
    *(("mobile", "iOS"),) * 2,
    ("tablet", "iOS"),
)
_BROWSERS: Final = (*("Chrome",) * 9, *("Safari",) * 3, *("Firefox",) * 2, "Brave", "Edge")
_LANGUAGES: Final = ("en-US", "en-GB", "de-DE", "fr-FR", "pt-BR", "hi-IN", "ja-JP", "vi-VN")
_WALLET_TYPES: Final = (*("MetaMask",) * 6, *("Coinbase Wallet",) * 2, "WalletConnect", "Rabby")
_WALLET_CHAINS: Final = (
    *("Ethereum Mainnet",) * 4,
    "Ethereum",
    "Binance Smart Chain",
    "Unknown (ID: 56)",
    "Base",
    "Polygon Mainnet",
    "Arbitrum One",
    "OP Mainnet",
    "Error",
)
#: As the source writes them; "Direct" and the empty one mean "direct".
_REFERRERS: Final = (
    *("direct",) * 9,
    *("Direct",) * 4,
    None,
    "",
    *("https://www.google.com/",) * 7,
    "https://twitter.com/lanternfish/status/1780000000000000000?s=20",
    "https://t.co/9sVw1Zq3aB",
    "https://www.reddit.com/r/defi/comments/1b2c3d/where_to_swap/",
    "https://chat.example/t/12?token=abcdef",
    "https://news.harbour.example/2024/tides",
)
_OTHER_SOURCES: Final = (("newsletter", "email"), ("twitter", "social"), ("google", "organic"), ("partner", None))


@dataclass(frozen=True, slots=True)
class Purchase:
    """A transaction of the sample that a visitor may make. ``value`` is the bare number of its value_eth."""

    at_ms: int
    wallet: str
    tx_hash: str
    contract_address: str
    chain: str
    value: float
    shown: str


@dataclass(frozen=True, slots=True)
class PageView:
    """A look at one page; ``path`` is as the browser has it, without the domain."""

    path: str
    at_ms: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who visits a site: one browser, and what it says of itself."""

    user_id: str
    name: str
    country: str
    browser: str
    version: str
    user_agent: str
    language: str


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit. Times are epoch milliseconds; ``wallet`` is lower case, 0x and 40 digits, or None.

    ``dirt`` names what its session will be spoiled with. ``web3`` says that a wallet's software was seen, connected
    or not. ``nth`` counts the visits of this user to this site from 1; ``before`` is the one before it. ``purchase``
    is the transaction that the visit led to.
    """

    row: int
    digest: bytes
    dirt: str | None
    oid: ObjectId
    session_id: str
    site: Site
    visitor: Visitor
    device: tuple[str, str]
    started_ms: int
    ended_ms: int
    pages: tuple[PageView, ...]
    whole_urls: bool
    referrer: str | None
    campaign: Campaign | None
    utm: dict[str, str | None] | None
    wallet: str | None
    wallet_type: str
    wallet_chain: str
    web3: bool
    nth: int
    before: Visit | None
    purchase: Purchase | None

    @property
    def counts(self) -> bool:
        """Return whether the source's counters know of it: its session has an owner, an identity and a time."""
        return self.dirt not in UNMIGRATABLE_SESSIONS

    @property
    def seconds(self) -> int:
        """Return how long it lasted."""
        return sum(page.seconds for page in self.pages)

    @property
    def bounced(self) -> bool:
        """Return whether it ended within 30 seconds and on its first page."""
        return self.seconds < 30 and len(self.pages) <= 1

    @property
    def source(self) -> str:
        """Return where it came from, in the words of the source's journeys."""
        if self.utm and self.utm["source"]:
            return f"{self.utm['source']}/{self.utm['medium'] or 'none'}"
        if self.referrer == "Direct":
            return "referral/Direct"
        if self.referrer in {None, "", "direct"}:
            return "direct"
        return f"referral/{urlsplit(self.referrer).hostname}"

    def spelled(self, path: str) -> str:
        """Return the path as the tracker of this visit wrote it: some wrote the whole URL."""
        return f"https://{self.site.domain}{path}" if self.whole_urls else path


@dataclass(slots=True)
class _Guest:
    visitor: Visitor
    device: tuple[str, str]
    wallet: str | None = None
    wallet_type: str = "MetaMask"
    last: Visit | None = None
    visits: int = 0


def sample_visits(sessions: int = SESSIONS, *, seed: int = 1, transactions: int = BRIDGE_ROWS) -> Iterator[Visit]:
    """Yield visits in the order of their time, from 26 February 2024 on; 5,250 of them last until June 2025.

    A longer sample begins with a shorter one of the same seed and the same number of ``transactions``. Visitors are
    kept, some hundred bytes each. A "duplicate_key" is the visit before it once more, with an id of its own.
    """
    pool = tuple(site for site in sample_site_list() for _ in range(site.weight))
    ownerless = {dirt: next(site for site in sample_site_list() if site.dirt == dirt) for dirt in OWNERLESS}
    purchases = _purchases(transactions, seed)
    next_purchase = dict.fromkeys(purchases, 0)
    guests: dict[int, list[_Guest]] = {}
    slots = _slots()
    previous: Visit | None = None
    last_wallet: str | None = None
    for row in range(sessions):
        digest = roll("visit", seed, row)
        dice = dice_of(digest)
        day_ms, place, places = next(slots)
        started_ms = day_ms + _time_of_day(((place << 16) + dice[0]) * _BUSY_MS // (places << 16))
        dirt = planted_in_session(row)
        made_ms = started_ms + (9 * DAY_MS if dirt == "late_row" else 300)
        oid = ObjectId(struct.pack(">I4sI", made_ms // SECOND_MS, digest[:4], row & 0xFFFFFFFF))
        if dirt == "duplicate_key" and previous is not None:
            yield replace(previous, row=row, oid=oid, dirt=dirt)
            continue
        site = ownerless[dirt] if dirt in OWNERLESS else pick(pool, dice[1])
        session_id = f"session_{started_ms}_{digest.hex()[:9]}"
        if dirt == "session_id_of_another_site" and previous is not None:
            session_id = previous.session_id
            if site is previous.site:
                site = next(other for other in pool if other is not previous.site)
        known = guests.setdefault(site.number, [])
        stranger = dirt == "user_id_missing" or dirt in UNMIGRATABLE_SESSIONS
        guest = None if stranger else _returning(known, dice[2], dice[3], started_ms)
        if guest is None:
            guest = _guest(site, -row if stranger else len(known), seed, dice[4])
            if not stranger:
                known.append(guest)

        campaign, utm = _utm(site, guest, dirt, dice[5], dice[6], started_ms) if not stranger else (None, None)
        pages = _pages(site, campaign, dice, started_ms)
        purchase = None
        may_connect = not stranger and dirt not in {"web3_without_wallet", "wallet_not_evm", "wallet_null"}
        connects = False
        if may_connect:
            if guest.wallet is not None:
                connects = dice[7] < 49_000
            elif dirt == "wallet_shared" and last_wallet is not None:
                guest.wallet, connects = last_wallet, True
            else:
                purchase = _find_purchase(purchases, next_purchase, site.team_id, started_ms, dice[7])
                if purchase is not None:
                    guest.wallet = purchase.wallet
                elif dice[8] < 1_600:
                    guest.wallet = f"0x{hex_of('wallet', digest.hex())[:40]}"
                connects = guest.wallet is not None
            if connects and guest.visits == 0:
                guest.wallet_type = pick(_WALLET_TYPES, dice[9])
        wallet = guest.wallet if connects else None
        visit = Visit(
            row=row,
            digest=digest,
            dirt=dirt,
            oid=oid,
            session_id=session_id,
            site=site,
            visitor=guest.visitor,
            device=guest.device if dice[10] > 3_000 else pick(_DEVICES, dice[11]),
            started_ms=started_ms,
            ended_ms=pages[-1].at_ms + pages[-1].seconds * SECOND_MS,
            pages=pages,
            whole_urls=dice[12] < 1_600,
            referrer=pick(_REFERRERS, dice[13]),
            campaign=campaign,
            utm=utm,
            wallet=wallet,
            wallet_type=guest.wallet_type,
            wallet_chain=purchase.chain if purchase is not None else pick(_WALLET_CHAINS, dice[9]),
            web3=wallet is not None or dice[8] > 62_500 or dirt == "web3_without_wallet",
            nth=guest.visits + 1,
            before=None if guest.last is None else replace(guest.last, before=None),
            purchase=purchase,
        )
        guest.visits += 1
        guest.last = visit
        last_wallet = wallet or last_wallet
        previous = visit
        yield visit


def sample_user_ids(visits: Iterable[Visit]) -> frozenset[str]:
    """Return every user id that the sample's records hold: none may ever be stored as it is."""
    return frozenset(visit.visitor.user_id for visit in visits)


def sample_purchases(transactions: int = BRIDGE_ROWS, *, seed: int = 1) -> dict[ObjectId, tuple[Purchase, ...]]:
    """Return the transactions that visitors may make, by team, in the order of their time."""
    return {team: found for team, found in _purchases(transactions, seed).items() if isinstance(team, ObjectId)}


def _slots() -> Iterator[tuple[int, int, int]]:
    """Yield for each visit the start of its day, its place in it, and how many visits that day has."""
    for day in count():
        day_ms = FIRST_DAY_MS + day * DAY_MS
        weekend = day % 7 >= 5  # the first day is a Monday
        places = 6 + day // 40 - (3 if weekend else 0)
        for place in range(places):
            yield day_ms, place, places


def _time_of_day(busy_ms: int) -> int:
    """Return the time of a day after which that much of the day's business is done."""
    hour = bisect_right(_HOUR_STARTS, busy_ms) - 1
    return hour * HOUR_MS + (busy_ms - _HOUR_STARTS[hour]) // _HOURS[hour]


def _returning(known: list[_Guest], die: int, who: int, started_ms: int) -> _Guest | None:
    if die >= 17_400 or not known:
        return None
    if die & 3 == 0:  # a few of the first come again and again
        guest = known[who * (1 + len(known) // 40) >> 16]
    else:
        recent = min(len(known), 60)
        guest = known[-1 - (who * who * recent >> 32)]
    return None if guest.last is not None and guest.last.ended_ms >= started_ms else guest


def _guest(site: Site, number: int, seed: int, die: int) -> _Guest:
    # A few users have the same id on several sites, and are others there.
    owner = "several" if number % 40 == 7 else site.slug
    digits = hex_of("user", str(seed), owner, str(number))
    first, last = pick(_FIRST_NAMES, int(digits[:4], 16)), pick(_LAST_NAMES, int(digits[4:8], 16))
    form = int(digits[8], 16)
    if form < 5:
        user_id = f"{first}.{last}.{digits[9:15]}{PERSONAL_MARKS[form & 1]}"
    elif form < 7:
        user_id = f"{first}-{last}-{digits[9:15]}"
    else:
        user_id = f"user_{1_700_000_000_000 + int(digits[9:18], 16)}_{digits[18:27]}"
    dice = dice_of(digits.encode(), "visitor")
    device = pick(_DEVICES, die)
    browser = "Safari" if device[1] == "iOS" else pick(_BROWSERS, dice[0])
    version = f"{118 + dice[1] % 20}.0"
    system = {"Windows": "Windows NT 10.0; Win64; x64", "macOS": "Macintosh; Intel Mac OS X 10_15_7"}.get(
        device[1], device[1]
    )
    return _Guest(
        Visitor(
            user_id=user_id,
            name=f"{first.title()} {last.title()}",
            country=pick(_COUNTRIES, dice[2]),
            browser=browser,
            version=version,
            user_agent=f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) {browser}/{version}",
            language=pick(_LANGUAGES, dice[3]),
        ),
        device,
    )


def _utm(
    site: Site, guest: _Guest, dirt: str | None, die: int, which: int, started_ms: int
) -> tuple[Campaign | None, dict[str, str | None] | None]:
    nothing: dict[str, str | None] = dict.fromkeys(("source", "medium", "campaign", "term", "content", "utm_id"))
    if dirt == "utm_null":
        return None, None
    if dirt == "utm_id_unknown":
        return None, nothing | {
            "source": "twitter",
            "medium": "social",
            "campaign": "deleted-campaign",
            "utm_id": "utm_000000000000",
        }
    running = [campaign for campaign in site.campaigns if campaign.created_ms <= started_ms]
    if running and die < (23_000 if guest.visits == 0 else 9_000):
        # The newest one draws twice as many as each of the others.
        campaign = pick([*running, running[-1]], which)
        return campaign, nothing | {
            "source": campaign.source,
            "medium": campaign.medium,
            "campaign": campaign.campaign,
            "term": "harbour" if which & 3 == 0 else None,
            "content": f"banner {which & 1}" if which & 4 else None,
            "utm_id": campaign.utm_id,
        }
    if die > 60_000:
        source, medium = pick(_OTHER_SOURCES, which)
        return None, nothing | {"source": source, "medium": medium}
    return None, nothing if die & 1 else None


def _pages(site: Site, campaign: Campaign | None, dice: tuple[int, ...], started_ms: int) -> tuple[PageView, ...]:
    number = 1 if dice[14] < 27_000 else 2 + (dice[14] & 7)
    pages = []
    at_ms = started_ms
    for turn in range(number):
        where, long = dice[15 + turn], dice[31 - turn] ^ dice[15 + turn]
        path = site.pages[(where * where >> 16) * len(site.pages) >> 16]
        if turn == 0 and campaign is not None:
            path = campaign.path
        elif turn == 0 and where & 1:
            path = "/"
        seconds = 4 + long % 240
        if number == 1:  # seven in eight of those who look at one page leave it at once
            seconds = 1 + long % 29 if long & 0x700 else 30 + long % 400
        pages.append(PageView(path, at_ms, seconds))
        at_ms += seconds * SECOND_MS
    return tuple(pages)


def _find_purchase(
    purchases: dict[Any, tuple[Purchase, ...]],
    next_purchase: dict[Any, int],
    team: ObjectId | None,
    started_ms: int,
    die: int,
) -> Purchase | None:
    """Return the team's next transaction that nobody has made yet, if it comes soon; each is made once."""
    found = purchases.get(team, ())
    place = next_purchase.get(team, 0)
    while place < len(found) and found[place].at_ms < started_ms + _READS_BEFORE_BUYING_MS:
        place += 1
    if place == len(found) or die >= 26_000 or found[place].at_ms > started_ms + _BUYS_WITHIN_MS:
        if found:
            next_purchase[team] = place
        return None
    next_purchase[team] = place + 1
    return found[place]


@cache
def _purchases(transactions: int, seed: int) -> dict[Any, tuple[Purchase, ...]]:
    contracts = {record["contractId"]: record for record in sample_contracts()}
    found: dict[Any, list[Purchase]] = {}
    for row, record in enumerate(sample_transactions(transactions, seed=seed)):
        time = record.get("block_time")
        if planted_at(row) is not None or time is None:
            continue
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        at_ms = time * SECOND_MS if isinstance(time, int) else round(time.timestamp() * SECOND_MS)
        if record["createdAt"].timestamp() * SECOND_MS - at_ms < _STAMPED_WITHIN_MS:
            continue
        shown = record.get("value_eth") or "0"
        contract = contracts[record["contractId"]]
        found.setdefault(contract.get("team"), []).append(
            Purchase(
                at_ms=at_ms,
                wallet=record["from_address"].lower(),
                tx_hash=record["tx_hash"],
                contract_address=record["contract_address"],
                chain=contract["blockchain"],
                value=0.0 if shown.startswith("<") else float(shown.split()[0].replace(",", "")),
                shown=shown,
            )
        )
    return {team: tuple(sorted(rows, key=lambda row: (row.at_ms, row.tx_hash))) for team, rows in found.items()}
