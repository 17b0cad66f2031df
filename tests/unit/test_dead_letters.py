"""Dead letters: a refused record with its reason, small enough to read and enough to find it again."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson import ObjectId

from tasks.domain.dead_letters import DeadLetter, duplicate_letter
from tasks.domain.errors import RecordError
from tasks.domain.tables import from_table, to_table
from tests.builders import TEAM_ID, TOKEN_ID, TX_HASH, make_record

ERROR = RecordError("amount_negative", "value_eth '-3.2' is negative")


def letter_of(**changes: Any) -> DeadLetter:
    return DeadLetter.from_error(ERROR, source="transaction", stage="extract", record=make_record(**changes))


def test_a_letter_says_which_record_was_refused_where_and_why() -> None:
    letter = letter_of()
    assert (letter.source, letter.stage) == ("transaction", "extract")
    assert (letter.code, letter.reason) == ("amount_negative", "value_eth '-3.2' is negative")
    assert letter.record_id == make_record()["_id"]
    assert letter.holder_id == TOKEN_ID
    assert letter.team_id is None


@pytest.mark.parametrize("record_id", [ObjectId("68" * 12), "tx-1", 17, None, {"a": 1}, b"raw"], ids=repr)
def test_the_id_of_a_record_comes_back_whatever_its_type(record_id: object) -> None:
    assert letter_of(_id=record_id).record_id == record_id


@pytest.mark.parametrize("contract_id", [None, 17, ["x"], {"a": 1}])
def test_a_contract_that_is_no_text_is_not_named(contract_id: object) -> None:
    assert letter_of(contractId=contract_id).holder_id is None


def test_what_the_caller_knows_of_the_owner_is_kept() -> None:
    letter = DeadLetter.from_error(
        ERROR, source="transaction", stage="extract", record=make_record(), team_id="t", holder_id="c"
    )
    assert (letter.team_id, letter.holder_id) == ("t", "c")


def test_short_values_are_kept_as_they_are() -> None:
    assert bson.decode(letter_of().record)["value_eth"] == "12.5"
    assert bson.decode(letter_of().record).keys() == make_record().keys()


@pytest.mark.parametrize(
    "value",
    [
        "0x" + "f" * 1_000_000,
        b"\xff" * 1_000_000,
        ["x"] * 1_000_000,
        {str(i): i for i in range(100_000)},
        {"deep": {"deeper": ["y" * 1_000_000] * 30}},
    ],
    ids=["text", "bytes", "list", "document", "nested"],
)
def test_no_value_makes_a_letter_too_large_to_store(value: object) -> None:
    letter = letter_of(input=value)
    assert len(letter.record) < 20_000
    assert bson.decode(letter.record)["tx_hash"] == TX_HASH


def test_a_cut_text_says_how_long_it_was() -> None:
    assert bson.decode(letter_of(input="f" * 238_000).record)["input"].endswith("… (238,000 characters)")


def test_a_second_record_of_the_same_transaction_names_the_first() -> None:
    record_id = str(ObjectId())
    letter = duplicate_letter(
        record_id=record_id,
        team_id=str(TEAM_ID),
        holder_id=TOKEN_ID,
        key=f"transaction:{TOKEN_ID}:{TX_HASH}",
        twin="64c000000000000000000009",
        stage="chunk",
    )
    assert letter.code == "duplicate_record"
    assert letter.source == "transaction"
    assert letter.record_id == ObjectId(record_id)
    assert "64c000000000000000000009" in letter.reason
    assert (letter.team_id, letter.holder_id) == (str(TEAM_ID), TOKEN_ID)


def test_letters_travel_in_a_shard_file() -> None:
    letters = [letter_of(), letter_of(_id="tx-1", contractId=None)]
    assert list(from_table(DeadLetter, to_table(DeadLetter, letters))) == letters
