"""The 48 sites that visits are tracked on, who owns them, and the campaigns that lead to them.

Sixteen websites are those of ``deployments.sample``; 24 more belong to teams of their own, three of which nobody can
be found for. Eight siteIds have no website at all, as those of tests. Five sites carry 89 % of the visits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from bson import Int64, ObjectId

from deployments.sample import sample_teams, sample_websites
from deployments.sample_sites.draws import DAY_MS, Record, hex_of, moment, object_id

#: 26 February 2024: the first visits come three days before a leap day.
FIRST_DAY_MS: Final = 1_708_905_600_000

_TEAM_MADE_S: Final = 1_706_800_000
_SITE_MADE_S: Final = 1_707_000_000
_TEAM_GONE: Final = object_id(_TEAM_MADE_S, "team", "deleted")

# name | plan | its sites | dirt
_TEAM_LINES: Final = """
Harbourlight Studio|pro|harbourlight harbourlight-shop harbourlight-notes|
Juniper Cartography|basic|juniper juniper-maps|
Kelpforest Radio|pro|kelpforest kelpforest-live|
Larkspur Ledger|offchain|larkspur|
Mossbridge Tools|offchain|mossbridge|
Nettle & Thyme|offchain|nettle|
Oakwell Arcade|pro|oakwell oakwell-beta|
Pinewater Press|basic|pinewater pinewater-archive|
Quartz Harbour|offchain|quartz|listed_website_gone
Rookery Sounds|offchain|rookery|no_subscription
Silverfen|basic|silverfen silverfen-app|
Thistle Works|offchain|thistle|no_websites
Harbourlight Studio|offchain|harbourlight-two|doubled_name
Vellum Post|offchain|vellum|lists_a_website_of_another
""".strip()

# site | name | dirt
_WEBSITE_LINES: Final = """
harbourlight|Harbourlight|
harbourlight-shop|Harbourlight Shop|team_as_text
harbourlight-notes||no_name
juniper|Juniper|
juniper-maps|Juniper Maps|no_domain
kelpforest|Kelpforest|
kelpforest-live|Kelpforest Live|domain_with_scheme
larkspur|Larkspur|listed_by_another_team
mossbridge|Mossbridge|only_listed
nettle|Nettle \u202e& Thyme\u202c|bidi_name
oakwell|Oakwell|
oakwell-beta|Oakwell Beta|not_verified
pinewater|Pine\0water|nul_name
pinewater-archive|Pinewater Archive|analytics_dangling
quartz|مرفأ الكوارتز|rtl_name
rookery||name_number
silverfen|Silverfen|
silverfen-app|Silverfen, the app of the reeds and of everybody who walks through them|long_name
thistle|Thistle|
harbourlight-two|Harbourlight|doubled_name
vellum|Vellum|
driftwood|Driftwood|site_without_team
gravel|Gravel|site_of_unknown_team
twofold|Twofold|site_of_two_teams
""".strip()

#: What is wrong with a website; one of ``OWNERLESS`` and "missing_site_id" leave it without an owner or a name.
SURVIVING_WEBSITES: Final = (
    "team_as_text",
    "no_name",
    "no_domain",
    "domain_with_scheme",
    "listed_by_another_team",
    "only_listed",
    "bidi_name",
    "not_verified",
    "nul_name",
    "analytics_dangling",
    "rtl_name",
    "name_number",
    "long_name",
    "doubled_name",
)
UNMIGRATABLE_WEBSITES: Final = (
    "site_without_team",
    "site_of_unknown_team",
    "site_of_two_teams",
    "missing_site_id",
)
TEAM_DIRT: Final = (
    "listed_website_gone",
    "no_subscription",
    "no_websites",
    "doubled_name",
    "lists_a_website_of_another",
)

_SITES_OF_NOWHERE: Final = {
    "test-site": "site_not_uuid",
    "localhost:3000": "site_not_uuid",
    "undefined": "site_not_uuid",
    "demo_site_2": "site_not_uuid",
    "my-site": "site_not_uuid",
    "gone-1": "site_without_website",
    "gone-2": "site_without_website",
    "gone-3": "site_without_website",
}

# Visits in a thousand; the other 32 sites that have an owner share the rest.
_BUSY_SITES: Final = {
    "aurora-swap": 360,
    "quillon": 210,
    "saffron": 150,
    "copperleaf-arena": 100,
    "tidewater-mint": 70,
}
#: Visits that the source counted before the oldest session that it still has.
_COUNTED_BEFORE: Final = 5_827
_TIMEZONES: Final = ("America/New_York", "Europe/Berlin", "Asia/Kolkata", "UTC", "Australia/Sydney")

_PAGES: Final = (
    "/app",
    "/pricing",
    "/docs/v1.2/start",
    "/blog/launch-week",
    "/app/swap",
    "/rewards",
    "/about%20us",
    "/app/stake",
    "/caf%C3%A9",
    "/connect",
    "/faq.html",
    "/mint/lighthouses",
    "/leaderboard",
)

# site | name | source | medium | campaign | day of its creation, from the first visits | budget | dirt
_CAMPAIGN_LINES: Final = """
aurora-swap|Spring liquidity|twitter|social|spring-liquidity|-20|USD 4500|mixed_units
aurora-swap|Partner letter|newsletter|email|partner-letter|-60|USD 800|no_utm_id
aurora-swap|Leap day swap|telegram|community|leap-day|2|USDC 1500.5|bounce_rate_over_100
aurora-swap|Autumn fee holiday|google|cpc|fee-holiday|190|USD 9000|
aurora-swap|Winter pools|youtube|video|winter-pools|300|EUR 2500|
quillon|Borrow week|google|cpc|borrow-week|-10|USD 6000|
quillon|Saver stories|medium|blog|saver-stories|20|USD 0|
quillon|Conference badge|qr|offline|conference-badge|240|CHF 1200|
saffron|Lock for a year|twitter|social|lock-for-a-year|-5|USD 3000|
saffron|Quiet reserve|newsletter|email|quiet-reserve|120|USD 350|
copperleaf-arena|Heroes season one|discord|community|heroes-one|-15|USD 2200|
copperleaf-arena|Heroes season two|discord|community|heroes-two|200|USD 2600|
tidewater-mint|Lighthouse mint|twitter|social|lighthouse-mint|-3|ETH 1.5|
tidewater-mint|Postcards home|newsletter|email|postcards-home|150|USD 120|
tidewater|Otter week|x|social|otter-week|-2|USD 90|doubled_utm_id
basalt|Basalt guild|telegram|community|basalt-guild|-30||budget_missing
northwind|Name your harbour|google|cpc|name-your-harbour|-1|USD 75|budget_text
orchard|Orchard vote|newsletter|email|orchard-vote|-8|USD 60|budget_nan
orchard-vote|Turn out|twitter|social|turn-out|5|USD 40|budget_negative
harbourlight|Harbour sale|google|cpc|harbour-sale|-4|USD 300|budget_decimal128
juniper|Map week|bing|cpc|map-week|-4|shells 300|budget_unknown_currency
kelpforest|Night radio|twitter|social|night-radio|-6|USD 50|roi_nan
larkspur|Ledger trial|google|cpc|ledger-trial|-6|USD 50|stats_missing
mossbridge|Tool days|google|cpc|tool-days|-6|USD 50|stats_text
nettle|Tea letter|newsletter|email|tea-letter|-6|USD 20|sessions_dangling
oakwell|Arcade coins|discord|community|arcade-coins|-6|USD 85|transactions_null
pinewater|Winter reader|newsletter|email|winter-reader|-6|USD 30|created_missing
quartz|Quartz week|google|cpc|quartz-week|-6|USD 30|created_text
silverfen|Silver\0fen|twitter|social|silverfen|-6|USD 30|nul_name
thistle|This\u202eelt\u202c|twitter|social|thistle|-6|USD 30|bidi_name
vellum|Post|twitter|social|vellum-post|-6|USD 30|long_name
rookery|Text|x|social|text-id|-6|USD 1|text_id
rookery|Nobody|x|social|nobody|-6|USD 1|missing_site_id
test-site|Trial run|x|social|trial-run|-6|USD 1|site_not_uuid
gone-1|Old days|x|social|old-days|-6|USD 1|site_without_website
driftwood|Driftwood|x|social|driftwood|-6|USD 1|site_without_team
gravel|Gravel|x|social|gravel|-6|USD 1|site_of_unknown_team
twofold|Twofold|x|social|twofold|-6|USD 1|site_of_two_teams
rookery|Bare|x|social|bare|-6|USD 1|only_id
rookery|Empty|x|social|empty|-6|USD 1|all_null
""".strip()

# name | chain | symbol | type | number of the team: - none, ? not there | dirt
_CONTRACT_LINES: Final = """
Oakwell Scores|Ethereum Mainnet|OAKW|main|6|chain_alias
Oakwell Chest|base|OAKW|escrow|6|chain_lower_case
Oakwell Tickets||OAKT|main|6|chain_missing
Silverfen Reed|Zetrix|REED|main|10|chain_unknown
|Ethereum|MRSH|main|10|no_name
Silverfen Heron|Ethereum||main|10|no_symbol
Silverfen Otter|Ethereum|OTTR|-|10|no_type
Harbour Pass|Polygon|HPAS|main|0|address_mixed_case
Harbour Berth|Polygon|HBRT|main|0|address_short
Harbour Bell|Polygon|HBEL|main|0|address_not_hex
Harbour Tide|Polygon|TIDE|main|0|last_block_text
Harbour Rope|Polygon|ROPE|main|0|last_block_double
Juniper Compass|Arbitrum|CMPS|main|1|created_missing
Juniper Atlas|Arbitrum|ATLS|main|1|created_text
Juniper Vault|Arbitrum|CMPS|escrow|1|staking_details_odd
Kelp Token|BNB Chain|KELP|main|2|staking_details_on_main
Kelp\0 Signal|BNB Chain|KSIG|main|2|nul_name
Kelp \u202elangiS\u202c|BNB Chain|KSGL|main|2|bidi_name
رمز الأعشاب|BNB Chain|עשב|main|2|rtl_name
Kelp of the deep and of the shallow waters|BNB Chain|KELP|main|2|long_name
Pine Ink|Optimism|INK|main|7|contract_id_missing
Pine Quill|Optimism|QUIL|main|7|text_id
Pine Ash|Optimism|ASH|main|-|team_missing
Pine Smoke|Optimism|SMOK|main|?|team_unknown
""".strip()

UNMIGRATABLE_CONTRACTS: Final = ("contract_id_missing", "text_id", "team_missing", "team_unknown")
SURVIVING_CONTRACTS: Final = tuple(
    dirt
    for line in _CONTRACT_LINES.splitlines()
    if (dirt := line.rpartition("|")[2]) and dirt not in UNMIGRATABLE_CONTRACTS
)


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign before any visit. ``utm_id`` is None for the older ones, which match on ``campaign``."""

    number: int
    oid: ObjectId
    slug: str
    name: str
    source: str
    medium: str
    campaign: str
    utm_id: str | None
    path: str
    created_ms: int
    budget: str
    dirt: str | None


@dataclass(frozen=True, slots=True)
class Site:
    """A site as visits meet it. ``dirt`` is one of ``OWNERLESS``, or None where it has an owner."""

    number: int
    slug: str
    site_id: str
    domain: str
    team_id: ObjectId | None
    dirt: str | None
    weight: int
    counted_before: int
    timezone: str
    pages: tuple[str, ...]
    campaigns: tuple[Campaign, ...]
    analytics_oid: ObjectId


@cache
def _team_lines() -> tuple[tuple[ObjectId, str, str, tuple[str, ...], str], ...]:
    lines = []
    for index, line in enumerate(_TEAM_LINES.splitlines()):
        name, plan, sites, dirt = line.split("|")
        oid = object_id(_TEAM_MADE_S + index * 3_600, "team", name, str(index))
        lines.append((oid, name, plan, tuple(sites.split()), dirt))
    return tuple(lines)


def planted_in_team(number: int) -> str | None:
    """Return the class of dirt in that team of ``sample_site_teams``, or None."""
    return _team_lines()[number][4] or None


def planted_in_website(number: int) -> str | None:
    """Return the class of dirt in that website of ``sample_site_websites``, or None."""
    lines = _WEBSITE_LINES.splitlines()
    return (lines[number].rpartition("|")[2] or None) if number < len(lines) else "missing_site_id"


def planted_in_contract(number: int) -> str | None:
    """Return the class of dirt in that contract of ``sample_site_contracts``."""
    return _CONTRACT_LINES.splitlines()[number].rpartition("|")[2] or None


def planted_in_campaign(number: int) -> str | None:
    """Return the class of dirt in that campaign, or None."""
    return _CAMPAIGN_LINES.splitlines()[number].rpartition("|")[2] or None


def sample_site_teams() -> list[Record]:
    """Return the teams that no transaction belongs to."""
    records = []
    twofold = _website_oid("twofold")
    for index, (oid, name, plan, slugs, dirt) in enumerate(_team_lines()):
        websites = [_website_oid(slug) for slug in slugs]
        if index in {3, 13}:  # neither the website nor one of the two teams says which is right
            websites.append(twofold)
        record: Record = {
            "_id": oid,
            "name": name,
            "createdBy": object_id(_TEAM_MADE_S, "user", str(index)),
            "user": [{"userId": object_id(_TEAM_MADE_S, "user", str(index)), "role": "admin"}],
            "websites": websites,
            "subscription": {"status": "active", "hasCQIntelligence": plan != "offchain", "plan": plan},
            "createdAt": moment((_TEAM_MADE_S + index * 3_600) * 1_000),
            "updatedAt": moment((_TEAM_MADE_S + index * 3_600) * 1_000),
        }
        match dirt:
            case "listed_website_gone":
                websites.append(object_id(_SITE_MADE_S, "website", "deleted"))
            case "no_subscription":
                del record["subscription"]
            case "no_websites":
                del record["websites"]
            case "lists_a_website_of_another":
                websites.append(_website_oid("larkspur"))
        records.append(record)
    return records


def sample_site_websites() -> list[Record]:
    """Return the websites of these teams, and four that nobody can be found for; the last has no siteId."""
    teams = {slug: oid for oid, _name, _plan, slugs, _dirt in _team_lines() for slug in slugs}
    records = []
    for line in _WEBSITE_LINES.splitlines():
        slug, name, dirt = line.split("|")
        record: Record = {
            "_id": _website_oid(slug),
            "siteId": _site_id(slug),
            "Domain": f"{slug}.example",
            "Name": name,
            "analytics": _analytics_oid(slug),
            "isVerified": True,
        }
        if slug in teams:
            record["team"] = teams[slug]
        match dirt:
            case "team_as_text":
                record["team"] = str(record["team"])
            case "no_name":
                del record["Name"]
            case "no_domain":
                del record["Domain"]
            case "domain_with_scheme":
                record["Domain"] = f"https://{slug}.example/"
            case "only_listed":
                del record["team"]
            case "not_verified":
                record["isVerified"] = False
            case "analytics_dangling":
                record["analytics"] = object_id(_SITE_MADE_S, "analytics", "deleted")
            case "name_number":
                record["Name"] = 404
            case "long_name":
                record["Name"] = ", ".join(f"{name}, part {part}" for part in range(1, 120))
            case "site_of_unknown_team":
                record["team"] = _TEAM_GONE
        records.append(record)
    records.append(
        {"_id": _website_oid("nameless"), "Domain": "nameless.example", "Name": "Nameless", "team": teams["vellum"]}
    )
    return records


def sample_site_contracts() -> list[Record]:
    """Return contracts that nobody has called: each is odd in its own way."""
    teams = [oid for oid, *_ in _team_lines()]
    records = []
    for index, line in enumerate(_CONTRACT_LINES.splitlines()):
        name, chain, symbol, kind, team, dirt = line.split("|")
        made_ms = 1_709_000_000_000 + index * DAY_MS
        digits = hex_of("address", line)[:40]
        record: Record = {
            "_id": object_id(made_ms // 1_000, "contract", line),
            "contractId": f"contract_{made_ms}_{hex_of('contract id', line)[:16]}",
            "address": f"0x{digits}",
            "name": name,
            "blockchain": chain,
            "tokenSymbol": symbol,
            "contractType": kind,
            "verified": index % 3 != 0,
            "lastBlock": 19_000_000 + index,
            "createdAt": moment(made_ms),
            "lastUpdated": moment(made_ms + 5 * DAY_MS),
        }
        for field in ("name", "blockchain", "tokenSymbol"):
            if not record[field]:
                del record[field]
        if kind == "-":
            del record["contractType"]
        if team == "?":
            record["team"] = _TEAM_GONE
        elif team != "-":
            record["team"] = teams[int(team)]
        if kind == "escrow" or dirt == "staking_details_on_main":
            record["stakingDetails"] = {
                "rewardToken": symbol,
                "stakingToken": symbol,
                "lockPeriod": 0,
                "apy": 0,
                "minimumStake": 0,
                "totalStaked": 0,
                "totalRewards": 0,
            }
        match dirt:
            case "address_mixed_case":
                record["address"] = f"0x{digits[:20].upper()}{digits[20:]}"
            case "address_short":
                record["address"] = f"0x{digits[4:]}"
            case "address_not_hex":
                record["address"] = "harbour-bell.example"
            case "last_block_text":
                record["lastBlock"] = "19,000,010"
            case "last_block_double":
                record["lastBlock"] = 19_000_011.0
            case "created_missing":
                del record["createdAt"]
            case "created_text":
                record["createdAt"] = moment(made_ms).isoformat()
            case "staking_details_odd":
                record["stakingDetails"] |= {"apy": "12.5", "lockPeriod": float("nan"), "totalStaked": Int64(-1)}
            case "long_name":
                record["name"] = ", ".join(f"{name}, part {part}" for part in range(1, 120))
            case "contract_id_missing":
                del record["contractId"]
            case "text_id":
                record["_id"] = f"imported-{record['_id']}"
        records.append(record)
    return records


@cache
def sample_site_list() -> tuple[Site, ...]:
    """Return the 48 sites: the five busy ones first, the others in no order that means anything."""
    teams_of_listed = {site: team["_id"] for team in sample_teams() for site in team["websites"]}
    found: list[tuple[str, str, str, ObjectId | None, str | None]] = []
    for record in sample_websites():
        slug = record["Domain"].removesuffix(".example")
        team = record.get("team") or teams_of_listed[record["_id"]]
        found.append((slug, record["siteId"], record["Domain"], team, None))
    teams = {slug: oid for oid, _name, _plan, slugs, _dirt in _team_lines() for slug in slugs}
    for index, line in enumerate(_WEBSITE_LINES.splitlines()):
        slug = line.split("|")[0]
        dirt = planted_in_website(index)
        found.append(
            (
                slug,
                _site_id(slug),
                f"{slug}.example",
                teams.get(slug),
                dirt if dirt in UNMIGRATABLE_WEBSITES else None,
            )
        )
    for slug, dirt in _SITES_OF_NOWHERE.items():
        site_id = slug if dirt == "site_not_uuid" else _site_id(slug)
        found.append((slug, site_id, f"{slug.partition(':')[0]}.example", None, dirt))
    busy = list(_BUSY_SITES)
    found.sort(key=lambda site: (busy.index(site[0]) if site[0] in busy else len(busy), hex_of("order", site[0])))
    campaigns = sample_campaign_list()
    quiet = iter([4] * 14 + [3] * 18)
    sites = []
    for number, (slug, site_id, domain, team, dirt) in enumerate(found):
        weight = 0 if dirt else _BUSY_SITES.get(slug) or next(quiet)
        turn = number * 5 % len(_PAGES)
        sites.append(
            Site(
                number=number,
                slug=slug,
                site_id=site_id,
                domain=domain,
                team_id=team,
                dirt=dirt,
                weight=weight,
                counted_before=_COUNTED_BEFORE * weight // 1_000 + 1,
                timezone=_TIMEZONES[number % len(_TIMEZONES)],
                pages=("/", *(_PAGES[turn:] + _PAGES[:turn])[:8]),
                campaigns=tuple(
                    campaign
                    for campaign in campaigns
                    if campaign.slug == slug
                    and campaign.dirt not in {"text_id", "missing_site_id", "only_id", "all_null"}
                ),
                analytics_oid=_analytics_oid(slug),
            )
        )
    return tuple(sites)


@cache
def sample_campaign_list() -> tuple[Campaign, ...]:
    """Return the campaigns in the order of their lines."""
    campaigns: list[Campaign] = []
    for number, line in enumerate(_CAMPAIGN_LINES.splitlines()):
        slug, name, source, medium, campaign, day, budget, dirt = line.split("|")
        created_ms = FIRST_DAY_MS + int(day) * DAY_MS + number * 61_000
        utm_id: str | None = f"utm_{hex_of('utm', slug, campaign)[:12]}"
        if dirt == "no_utm_id":
            utm_id = None
        elif dirt == "doubled_utm_id":  # of another site of the same team
            utm_id = next(other.utm_id for other in campaigns if other.campaign == "lighthouse-mint")
        campaigns.append(
            Campaign(
                number=number,
                oid=object_id(created_ms // 1_000, "campaign", slug, campaign),
                slug=slug,
                name=name,
                source=source,
                medium=medium,
                campaign=campaign,
                utm_id=utm_id,
                path=f"/{campaign}" if number % 3 == 1 else "/",
                created_ms=created_ms,
                budget=budget,
                dirt=dirt or None,
            )
        )
    return tuple(campaigns)


def _site_id(slug: str) -> str:
    digits = hex_of("site id", slug)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:32]}"


def _website_oid(slug: str) -> ObjectId:
    return object_id(_SITE_MADE_S, "website", slug)


def _analytics_oid(slug: str) -> ObjectId:
    return object_id(_SITE_MADE_S, "analytics", slug)
