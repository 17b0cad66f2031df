"""Posted texts: what is kept of them, whose they are, and that describing them again changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.chunks import MAX_CONTENT_CHARS
from tasks.domain.collections import SOURCE_TYPES
from tasks.domain.errors import RecordError
from tasks.domain.posted_texts import POSTED_TEXTS, PostedText, clean, clean_label, describe_posted_text
from tests.builders import OTHER_TEAM_ID, SITE_ID, TEAM_ID, make_owners

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
WORDS = st.sampled_from(
    ["a", "ann@x.example", "+41446681800", "https://x.example/a?b=c#d", "0x" + "ab" * 20, "sk1234567890abcdefg", "…"]
)
TEXT = st.lists(st.one_of(WORDS, st.text(max_size=12)), max_size=8).map(" ".join)


def posted(text: str, **more: Any) -> PostedText:
    chosen = {"source": "", "kind": "", "category": "", **more}
    return PostedText.of(text, team_id=str(TEAM_ID), site_id=SITE_ID, **chosen)


def record_of(text: PostedText, /, **changes: Any) -> dict[str, Any]:
    own = {"_id": text.record_id, "teamId": TEAM_ID, "siteId": text.site_id, "text": text.text, "createdAt": NOW}
    return {**own, **text.labels(), "addresses": list(text.addresses), **changes}


@given(TEXT)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert clean_label(clean_label(text)) == clean_label(text)


def test_a_text_is_described_as_it_was_kept_under_a_type_of_the_applications_schema() -> None:
    text = posted("Line one.\n\nLine two of ann@x.example.", kind="Note", category="Help")
    document = describe_posted_text(record_of(text), make_owners())
    assert document.content == text.text == "Line one.\n\nLine two of …"
    assert document.source_type in SOURCE_TYPES
    assert document.key == f"text:{SITE_ID}:{text.record_id}"
    assert (document.team_id, document.site_id, document.holder_id) == (str(TEAM_ID), SITE_ID, SITE_ID)
    assert document.metadata["tags"] == ["text", "note", "help"]
    assert document.metadata["timeframe"] == {"start": NOW, "end": NOW}
    assert POSTED_TEXTS.read_time(record_of(text)) == int(NOW.timestamp() * 1000)
    assert describe_posted_text(record_of(text), make_owners()) == document


def test_what_somebody_wrote_into_the_database_is_cleaned_too() -> None:
    record = record_of(posted("x"), text="ask ann@x.example " * 4_000, category="of ann@x.example", addresses="none")
    document = describe_posted_text(record, make_owners())
    assert "@" not in f"{document}"
    assert len(document.content) > MAX_CONTENT_CHARS
    assert len(document.summary) <= 500


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"_id": "text"}, "id_not_objectid"),
        ({"text": None}, "text_missing"),
        ({"text": " "}, "text_missing"),
        ({"text": ["x"]}, "text_missing"),
        ({"siteId": None}, "site_missing"),
        ({"siteId": "gone"}, "site_unknown"),
        ({"teamId": OTHER_TEAM_ID}, "owner_changed"),
        ({"teamId": None}, "owner_changed"),
    ],
)
def test_a_record_that_nobody_may_see_or_that_says_nothing_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(RecordError) as refused:
        describe_posted_text(record_of(posted("x"), **changes), make_owners())
    assert refused.value.code == code


def test_equal_texts_are_told_by_team_and_site_and_share_their_hash() -> None:
    one, labelled = posted("The same."), posted(" The same. ", kind="note")
    elsewhere = PostedText(one.team_id, "site-c", one.text)
    theirs = PostedText(str(OTHER_TEAM_ID), one.site_id, one.text)
    assert one.record_id == labelled.record_id
    assert len({one.record_id, elsewhere.record_id, theirs.record_id, posted("Another.").record_id}) == 4
    assert one.text_hash == elsewhere.text_hash == theirs.text_hash


@pytest.mark.parametrize("text", ["", " \n", "ann@x.example", "\u202e\u200b", "… …"])
def test_a_text_of_which_nothing_is_left_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match="nothing is left"):
        posted(text)
