"""Every real transaction becomes a short document, and every class of dirt ends as it should."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from blocks.tokens import count_tokens
from tasks.domain.chunks import CHUNKER_VERSION, ChunkSize, split_text
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.transaction_documents import DESCRIBER_VERSION, describe_transaction
from tasks.domain.transactions import Transaction, parse_transaction
from tasks.domain.vectors import EmbedderFacts
from tests.builders import make_body
from tests.conftest import read_extended_json

NOW_MS = round(datetime(2025, 7, 20, tzinfo=UTC).timestamp() * 1000)
ORDINARY_TOKENS = 80

#: What the records of each file become, all their rows' bodies in order, under these versions of the code. A record
#: that is stored is not described again until a version is raised, so no change of it may go unseen.
MADE_BY = {"DESCRIBER_VERSION": 3, "CHUNKER_VERSION": 1}
BODIES = {
    "transactions.sample.jsonl.gz": "ae4430d1e77ffe9cd42fd59107c8f448",
    "staking.synthetic.jsonl": "fc10e52848f1028ed7231e0cd132e4bd",
    "messy.jsonl": "441aa67b0a8a645f63a91efb20bbdb9d",
}
FACTS = EmbedderFacts("gemini-embedding-001", 1536, "RETRIEVAL_DOCUMENT", 100, 2_048)

#: Class -> the code of its dead letter, or what its document must know.
MESSY: dict[str, str | dict[str, Any]] = {
    # identity, owner, time and amount decide: what can't be read there is refused
    "missing_contract_reference": "contract_missing",
    "dangling_contract_reference": "contract_unknown",
    "missing_tx_hash": "tx_hash_missing",
    "only_id": "tx_hash_missing",
    "all_null": "tx_hash_missing",
    "string_id": "id_not_objectid",
    "block_time_string": "block_time_unreadable",
    "block_time_zero": "block_time_before_first_block",
    "block_time_future": "block_time_in_future",
    "block_time_far_future": "block_time_in_future",
    "value_comma_decimal": "amount_ambiguous",
    "value_nan_text": "amount_unreadable",
    "value_negative": "amount_negative",
    "value_scientific_large": "amount_above_supply",
    # missing is never bad
    "missing_block_time": {"block_time_ms": None, "warnings": ""},
    "missing_to_address": {"to_address": None, "warnings": ""},
    "missing_gas_and_status": {"gas_used": None, "status": None, "warnings": ""},
    "missing_staking_analysis": {"staking_type": None, "warnings": ""},
    "empty_strings": {"to_address": None, "token_symbol": None, "allowance": "revoked"},
    # another form of the same value
    "block_number_string": {"block_number": 17_673_467},
    "block_number_hex": {"block_number": 15_366_159},
    "gas_used_string": {"gas_used": 104_464},
    "block_time_epoch_seconds": {"block_time_ms": 1_658_015_966_000},
    "block_time_epoch_ms": {"block_time_ms": 1_658_015_966_000},
    "value_scientific": {"amount": "0.00000015", "unit": "USDT"},
    "value_with_unit": {"amount": "0", "unit": "ETH"},
    "value_with_symbol_and_commas": {"amount": "1250000.5", "unit": "USDT"},
    "value_number": {"amount": "0.12345678901234568", "unit": "ETH"},
    "value_uint256_max": {"amount": str(2**256 - 1), "amount_unlimited": True},
    "mixed_case_addresses": {"from_address": "0xa665db2c90e57485aad058fb245af47361f8df09", "warnings": ""},
    "address_whitespace": {"from_address": "0x603136b204592de6bc16d783bfa8ec0f7a526c5f", "warnings": ""},
    "address_without_prefix": {"from_address": "0x66a2a9a3bb76cd76dcf443734ea8660e0598f55d", "warnings": ""},
    "genesis_row": {"moves_coin": True, "amount": "10000", "unit": "ETH", "from_address": None},
    "status_variants": {"status": "success"},
    "status_code": {"status": "success"},
    "chain_lowercase_alias": {"chain": "Ethereum", "chain_id": 1},
    "unsupported_chain": {"chain": "Zora", "chain_id": None},
    "objectid_as_string": {"warnings": ""},
    "invalid_objectid_string": {"warnings": ""},
    "duplicate_tx_hash_in_contract": {"warnings": ""},  # which of the two stays is decided by the store
    "unknown_extra_fields": {"warnings": ""},
    "huge_input": {"method": None},
    # left out, and said so
    "block_number_float": {"block_number": None, "warnings": "block_number '17911706.5' left out"},
    "gas_used_negative": {"gas_used": None, "warnings": "gas_used '-21000' left out"},
    "gas_used_nan": {"gas_used": None, "warnings": "gas_used 'nan' left out"},
    "gas_used_infinity": {"gas_used": None, "warnings": "gas_used 'inf' left out"},
    "gas_used_int64_max": {"gas_used": None, "warnings": "gas_used '9223372036854775807' left out"},
    "gas_used_decimal128": {"gas_used": None, "warnings": "gas_used '21000.5' left out"},
    "created_before_block": {"warnings": "createdAt lies before block_time"},
    "ens_name_as_address": {"from_address": None, "warnings": "from_address 'vitalik.eth' left out"},
    "staking_analysis_is_text": {"warnings": "stakingAnalysis is not a document"},
    # stored staking is never believed
    "staking_type_not_in_list": {"staking_type": "unknown"},
    "staking_confidence_out_of_range": {"staking_type": "create_lock", "staking_confidence": 0.8},
    # names by strangers
    "long_content": {"method": "addLiquidity"},
    "nul_characters": {"token_name": "Safe Moon"},
    "lone_surrogate": {"token_name": "Doge Inu"},
    "emoji_token": {"unit": "🍣"},
    "rtl_text": {"method": "swapExactTokensForTokens"},
    "bidi_override": {"token_name": "USDCCTDU", "token_symbol": "USD", "status": "failed"},
    "zero_width": {"token_symbol": "BTC"},
}


@pytest.fixture(scope="module")
def owners(shared_data: Path) -> Owners:
    names = ("smartcontracts", "teams", "websites")
    return Owners.from_records(*(read_extended_json(shared_data / f"{name}.jsonl") for name in names))


@pytest.fixture(scope="module")
def transactions(shared_data: Path, owners: Owners) -> list[Transaction]:
    records = read_extended_json(shared_data / "transactions.sample.jsonl.gz")
    return [parse_transaction(record, owners, now_ms=NOW_MS) for record in records]


@pytest.fixture(scope="module")
def documents(transactions: list[Transaction]) -> list[Document]:
    return [describe_transaction(transaction) for transaction in transactions]


def test_every_real_transaction_is_read_without_a_warning(transactions: list[Transaction]) -> None:
    assert len(transactions) == 7_845
    assert {transaction.warnings for transaction in transactions} == {""}
    assert len({transaction.natural_key for transaction in transactions}) == 7_845


def test_real_chains_statuses_and_times_are_told_apart(transactions: list[Transaction]) -> None:
    chains = [transaction.chain for transaction in transactions]
    assert {chain: chains.count(chain) for chain in set(chains)} == {
        "Ethereum": 5_688,
        "Polygon": 1_201,
        "BNB Chain": 815,
        "Base": 50,
        "Optimism": 49,
        "Arbitrum": 42,
    }
    assert sum(transaction.status == "failed" for transaction in transactions) == 329
    assert sum(transaction.status is None for transaction in transactions) == 1_342
    assert sum(transaction.block_time_ms is None for transaction in transactions) == 96
    assert sum(transaction.gas_used is None for transaction in transactions) == 1_128


def test_every_real_amount_that_moves_something_has_a_unit(transactions: list[Transaction]) -> None:
    assert all(transaction.unit for transaction in transactions if transaction.amount not in (None, "0"))


def test_a_token_transfer_is_never_counted_in_the_chains_coin(transactions: list[Transaction]) -> None:
    wrong = [
        t for t in transactions if t.is_transfer and t.unit in ("ETH", "BNB", "MATIC") and t.unit != t.token_symbol
    ]
    assert wrong == []


def test_an_ordinary_document_is_within_eighty_tokens(documents: list[Document]) -> None:
    tokens = count_tokens([document.content for document in documents])
    assert statistics.median(tokens) <= 60
    assert sum(count <= ORDINARY_TOKENS for count in tokens) / len(tokens) >= 0.99
    assert max(tokens) <= 110


def test_no_real_document_holds_call_data_a_hash_or_an_address(documents: list[Document]) -> None:
    for document in documents:
        assert not re.search(r"0x[0-9a-fA-F]{8,}|[0-9a-fA-F]{40}", document.content), document.content
        assert not re.search(r"0x[0-9a-fA-F]{8,}|[0-9a-fA-F]{40}", document.summary), document.summary


def test_every_real_document_keeps_the_limits_of_the_schema(documents: list[Document]) -> None:
    for document in documents:
        assert 0 < len(document.content) <= 8_000
        assert 0 < len(document.summary) <= MAX_SUMMARY_CHARS
        assert 1 <= document.metadata["importance"] <= 10
        assert 0 <= document.metadata["confidence"] <= 1
        assert document.metadata["tags"]


def test_every_real_document_belongs_to_a_team_and_a_scope(documents: list[Document]) -> None:
    assert all(re.fullmatch("[0-9a-f]{24}", document.team_id) and document.site_id for document in documents)


def test_synthetic_staking_rows_are_read_from_their_call_data(shared_data: Path, owners: Owners) -> None:
    records = read_extended_json(shared_data / "staking.synthetic.jsonl")
    found = [parse_transaction(record, owners, now_ms=NOW_MS) for record in records]
    kinds = {transaction.staking_type for transaction in found}
    assert kinds >= {"create_lock", "increase_amount", "increase_unlock_time", "withdraw"}
    for record, transaction in zip(records, found, strict=True):
        unlock = (record["stakingAnalysis"].get("details") or {}).get("unlockTimestamp")
        if unlock is not None and transaction.staking_unlock_s is not None:
            assert transaction.staking_unlock_s == unlock


def test_every_class_of_dirt_has_an_expected_outcome(shared_data: Path) -> None:
    lines = read_extended_json(shared_data / "messy.jsonl")
    assert len(lines) == 61
    assert {line["class"] for line in lines} == MESSY.keys()


@pytest.mark.parametrize("dirt", sorted(MESSY))
def test_dirt_ends_as_a_right_document_or_as_a_dead_letter(shared_data: Path, owners: Owners, dirt: str) -> None:
    expected = MESSY[dirt]
    lines = [line["doc"] for line in read_extended_json(shared_data / "messy.jsonl") if line["class"] == dirt]
    assert lines
    for record in lines:
        if isinstance(expected, str):
            with pytest.raises(RecordError) as refused:
                parse_transaction(record, owners, now_ms=NOW_MS)
            assert refused.value.code == expected
            assert len(refused.value.reason.split()) > 4
        else:
            transaction = parse_transaction(record, owners, now_ms=NOW_MS)
            assert {name: getattr(transaction, name) for name in expected} == expected
            document = describe_transaction(transaction)
            assert len(document.summary) <= MAX_SUMMARY_CHARS
            document.content.encode()


def digest_of_bodies(records: Iterable[dict[str, Any]], owners: Owners) -> str:
    """Return what stands for all that the records become: the bodies of their rows, or why they are refused."""
    found = blake2b(digest_size=16)
    for record in records:
        try:
            document = describe_transaction(parse_transaction(record, owners, now_ms=NOW_MS))
        except RecordError as error:
            found.update(error.code.encode())
            continue
        chunks = split_text(document.content, ChunkSize(), count_tokens)
        for chunk in chunks:
            found.update(make_body(document, chunk, len(chunks), FACTS))
    return found.hexdigest()


@pytest.mark.parametrize("name", BODIES)
def test_records_become_what_is_pinned_beside_the_versions_of_the_code(
    shared_data: Path, owners: Owners, name: str
) -> None:
    records = [record.get("doc", record) for record in read_extended_json(shared_data / name)]
    found = digest_of_bodies(records, owners)
    versions = {"DESCRIBER_VERSION": DESCRIBER_VERSION, "CHUNKER_VERSION": CHUNKER_VERSION}
    assert (versions, found) == (MADE_BY, BODIES[name]), (
        "what records become has changed: raise DESCRIBER_VERSION (or CHUNKER_VERSION, if texts are cut elsewhere) and "
        f"pin {versions} and {found} here, else stores keep the old rows for ever"
    )
