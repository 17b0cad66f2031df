"""Websites: what a tracked site is called, whose it is, and since when; and how other records name it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.documents import Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners, Site
from tasks.domain.rows import encode_head
from tasks.domain.websites import WEBSITES, bare_domain, shown_site, time_in_id
from tests.builders import NOW_MS, OTHER_TEAM_ID, TEAM_ID

SITE_ID = "0b4ff0ab-6e5c-4f0e-9a8e-7d5a1c2b3d4e"
MADE = datetime(2024, 3, 3, 12, tzinfo=UTC)
OID = ObjectId(f"{int(MADE.timestamp()):08x}0000000000000001")
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=5),
    st.builds(ObjectId),
    st.sampled_from([Decimal128("NaN"), Int64(3)]),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)


def make_website(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "_id": OID,
        "siteId": SITE_ID,
        "Domain": "tidewater.example",
        "Name": "Tidewater",
        "team": TEAM_ID,
        "analytics": ObjectId("64d000000000000000000001"),
        "isVerified": True,
    }
    return {**record, **changes}


def owners_of(*websites: dict[str, Any]) -> Owners:
    return Owners.from_records([], [{"_id": TEAM_ID}, {"_id": OTHER_TEAM_ID}], websites or [make_website()])


def describe(**changes: Any) -> Document:
    return WEBSITES.describe(make_website(**changes), owners_of(), NOW_MS)


def refusal(owners: Owners | None = None, **changes: Any) -> str:
    with pytest.raises(RecordError) as refused:
        WEBSITES.describe(make_website(**changes), owners or owners_of(), NOW_MS)
    return refused.value.code


def test_a_website_is_described_by_its_name_its_domain_and_since_when_it_is_tracked() -> None:
    document = describe()
    assert document.content == "Website Tidewater (tidewater.example): verified, tracked since 3 March 2024."
    assert document.summary == "Website Tidewater (tidewater.example) · verified"
    assert document.metadata == {
        "timeframe": {"start": MADE, "end": MADE},
        "dataType": "insight",
        "tags": ["website", "verified"],
        "category": "website",
        "importance": 5,
        "aggregationLevel": "raw",
        "confidence": 1.0,
        "facts": {
            "name": "Tidewater",
            "domain": "tidewater.example",
            "verified": True,
            "hasAnalytics": True,
            "createdAt": MADE,
        },
    }


def test_a_website_is_its_site_id_and_belongs_to_its_team() -> None:
    document = describe()
    assert document.key == f"website:{SITE_ID}"
    assert (document.source_type, document.source_id) == ("website", str(OID))
    assert (document.holder_id, document.site_id, document.team_id) == (SITE_ID, SITE_ID, str(TEAM_ID))
    assert SITE_ID not in document.content


def test_the_time_of_a_website_is_the_one_in_its_id() -> None:
    assert time_in_id(make_website()) == round(MADE.timestamp() * 1000)
    assert WEBSITES.read_time(make_website()) == round(MADE.timestamp() * 1000)
    assert WEBSITES.read_time(make_website(_id="imported-1")) is None


@pytest.mark.parametrize("raw", ["imported-1", None, 17, b"123456789012"])
def test_an_id_that_is_no_object_id_refuses_the_website(raw: object) -> None:
    assert refusal(_id=raw) == "id_not_objectid"


def test_a_website_without_an_owner_is_refused() -> None:
    assert refusal(siteId=None) == "site_missing"
    assert refusal(siteId="test-site") == "site_unknown"
    assert refusal(owners_of(make_website(team=None))) == "owner_missing"
    assert refusal(owners_of(make_website(team=ObjectId()))) == "owner_unknown"
    assert refusal(owners_of(make_website(), make_website(_id=ObjectId(), team=OTHER_TEAM_ID))) == "site_conflict"


def test_a_site_id_that_is_no_uuid_stands_where_a_website_has_it() -> None:
    website = make_website(siteId="localhost:3000")
    document = WEBSITES.describe(website, owners_of(website), NOW_MS)
    assert document.key == "website:localhost%3A3000"


def test_missing_fields_are_no_fault() -> None:
    record = {"_id": OID, "siteId": SITE_ID}
    document = WEBSITES.describe(record, owners_of(), NOW_MS)
    assert document.content == "Website without a name: tracked since 3 March 2024."
    assert document.metadata["facts"] == {"hasAnalytics": False, "createdAt": MADE}
    assert document.metadata["confidence"] == 1.0


@pytest.mark.parametrize(
    ("name", "domain", "shown"),
    [
        ("Tidewater", None, "Website Tidewater"),
        (None, "tidewater.example", "Website tidewater.example"),
        ("Tidewater.example", "tidewater.example", "Website Tidewater.example"),
        ("Pine\0water", "https://pine.example/", "Website Pine water (pine.example)"),
        ("Nettle \u202e& Thyme\u202c", None, "Website Nettle & Thyme"),
        ("مرفأ", None, "Website مرفأ"),
        ("a" * 500, "b" * 500, f"Website {'a' * 80} ({'b' * 80})"),
        ("two\nlines", None, "Website two lines"),
    ],
)
def test_other_records_name_a_website_by_what_is_known_of_it(name: str | None, domain: str | None, shown: str) -> None:
    assert shown_site(Site("site", name, domain, "team")) == shown


@pytest.mark.parametrize(
    ("raw", "domain"),
    [
        ("tidewater.example", "tidewater.example"),
        ("https://Tidewater.example/", "tidewater.example"),
        ("http://tidewater.example/app?x=1", "tidewater.example"),
        ("localhost:3000", "localhost:3000"),
        ("", None),
        ("https://", None),
        (404, None),
    ],
)
def test_a_domain_has_no_scheme_and_no_path(raw: object, domain: str | None) -> None:
    assert bare_domain(raw) == domain


def test_what_is_no_text_and_no_yes_or_no_is_left_out_and_named() -> None:
    facts = describe(Name=404, isVerified="yes").metadata["facts"]
    assert facts["warnings"] == "isVerified of type str left out; Name of type int left out"
    assert "name" not in facts
    assert "verified" not in facts


def test_a_website_that_is_not_verified_says_so() -> None:
    document = describe(isVerified=False)
    assert "not verified" in document.content
    assert document.metadata["tags"] == ["website", "not verified"]
    assert document.metadata["facts"]["verified"] is False


@given(st.dictionaries(st.sampled_from(WEBSITES.fields), ANYTHING), ANYTHING)
def test_a_website_is_described_or_refused_whatever_its_fields_hold(fields: dict[str, Any], site_id: Any) -> None:
    for changes in (fields, {**fields, "siteId": SITE_ID}):
        record = make_website(**changes)
        try:
            document = WEBSITES.describe(record, owners_of(), NOW_MS)
        except RecordError:
            continue
        assert document == WEBSITES.describe(record, owners_of(), NOW_MS)
        assert encode_head(document)
        assert bson.encode(document.metadata)
        assert len(document.content) < 400
