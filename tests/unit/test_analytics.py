"""Analytics: one website's totals since it is tracked. Counters may disagree, pages are named, users never are."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from blocks.tokens import count_tokens
from tasks.domain.analytics import ANALYTICS, FACT_PAGES, PageNames
from tasks.domain.chunks import MAX_CONTENT_CHARS, ChunkSize
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.rows import encode_head
from tests.builders import NOW, NOW_MS, RECIPIENT, TEAM_ID, WALLET

SITE_ID = "0b4ff0ab-6e5c-4f0e-9a8e-7d5a1c2b3d4e"
MADE = datetime(2024, 3, 3, 12, tzinfo=UTC)
LAST = datetime(2025, 6, 12, 9, 30, tzinfo=UTC)
OWNERS = Owners.from_records(
    [],
    [{"_id": TEAM_ID}],
    [{"_id": ObjectId(), "siteId": SITE_ID, "team": TEAM_ID, "Name": "Tidewater", "Domain": "tidewater.example"}],
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(max_size=30),
        st.datetimes(),
        st.sampled_from([Decimal128("NaN"), Decimal128("12"), Int64(3), WALLET, "/app", "No Wallet Detected"]),
        st.builds(ObjectId),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["day", "count", "percentage", "sequence", "walletAddress", "sourceMedium"])
            | st.text(max_size=9),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def made_at(moment: datetime, number: int = 1) -> ObjectId:
    return ObjectId(f"{int(moment.timestamp()):08x}{number:016x}")


def make_row(**changes: Any) -> dict[str, Any]:
    """Return a row of analytics of four users, whose counters agree."""
    record: dict[str, Any] = {
        "_id": made_at(MADE),
        "siteId": SITE_ID,
        "websiteUrl": "https://tidewater.example",
        "totalVisitors": 10,
        "uniqueVisitors": 4,
        "newVisitors": 4,
        "returningVisitors": 6,
        "web3Visitors": 2,
        "walletsConnected": 2,
        "totalPageViews": 25,
        "crossDeviceUsers": 1,
        "avgSessionsPerUser": 2.5,
        "avgTimeBetweenSessions": 93_600,
        "avgDaysActive": 1.5,
        "bounceRate": "37.20",
        "userId": ["user_1700000000001_a", "ann.harbour@mail.example", "user_3", "user_4"],
        "web3UserId": ["user_3", "user_4"],
        "userAgents": ["Mozilla/5.0 (Windows NT 10.0) Secret/1"],
        "pageViews": {"/": 14, "/app": 8, "/faq_html": 3},
        "entryPages": {"/": 9, "/app": 1},
        "exitPages": {"/app": 6, "/": 4},
        "sessions": [made_at(LAST - timedelta(days=9), 2), made_at(LAST, 3)],
        "wallets": [
            {"walletAddress": WALLET, "walletType": "MetaMask", "chainName": "Ethereum Mainnet"},
            {"walletAddress": RECIPIENT, "walletType": "Rabby", "chainName": "Base"},
        ],
        "commonPathways": [
            {"sequence": ["/", "/app"], "count": 5, "conversionCount": 2, "averageDuration": 130.0},
            {"sequence": ["/", "/faq"], "count": 7, "conversionCount": 0, "averageDuration": 20},
        ],
        "conversionPaths": [
            {
                "sourceMedium": "twitter/social",
                "pathToConversion": ["/", "/connect"],
                "conversionCount": 2,
                "avgTimeToConversion": 7_200,
            }
        ],
        "retentionByDay": [
            {"day": 7, "count": 1, "percentage": 25},
            {"day": 1, "count": 2, "percentage": 50.0},
            {"day": 2, "count": 1, "percentage": 25},
        ],
    }
    return {**record, **changes}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in make_row().items() if name not in names}


def describe(**changes: Any) -> Document:
    return ANALYTICS.describe(make_row(**changes), OWNERS, NOW_MS)


def facts(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = describe(**changes).metadata["facts"]
    return found


def warnings(**changes: Any) -> str | None:
    found: str | None = facts(**changes).get("warnings")
    return found


def refusal(**changes: Any) -> str:
    with pytest.raises(RecordError) as refused:
        describe(**changes)
    return refused.value.code


def test_the_text_tells_totals_pages_ways_retention_and_wallets() -> None:
    assert describe().content == (
        "Website Tidewater (tidewater.example), all-time totals since 3 March 2024: 10 visitors, 4 unique visitors, "
        "4 new visitors, 6 returning visitors, 2 web3 visitors, 2 wallet connections, 25 page views, "
        "1 cross-device user. "
        "On average 2.5 sessions per user, 1.5 active days per user, 1 day 2 h between sessions, bounce rate 37.2 %. "
        "Top pages: / (14), /app (8), /faq.html (3). Entry pages: / (9), /app (1). Exit pages: /app (6), / (4). "
        "Common pathways: / > /faq (7 times); / > /app (5 times, 2 converted). "
        "Paths to conversion: twitter/social: / > /connect (2 conversions, after 2 h). "
        "Retention: 50 % after 1 day, 25 % after 7 days. "
        "Wallets: MetaMask 1, Rabby 1; on Base 1, Ethereum 1."
    )
    assert describe().summary.startswith("Website Tidewater (tidewater.example) · all-time totals · 10 visitors,")


def test_the_facts_hold_the_exact_figures() -> None:
    assert facts() == {
        "host": "tidewater.example",
        "cumulative": True,
        "since": MADE,
        "until": LAST,
        "totalVisitors": 10,
        "uniqueVisitors": 4,
        "newVisitors": 4,
        "returningVisitors": 6,
        "web3Visitors": 2,
        "walletsConnected": 2,
        "totalPageViews": 25,
        "crossDeviceUsers": 1,
        "avgSessionsPerUser": 2.5,
        "avgTimeBetweenSessions": 93_600.0,
        "avgDaysActive": 1.5,
        "bounceRate": 37.2,
        "sessions": 2,
        "pages": 3,
        "topPages": [{"page": "/", "views": 14}, {"page": "/app", "views": 8}, {"page": "/faq.html", "views": 3}],
        "entryPages": [{"page": "/", "visits": 9}, {"page": "/app", "visits": 1}],
        "exitPages": [{"page": "/app", "visits": 6}, {"page": "/", "visits": 4}],
        "pathways": [
            {"pages": ["/", "/faq"], "count": 7, "conversions": 0, "averageSeconds": 20.0},
            {"pages": ["/", "/app"], "count": 5, "conversions": 2, "averageSeconds": 130.0},
        ],
        "conversionPaths": [
            {
                "sourceMedium": "twitter/social",
                "pages": ["/", "/connect"],
                "conversions": 2,
                "averageSecondsToConversion": 7_200.0,
            }
        ],
        "retention": [
            {"day": 1, "count": 2, "percent": 50.0},
            {"day": 2, "count": 1, "percent": 25.0},
            {"day": 7, "count": 1, "percent": 25.0},
        ],
        "walletsListed": 2,
        "wallets": [
            {"address": RECIPIENT, "kind": "Rabby", "chain": "Base"},
            {"address": WALLET, "kind": "MetaMask", "chain": "Ethereum"},
        ],
    }


def test_the_metadata_say_what_it_is_about() -> None:
    metadata = {name: value for name, value in describe().metadata.items() if name != "facts"}
    assert metadata == {
        "timeframe": {"start": MADE, "end": LAST},
        "dataType": "metric",
        "tags": ["traffic", "totals", "pages", "retention", "pathways", "web3", "wallets"],
        "category": "traffic",
        "metricType": "totals",
        "importance": 8,
        "confidence": 1.0,
    }


def test_analytics_are_those_of_their_site() -> None:
    document = describe()
    assert document.key == f"analytics:{SITE_ID}"
    assert (document.source_type, document.source_id) == ("analytics", str(made_at(MADE)))
    assert (document.holder_id, document.site_id, document.team_id) == (SITE_ID, SITE_ID, str(TEAM_ID))


# --- identity, owner, time


@pytest.mark.parametrize("raw", ["imported-1", None, 17])
def test_an_id_that_is_no_object_id_refuses_the_row(raw: object) -> None:
    assert refusal(_id=raw) == "id_not_objectid"


def test_a_row_without_an_owner_is_refused() -> None:
    assert refusal(siteId=None) == "site_missing"
    assert refusal(siteId="demo_site_2") == "site_unknown"


def test_a_row_has_no_time_but_the_ones_in_ids() -> None:
    assert ANALYTICS.time_field is None
    assert ANALYTICS.read_time(make_row()) == round(MADE.timestamp() * 1000)
    assert ANALYTICS.read_time({"_id": "imported-1"}) is None
    assert describe(sessions=[]).metadata["timeframe"] == {"start": MADE, "end": MADE}
    assert describe(sessions=None).metadata["timeframe"] == {"start": MADE, "end": MADE}


def test_a_session_of_the_future_says_nothing_about_when_counting_ended() -> None:
    found = describe(sessions=[made_at(LAST), made_at(NOW + timedelta(days=2)), "session_1", None])
    assert found.metadata["timeframe"]["end"] == LAST
    assert found.metadata["facts"]["sessions"] == 2


# --- counters


def test_missing_fields_are_no_fault() -> None:
    document = ANALYTICS.describe({"_id": made_at(MADE), "siteId": SITE_ID}, OWNERS, NOW_MS)
    assert document.content == ("Website Tidewater (tidewater.example), all-time totals since 3 March 2024: no totals.")
    assert document.metadata["facts"] == {
        "cumulative": True,
        "since": MADE,
        "until": MADE,
        "pages": 0,
        "walletsListed": 0,
    }
    assert document.metadata["confidence"] == 1.0


def test_a_row_of_before_journeys_were_counted_tells_the_rest() -> None:
    row = without("commonPathways", "conversionPaths", "retentionByDay")
    document = ANALYTICS.describe(row, OWNERS, NOW_MS)
    assert "Retention" not in document.content
    assert "10 visitors" in document.content
    assert "warnings" not in document.metadata["facts"]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("totalVisitors", math.nan),
        ("totalVisitors", 10**15),
        ("returningVisitors", -1),
        ("totalPageViews", "many"),
        ("avgDaysActive", -1),
        ("avgSessionsPerUser", math.inf),
        ("bounceRate", "half"),
        ("bounceRate", 140),
        ("web3Visitors", Decimal128("NaN")),
    ],
)
def test_a_counter_that_can_not_be_is_left_out_and_named(name: str, raw: object) -> None:
    found = facts(**{name: raw})
    assert name not in found
    assert found["warnings"] == f"{name} {str(raw)!r} left out"


@pytest.mark.parametrize("raw", [10, 10.0, Int64(10), Decimal128("10"), "10"])
def test_counters_are_read_in_every_form(raw: object) -> None:
    assert describe(totalVisitors=raw) == describe()


def test_counters_that_disagree_stand_as_they_are_with_a_warning() -> None:
    assert warnings(uniqueVisitors=7) == "uniqueVisitors says 7, and the list of users has 4"
    assert warnings(walletsConnected=4) == "walletsConnected says 4, and the list of wallets has 2"
    assert warnings(returningVisitors=7) == "newVisitors and returningVisitors are 11 together, totalVisitors 10"
    found = describe(uniqueVisitors=7, walletsConnected=4)
    assert found.metadata["facts"]["uniqueVisitors"] == 7
    assert found.metadata["confidence"] == 0.8


def test_what_is_missing_disagrees_with_nothing() -> None:
    assert warnings(userId=None, wallets=None, newVisitors=None) is None


# --- pages


def page_counts(**pages: int) -> dict[str, int]:
    found = facts(pageViews=pages)["topPages"]
    return {page["page"]: page["views"] for page in found}


@pytest.mark.parametrize(
    ("key", "page"),
    [
        ("/", "/"),
        ("/app", "/app"),
        ("/caf%C3%A9", "/café"),
        ("/about%20us", "/about us"),
        ("/faq_html", "/faq.html"),
        ("/papers/whitepaper_pdf", "/papers/whitepaper.pdf"),
        ("/docs/v1_2/start", "/docs/v1_2/start"),
        ("/how_to", "/how_to"),
        ("/_html", "/_html"),
        ("https://tidewater_example/app/swap", "/app/swap"),
        ("https:/tidewater_example/faq_html", "/faq.html"),
        ("http://www_tidewater_example", "/"),
        ("/welcome?user=ann&tab=1", "/welcome"),
        ("/#/pool", "/#/pool"),
        ("/\u202eecirp\u202c", "/ecirp"),
        ("/a\0b", "/a b"),
        ("/50%", "/50%"),
    ],
)
def test_a_key_names_a_page_as_far_as_can_be_known(key: str, page: str) -> None:
    assert PageNames().page(key) == page


def test_keys_that_name_one_page_are_added_up() -> None:
    pages = {"/app": 2, "https://tidewater_example/app": 3, "/app?tab=1": 5, "/about%20us": 1, "/about us": 1}
    assert page_counts(**pages) == {"/app": 10, "/about us": 2}


def test_pages_are_in_the_order_of_their_views_whatever_theirs_was() -> None:
    one, other = {"/a": 1, "/b": 5, "/c": 5}, {"/c": 5, "/a": 1, "/b": 5}
    assert list(page_counts(**one)) == ["/b", "/c", "/a"]
    assert describe(pageViews=one) == describe(pageViews=other)


def test_only_the_first_pages_are_told_and_all_are_counted() -> None:
    found = facts(pageViews={f"/page-{number:03}": 1_000 - number for number in range(300)})
    assert len(found["topPages"]) == FACT_PAGES
    assert found["pages"] == 300


def test_views_that_can_not_be_read_are_left_out_together() -> None:
    assert (
        warnings(pageViews={"/": 4, "/odd": "many", "/worse": None, "/worst": math.nan})
        == "pageViews: 3 entries left out"
    )
    assert warnings(pageViews={"/": 4, "/odd": "many"}) == "pageViews: 1 entry left out"
    assert page_counts(**{"/": 4, "/text": "5"}) == {"/text": 5, "/": 4}  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [None, "", {}])
def test_no_map_of_pages_is_no_fault(raw: object) -> None:
    document = describe(pageViews=raw)
    assert "Top pages" not in document.content
    assert "warnings" not in document.metadata["facts"]


def test_a_long_key_is_told_in_short() -> None:
    document = describe(pageViews={"/deep" * 1_000: 1})
    assert len(document.metadata["facts"]["topPages"][0]["page"]) <= 200
    assert len(document.content) < 1_500


# --- users


def test_no_user_is_ever_named() -> None:
    mail, long_id = "ann.harbour@mail.example", "user_1700000000001_a"
    pages = {
        f"/profile/{long_id}": 3,
        f"/p/{mail.replace('.', '_')}": 2,
        "/p/ann%2Eharbour%40mail%2Eexample": 2,
        f"/welcome?user={mail}": 1,
        f"/{long_id.upper()}/x": 1,
        "/team/user_3": 1,
    }
    ways = [{"sequence": [f"/u/{mail}", f"/x/{long_id}"], "count": 1}]
    paths = [{"sourceMedium": f"invite/{long_id}", "pathToConversion": [f"/{long_id}"], "conversionCount": 1}]
    document = describe(pageViews=pages, entryPages=pages, commonPathways=ways, conversionPaths=paths, uniqueVisitors=9)
    told = (document.content + document.summary + str(document.metadata)).lower()
    for personal in (mail, mail.replace(".", "_"), long_id, "harbour", "user_3", "user_4", "mozilla"):
        assert personal not in told
    assert document.metadata["facts"]["pathways"]
    assert document.metadata["facts"]["topPages"]


@pytest.mark.parametrize("raw", ["user_9", {"id": "user_9"}, 17])
def test_a_list_of_users_that_is_none_is_left_out_without_a_word_of_it(raw: object) -> None:
    document = describe(userId=raw)
    assert document.metadata["facts"]["warnings"] == f"userId of type {type(raw).__name__} left out"
    assert "user_9" not in str(document)


def test_user_agents_and_journeys_are_not_read() -> None:
    assert not {"userAgents", "userJourneys"} & set(ANALYTICS.fields)
    assert describe(userAgents=None, userJourneys=[{"userId": "user_3"}]) == describe()


@given(
    st.lists(st.from_regex(r"[a-z][a-z0-9_.@-]{8,20}", fullmatch=True), min_size=1, max_size=4, unique=True),
    st.sampled_from(["/profile/{}", "/x?u={}", "https://tidewater_example/{}", "/#/u/{}", "/a-{}-b", "{}"]),
)
def test_an_id_in_a_path_is_hidden_wherever_it_stands(user_ids: list[str], path: str) -> None:
    pages = {path.format(user_id).replace(".", "_"): 2 for user_id in user_ids}
    ways = [{"sequence": ["/", path.format(user_id)], "count": 1} for user_id in user_ids]
    document = describe(userId=user_ids, web3UserId=[], pageViews=pages, exitPages=pages, commonPathways=ways)
    told = str(document).lower()
    for user_id in user_ids:
        assert user_id not in told
        assert user_id.replace(".", "_") not in told


# --- wallets, ways, retention


def test_a_wallet_counts_once_by_its_address_and_placeholders_are_none() -> None:
    listed = [
        {"walletAddress": WALLET, "walletType": "MetaMask", "chainName": "Ethereum Mainnet"},
        {"walletAddress": WALLET.upper().replace("0X", "0x"), "walletType": "MetaMask", "chainName": "Ethereum"},
        {"walletAddress": "No Wallet Detected", "walletType": "No Wallet Detected", "chainName": "No Chain Detected"},
        {"walletAddress": "", "walletType": "MetaMask", "chainName": "Error"},
    ]
    found = facts(wallets=listed, walletsConnected=4)
    assert found["wallets"] == [{"address": WALLET, "kind": "MetaMask", "chain": "Ethereum"}]
    assert found["walletsListed"] == 1
    assert "warnings" not in found
    assert facts(wallets=listed[::-1], walletsConnected=4) == found


def test_no_address_stands_in_the_text() -> None:
    ways = [{"sourceMedium": f"ref/{WALLET}", "pathToConversion": [f"/wallet/{WALLET}"], "conversionCount": 1}]
    document = describe(pageViews={f"/wallet/{WALLET}": 3}, conversionPaths=ways)
    assert WALLET not in document.content
    assert WALLET[2:] not in document.content


@pytest.mark.parametrize("name", ["wallets", "commonPathways", "conversionPaths", "retentionByDay", "sessions"])
def test_a_list_that_is_none_is_left_out_and_named(name: str) -> None:
    found = describe(**{name: {"0": 1}})
    assert found.metadata["facts"]["warnings"] == f"{name} of type dict left out"


def test_a_pathway_may_be_a_text_with_arrows() -> None:
    found = facts(commonPathways=[{"sequence": "/ -> /app → /swap", "count": 2}])
    assert found["pathways"] == [{"pages": ["/", "/app", "/swap"], "count": 2}]


def test_a_pathway_without_pages_is_left_out_and_named() -> None:
    found = facts(commonPathways=[{"sequence": [], "count": 2}, {"count": 1}, None])
    assert "pathways" not in found
    assert found["warnings"] == (
        "commonPathways: what is no document left out; commonPathways: a path without pages left out"
    )


def test_a_conversion_on_the_first_visit_took_no_time() -> None:
    path = {"sourceMedium": "direct", "pathToConversion": ["/"], "conversionCount": 1, "avgTimeToConversion": 0}
    assert "direct: / (1 conversion, on the first visit)." in describe(conversionPaths=[path]).content


def test_a_day_of_retention_that_is_told_twice_is_told_once() -> None:
    pair = [{"day": 1, "count": 2, "percentage": 50}, {"day": 1, "count": 3, "percentage": 75}]
    found = facts(retentionByDay=pair)
    assert len(found["retention"]) == 1
    assert found["warnings"] == "retentionByDay: two entries of day 1 disagree"
    assert facts(retentionByDay=pair[::-1]) == found


def test_a_share_above_all_is_left_out() -> None:
    found = facts(retentionByDay=[{"day": 1, "count": 2, "percentage": 140}])
    assert found["retention"] == [{"day": 1, "count": 2}]
    assert found["warnings"] == "retentionByDay.percentage '140' left out"


def test_an_address_of_the_website_that_is_none_is_left_out_and_named() -> None:
    assert warnings(websiteUrl="tidewater") == "websiteUrl is no address and is left out"
    assert warnings(websiteUrl=None) is None


# --- all together


def test_a_large_row_has_a_text_that_stays_whole() -> None:
    row = make_row(
        userId=[f"user_{number:09}" for number in range(2_000)],
        uniqueVisitors=2_000,
        pageViews={f"/section-{number}/{'page-' * 20}": number for number in range(400)},
    )
    document = ANALYTICS.describe(row, OWNERS, NOW_MS)
    assert len(document.content) < MAX_CONTENT_CHARS
    assert len(document.summary) <= MAX_SUMMARY_CHARS
    assert count_tokens([document.content])[0] <= ChunkSize().whole_tokens
    assert len(encode_head(document)) < 20_000


@given(st.dictionaries(st.sampled_from(ANALYTICS.fields), ANYTHING))
def test_a_row_of_anything_is_described_or_refused(fields: dict[str, Any]) -> None:
    for changes in (fields, {**fields, "siteId": SITE_ID}):
        row = make_row(**changes)
        try:
            document = ANALYTICS.describe(row, OWNERS, NOW_MS)
        except RecordError:
            continue
        assert encode_head(document) == encode_head(ANALYTICS.describe(row, OWNERS, NOW_MS))
        assert bson.encode(document.metadata)
        assert len(document.content) < MAX_CONTENT_CHARS
        assert len(document.summary) <= MAX_SUMMARY_CHARS
        assert WALLET not in document.content
