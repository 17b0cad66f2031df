"""Lineage: what an id may mean, what an aggregate was computed from, and what to do about a dead letter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from tasks.domain.lineage import Difference, computed_from, find_differences, parse_asked, what_to_do
from tests.builders import TX_HASH

OID = "64c000000000000000000001"
KEY = f"transaction:contract_9:{TX_HASH}"


@pytest.mark.parametrize("spelling", [OID, OID.upper(), f" {OID}\n"])
def test_an_object_id_may_be_a_records_or_a_vector_documents(spelling: str) -> None:
    asked = parse_asked(spelling)
    assert (asked.source, asked.record_ids, asked.tx_hash) == (None, (ObjectId(OID), spelling.strip()), None)


@pytest.mark.parametrize(
    ("word", "ids"),
    [("17", (17, "17")), ("imported-17", ("imported-17",)), ("a@b", ("a@b",)), ("9" * 40, ("9" * 40,)), ("", ())],
)
def test_ids_that_only_dead_letters_have_may_be_of_any_type(word: str, ids: tuple[Any, ...]) -> None:
    assert parse_asked(word).record_ids == ids
    assert parse_asked(f"session:{word}").record_ids == ids
    assert parse_asked(f"session:{word}").source == "session"


@pytest.mark.parametrize("spelling", [TX_HASH, TX_HASH.upper(), TX_HASH.removeprefix("0x"), KEY, f"{KEY}:3"])
def test_a_hash_is_found_as_document_ids_have_it_in_every_spelling(spelling: str) -> None:
    asked = parse_asked(spelling)
    assert asked.tx_hash == TX_HASH
    assert {TX_HASH, TX_HASH.removeprefix("0x")} <= set(asked.hash_spellings)


def test_a_document_id_is_meant_with_and_without_its_ordinal_and_also_one_that_is_no_more() -> None:
    assert f"{KEY}:0" in parse_asked(KEY).document_ids
    assert {f"{KEY}:7", f"{KEY}:0"} <= set(parse_asked(f"{KEY}:7").document_ids)
    assert parse_asked("website:site-a").document_ids == ("website:site-a:0",)


def test_a_session_that_looks_like_a_hash_is_none() -> None:
    assert parse_asked(f"session:site:{TX_HASH}").tx_hash is None


def test_only_aggregates_were_computed_from_others_and_say_it_as_far_as_they_know() -> None:
    for row in ({}, {"metadata": None}, {"metadata": {"facts": {"period": "2025-06"}}}, {"metadata": {"facts": []}}):
        assert computed_from(row) is None
    assert computed_from({"metadata": {"facts": {"aggregate": True, "period": "day"}}}) == {"period": "day"}
    read = {"rows": 3, "digest": "5ca1ab1e"}
    assert computed_from({"metadata": {"facts": {"computedFrom": read, "scope": "team", "figures": {}}}}) == {
        "scope": "team",
        **read,
    }


def test_fields_that_describing_does_not_decide_are_no_difference() -> None:
    stored = {"content": "a", "metadata": {"tags": ["x"], "old": 1}, "updatedAt": datetime(2025, 1, 1, tzinfo=UTC)}
    now = {"content": "b", "metadata": {"tags": ["x"], "new": 2}, "summary": "s"}
    assert list(find_differences(stored, now)) == [
        Difference("content", "a", "b"),
        Difference("metadata.new", None, 2),
        Difference("metadata.old", 1, None),
        Difference("summary", None, "s"),
    ]


@pytest.mark.parametrize(
    ("in_source", "refused", "held", "says"),
    [
        (True, "amount_unreadable", False, "mend the record"),
        (True, None, False, "takes it through the stages again"),
        (True, None, True, "delete one of the two"),
        (False, None, False, "gone from the source"),
        (None, None, False, "once its source can be read"),
    ],
)
def test_an_open_dead_letter_names_the_command_that_closes_it(
    in_source: bool | None, refused: str | None, held: bool, says: str
) -> None:
    letter = {"status": "open", "code": "amount_unreadable"}
    advice = what_to_do(letter, "sessions", in_source=in_source, refused=refused, held=held)
    assert says in advice
    assert "`cryptique-rag replay --source sessions --reason amount_unreadable`" in advice


def test_a_closed_dead_letter_needs_nothing() -> None:
    letter = {"status": "resolved", "code": "x", "resolvedBy": "run-7", "resolvedAt": datetime(2025, 1, 2, tzinfo=UTC)}
    advice = what_to_do(letter, "sessions", in_source=True, refused=None, held=False)
    assert advice == "nothing: it was closed by the run run-7 on 2025-01-02"
