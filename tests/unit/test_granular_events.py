"""Events: what was done, where and when; never the words that stood on what was clicked."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from bson import Decimal128, ObjectId, Regex
from bson.datetime_ms import DatetimeMS
from bson.max_key import MaxKey
from hypothesis import given
from hypothesis import strategies as st

from blocks.tokens import count_tokens
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document
from tasks.domain.errors import RecordError, TerminalError
from tasks.domain.granular_events import GranularEvent, make_granular_event_source, parse_granular_event
from tasks.domain.owners import Owners
from tasks.domain.personal import name_visitor
from tasks.domain.rows import encode_head
from tests.builders import NOW_MS, SITE_ID, TEAM_ID

KEY = b"a key of thirty-two bytes, or so"
USER_ID = "mira.okafor.3f9a1c@harborpost.example"
SESSION_ID = "session_1741010700000_a1b2c3d4e"
AT = datetime(2025, 3, 3, 14, 7, tzinfo=UTC)
OWNERLESS_SITE = "site-of-nobody"
OWNERS = Owners.from_records(
    [],
    [{"_id": TEAM_ID, "name": "One"}],
    [
        {
            "_id": ObjectId(),
            "siteId": SITE_ID,
            "team": TEAM_ID,
            "Name": "Lantern Swap",
            "Domain": "www.lantern.example",
        },
        {"_id": ObjectId(), "siteId": OWNERLESS_SITE},
    ],
)
SOURCE = make_granular_event_source(KEY)


def make_data(**changes: Any) -> dict[str, Any]:
    """Return an ``eventData``: the button that connects a wallet."""
    data: dict[str, Any] = {
        "tagName": "BUTTON",
        "id": "connect-wallet",
        "className": "btn btn-primary",
        "innerText": "Hi, Mira Okafor",
        "href": "",
        "dataId": "",
        "referrer": "https://www.google.com/",
        "os": "Windows",
        "resolution": "1920x1080",
        "language": "de-DE",
        "country": "DE",
        "sessionDuration": 120,
        "pagesPerVisit": 2,
        "isBounce": False,
        "walletConnected": False,
        "browser": {"name": "Chrome", "version": "126.0"},
        "deviceType": {"type": "Desktop", "os": "Windows"},
    }
    return {**data, **changes}


def make_event(*, data: Any = None, **changes: Any) -> dict[str, Any]:
    """Return a record of ``granularevents``: a click."""
    record: dict[str, Any] = {
        "_id": ObjectId("66e000000000000000000001"),
        "siteId": SITE_ID,
        "userId": USER_ID,
        "sessionId": SESSION_ID,
        "eventType": "ELEMENT_CLICK",
        "pagePath": "/app",
        "timestamp": AT,
        "eventData": make_data() if data is None else data,
    }
    return {**record, **changes}


def parse(**changes: Any) -> GranularEvent:
    return parse_granular_event(make_event(**changes), OWNERS, key=KEY, now_ms=NOW_MS)


def parse_with(**changes: Any) -> GranularEvent:
    return parse(data=make_data(**changes))


def describe(**changes: Any) -> Document:
    return SOURCE.describe(make_event(**changes), OWNERS, NOW_MS)


def refusal(**changes: Any) -> str:
    with pytest.raises(RecordError) as refused:
        parse(**changes)
    return refused.value.code


def test_a_sound_event_is_read_without_a_warning() -> None:
    event = parse()
    assert event.warnings == ""
    assert (event.site_id, event.site_name, event.team_id) == (SITE_ID, "Lantern Swap", str(TEAM_ID))
    assert (event.at_ms, event.kind, event.page, event.session_id) == (
        1_741_010_820_000,
        "ELEMENT_CLICK",
        "/app",
        SESSION_ID,
    )
    assert (event.element, event.element_id, event.element_class) == ("button", "connect-wallet", "btn btn-primary")
    assert (event.into_visit_s, event.pages_in_visit, event.bounced, event.wallet_connected) == (120, 2, False, False)
    assert (event.country, event.language, event.resolution) == ("DE", "de-DE", "1920x1080")
    assert (event.device, event.system, event.browser) == ("desktop", "Windows", "Chrome")
    assert event.visitor == name_visitor(SITE_ID, USER_ID, KEY)


# what refuses an event


@pytest.mark.parametrize("raw", ["imported-1", 17, None, {"a": 1}])
def test_a_row_whose_id_is_no_object_id_is_refused(raw: object) -> None:
    assert refusal(_id=raw) == "id_not_objectid"


def test_an_event_that_nobody_owns_is_refused() -> None:
    assert refusal(siteId=None) == "site_missing"
    assert refusal(siteId="test-site") == "site_unknown"
    assert refusal(siteId=OWNERLESS_SITE) == "owner_missing"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "timestamp_missing"),
        ("a moment ago", "timestamp_unreadable"),
        (DatetimeMS(253_402_300_800_000), "timestamp_unreadable"),
        (datetime(2099, 12, 31, tzinfo=UTC), "timestamp_in_future"),
        (0, "timestamp_too_early"),
    ],
)
def test_an_event_without_a_possible_time_is_refused(raw: object, code: str) -> None:
    assert refusal(timestamp=raw) == code


@pytest.mark.parametrize("raw", [AT, "2025-03-03T14:07:00.000Z", 1_741_010_820, DatetimeMS(1_741_010_820_000)])
def test_a_time_in_another_form_is_the_same_moment(raw: object) -> None:
    assert parse(timestamp=raw).at_ms == 1_741_010_820_000
    assert SOURCE.read_time(make_event(timestamp=raw)) == 1_741_010_820_000


# what is missing or odd


@pytest.mark.parametrize("name", ["userId", "sessionId", "eventType", "pagePath", "eventData"])
def test_an_event_that_lacks_anything_else_goes_on_without_a_warning(name: str) -> None:
    record = make_event()
    del record[name]
    assert "warnings" not in SOURCE.describe(record, OWNERS, NOW_MS).metadata["facts"]
    assert "warnings" not in SOURCE.describe({**record, name: None}, OWNERS, NOW_MS).metadata["facts"]


def test_data_that_is_no_document_is_left_out_and_named() -> None:
    event = parse(data="[object Object]")
    assert event.element is None
    assert event.warnings == "eventData of type str left out"


@pytest.mark.parametrize(
    ("raw", "seconds"), [("37.20", 37.2), (Decimal128("61.5"), 61.5), (90.0, 90), (None, None), ("", None)]
)
def test_the_time_into_a_visit_comes_in_several_types(raw: object, seconds: float | None) -> None:
    event = parse_with(sessionDuration=raw)
    assert (event.into_visit_s, event.warnings) == (seconds, "")


@pytest.mark.parametrize("name", ["sessionDuration", "pagesPerVisit"])
@pytest.mark.parametrize("raw", [float("nan"), -1, "many", [2], True, 1e300])
def test_a_bad_figure_is_left_out_and_named(name: str, raw: object) -> None:
    event = parse_with(**{name: raw})
    assert (event.into_visit_s is None) == (name == "sessionDuration")
    assert re.fullmatch(rf"eventData\.{name} .*left out", event.warnings)


@pytest.mark.parametrize(
    ("name", "raw"),
    [("resolution", "undefinedxundefined"), ("language", "Deutsch (Schweiz)"), ("country", "Germany")],
)
def test_what_is_in_no_known_form_is_left_out_and_named(name: str, raw: str) -> None:
    event = parse_with(**{name: raw})
    assert getattr(event, name) is None
    assert event.warnings.startswith(f"eventData.{name} is ")


def test_hidden_characters_are_gone() -> None:
    event = parse(pagePath="/ap\0p", data=make_data(className="btn \u202emirp\u202c", language="\u2066de\u2069"))
    assert (event.page, event.element_class, event.language) == ("/ap p", "btn mirp", "de")


def test_a_page_that_is_a_whole_address_is_its_path() -> None:
    assert parse(pagePath="https://lantern.example/app?ref=harbour&v=1.2#top").page == "/app"


def test_a_whole_user_agent_is_stored_nowhere() -> None:
    agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"
    document = describe(data=make_data(os=agent, browser={"name": agent, "version": agent}))
    assert "Mozilla" not in repr(document)


# what was clicked


def test_the_words_on_a_button_are_never_read() -> None:
    assert "eventData.innerText" not in SOURCE.fields
    assert "eventData" not in SOURCE.fields
    assert not re.search("mira|okafor", repr(describe()), re.IGNORECASE)


def test_the_source_reads_every_field_that_parsing_reads() -> None:
    top = {name.partition(".")[0] for name in SOURCE.fields}
    assert top == set(make_event()) - {"_id"}
    data = {name.split(".")[1] for name in SOURCE.fields if "." in name}
    assert data == set(make_data()) - {"innerText"}


@pytest.mark.parametrize(
    ("tag", "element"),
    [("A", "link"), ("button", "button"), ("DIV", "element"), ("my-tag", "element"), ("<b>", None), ("", None)],
)
def test_an_element_is_called_what_people_call_it(tag: str, element: str | None) -> None:
    assert parse_with(tagName=tag).element == element


def test_an_element_without_an_id_is_told_by_its_other_names() -> None:
    assert describe(data=make_data(id="", dataId="mint-now")).content.startswith("Click on button mint-now, ")
    assert describe(data=make_data(id="", dataId="")).content.startswith("Click on button btn btn-primary, ")


def test_an_id_that_a_framework_drew_says_nothing() -> None:
    event = parse_with(id="row-9f86d081884c7d659a2f", dataId="9f86d081884c7d659a2f")
    assert (event.element_id, event.element_data_id) == ("row-…", None)


@pytest.mark.parametrize(
    ("href", "target"),
    [
        ("https://lantern.example/pricing?u=1", "/pricing"),
        ("//www.lantern.example/pricing", "/pricing"),
        ("/docs#top", "/docs"),
        ("pricing", "/pricing"),
        ("#/pool", "/#/pool"),
        ("#top", None),
        ("javascript:void(0)", None),
        ("https://t.co/9sVw1Zq3aB", "t.co"),
        ("mailto:mira@quaymail.example", "an e-mail address"),
        ("TEL:+447700900123", "a phone number"),
        ("", None),
        (None, None),
    ],
)
def test_of_a_link_a_path_a_host_or_a_kind_stays(href: object, target: str | None) -> None:
    event = parse_with(href=href)
    assert (event.target, event.warnings) == (target, "")


@pytest.mark.parametrize("href", [7, ["/"], "https://"])
def test_a_link_that_leads_nowhere_is_left_out_and_named(href: object) -> None:
    event = parse_with(href=href)
    assert event.target is None
    assert event.warnings == f"eventData.href of type {type(href).__name__} left out"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("ELEMENT_CLICK", "Click on"),
        ("RAGE_CLICK", "Rage click on"),
        ("formSubmit", "Form submit on"),
        (None, "Event on"),
    ],
)
def test_an_event_is_called_by_its_type_in_words(raw: object, said: str) -> None:
    assert describe(eventType=raw).content.startswith(f"{said} button connect-wallet, page /app of Lantern Swap.")


def test_a_type_that_is_a_text_is_left_out_and_named() -> None:
    event = parse(eventType="<script>alert(1)</script>")
    assert event.kind is None
    assert event.warnings == "eventType is in no known form and is left out"


# documents


def test_the_text_says_what_where_when_and_with_what() -> None:
    assert describe().content == (
        "Click on button connect-wallet, page /app of Lantern Swap. 2 minutes into the visit. No wallet connected. "
        "Country DE, desktop, Chrome on Windows. 3 March 2025."
    )


def test_a_text_of_what_little_is_known_is_still_a_text() -> None:
    bare = {name: make_event()[name] for name in ("_id", "siteId", "timestamp")}
    assert SOURCE.describe(bare, OWNERS, NOW_MS).content == "Event, Lantern Swap. 3 March 2025."


def test_an_ordinary_text_stays_within_80_tokens_and_holds_no_id() -> None:
    content = describe().content
    assert count_tokens([content])[0] <= 80
    assert not re.search(r"visitor-|session_|[0-9a-f]{12}", content)


def test_an_event_is_analytics_and_filed_under_its_site_and_its_own_id() -> None:
    document = describe()
    assert document.key == f"granular_event:{SITE_ID}:66e000000000000000000001"
    assert (document.source_type, SOURCE.source_type, SOURCE.name) == ("analytics", "analytics", "granular_event")
    assert (document.holder_id, document.site_id, document.team_id) == (SITE_ID, SITE_ID, str(TEAM_ID))
    assert document.metadata["dataType"] == "event"
    assert document.metadata["timeframe"] == {"start": AT, "end": AT}
    assert document.metadata["deviceType"] == "desktop"
    assert {"event", "click", "button", "connect-wallet", "de"} <= set(document.metadata["tags"])


def test_facts_tie_an_event_to_its_visit() -> None:
    facts = describe().metadata["facts"]
    assert (facts["sessionId"], facts["visitor"]) == (SESSION_ID, name_visitor(SITE_ID, USER_ID, KEY))
    assert (facts["referrer"], facts["secondsIntoVisit"], facts["walletConnected"]) == ("google.com", 120, False)
    assert describe(data="x").metadata["confidence"] == 0.9


def test_the_summary_names_the_minute() -> None:
    assert describe().summary == "Click on button connect-wallet · /app · Lantern Swap · 2025-03-03 14:07 UTC"


def test_events_have_no_source_without_a_key() -> None:
    with pytest.raises(TerminalError):
        make_granular_event_source(b"")


# any record at all

HIDDEN_ID = "mira-okafor-3f9a1c"
around = st.sampled_from(
    ["{}", "/of/{}", "/x?u={}", "for {} now", "https://{}/", "https://a.example/{}", "#/{}", "-{}"]
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
    | st.sampled_from(["/app", "Chrome", "A", "2025-03-03", "x" * 9_000, Decimal128("NaN"), MaxKey(), Regex("a")])
    | st.datetimes()
    | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
    | st.binary(min_size=12, max_size=12).map(ObjectId)
)
values = st.recursive(
    scalars,
    lambda held: (
        st.lists(held, max_size=3) | st.dictionaries(st.sampled_from(["name", "type", "os"]), held, max_size=3)
    ),
    max_leaves=4,
)
data = st.dictionaries(st.sampled_from(sorted(make_data())), values, max_size=6)
records = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(("_id", "sessionId", "eventType", "pagePath", "timestamp"), values), "data": data}
)


@given(records)
def test_any_record_is_described_or_refused_and_names_nobody(changes: dict[str, Any]) -> None:
    record = make_event(userId=HIDDEN_ID, **changes)
    document, reason = None, ""
    try:
        document = SOURCE.describe(record, OWNERS, NOW_MS)
    except RecordError as error:
        reason = error.reason
    assert HIDDEN_ID not in f"{document!r} {reason}".lower()
    if document is None:
        return
    assert encode_head(document) == encode_head(SOURCE.describe(record, OWNERS, NOW_MS))
    assert len(document.summary) <= MAX_SUMMARY_CHARS
    assert document.content.strip()
    assert all(document.metadata["tags"])
