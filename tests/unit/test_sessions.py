"""Sessions: a visit is told by what happened; who came has a pseudonym, and a wallet is only a real one."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from bson import Decimal128, Int64, ObjectId, Regex
from bson.datetime_ms import DatetimeMS
from bson.max_key import MaxKey
from hypothesis import given
from hypothesis import strategies as st

from blocks.tokens import count_tokens
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document
from tasks.domain.errors import RecordError, TerminalError
from tasks.domain.owners import Owners
from tasks.domain.personal import EARLIEST_MS, name_visitor
from tasks.domain.rows import encode_head
from tasks.domain.sessions import (
    MAX_PAGES,
    PageView,
    Session,
    describe_session,
    find_traffic_source,
    make_session_source,
    moment_of,
    parse_session,
    say_seconds,
    say_source,
)
from tasks.domain.wallets import Wallet
from tests.builders import NOW_MS, SITE_ID, TEAM_ID, WALLET

KEY = b"a key of thirty-two bytes, or so"
USER_ID = "mira.okafor.3f9a1c@harborpost.example"
SESSION_ID = "session_1741010700000_a1b2c3d4e"
START = datetime(2025, 3, 3, 14, 5, tzinfo=UTC)
OWNERLESS_SITE = "site-of-nobody"


def make_site_owners() -> Owners:
    teams = [{"_id": TEAM_ID, "name": "One"}]
    websites = [
        {"_id": ObjectId(), "siteId": SITE_ID, "team": TEAM_ID, "Name": "Lantern Swap", "Domain": "lantern.example"},
        {"_id": ObjectId(), "siteId": OWNERLESS_SITE},
    ]
    return Owners.from_records([], teams, websites)


OWNERS = make_site_owners()
SOURCE = make_session_source(KEY)


def make_session(**changes: Any) -> dict[str, Any]:
    """Return a record of ``sessions``: a returning visitor from a campaign, four pages, a wallet."""
    pages = [("/", 60), ("/app", 200), ("/pricing", 100), ("/app/stake", 120)]
    at = [START + timedelta(seconds=sum(seconds for _, seconds in pages[:place])) for place in range(len(pages))]
    record: dict[str, Any] = {
        "_id": ObjectId("65e000000000000000000001"),
        "sessionId": SESSION_ID,
        "userId": USER_ID,
        "siteId": SITE_ID,
        "startTime": START,
        "endTime": START + timedelta(seconds=480),
        "lastActivity": START + timedelta(seconds=360),
        "referrer": "https://t.co/9sVw1Zq3aB?user=mira",
        "utmData": {
            "source": "Twitter",
            "medium": "social",
            "campaign": "spring-sale",
            "term": None,
            "content": None,
            "utm_id": "utm_17",
        },
        "wallet": {"walletAddress": WALLET.upper(), "walletType": "MetaMask", "chainName": "Ethereum Mainnet"},
        "pagesViewed": 4,
        "duration": 480,
        "isBounce": False,
        "country": "DE",
        "browser": {"name": "Chrome"},
        "device": {"type": "desktop", "os": "Windows"},
        "isWeb3User": True,
        "sessionNumber": 3,
        "previousSessionId": "session_1740000000000_f6e5d4c3b",
        "timeSinceLastSession": 86_400.0,
        "entryPage": "/",
        "exitPage": "/app/stake",
        "visitedPages": [
            {"path": path, "timestamp": moment, "duration": seconds, "isEntry": not place, "isExit": place == 3}
            for place, ((path, seconds), moment) in enumerate(zip(pages, at, strict=True))
        ],
    }
    return {**record, **changes}


def parse(**changes: Any) -> Session:
    return parse_session(make_session(**changes), OWNERS, key=KEY, now_ms=NOW_MS)


def describe(**changes: Any) -> Document:
    return SOURCE.describe(make_session(**changes), OWNERS, NOW_MS)


def facts(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = describe(**changes).metadata["facts"]
    return found


def refusal(**changes: Any) -> str:
    with pytest.raises(RecordError) as refused:
        parse(**changes)
    return refused.value.code


def test_a_sound_session_is_read_without_a_warning() -> None:
    session = parse()
    assert session.warnings == ""
    assert (session.site_id, session.site_name, session.team_id) == (SITE_ID, "Lantern Swap", str(TEAM_ID))
    assert (session.start_ms, session.end_ms) == (1_741_010_700_000, 1_741_011_180_000)
    assert (session.duration_s, session.pages_viewed, session.bounced, session.number) == (480, 4, False, 3)
    assert session.pages[1] == PageView("/app", 200)
    assert (session.traffic_source, session.referrer, session.utm_id) == ("twitter/social", "t.co", "utm_17")
    assert session.wallet == Wallet(WALLET, "MetaMask", "Ethereum", 1)
    assert (session.country, session.device, session.system, session.browser) == ("DE", "desktop", "Windows", "Chrome")


def test_the_visitor_has_a_pseudonym() -> None:
    assert parse().visitor == name_visitor(SITE_ID, USER_ID, KEY)
    assert parse(userId=None).visitor is None


# what refuses a session


@pytest.mark.parametrize("raw", [None, "", " ", "undefined", 17, ["a"], "s" * 300])
def test_a_visit_that_nothing_tells_from_another_is_refused(raw: object) -> None:
    assert refusal(sessionId=raw) == "session_id_missing"


@pytest.mark.parametrize("raw", ["imported-1", 17, None, {"a": 1}])
def test_a_row_whose_id_is_no_object_id_is_refused(raw: object) -> None:
    assert refusal(_id=raw) == "id_not_objectid"


def test_a_visit_that_nobody_owns_is_refused() -> None:
    assert refusal(siteId=None) == "site_missing"
    assert refusal(siteId="test-site") == "site_unknown"
    assert refusal(siteId=OWNERLESS_SITE) == "owner_missing"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "start_time_missing"),
        ("", "start_time_missing"),
        ("2024-02-30 25:61:00", "start_time_unreadable"),
        (DatetimeMS(253_402_300_800_000), "start_time_unreadable"),
        (datetime(2099, 12, 31, tzinfo=UTC), "start_time_in_future"),
        (0, "start_time_too_early"),
    ],
)
def test_a_visit_without_a_possible_time_is_refused(raw: object, code: str) -> None:
    assert refusal(startTime=raw) == code


def test_a_record_with_nothing_but_nulls_is_refused() -> None:
    assert refusal(**dict.fromkeys(make_session())) == "site_missing"


# time


@pytest.mark.parametrize("raw", [START, "2025-03-03T14:05:00.000Z", 1_741_010_700, DatetimeMS(1_741_010_700_000)])
def test_a_start_in_another_form_is_the_same_moment(raw: object) -> None:
    assert parse(startTime=raw).start_ms == 1_741_010_700_000
    assert SOURCE.read_time(make_session(startTime=raw)) == 1_741_010_700_000


def test_an_end_before_the_start_is_left_out_and_named() -> None:
    session = parse(endTime=START - timedelta(hours=1), lastActivity=None)
    assert session.end_ms is None
    assert session.warnings == "endTime lies before the start and is left out"


def test_an_end_in_the_future_is_left_out_and_named() -> None:
    session = parse(endTime=datetime(2099, 1, 1, tzinfo=UTC))
    assert session.end_ms == 1_741_011_060_000  # the last activity
    assert session.warnings == "endTime lies in the future and is left out"


def test_a_visit_without_an_end_ends_with_its_last_sign_of_life() -> None:
    assert parse(endTime=None).end_ms == 1_741_011_060_000
    cut_off = describe(endTime=None, lastActivity=None, exitPage=None).metadata
    assert cut_off["timeframe"] == {"start": START, "end": START + timedelta(seconds=480)}
    endless = describe(endTime=None, lastActivity=None, duration=Int64(2_180_000)).metadata
    assert endless["timeframe"] == {"start": START, "end": START}


def test_a_duration_that_is_longer_than_the_visit_is_named() -> None:
    session = parse(duration=2_180_000)
    assert session.duration_s == 2_180_000
    assert session.warnings == "duration is longer than from startTime to endTime"


# figures


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [("37.20", 37.2), (Decimal128("61.5"), 61.5), (Int64(90), 90), (90.0, 90), (0, 0), (None, None), ("", None)],
)
def test_a_duration_comes_in_several_types(raw: object, seconds: float | None) -> None:
    session = parse(duration=raw)
    assert session.duration_s == seconds
    assert "duration " not in session.warnings


@pytest.mark.parametrize("raw", [float("nan"), -45, "long", [480], True, 1e300, Decimal128("NaN")])
def test_a_bad_duration_is_left_out_and_named(raw: object) -> None:
    session = parse(duration=raw)
    assert session.duration_s is None
    assert session.warnings.startswith("duration ")
    assert session.warnings.endswith("left out")


def test_facts_hold_one_type_for_one_figure() -> None:
    assert type(facts(duration=480.0)["durationSeconds"]) is int
    assert describe(duration=480.0, pagesViewed=Int64(4)) == describe()


def test_pages_are_counted_where_their_number_is_missing() -> None:
    assert parse(pagesViewed=None).pages_viewed == 4
    assert parse(pagesViewed="3 pages").pages_viewed == 4
    assert parse(pagesViewed="3 pages").warnings == "pagesViewed '3 pages' left out"
    assert parse(pagesViewed=None, visitedPages=None).pages_viewed is None


def test_pages_that_disagree_are_named() -> None:
    session = parse(pagesViewed=8)
    assert session.pages_viewed == 8
    assert session.warnings == "pagesViewed is 8, but visitedPages holds 4"


@pytest.mark.parametrize(
    ("seconds", "pages", "listed", "bounced"),
    [(29, 1, 1, True), (30, 1, 1, False), (29, 2, 2, False), (0, 0, 0, True), (29, 1, 2, False)],
)
def test_a_bounce_is_one_page_in_less_than_thirty_seconds(seconds: int, pages: int, listed: int, bounced: bool) -> None:
    views = [{"path": "/", "duration": 1}] * listed
    session = parse(duration=seconds, pagesViewed=pages, visitedPages=views, isBounce=None)
    assert session.bounced is bounced


def test_a_stored_bounce_gives_way_to_its_definition() -> None:
    session = parse(isBounce=True)
    assert session.bounced is False
    assert session.warnings == "isBounce disagrees with duration and pages"
    assert parse(isBounce=True, duration=None).bounced is True


@pytest.mark.parametrize("raw", [0, -1, "first", float("inf")])
def test_visits_are_counted_from_one(raw: object) -> None:
    session = parse(sessionNumber=raw)
    assert session.number is None
    assert re.fullmatch("sessionNumber .* left out", session.warnings)


def test_a_visit_can_not_come_before_the_one_before_it() -> None:
    session = parse(timeSinceLastSession=-86_400)
    assert session.since_previous_s is None
    assert session.warnings == "timeSinceLastSession -86400 left out"


def test_the_previous_visit_is_named_by_either_of_its_ids() -> None:
    assert parse(previousSessionId="65e000000000000000000002").previous_session_id == "65e000000000000000000002"
    assert parse(previousSessionId=ObjectId("65e000000000000000000002")).previous_session_id == (
        "65e000000000000000000002"
    )


# pages


def test_what_is_no_page_view_is_left_out_and_counted() -> None:
    odd = [None, "/app", {"path": 7}, {"path": "/pricing", "duration": "NaN"}, {"path": "/app", "duration": 5}]
    session = parse(visitedPages=odd, pagesViewed=2)
    assert session.pages == (PageView("/pricing", None), PageView("/app", 5))
    assert session.warnings == "4 of 5 visitedPages can't be read or have a bad duration"


@pytest.mark.parametrize("raw", ["/app,/pricing", {"path": "/"}, 7])
def test_pages_that_are_no_list_are_left_out_and_named(raw: object) -> None:
    session = parse(visitedPages=raw)
    assert session.pages == ()
    assert session.warnings == f"visitedPages of type {type(raw).__name__} left out"


def test_a_visit_of_a_thousand_pages_has_a_short_text_and_short_facts() -> None:
    views = [{"path": f"/gallery/{page}", "duration": 1} for page in range(1_200)]
    document = describe(visitedPages=views, pagesViewed=1_200)
    assert len(document.metadata["facts"]["pages"]) == MAX_PAGES
    assert document.metadata["facts"]["pagesListed"] == 1_200
    assert "Pages: /gallery/0, /gallery/1, /gallery/2 and many more." in document.content


def test_the_users_id_in_a_path_is_left_out() -> None:
    path = f"/welcome?user={USER_ID}&tab=1"
    session = parse(entryPage=path, visitedPages=[{"path": path}, {"path": f"/of/{quote(USER_ID)}"}], pagesViewed=2)
    assert session.entry_page == "/welcome"
    assert [page.path for page in session.pages] == ["/welcome", "/of/…"]


# where it came from


@pytest.mark.parametrize(
    ("source", "medium", "referrer", "found"),
    [
        ("Twitter", "social", "t.co", "twitter/social"),
        ("partner", None, None, "partner/none"),
        (None, None, "google.com", "referral/google.com"),
        (None, "email", "google.com", "referral/google.com"),
        (None, None, None, "direct"),
        ("(direct)", None, None, "direct"),
    ],
)
def test_traffic_is_told_in_the_words_of_the_journeys(
    source: str | None, medium: str | None, referrer: str | None, found: str
) -> None:
    assert find_traffic_source(source, medium, referrer) == found


@pytest.mark.parametrize("raw", ["direct", "Direct", "", None, "null"])
def test_no_referrer_is_direct_traffic(raw: object) -> None:
    session = parse(referrer=raw, utmData=None)
    assert (session.traffic_source, session.referrer, session.warnings) == ("direct", None, "")
    assert "Direct traffic." in describe_session(session).content


def test_a_referrer_that_is_no_address_is_left_out_and_named() -> None:
    assert parse(referrer="somewhere").warnings == "referrer of type str left out"


def test_campaign_parameters_hold_nobody() -> None:
    found = facts(utmData={"source": "news", "campaign": "for mira@quaymail.example", "content": USER_ID})
    assert (found["utmSource"], found["utmCampaign"]) == ("news", "for …")
    assert "utmContent" not in found


@pytest.mark.parametrize("raw", ["source=news", ["news"]])
def test_campaign_data_that_is_no_document_is_left_out_and_named(raw: object) -> None:
    assert parse(utmData=raw).warnings == f"utmData of type {type(raw).__name__} left out"


# wallets


def test_a_placeholder_is_no_wallet_and_makes_nobody_a_web3_user() -> None:
    none = {"walletAddress": "No Wallet Detected", "walletType": "No Wallet Detected", "chainName": "No Chain Detected"}
    session = parse(wallet=none)
    assert (session.wallet, session.web3) == (None, None)
    assert session.warnings == "isWeb3User is set without a wallet"
    assert parse(wallet=none, isWeb3User=False).web3 is False
    assert "No wallet connected." in describe(wallet=none).content


def test_a_wallets_software_makes_a_web3_user_without_a_connection() -> None:
    seen = {"walletAddress": "Not Connected", "walletType": "MetaMask", "chainName": "Not Connected"}
    session = parse(wallet=seen, isWeb3User=False)
    assert session.web3 is True
    assert "wallet" not in describe_session(session).metadata["facts"]
    assert "Wallet software seen: MetaMask." in describe_session(session).content


def test_an_address_is_in_the_facts_in_full_and_in_the_text_by_its_beginning() -> None:
    document = describe()
    assert document.metadata["facts"]["wallet"] == WALLET
    assert "Wallet connected: 0x57f999 (MetaMask on Ethereum)." in document.content
    assert WALLET not in document.content + document.summary


# browsers and devices


def test_a_device_that_is_no_document_is_left_out_and_named() -> None:
    session = parse(device="desktop", browser=None)
    assert (session.device, session.system, session.browser) == (None, None, None)
    assert session.warnings == "device of type str left out"


def test_a_whole_user_agent_is_stored_nowhere() -> None:
    agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"
    document = describe(browser={"name": agent, "version": agent}, device={"type": "desktop", "os": agent})
    assert "Mozilla" not in repr(document)
    assert "AppleWebKit" not in repr(document)


# documents


def test_the_text_says_what_where_how_long_from_where_who_and_when() -> None:
    assert describe().content == (
        "Visit (session) to Lantern Swap: 4 pages in 8 minutes. Entered at /, left at /app/stake. Pages: /app, "
        "/pricing. Came from twitter / social, campaign spring-sale. Returning visitor, visit 3, country DE, desktop, "
        "Chrome on Windows. Wallet connected: 0x57f999 (MetaMask on Ethereum). 3 March 2025."
    )


def test_a_text_of_what_little_is_known_is_still_a_text() -> None:
    bare = {name: make_session()[name] for name in ("_id", "sessionId", "siteId", "startTime")}
    assert SOURCE.describe(bare, OWNERS, NOW_MS).content == (
        "Visit (session) to Lantern Swap. Direct traffic. No wallet connected. 3 March 2025."
    )


def test_an_ordinary_text_stays_within_120_tokens_and_holds_no_id() -> None:
    content = describe().content
    assert count_tokens([content])[0] <= 120
    assert SESSION_ID not in content
    assert not re.search(r"visitor-|[0-9a-f]{12}", content)


def test_a_session_is_filed_under_its_site_and_its_session_id() -> None:
    document = describe()
    assert document.key == f"session:{SITE_ID}:{SESSION_ID}"
    assert (document.source_type, document.source_id) == ("session", "65e000000000000000000001")
    assert (document.holder_id, document.site_id, document.team_id) == (SITE_ID, SITE_ID, str(TEAM_ID))


def test_filters_find_a_visit_by_what_is_in_its_metadata() -> None:
    metadata = describe().metadata
    assert metadata["timeframe"] == {"start": START, "end": START + timedelta(seconds=480)}
    assert (metadata["dataType"], metadata["category"], metadata["deviceType"]) == ("event", "visit", "desktop")
    assert metadata["aggregationLevel"] == "raw"
    assert {"returning visitor", "wallet connected", "twitter", "spring-sale", "de"} <= set(metadata["tags"])
    assert all(tag == tag.lower() for tag in metadata["tags"])


def test_a_visit_with_a_wallet_matters_more_than_a_bounce() -> None:
    bounce = describe(duration=3, pagesViewed=1, visitedPages=[], wallet=None, utmData=None, isWeb3User=False)
    assert bounce.content.startswith("Bounced visit (session) to Lantern Swap: 1 page in 3 seconds.")
    assert bounce.metadata["importance"] < 5 < describe().metadata["importance"]


def test_every_warning_takes_a_tenth_of_the_confidence_down_to_a_half() -> None:
    assert describe().metadata["confidence"] == 1.0
    assert describe(country="Germany").metadata["confidence"] == 0.9
    assert facts(country="Germany")["warnings"] == "country is no code of two letters and is left out"
    ruin: dict[str, Any] = {
        name: [] for name in ("duration", "country", "device", "utmData", "wallet", "browser", "referrer")
    }
    assert describe(**ruin).metadata["confidence"] == 0.5


def test_the_summary_names_the_minute() -> None:
    assert describe().summary == (
        "Visit · Lantern Swap · 4 pages in 8 minutes · twitter/social · DE · wallet connected · 2025-03-03 14:05 UTC"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (5_340, "89 minutes"),
        (5_400, "1.5 hours"),
        (7_200, "2 hours"),
        (172_800, "2 days"),
        (2_180_000, "25 days"),
    ],
)
def test_durations_are_told_as_people_tell_them(seconds: float, said: str) -> None:
    assert say_seconds(seconds) == said


def test_sources_are_told_as_people_tell_them() -> None:
    assert [say_source(source) for source in ("twitter/social", "referral/t.co", "direct", "x")] == [
        "twitter / social",
        "t.co (referral)",
        "direct traffic",
        "x",
    ]


def test_sessions_have_no_source_without_a_key() -> None:
    with pytest.raises(TerminalError):
        make_session_source(b"")


def test_the_source_reads_every_field_that_parsing_reads() -> None:
    record = make_session()
    read = {name.partition(".")[0] for name in SOURCE.fields}
    assert read == set(record) - {"_id"}
    assert "thirty-two" not in repr(SOURCE)


# any record at all

HIDDEN_ID = "mira-okafor-3f9a1c"
around = st.sampled_from(
    ["{}", "/of/{}", "/x?u={}", "for {} now", "https://{}/", "https://a.example/{}", "'{}'", "-{}"]
)
spelt = st.sampled_from([HIDDEN_ID, HIDDEN_ID.upper(), quote(HIDDEN_ID), HIDDEN_ID.replace("-", "%2D")])
naming = st.builds(lambda text, user_id: text.replace("{}", user_id), around, spelt)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=30)
    | naming
    | st.sampled_from(
        ["/app", "Chrome", "0x" + "a" * 40, "2025-03-03", "x" * 9_000, Decimal128("NaN"), MaxKey(), Regex("a")]
    )
    | st.datetimes()
    | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
    | st.binary(min_size=12, max_size=12).map(ObjectId)
)
inner = st.sampled_from(
    [
        *("path", "duration", "source", "medium", "campaign", "content", "utm_id", "name", "type", "os"),
        *("walletAddress", "walletType", "chainName"),
    ]
)
values = st.recursive(
    scalars, lambda held: st.lists(held, max_size=3) | st.dictionaries(inner, held, max_size=3), max_leaves=6
)
records = st.dictionaries(st.sampled_from(sorted(set(make_session()) - {"userId", "siteId"})), values)


@given(records, st.sampled_from([HIDDEN_ID, f" {HIDDEN_ID} "]))
def test_any_record_is_described_or_refused_and_names_nobody(changes: dict[str, Any], user_id: str) -> None:
    record = make_session(userId=user_id, **changes)
    document, reason = None, ""
    try:
        document = SOURCE.describe(record, OWNERS, NOW_MS)
    except RecordError as error:
        reason = error.reason
    assert HIDDEN_ID not in f"{document!r} {reason}".lower()
    if document is None:
        return
    assert document == SOURCE.describe(record, OWNERS, NOW_MS)
    assert encode_head(document) == encode_head(SOURCE.describe(record, OWNERS, NOW_MS))
    assert len(document.summary) <= MAX_SUMMARY_CHARS
    assert document.content.strip()
    assert all(document.metadata["tags"])
    assert document.metadata["timeframe"]["start"] <= document.metadata["timeframe"]["end"]


@given(st.integers(EARLIEST_MS, NOW_MS))
def test_every_possible_start_is_told_to_the_millisecond(start_ms: int) -> None:
    assert parse(startTime=DatetimeMS(start_ms)).start_ms == start_ms
    assert round(moment_of(start_ms).timestamp() * 1000) == start_ms
