"""Sessions and clicks as the source holds them: sound where no dirt is planted, and spelled as its producers do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from bson import Binary, DatetimeMS, Decimal128, Int64, ObjectId

from deployments.sample_sites.dirt import OWNERLESS, planted_in_event
from deployments.sample_sites.draws import DAY_MS, SECOND_MS, Record, dice_of, hex_of, mixed, moment, pick
from deployments.sample_sites.sites import sample_site_list
from deployments.sample_sites.visits import PERSONAL_MARKS, Visit, Visitor

LONG_PATH_CHARS: Final = 24_000
MANY_PAGES: Final = 1_200
#: As the source says it: address, type and chain where no wallet is connected.
NO_WALLETS: Final = (
    ("No Wallet Detected", "No Wallet Detected", "No Chain Detected"),
    ("No Wallet Connected", "No Wallet Connected", "Not Connected"),
    ("", "", ""),
    ("Not Connected", "MetaMask", "Not Connected"),
    ("Error", "Error", "Error"),
    ("Unknown", "Unknown", "Unknown"),
)

_BEYOND_MS: Final = 253_402_300_800_000  # the year 10000: Python's datetime can't hold it
_2099: Final = datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC)

# fmt: off
_SESSION_FIELDS: Final = (
    "sessionId", "userId", "siteId", "startTime", "endTime", "lastActivity", "referrer", "utmData", "wallet",
    "pagesViewed", "duration", "isBounce", "country", "browser", "device", "isWeb3User", "sessionNumber",
    "previousSessionId", "timeSinceLastSession", "entryPage", "exitPage", "visitedPages", "createdAt", "updatedAt",
)
_EVENT_FIELDS: Final = (
    "siteId", "userId", "sessionId", "eventType", "pagePath", "timestamp", "eventData", "createdAt",
)
# fmt: on


def sample_sessions(visits: Iterable[Visit]) -> Iterator[Record]:
    """Yield the session of each visit. ``planted_in_session`` names the dirt of each place."""
    for visit in visits:
        record = _session(visit)
        if visit.dirt is not None:
            record = _spoiled_session(record, visit.dirt, visit)
        yield record


def sample_events(visits: Iterable[Visit], events: int | None = None) -> Iterator[Record]:
    """Yield the clicks of the visits, in the order of these: two for every three visits, at most ``events``.

    ``planted_in_event`` names the dirt of each place.
    """
    number = 0
    for visit in visits:
        if not visit.counts:
            continue
        for click in range(_clicks(visit)):
            if number == events:
                return
            dirt = planted_in_event(number)
            record = _event(visit, click)
            yield record if dirt is None else _spoiled_event(record, dirt, visit)
            number += 1


def _session(visit: Visit) -> Record:
    # A repeated row is the same to the byte but for its `_id`: nothing may depend on the row or on the dirt.
    dice = dice_of(visit.digest, "session")
    paths = [visit.spelled(page.path) for page in visit.pages]
    record: Record = {
        "_id": visit.oid,
        "sessionId": visit.session_id,
        "userId": visit.visitor.user_id,
        "siteId": visit.site.site_id,
        "startTime": moment(visit.started_ms),
    }
    ended = dice[0] > 5_000  # the others were cut off
    if ended:
        record["endTime"] = moment(visit.ended_ms)
    if dice[1] > 4_000:
        record["lastActivity"] = moment(visit.pages[-1].at_ms)
    if visit.referrer is not None:
        record["referrer"] = visit.referrer
    if visit.utm is not None:
        record["utmData"] = dict(visit.utm)
    if visit.wallet is not None:
        record["wallet"] = {
            "walletAddress": _spelled(visit.wallet, dice[2]),
            "walletType": visit.wallet_type,
            "chainName": visit.wallet_chain,
        }
    elif visit.web3 or dice[3] > 20_000:
        # Software without a connection is written as two of these, and the source counts its users all the same.
        address, kind, chain = pick(NO_WALLETS[:2] if visit.web3 else (*NO_WALLETS[:2] * 6, *NO_WALLETS), dice[4])
        record["wallet"] = {"walletAddress": address, "walletType": kind, "chainName": chain}
    record["pagesViewed"] = mixed(len(paths), dice[5])
    record["duration"] = mixed(visit.seconds, dice[6])
    record["isBounce"] = visit.bounced
    if dice[7] > 5_000:
        record["country"] = visit.visitor.country
    record["browser"] = {
        "name": visit.visitor.browser,
        "version": visit.visitor.user_agent if dice[8] & 15 == 5 else visit.visitor.version,
    }
    record["device"] = {"type": visit.device[0], "os": visit.device[1]}
    record["isWeb3User"] = visit.web3
    record["sessionNumber"] = mixed(visit.nth, dice[9])
    if visit.before is not None:
        # Sometimes the session's name, sometimes the id of its record.
        record["previousSessionId"] = visit.before.session_id if dice[10] & 3 else str(visit.before.oid)
        record["timeSinceLastSession"] = (visit.started_ms - visit.before.ended_ms) // SECOND_MS
    record["entryPage"] = paths[0]
    if ended:
        record["exitPage"] = paths[-1]
    record["visitedPages"] = [
        {
            "path": path,
            "timestamp": moment(page.at_ms),
            "duration": mixed(page.seconds, dice[11] ^ page.seconds),
            "isEntry": place == 0,
            "isExit": place == len(paths) - 1,
        }
        for place, (path, page) in enumerate(zip(paths, visit.pages, strict=True))
    ]
    record["createdAt"] = moment(visit.started_ms + 300)
    record["updatedAt"] = moment(visit.ended_ms)
    return record


def _spelled(wallet: str, die: int) -> str:
    """Return the address, for one in eight in mixed case that looks like a checksum (and is none)."""
    if die & 7:
        return wallet
    return f"0x{wallet[2:12]}{wallet[12:26].upper()}{wallet[26:33]}{wallet[33:].upper()}"


def _spoiled_session(record: Record, dirt: str, visit: Visit) -> Record:
    """Return the session with dirt of the class; changes the record given."""
    match dirt:
        case "missing_session_id":
            del record["sessionId"]
        case "text_id":
            record["_id"] = f"imported-{record['_id']}"
        case "missing_site_id":
            del record["siteId"]
        case "start_time_missing":
            del record["startTime"]
        case "start_time_not_a_date":
            record["startTime"] = "2024-02-30 25:61:00"
        case "start_time_2099":
            record["startTime"] = _2099
        case "start_time_after_9999":
            record["startTime"] = DatetimeMS(_BEYOND_MS + visit.digest[0])
        case "only_id":
            return {"_id": record["_id"]}
        case "all_null":
            return {"_id": record["_id"]} | dict.fromkeys(_SESSION_FIELDS)
        case "start_time_text":
            record["startTime"] = _iso(visit.started_ms)
        case "end_before_start":
            record["endTime"] = moment(visit.started_ms - 3_600_000)
        case "no_end":
            for field in ("endTime", "lastActivity", "exitPage"):
                record.pop(field, None)
        case "late_row":
            record |= {
                "createdAt": moment(visit.started_ms + 9 * DAY_MS),
                "updatedAt": moment(visit.ended_ms + 9 * DAY_MS),
            }
        case "duration_text":
            record["duration"] = "37.20"
        case "duration_nan":
            record["duration"] = float("nan")
        case "duration_negative":
            record["duration"] = -45
        case "duration_decimal128":
            record["duration"] = Decimal128("61.5")
        case "duration_huge":
            record["duration"] = Int64(2_180_000)
        case "pages_viewed_text":
            record["pagesViewed"] = "3 pages"
        case "pages_viewed_disagrees":
            record["pagesViewed"] = len(visit.pages) + 4
        case "bounce_disagrees":
            record |= {"isBounce": not visit.bounced}
        case "web3_without_wallet":
            record |= {
                "isWeb3User": True,
                "wallet": dict(zip(("walletAddress", "walletType", "chainName"), NO_WALLETS[0], strict=True)),
            }
        case "wallet_not_evm":
            record["wallet"] = {
                "walletAddress": "7YttLkHDoNj9wyDur5pM1ejNaAvT9X4eqaYcHQqtj2G5",
                "walletType": "Phantom",
                "chainName": "Solana",
            }
        case "wallet_null":
            record["wallet"] = None
        case "utm_null":
            record["utmData"] = None
        case "country_not_iso":
            record["country"] = "United States"
        case "browser_null":
            record["browser"] = None
        case "device_text":
            record["device"] = "desktop"
        case "previous_session_unknown":
            record["previousSessionId"] = "session_1600000000000_000000000"
        case "session_number_zero":
            record["sessionNumber"] = 0
        case "time_since_last_negative":
            record["timeSinceLastSession"] = -86_400
        case "user_id_missing":
            del record["userId"]
        case "user_id_in_path":
            path = f"/welcome?user={visit.visitor.user_id}&tab=1"
            record["entryPage"] = path
            record["visitedPages"][0]["path"] = path
        case "visited_pages_null":
            record["visitedPages"] = None
        case "visited_pages_not_a_list":
            record["visitedPages"] = "/app,/pricing"
        case "visited_pages_odd":
            record["visitedPages"] = [None, "/app", {"path": 7}, {"path": "/pricing", "duration": "NaN"}, *_odd(record)]
        case "nul_characters":
            record |= {"entryPage": "/ap\0p", "referrer": "https://news.example/\0"}
        case "bidi_override":
            record |= {"entryPage": "/\u202eecirp\u202c", "country": "\u2066DE\u2069"}
        case "zero_width":
            record["entryPage"] = "/pri\u200bcing\u200d"
        case "emoji_path":
            record["entryPage"] = "/🦦/🌊"
        case "rtl_path":
            record["entryPage"] = "/الأسعار"
        case "long_path":
            record["exitPage"] = ("/deep" * (LONG_PATH_CHARS // 5 + 1))[:LONG_PATH_CHARS]
        case "many_pages":
            first = record["visitedPages"][0]
            record["visitedPages"] = [{**first, "path": f"/gallery/{page}"} for page in range(MANY_PAGES)]
        case "unknown_extra_fields":
            record["tracker"] = {
                "version": 3,
                "raw": Binary(visit.digest[:16]),
                "nested": {"a": {"b": {"c": [1, 2.5, {"d": True}]}}},
            }
        case _:  # the visit itself is another: its site, its wallet, its campaign, its name
            pass
    return record


def _odd(record: Record) -> list[Any]:
    return [{**record["visitedPages"][0], "timestamp": "yesterday"}]


def _iso(epoch_ms: int) -> str:
    return moment(epoch_ms).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


_CLICKS: Final = (0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3)
_ELEMENTS: Final = (
    ("BUTTON", "connect-wallet", "btn btn-primary", "Connect wallet"),
    ("BUTTON", "swap", "btn", "Swap"),
    ("A", "", "nav-link", "Pricing"),
    ("A", "docs", "nav-link", "Read the docs"),
    ("BUTTON", "stake", "btn btn-large", "Stake now"),
    ("SPAN", "", "icon", ""),
    ("BUTTON", "mint", "btn", "Mint for 0.08 ETH"),
    ("DIV", "faq-3", "card", "How long are tokens locked?"),
)


def _clicks(visit: Visit) -> int:
    return 0 if visit.bounced else pick(_CLICKS, dice_of(visit.digest, "clicks")[0])


def _event(visit: Visit, click: int) -> Record:
    dice = dice_of(visit.digest, f"click {click}")
    page = pick(visit.pages, dice[0])
    at_ms = page.at_ms + dice[1] * page.seconds * SECOND_MS // 65_536
    tag, element, style, text = pick(_ELEMENTS, dice[2])
    if dice[3] < 9_000:
        text = _personal_text(visit.visitor, dice[4])
    data: Record = {
        "tagName": tag,
        "id": element,
        "className": style,
        "innerText": text,
        "href": f"https://{visit.site.domain}{page.path}" if tag == "A" else "",
        "dataId": "",
        "referrer": visit.referrer or "",
        "os": visit.device[1],
        "resolution": pick(("1920x1080", "1440x900", "390x844", "412x915", "2560x1440"), dice[5]),
        "language": visit.visitor.language,
        "country": visit.visitor.country,
        "sessionDuration": mixed((at_ms - visit.started_ms) // SECOND_MS, dice[6]),
        "pagesPerVisit": mixed(len(visit.pages), dice[7]),
        "isBounce": False,
        "walletConnected": visit.wallet is not None,
        "browser": {"name": visit.visitor.browser, "version": visit.visitor.version},
        "deviceType": {"type": visit.device[0], "os": visit.device[1]},
    }
    return {
        "_id": ObjectId(f"{at_ms // SECOND_MS:08x}{hex_of('event', visit.digest.hex(), str(click))[:16]}"),
        "siteId": visit.site.site_id,
        "userId": visit.visitor.user_id,
        "sessionId": visit.session_id,
        "eventType": "ELEMENT_CLICK",
        "pagePath": visit.spelled(page.path),
        "timestamp": moment(at_ms),
        "eventData": data,
        "createdAt": moment(at_ms + 250),
    }


def _personal_text(visitor: Visitor, die: int) -> str:
    return (
        f"Signed in as {visitor.user_id}",
        f"Hi, {visitor.name}",
        f"Invoices go to {visitor.name.replace(' ', '.').lower()}{PERSONAL_MARKS[1]}",
        f"Call {PERSONAL_MARKS[2]}{die % 1_000:03}",
    )[die & 3]


def _spoiled_event(record: Record, dirt: str, visit: Visit) -> Record:
    """Return the event with dirt of the class; changes the record given."""
    data = record["eventData"]
    match dirt:
        case "text_id":
            record["_id"] = f"imported-{record['_id']}"
        case "missing_site_id":
            del record["siteId"]
        case _ if dirt in OWNERLESS:
            record["siteId"] = next(site.site_id for site in sample_site_list() if site.dirt == dirt)
        case "timestamp_missing":
            del record["timestamp"]
        case "timestamp_not_a_date":
            record["timestamp"] = "a moment ago"
        case "timestamp_2099":
            record["timestamp"] = _2099
        case "timestamp_after_9999":
            record["timestamp"] = DatetimeMS(_BEYOND_MS + visit.digest[0])
        case "only_id":
            return {"_id": record["_id"]}
        case "all_null":
            return {"_id": record["_id"]} | dict.fromkeys(_EVENT_FIELDS)
        case "timestamp_text":
            record["timestamp"] = _iso(round(record["timestamp"].timestamp() * SECOND_MS))
        case "no_event_type":
            del record["eventType"]
        case "unknown_event_type":
            record["eventType"] = "RAGE_CLICK"
        case "personal_inner_text":
            data["innerText"] = f"Signed in as {visit.visitor.user_id}, {PERSONAL_MARKS[2]}123"
        case "personal_link":
            data["href"] = f"mailto:{visit.visitor.name.split()[0].lower()}{PERSONAL_MARKS[0]}"
        case "long_inner_text":
            data["innerText"] = "Terms of the harbour. " * 1_000
        case "session_missing":
            del record["sessionId"]
        case "session_unknown":
            record["sessionId"] = "session_1600000000000_000000000"
        case "user_id_missing":
            del record["userId"]
        case "event_data_null":
            record["eventData"] = None
        case "event_data_text":
            record["eventData"] = "[object Object]"
        case "session_duration_text":
            data["sessionDuration"] = "37.20"
        case "session_duration_nan":
            data["sessionDuration"] = float("nan")
        case "pages_per_visit_negative":
            data["pagesPerVisit"] = -1
        case "resolution_odd":
            data["resolution"] = "undefinedxundefined"
        case "page_path_missing":
            del record["pagePath"]
        case "page_path_whole_url":
            record["pagePath"] = f"https://{visit.site.domain}/app?ref=harbour&v=1.2#top"
        case "nul_characters":
            record["pagePath"] = "/ap\0p"
        case "bidi_override":
            data |= {"className": "btn \u202emirp\u202c", "language": "\u2066de\u2069"}
        case "rtl_text":
            data |= {"innerText": "اتصل بالمحفظة", "id": "זיהוי"}
        case "unknown_extra_fields":
            record["tracker"] = {"raw": Binary(visit.digest[:16]), "nested": {"a": [{"b": Int64(3)}]}}
    return record
