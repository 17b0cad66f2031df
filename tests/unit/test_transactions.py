"""Transactions: identity, owner, time and amount are read exactly or refused; the rest is mended or left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.max_key import MaxKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.tokens import count_tokens
from tasks.domain.chunks import MAX_CONTENT_CHARS, ChunkSize, split_text
from tasks.domain.dead_letters import DeadLetter
from tasks.domain.documents import MAX_SUMMARY_CHARS
from tasks.domain.errors import RecordError
from tasks.domain.tables import from_table, to_table
from tasks.domain.transaction_documents import describe_transaction
from tasks.domain.transactions import (
    FIRST_BLOCK_MS,
    FUTURE_TOLERANCE_MS,
    MAX_COINS,
    Transaction,
    parse_block_time,
    parse_transaction,
)
from tasks.domain.vectors import EmbedderFacts
from tests.builders import (
    ESCROW_ID,
    ESCROW_OID,
    NOW_MS,
    OWNERLESS_ID,
    RECIPIENT,
    SHARED_ID,
    SITE_ID,
    TEAM_ID,
    TOKEN_ID,
    TX_HASH,
    WALLET,
    make_body,
    make_call,
    make_owners,
    make_record,
    word,
)

OWNERS = make_owners()
FACTS = EmbedderFacts("model", 4, "document", 100, 2_048)
JULY_2022_MS = 1_658_015_966_000


def parse(**changes: Any) -> Transaction:
    return parse_transaction(make_record(**changes), OWNERS, now_ms=NOW_MS)


def refusal(**changes: Any) -> str:
    with pytest.raises(RecordError) as refused:
        parse(**changes)
    return refused.value.code


def test_a_sound_record_is_read_without_a_warning() -> None:
    transaction = parse()
    assert transaction.warnings == ""
    assert (transaction.amount, transaction.unit) == ("12.5", "USDT")
    assert (transaction.from_address, transaction.to_address) == (WALLET, RECIPIENT)
    assert (transaction.chain, transaction.chain_id) == ("Ethereum", 1)
    assert transaction.block_time_ms == 1_652_021_466_000
    assert (transaction.status, transaction.method, transaction.selector) == ("success", "transfer", "0xa9059cbb")
    assert (transaction.team_id, transaction.site_id) == (str(TEAM_ID), SITE_ID)
    assert transaction.natural_key == f"{TOKEN_ID}:{TX_HASH}"


# identity


@pytest.mark.parametrize(
    "raw", [TX_HASH.upper(), "0X" + TX_HASH[2:], TX_HASH[2:], f" {TX_HASH}\n"], ids=["upper", "0X", "bare", "spaces"]
)
def test_a_hash_in_another_spelling_is_the_same_transaction(raw: str) -> None:
    assert parse(tx_hash=raw).tx_hash == TX_HASH


def test_a_genesis_row_is_named_after_its_address() -> None:
    assert parse(tx_hash="GENESIS_" + RECIPIENT).tx_hash == "GENESIS_" + RECIPIENT[2:]
    assert parse(tx_hash="GENESIS_" + RECIPIENT[2:].upper()).tx_hash == "GENESIS_" + RECIPIENT[2:]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (None, "tx_hash_missing"),
        ("", "tx_hash_missing"),
        (" ", "tx_hash_missing"),
        (17, "tx_hash_missing"),
        (["0x"], "tx_hash_missing"),
        (TX_HASH[:-1], "tx_hash_invalid"),
        (TX_HASH + "0", "tx_hash_invalid"),
        ("0x" + "g" * 64, "tx_hash_invalid"),
        ("0x" + "１" * 64, "tx_hash_invalid"),
        ("GENESIS_x", "tx_hash_invalid"),
    ],
)
def test_a_row_without_a_real_hash_is_refused(raw: object, code: str) -> None:
    assert refusal(tx_hash=raw) == code


@pytest.mark.parametrize("raw", ["tx-1", 17, None, b"123456789012", {"a": 1}, "68" * 12])
def test_a_row_whose_id_is_no_object_id_is_refused(raw: object) -> None:
    assert refusal(_id=raw) == "id_not_objectid"


def test_a_row_that_nobody_owns_is_refused() -> None:
    assert refusal(contract=None, contractId=None) == "contract_missing"
    assert refusal(contract=None, contractId=OWNERLESS_ID) == "owner_missing"
    assert refusal(contract=ESCROW_OID) == "contract_conflict"


# time


@pytest.mark.parametrize(
    "raw",
    [
        datetime(2022, 7, 16, 23, 59, 26, tzinfo=UTC),
        datetime(2022, 7, 16, 23, 59, 26),  # noqa: DTZ001  a client without tz_aware gives these
        datetime(2022, 7, 17, 1, 59, 26, tzinfo=timezone(timedelta(hours=2))),
        DatetimeMS(JULY_2022_MS),
        "2022-07-16T23:59:26Z",
        "2022-07-16 23:59:26",
        "2022-07-16T23:59:26.000+00:00",
        " 2022-07-17T05:29:26+05:30 ",
        1_658_015_966,
        1_658_015_966.0,
        Int64(1_658_015_966_000),
        1_658_015_966_000.0,
        "1658015966",
        "1658015966000",
        Decimal128("1658015966"),
    ],
    ids=repr,
)
def test_every_form_of_a_time_is_the_same_moment(raw: object) -> None:
    assert parse(block_time=raw).block_time_ms == JULY_2022_MS
    assert parse_block_time(raw) == JULY_2022_MS


@pytest.mark.parametrize("raw", [None, ""])
def test_a_missing_block_time_is_not_refused(raw: object) -> None:
    assert parse(block_time=raw).block_time_ms is None


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("2024-02-30 25:61:00", "block_time_unreadable"),
        ("yesterday", "block_time_unreadable"),
        ("9" * 5_000, "block_time_unreadable"),
        (True, "block_time_unreadable"),
        (float("nan"), "block_time_unreadable"),
        (float("inf"), "block_time_unreadable"),
        (Decimal128("NaN"), "block_time_unreadable"),
        (Decimal128("sNaN"), "block_time_unreadable"),
        (Decimal128("9E+6144"), "block_time_unreadable"),
        ([JULY_2022_MS], "block_time_unreadable"),
        (0, "block_time_before_first_block"),
        (-1.5, "block_time_before_first_block"),
        (20_220_716, "block_time_before_first_block"),
        (DatetimeMS(-(2**62)), "block_time_before_first_block"),
        ("0001-01-01T00:00:00+23:59", "block_time_before_first_block"),
        (DatetimeMS(253_402_300_800_000), "block_time_in_future"),
        ("9999-12-31T23:59:59.999999-23:59", "block_time_in_future"),
        (1e300, "block_time_in_future"),
        ("9" * 18, "block_time_in_future"),
        (2**63 - 1, "block_time_in_future"),
    ],
    ids=repr,
)
def test_a_time_that_no_block_can_have_is_refused(raw: object, code: str) -> None:
    with pytest.raises(RecordError) as refused:
        parse(block_time=raw)
    assert refused.value.code == code
    assert len(refused.value.reason) < 500


def test_the_first_block_and_the_last_possible_one_are_inside() -> None:
    last = NOW_MS + FUTURE_TOLERANCE_MS
    assert parse(block_time=DatetimeMS(FIRST_BLOCK_MS)).block_time_ms == FIRST_BLOCK_MS
    assert parse(block_time=DatetimeMS(last)).block_time_ms == last
    assert refusal(block_time=DatetimeMS(FIRST_BLOCK_MS - 1)) == "block_time_before_first_block"
    assert refusal(block_time=DatetimeMS(last + 1)) == "block_time_in_future"


def test_a_block_time_of_the_import_itself_is_doubted_and_kept() -> None:
    moment = datetime(2025, 6, 2, 16, tzinfo=UTC)
    assert "import" in parse(block_time=moment, createdAt=moment + timedelta(seconds=4)).warnings
    assert parse(block_time=moment, createdAt=moment + timedelta(seconds=6)).warnings == ""
    assert "before" in parse(block_time=moment, createdAt=moment - timedelta(seconds=1)).warnings


@pytest.mark.parametrize("raw", [1e300, 2.0**63, "9" * 40, float("nan"), "soon", [1], True])
def test_an_import_time_that_is_none_is_left_out(raw: object) -> None:
    transaction = parse(createdAt=raw)
    assert transaction.created_ms is None
    assert transaction.warnings.startswith("createdAt")


# amount and unit


@pytest.mark.parametrize(
    ("changes", "amount", "unit"),
    [
        ({}, "12.5", "USDT"),
        ({"value_eth": "12.5 BEP20"}, "12.5", "USDT"),
        ({"value_eth": "12.5 BEP20", "token_symbol": None}, "12.5", "USDT"),
        ({"value_eth": "1,234.5 ABC"}, "1234.5", "ABC"),
        ({"value_eth": "0 ETH"}, "0", "ETH"),
        ({"token_symbol": None}, "12.5", "USDT"),
        ({"token_symbol": None, "tx_type": "SHIB Transfer"}, "12.5", "SHIB"),
        ({"token_symbol": None, "tx_type": "Token Transfer", "token_name": "Town Star"}, "12.5", "Town Star"),
        ({"token_symbol": None, "tx_type": "ERC-20 Transfer", "token_name": None}, "12.5", "USDT"),
        ({"value_eth": None}, None, None),
        ({"value_eth": ""}, None, None),
    ],
    ids=repr,
)
def test_a_token_transfer_counts_its_token(changes: dict[str, Any], amount: str | None, unit: str | None) -> None:
    transaction = parse(**changes)
    assert (transaction.amount, transaction.unit) == (amount, unit)
    assert transaction.is_transfer


def test_the_value_of_a_call_is_in_the_chains_coin_whatever_token_it_names() -> None:
    call = make_call("deposit", "0xd0e30db0", value_eth="3", token_symbol="WETH", token_name="Wrapped Ether")
    assert parse_transaction(call, OWNERS, now_ms=NOW_MS).unit == "ETH"
    assert parse_transaction({**call, "chain": "bsc"}, OWNERS, now_ms=NOW_MS).unit == "BNB"
    assert parse_transaction({**call, "chain": "Zora"}, OWNERS, now_ms=NOW_MS).unit is None


def test_a_row_from_an_event_log_counts_the_token_that_it_names() -> None:
    event = make_call("supply", "", value_eth="24700.19", token_symbol="USDC", method_signature=None)
    del event["input"]
    assert parse_transaction(event, OWNERS, now_ms=NOW_MS).unit == "USDC"


def test_a_payment_without_call_data_is_in_the_chains_coin_even_where_a_token_is_named() -> None:
    payment = make_call("", "", value_eth="1", token_symbol="WETH", method_signature=None, input="0x")
    assert parse_transaction(payment, OWNERS, now_ms=NOW_MS).unit == "ETH"


def test_a_bare_transfer_moves_the_chains_coin_and_no_token() -> None:
    bare = make_call("", "", value_eth="0.8", tx_type="Transfer", method_signature=None, input="0x")
    transaction = parse_transaction(bare, OWNERS, now_ms=NOW_MS)
    assert (transaction.is_transfer, transaction.moves_coin, transaction.unit) == (False, True, "ETH")


def test_a_token_standard_never_becomes_the_chains_coin() -> None:
    marked = make_call("claim", "0x4e71d92d", value_eth="7 ERC20")
    assert parse_transaction(marked, OWNERS, now_ms=NOW_MS).unit == "ERC20"


def test_a_symbol_of_ten_thousand_characters_is_read() -> None:
    assert parse(token_symbol="A" * 10_000).unit == "A" * 10_000


# what only adds to the picture


@pytest.mark.parametrize(
    ("raw", "number"),
    [(5, 5), (Int64(5), 5), (5.0, 5), ("5", 5), (" 0x5 ", 5), (Decimal128("5"), 5), (Decimal128("5E+3"), 5000), (0, 0)],
    ids=repr,
)
def test_a_whole_number_in_any_form_is_that_number(raw: object, number: int) -> None:
    transaction = parse(gas_used=raw, block_number=raw)
    assert (transaction.gas_used, transaction.block_number, transaction.warnings) == (number, number, "")


@pytest.mark.parametrize(
    "raw",
    [
        -1,
        1.5,
        float("nan"),
        float("inf"),
        1e300,
        2**63 - 1,
        True,
        "many",
        "1.5",
        "-0x5",
        "9" * 5_000,
        [5],
        {"a": 5},
        Decimal128("1.5"),
        Decimal128("NaN"),
        Decimal128("sNaN"),
        Decimal128("-Infinity"),
        Decimal128("9E+6144"),
    ],
    ids=lambda raw: repr(raw)[:30],
)
def test_what_is_no_whole_number_is_left_out_with_a_warning(raw: object) -> None:
    transaction = parse(gas_used=raw)
    assert transaction.gas_used is None
    assert transaction.warnings.startswith("gas_used")
    assert len(transaction.warnings) < 200


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        ("0xA665db2c90E57485AAD058Fb245Af47361f8df09", "0xa665db2c90e57485aad058fb245af47361f8df09"),
        (" 0x603136b204592de6bc16d783bfa8ec0f7a526c5f\n", "0x603136b204592de6bc16d783bfa8ec0f7a526c5f"),
        ("66a2a9a3bb76cd76dcf443734ea8660e0598f55d", "0x66a2a9a3bb76cd76dcf443734ea8660e0598f55d"),
        ("0x6a2a9a3bb76cd76dcf443734ea8660e0598f55d", "0x06a2a9a3bb76cd76dcf443734ea8660e0598f55d"),
        ("0xdead", "0x000000000000000000000000000000000000dead"),
        ("", None),
        (None, None),
        ("GENESIS", None),
    ],
)
def test_an_address_is_lower_case_and_has_its_zeros_back(raw: str | None, address: str | None) -> None:
    transaction = parse(to_address=raw)
    assert (transaction.to_address, transaction.warnings) == (address, "")


@pytest.mark.parametrize("raw", ["vitalik.eth", "0x" + "a" * 41, "0x", 17, ["0xdead"], "0x" + "１" * 40, "0xg"])
def test_what_is_no_address_is_left_out_with_a_warning(raw: object) -> None:
    transaction = parse(from_address=raw)
    assert transaction.from_address is None
    assert transaction.warnings.startswith("from_address")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("Success", "success"),
        ("success", "success"),
        ("0x1", "success"),
        (1, "success"),
        (1.0, "success"),
        (True, "success"),
        ("True", "success"),
        ("Failed", "failed"),
        ("failed", "failed"),
        (0, "failed"),
        (False, "failed"),
        ("pending", "pending"),
        ("Unknown", None),
        ("", None),
        (None, None),
    ],
)
def test_a_status_in_any_form_is_one_of_three_or_unknown(raw: object, status: str | None) -> None:
    transaction = parse(status=raw)
    assert (transaction.status, transaction.warnings) == (status, "")


@pytest.mark.parametrize("raw", [2, 1e300, float("nan"), "odd; very odd", ["Success"], {"ok": 1}])
def test_an_unknown_status_is_left_out_with_one_warning(raw: object) -> None:
    transaction = parse(status=raw)
    assert transaction.status is None
    assert transaction.warnings.count(";") == 0
    assert transaction.warnings.startswith("status")


def test_the_call_data_says_what_ran_whatever_the_explorer_wrote() -> None:
    assert parse(method_signature="0x12345678").selector == "0xa9059cbb"
    assert parse(input="0XA9059CBB" + word(1), method_signature=None).selector == "0xa9059cbb"
    assert parse(input="a9059cbb" + word(1), method_signature=None).selector == "0xa9059cbb"
    assert parse(input=None, method_signature=" 0xA9059CBB ").selector == "0xa9059cbb"
    assert parse(input="0x1234", method_signature=None).selector is None
    assert parse(input="not call data at all", method_signature="transfer").selector is None


@pytest.mark.parametrize(
    ("name", "function", "method"),
    [
        ("transfer", "other()", "transfer"),
        (None, "create_lock(uint256 _value, uint256 t)", "create_lock"),
        ("", "swap(", "swap"),
        ("0xa9059cbb", None, None),
        ("trans\x00fer", "transfer()", "transfer"),
        ("x" * 200, None, None),
        (17, ["a"], None),
    ],
)
def test_a_method_is_a_bare_name(name: object, function: object, method: str | None) -> None:
    assert parse(method_name=name, functionName=function).method == method


@pytest.mark.parametrize(
    ("selector", "amount", "allowance"),
    [
        ("0x095ea7b3", 2**256 - 1, "unlimited"),
        ("0x095ea7b3", 2**96 - 1, "unlimited"),
        ("0x095ea7b3", 10**30, "limited"),
        ("0x095ea7b3", 0, "revoked"),
        ("0xa22cb465", 1, "unlimited"),
        ("0xa22cb465", 0, "revoked"),
        ("0xa9059cbb", 0, None),
    ],
)
def test_an_approval_grants_what_its_second_argument_says(selector: str, amount: int, allowance: str | None) -> None:
    assert parse(input=selector + word(1) + word(amount)).allowance == allowance
    assert parse(input=selector + word(1) + word(amount)[:-1]).allowance is None


# staking


def test_staking_is_read_only_on_escrow_contracts_and_never_from_what_is_stored() -> None:
    stored = {"isStaking": True, "stakingType": "create_lock", "confidence": 0.95, "details": {"amount": "99"}}
    lock = make_call("create_lock", "0x65fc3873", 5 * 10**18, 1_715_093_466, stakingAnalysis=stored)
    assert parse_transaction(lock, OWNERS, now_ms=NOW_MS).staking_type is None
    on_escrow = {**lock, "contract": ESCROW_OID, "contractId": ESCROW_ID}
    transaction = parse_transaction(on_escrow, OWNERS, now_ms=NOW_MS)
    assert (transaction.staking_type, transaction.staking_amount) == ("create_lock", "5")
    assert transaction.staking_lock_days == 730


def test_call_data_without_its_prefix_gives_the_same_staked_amount() -> None:
    lock = make_call("", "0x65fc3873", 5 * 10**18, 1_715_093_466, contract=ESCROW_OID, contractId=ESCROW_ID)
    bare = {**lock, "input": lock["input"][2:]}
    for record in (lock, bare, {**lock, "input": f" {lock['input']}\n"}):
        assert parse_transaction(record, OWNERS, now_ms=NOW_MS).staking_amount == "5"


def test_a_selector_without_call_data_tells_the_type_and_no_amount() -> None:
    lock = make_call("", "0x65fc3873", contract=ESCROW_OID, contractId=ESCROW_ID, input=None)
    transaction = parse_transaction(lock, OWNERS, now_ms=NOW_MS)
    assert (transaction.staking_type, transaction.staking_amount) == ("create_lock", None)
    assert transaction.staking_confidence == 0.85


def test_stored_staking_that_is_no_document_is_named() -> None:
    assert "stakingAnalysis" in parse(stakingAnalysis="create_lock").warnings


# anything at all

texts = st.text(max_size=30) | st.text("0123456789abcdefx.,-+ ETH", max_size=80)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-(2**63), 2**63 - 1).map(Int64)
    | st.floats()
    | texts
    | texts.filter(lambda text: "\x00" not in text).map(Regex)
    | st.binary(max_size=20).map(Binary)
    | st.binary(min_size=12, max_size=12).map(ObjectId)
    | st.datetimes()
    | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS)
    | st.binary(min_size=16, max_size=16).map(Decimal128.from_bid)
    | st.sampled_from([Timestamp(1, 1), Code("1"), MaxKey(), Decimal128("sNaN"), Decimal128("NaN"), Decimal128("-0")])
    | st.sampled_from(["Transfer", "X Transfer", "Contract Creation", "0x", "9" * 4_400, "A" * 10_000, "0" * 5_000])
)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=3),
    max_leaves=4,
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "value_eth": texts | st.sampled_from(["1.5 ABC", "0", "-0", "1e-78", "<0.0001", "1e77 " + "U" * 10_000]),
    "block_time": st.integers(1_438_269_973, 1_752_000_000) | st.integers(1_438_269_973_000, 1_752_000_000_000),
    "tx_hash": st.just(TX_HASH),
    "contractId": st.sampled_from([TOKEN_ID, ESCROW_ID, SHARED_ID]),
    "contract": st.none(),
    "_id": st.binary(min_size=12, max_size=12).map(ObjectId),
    "method_name": st.from_regex(r"[A-Za-z_$]{1,20}", fullmatch=True),
    "input": st.builds(
        lambda selector, words: selector + "".join(map(word, words)),
        st.sampled_from(
            ["0x65fc3873", "0x4957677c", "0xeff7a612", "0x095ea7b3", "0xa22cb465", "0x2e1a7d4d", "a9059cbb"]
        ),
        st.lists(st.integers(0, 2**256 - 1) | st.integers(1_438_269_973, 4_294_967_295), max_size=3),
    ),
    "chain": st.sampled_from(["Ethereum", "bsc", "010", "0x89", "Zora"]) | texts,
    "status": st.sampled_from(["Success", "Failed", "pending", 1, 0.0]),
}


@st.composite
def dirty_records(draw: st.DrawFn) -> dict[str, Any]:
    """A sound record in which some fields hold another likely value, some anything at all, and some are gone."""
    record = make_record()
    for name in draw(st.sets(st.sampled_from([*sorted(LIKELY)]), max_size=6)):
        record[name] = draw(LIKELY[name])
    for name in draw(st.sets(st.sampled_from(sorted(record)), max_size=4)):
        record[name] = draw(values)
    for name in draw(st.sets(st.sampled_from(sorted(record.keys() - {"_id"})), max_size=4)):
        del record[name]
    return record


@settings(
    max_examples=max(500, settings.default.max_examples),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(record=dirty_records())
def test_any_record_that_mongodb_can_hold_becomes_a_document_or_a_dead_letter(record: dict[str, Any]) -> None:
    try:
        bson.encode(record)
    except (bson.errors.InvalidDocument, bson.errors.InvalidStringData, UnicodeEncodeError, OverflowError):
        return
    try:
        transaction = parse_transaction(record, OWNERS, now_ms=NOW_MS)
    except RecordError as error:
        letter = DeadLetter.from_error(error, source="transaction", stage="extract", record=record)
        assert list(from_table(DeadLetter, to_table(DeadLetter, [letter]))) == [letter]
        assert 0 < len(letter.reason) < 1_000
        return
    assert list(from_table(Transaction, to_table(Transaction, [transaction]))) == [transaction]
    document = describe_transaction(transaction)
    assert document == describe_transaction(transaction)
    assert document.content.strip()
    assert len(document.summary) <= MAX_SUMMARY_CHARS
    assert 1 <= document.metadata["importance"] <= 10
    assert 0 <= document.metadata["confidence"] <= 1
    chunks = split_text(document.content, ChunkSize(), count_tokens)
    assert chunks
    for chunk in chunks:
        assert 0 < len(chunk.text) <= MAX_CONTENT_CHARS
        stored = bson.decode(make_body(document, chunk, len(chunks), FACTS))
        assert stored["content"] == chunk.text
        assert stored["metadata"]["facts"]["txHash"] == transaction.tx_hash


def test_more_of_a_chains_coin_than_exists_is_refused() -> None:
    # The largest possible amount, in an approved token's units, is real; in ether it was inflated by an importer.
    call = {"tx_type": "Contract Interaction", "token_symbol": None}
    assert parse(value_eth=str(MAX_COINS), **call).amount == str(MAX_COINS)
    assert refusal(value_eth=str(MAX_COINS + 1), **call) == "amount_above_supply"
    assert parse(value_eth=str(MAX_COINS + 1)).unit == "USDT"


def test_an_id_that_is_no_text_but_code_is_a_dead_letter() -> None:
    record = make_record(contractId=bson.Code("1"), contract=None)
    with pytest.raises(RecordError) as caught:
        parse_transaction(record, OWNERS, now_ms=NOW_MS)
    letter = DeadLetter.from_error(caught.value, source="transaction", stage="extract", record=record)
    assert list(from_table(DeadLetter, to_table(DeadLetter, [letter]))) == [letter]
