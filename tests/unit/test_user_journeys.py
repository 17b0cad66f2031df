"""User journeys: one document for each visitor of a website, wherever its item stands in the list."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
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
from tasks.domain.personal import name_visitor
from tasks.domain.rows import encode_head
from tasks.domain.user_journeys import (
    UserJourney,
    make_user_journey_source,
    parse_user_journey,
    split_user_journeys,
)
from tests.builders import NOW_MS, SITE_ID, TEAM_ID

KEY = b"a key of thirty-two bytes, or so"
USER_ID = "mira.okafor.3f9a1c@harborpost.example"
FIRST = datetime(2025, 3, 3, 14, 5, tzinfo=UTC)
ANALYTICS_ID = ObjectId("67e000000000000000000001")
ITEM_ID = ObjectId("67e000000000000000000002")
OWNERLESS_SITE = "site-of-nobody"
OWNERS = Owners.from_records(
    [],
    [{"_id": TEAM_ID, "name": "One"}],
    [
        {"_id": ObjectId(), "siteId": SITE_ID, "team": TEAM_ID, "Name": "Lantern Swap", "Domain": "lantern.example"},
        {"_id": ObjectId(), "siteId": OWNERLESS_SITE},
    ],
)
SOURCE = make_user_journey_source(KEY)


def make_item(**changes: Any) -> dict[str, Any]:
    """Return an item of ``userJourneys``: a visitor who connected a wallet on the third visit."""
    item: dict[str, Any] = {
        "_id": ITEM_ID,
        "userId": USER_ID,
        "firstVisit": FIRST,
        "lastVisit": FIRST + timedelta(days=17),
        "totalSessions": 6,
        "totalPageViews": 23,
        "totalTimeSpent": 2_460,
        "hasConverted": True,
        "daysToConversion": 3,
        "sessionsBeforeConversion": 2,
        "userSegment": "converter",
        "acquisitionSource": "Twitter/social",
    }
    return {**item, **changes}


def make_row(items: object, **changes: Any) -> dict[str, Any]:
    """Return a record of ``analytics`` that holds these journeys."""
    return {"_id": ANALYTICS_ID, "siteId": SITE_ID, "userJourneys": items, **changes}


def split(items: object) -> list[dict[str, Any]]:
    return list(split_user_journeys(make_row(items), KEY))


def parse(**changes: Any) -> UserJourney:
    (record,) = split([make_item(**changes)])
    return parse_user_journey(record, OWNERS, key=KEY, now_ms=NOW_MS)


def describe(**changes: Any) -> Document:
    (record,) = split([make_item(**changes)])
    return SOURCE.describe(record, OWNERS, NOW_MS)


def refusal(item: object, site_id: object = SITE_ID) -> str:
    (record,) = split_user_journeys(make_row([item], siteId=site_id), KEY)
    with pytest.raises(RecordError) as refused:
        parse_user_journey(record, OWNERS, key=KEY, now_ms=NOW_MS)
    return refused.value.code


def ids(records: Iterable[dict[str, Any]]) -> set[ObjectId]:
    return {record["_id"] for record in records}


# splitting


def test_a_journey_keeps_its_own_id_and_takes_its_site_along() -> None:
    (record,) = split([make_item(siteId="of the item", extra=1)])
    assert record == {**make_item(), "siteId": SITE_ID, "analyticsId": ANALYTICS_ID}


@pytest.mark.parametrize("row", [{}, {"userJourneys": None}, {"userJourneys": []}])
def test_a_site_without_journeys_has_none(row: dict[str, Any]) -> None:
    assert list(split_user_journeys({"_id": ANALYTICS_ID, "siteId": SITE_ID, **row}, KEY)) == []


@pytest.mark.parametrize("raw", [None, "text", 7, [], ["a"]])
def test_an_item_that_is_no_object_is_refused_and_not_lost(raw: object) -> None:
    (record,) = split([raw])
    assert isinstance(record["_id"], ObjectId)
    assert "text" not in repr(record)
    assert refusal(raw) == "journey_not_an_object"


def test_journeys_that_are_no_list_are_refused_and_not_lost() -> None:
    (record,) = split("user-1,user-2")
    with pytest.raises(RecordError, match="is of type str, not an object"):
        parse_user_journey(record, OWNERS, key=KEY, now_ms=NOW_MS)


def test_a_journey_without_an_id_has_one_that_its_user_decides() -> None:
    (record,) = split([make_item(_id=None)])
    (later,) = split([make_item(_id="text", totalSessions=7)])
    (other,) = split([make_item(_id=None, userId="user_2")])
    assert isinstance(record["_id"], ObjectId)
    assert record["_id"] == later["_id"]
    assert record["_id"] != other["_id"]


def test_the_id_of_a_journey_cannot_be_computed_without_the_key() -> None:
    (record,) = split([make_item(_id=None)])
    (with_another_key,) = split_user_journeys(make_row([make_item(_id=None)]), b"another key")
    assert record["_id"] != with_another_key["_id"]


def test_no_two_items_of_a_site_have_one_id() -> None:
    """A row of a shard is one record: two with the same id would stop the shard."""
    twins = [make_item(), make_item(userId="user_2"), make_item(_id=None), make_item(_id=None, totalSessions=7)]
    items = [*twins, None, None, {}, {}, make_item(), make_item()]
    assert len(ids(split(items))) == len(items)


def test_ids_do_not_depend_on_the_order_of_the_list() -> None:
    items: list[Any] = [
        make_item(),
        make_item(userId="user_2"),
        make_item(_id=None, userId="user_3"),
        make_item(_id=None, userId="user_4", totalSessions=7),
        make_item(_id=None, userId="user_4", totalSessions=8),
        make_item(_id=ObjectId("67e000000000000000000009"), userId="user_5"),
        None,
        None,
        {},
    ]

    def named(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
        return sorted(
            (str(record["_id"]), repr((record.get("userId"), record.get("totalSessions")))) for record in records
        )

    expected = named(split(items))
    dice = random.Random(1)
    for _ in range(20):
        dice.shuffle(items)
        assert named(split(items)) == expected


# what refuses a journey


@pytest.mark.parametrize("raw", [None, "", "undefined", "anonymous", ["a"], 1.5])
def test_a_journey_of_nobody_is_refused(raw: object) -> None:
    assert refusal(make_item(userId=raw)) == "user_id_missing"


def test_an_item_with_nothing_but_an_id_is_refused() -> None:
    assert refusal({"_id": ITEM_ID}) == "user_id_missing"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "first_visit_missing"),
        ("", "first_visit_missing"),
        ("last week", "first_visit_unreadable"),
        (DatetimeMS(253_402_300_800_000), "first_visit_unreadable"),
        (datetime(2099, 12, 31, tzinfo=UTC), "first_visit_in_future"),
        (0, "first_visit_too_early"),
    ],
)
def test_a_journey_without_a_possible_beginning_is_refused(raw: object, code: str) -> None:
    assert refusal(make_item(firstVisit=raw)) == code


@pytest.mark.parametrize(
    ("site_id", "code"),
    [(None, "site_missing"), ("test-site", "site_unknown"), (OWNERLESS_SITE, "owner_missing")],
)
def test_a_journey_that_nobody_owns_is_refused(site_id: object, code: str) -> None:
    assert refusal(make_item(), site_id) == code


# figures


def test_a_sound_journey_is_read_without_a_warning() -> None:
    journey = parse()
    assert journey.warnings == ""
    assert (journey.record_id, journey.analytics_id) == (str(ITEM_ID), str(ANALYTICS_ID))
    assert journey.visitor == name_visitor(SITE_ID, USER_ID, KEY)
    assert (journey.first_ms, journey.last_ms) == (1_741_010_700_000, 1_742_479_500_000)
    assert (journey.sessions, journey.page_views, journey.spent_s) == (6, 23, 2_460)
    assert (journey.converted, journey.days_to_conversion, journey.sessions_before) == (True, 3, 2)
    assert (journey.segment, journey.traffic_source) == ("converter", "twitter/social")


def test_a_journey_of_a_user_and_a_first_visit_is_enough() -> None:
    (record,) = split([{"userId": USER_ID, "firstVisit": FIRST}])
    document = SOURCE.describe(record, OWNERS, NOW_MS)
    assert document.content == "User journey on Lantern Swap: a visitor. First visit 3 March 2025."
    assert "warnings" not in document.metadata["facts"]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"lastVisit": FIRST - timedelta(days=1)}, "lastVisit lies before the start and is left out"),
        ({"lastVisit": datetime(2099, 1, 1, tzinfo=UTC)}, "lastVisit lies in the future and is left out"),
        ({"lastVisit": "soon"}, "lastVisit of type str left out"),
        ({"totalTimeSpent": float("nan")}, "totalTimeSpent 'nan' left out"),
        ({"totalTimeSpent": 1e12}, "totalTimeSpent 1e+12 left out"),
        ({"daysToConversion": -3}, "daysToConversion -3 left out"),
        ({"totalSessions": 1.5}, "totalSessions '1.5' left out"),
        ({"totalPageViews": 5}, "totalPageViews is 5, below totalSessions, which is 6"),
        ({"userSegment": "whale"}, "userSegment is none of the four and is left out"),
        ({"userSegment": "engaged"}, "userSegment disagrees with hasConverted"),
        ({"hasConverted": "perhaps"}, "hasConverted of type str left out"),
        ({"acquisitionSource": "referral/somewhere"}, "acquisitionSource of type str left out"),
        ({"acquisitionSource": ["direct"]}, "acquisitionSource of type list left out"),
        ({"totalTimeSpent": 2_180_000}, "totalTimeSpent is longer than from the first visit to the last"),
    ],
)
def test_what_is_bad_is_left_out_or_doubted_and_named(changes: dict[str, Any], warning: str) -> None:
    assert parse(**changes).warnings == warning
    assert describe(**changes).metadata["confidence"] == 0.9


@pytest.mark.parametrize(
    ("raw", "seconds"), [("37.20", 37.2), (Decimal128("61.5"), 61.5), (Int64(90), 90), (90.0, 90), (None, None)]
)
def test_the_time_spent_comes_in_several_types(raw: object, seconds: float | None) -> None:
    journey = parse(totalTimeSpent=raw)
    assert (journey.spent_s, journey.warnings) == (seconds, "")


def test_whoever_did_not_convert_has_no_way_to_a_conversion() -> None:
    journey = parse(hasConverted="false", userSegment="browser", daysToConversion=0, sessionsBeforeConversion=0)
    assert (journey.converted, journey.days_to_conversion, journey.sessions_before) == (False, None, None)
    assert journey.warnings == ""


@pytest.mark.parametrize(
    ("raw", "source"),
    [
        ("Twitter/social", "twitter/social"),
        ("referral/www.google.com", "referral/google.com"),
        ("referral/https://t.co/abc?u=1", "referral/t.co"),
        ("referral/Direct", "direct"),
        ("direct", "direct"),
        ("newsletter/\u202eemail\u202c", "newsletter/email"),
        ("", None),
        (None, None),
    ],
)
def test_an_acquisition_is_told_in_the_words_of_the_sessions(raw: object, source: str | None) -> None:
    journey = parse(acquisitionSource=raw)
    assert (journey.traffic_source, journey.warnings) == (source, "")


# documents


def test_the_text_says_what_came_of_it_how_much_it_took_from_where_and_when() -> None:
    assert describe().content == (
        "User journey on Lantern Swap: the visitor connected a wallet (converted) after 3 days and 2 visits. 6 visits, "
        "23 page views, 41 minutes in total. First came from twitter / social. First visit 3 March 2025. "
        "Last visit 20 March 2025. Segment: converter."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"daysToConversion": 0, "sessionsBeforeConversion": 0}, "connected a wallet (converted) on the first day."),
        ({"daysToConversion": 0}, "connected a wallet (converted) on the first day after 2 visits."),
        ({"daysToConversion": 1, "sessionsBeforeConversion": 0}, "connected a wallet (converted) after 1 day."),
        ({"daysToConversion": None}, "connected a wallet (converted) after 2 visits."),
        ({"hasConverted": False, "userSegment": "bounced"}, "connected no wallet (not converted)."),
        ({"userSegment": "bounced", "hasConverted": None}, "Segment: bounced."),
    ],
)
def test_the_text_tells_the_way_to_the_conversion(changes: dict[str, Any], said: str) -> None:
    assert said in describe(**changes).content


def test_one_day_is_told_once() -> None:
    assert "Last visit" not in describe(lastVisit=FIRST + timedelta(hours=1)).content


def test_an_ordinary_text_stays_within_120_tokens_and_holds_no_id() -> None:
    content = describe().content
    assert count_tokens([content])[0] <= 120
    assert not re.search(r"visitor-|[0-9a-f]{12}", content)


def test_a_journey_is_filed_under_its_site_and_the_visitors_pseudonym() -> None:
    document = describe()
    assert document.key == f"user_journey:{SITE_ID}:{name_visitor(SITE_ID, USER_ID, KEY)}"
    assert (document.source_type, document.source_id) == ("user_journey", str(ITEM_ID))
    assert (document.holder_id, document.site_id, document.team_id) == (SITE_ID, SITE_ID, str(TEAM_ID))


def test_filters_find_a_journey_by_what_is_in_its_metadata() -> None:
    metadata = describe().metadata
    assert metadata["timeframe"] == {"start": FIRST, "end": FIRST + timedelta(days=17)}
    assert (metadata["dataType"], metadata["userSegment"], metadata["importance"]) == ("journey", "converter", 7)
    assert {"journey", "converted", "converter", "twitter/social"} <= set(metadata["tags"])
    assert metadata["facts"]["trafficSource"] == "twitter/social"
    assert metadata["facts"]["visitor"] == name_visitor(SITE_ID, USER_ID, KEY)
    assert type(describe(totalTimeSpent=90.0).metadata["facts"]["secondsSpent"]) is int


def test_a_window_holds_a_journey_by_its_last_visit() -> None:
    (record,) = split([make_item()])
    assert SOURCE.read_time(record) == 1_742_479_500_000
    assert SOURCE.read_time({**record, "lastVisit": None}) == 1_741_010_700_000
    assert SOURCE.read_time({}) is None


def test_the_summary_tells_the_span() -> None:
    assert describe().summary == (
        "User journey · Lantern Swap · converted · 6 visits, 23 page views, 41 minutes in total · twitter / social · "
        "2025-03-03 14:05 UTC to 2025-03-20 14:05 UTC"
    )


def test_journeys_have_no_source_without_a_key() -> None:
    with pytest.raises(TerminalError):
        make_user_journey_source(b"")


def test_the_source_reads_and_splits_rows_of_analytics() -> None:
    assert (SOURCE.collection, SOURCE.fields) == ("analytics", ("siteId", "userJourneys"))
    assert SOURCE.split is not None
    assert list(SOURCE.split(make_row([make_item()]))) == split([make_item()])
    assert "thirty-two" not in repr(SOURCE)


# any row at all

HIDDEN_ID = "mira-okafor-3f9a1c"
around = st.sampled_from(["{}", "{}/social", "referral/{}", "referral/https://a.example/{}", "for {} now"])
spelt = st.sampled_from([HIDDEN_ID, HIDDEN_ID.upper(), quote(HIDDEN_ID), HIDDEN_ID.replace("-", "%2D")])
naming = st.builds(lambda text, user_id: text.replace("{}", user_id), around, spelt)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=30)
    | naming
    | st.sampled_from(["converter", "direct", "x" * 9_000, Decimal128("NaN"), MaxKey(), Regex("a")])
    | st.datetimes()
    | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
    | st.binary(min_size=12, max_size=12).map(ObjectId)
)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text("ab", max_size=2), scalars, max_size=2)
items = values | st.dictionaries(st.sampled_from(sorted(set(make_item()) - {"userId"})), values).map(
    lambda changes: make_item(userId=HIDDEN_ID, **changes)
)


@given(st.lists(items, max_size=4) | values)
def test_any_row_is_split_and_each_journey_described_or_refused(held: object) -> None:
    records = split(held)
    assert len(ids(records)) == len(records)
    assert records == split(held)
    for record in records:
        document, reason = None, ""
        try:
            document = SOURCE.describe(record, OWNERS, NOW_MS)
        except RecordError as error:
            reason = error.reason
        assert HIDDEN_ID not in f"{document!r} {reason}".lower()
        if document is None:
            continue
        assert encode_head(document) == encode_head(SOURCE.describe(record, OWNERS, NOW_MS))
        assert len(document.summary) <= MAX_SUMMARY_CHARS
        assert all(document.metadata["tags"])
        assert document.metadata["timeframe"]["start"] <= document.metadata["timeframe"]["end"]
