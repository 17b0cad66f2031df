"""Records, owners and transactions for tests: each is sound, and its changes say what the test is about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from tasks.domain import registry
from tasks.domain.chunks import Chunk
from tasks.domain.documents import Document
from tasks.domain.owners import Owners
from tasks.domain.rows import Bodies, encode_head
from tasks.domain.transaction_documents import TRANSACTIONS
from tasks.domain.transactions import Transaction, parse_transaction
from tasks.domain.vectors import EmbedderFacts

NOW = datetime(2025, 7, 20, 12, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)

TEAM_ID = ObjectId("64a000000000000000000001")
OTHER_TEAM_ID = ObjectId("64a000000000000000000002")
SITE_ID = "5f0c6e0a-7d1f-4f43-9a5b-0f6c1c6a9d11"
TOKEN_ID, TOKEN_OID = "contract_1744848001264_4b83679c64809985", ObjectId("64b000000000000000000001")
ESCROW_ID, ESCROW_OID = "contract_1744848002815_d6f3b3e6276949d4", ObjectId("64b000000000000000000002")
SHARED_ID, SHARED_OID = "contract_1744848003333_aaaaaaaaaaaaaaaa", ObjectId("64b000000000000000000003")
OWNERLESS_ID, OWNERLESS_OID = "contract_1744848004444_bbbbbbbbbbbbbbbb", ObjectId("64b000000000000000000004")

WALLET = "0x57f999293950cb971faf769912c39a00df042380"
RECIPIENT = "0x186e704dcc80f31367b351525d746f624c215d90"
TOKEN_ADDRESS = "0xdac17f958d2ee523a2206206994597c13d831ec7"
TX_HASH = "0x58100743187d1577025dfaf3f91fb493beff7b00f71c76adca61f183a48cb0e0"


def word(value: int) -> str:
    """Return an argument of call data: 32 bytes in hexadecimal."""
    return f"{value:064x}"


def make_contract(**changes: Any) -> dict[str, Any]:
    """Return a record of ``smartcontracts``: the token that ``make_record`` is about."""
    record: dict[str, Any] = {
        "_id": TOKEN_OID,
        "contractId": TOKEN_ID,
        "address": TOKEN_ADDRESS,
        "name": "Tether USD (USDT)",
        "blockchain": "Ethereum",
        "tokenSymbol": "USDT",
        "contractType": "main",
        "team": TEAM_ID,
        "verified": True,
    }
    return {**record, **changes}


def make_owners() -> Owners:
    """Return two teams: the first with one site, a token and an escrow, the second with two sites and a contract."""
    contracts = [
        make_contract(),
        make_contract(
            _id=ESCROW_OID, contractId=ESCROW_ID, name="veToken", tokenSymbol="VE", contractType="escrow", team=TEAM_ID
        ),
        make_contract(_id=SHARED_OID, contractId=SHARED_ID, name="Router", tokenSymbol="ETH", team=OTHER_TEAM_ID),
        make_contract(_id=OWNERLESS_OID, contractId=OWNERLESS_ID, name="Nobody's", team=None),
    ]
    teams = [{"_id": TEAM_ID, "name": "One"}, {"_id": OTHER_TEAM_ID, "name": "Two"}]
    websites = [
        {"_id": ObjectId(), "siteId": SITE_ID, "team": TEAM_ID},
        {"_id": ObjectId(), "siteId": "site-a", "team": OTHER_TEAM_ID},
        {"_id": ObjectId(), "siteId": "site-b", "team": OTHER_TEAM_ID},
    ]
    return Owners.from_records(contracts, teams, websites)


def make_record(**changes: Any) -> dict[str, Any]:
    """Return a record of ``transactions`` as pymongo gives it: a transfer of 12.5 USDT that succeeded."""
    record: dict[str, Any] = {
        "_id": ObjectId("64c000000000000000000001"),
        "contract": TOKEN_OID,
        "contractId": TOKEN_ID,
        "tx_hash": TX_HASH,
        "block_number": 14_736_713,
        "block_time": datetime(2022, 5, 8, 14, 51, 6, tzinfo=UTC),
        "chain": "Ethereum",
        "from_address": WALLET,
        "to_address": RECIPIENT,
        "contract_address": TOKEN_ADDRESS,
        "gas_used": 46_626,
        "status": "Success",
        "token_name": "Tether USD",
        "token_symbol": "USDT",
        "tx_type": "USDT Transfer",
        "value_eth": "12.5",
        "stakingAnalysis": {"isStaking": False, "stakingType": None, "confidence": 0},
        "method_name": "transfer",
        "method_signature": "0xa9059cbb",
        "functionName": "transfer(address _to, uint256 _value)",
        "input": "0xa9059cbb" + word(int(RECIPIENT, 16)) + word(12_500_000),
        "createdAt": datetime(2025, 6, 2, 16, 18, 40, 680_000, tzinfo=UTC),
    }
    return {**record, **changes}


def make_call(method: str, selector: str, *words: int, **changes: Any) -> dict[str, Any]:
    """Return the record of a call of the router's that is no token transfer."""
    fields: dict[str, Any] = {
        "contract": SHARED_OID,
        "contractId": SHARED_ID,
        "token_name": None,
        "token_symbol": None,
        "tx_type": "Contract Interaction",
        "value_eth": "0",
        "method_name": method,
        "method_signature": selector,
        "functionName": f"{method}()",
        "input": selector + "".join(map(word, words)),
    }
    return make_record(**{**fields, **changes})


def make_transaction(**changes: Any) -> Transaction:
    """Return the transaction of ``make_record()``, with some of its own fields changed."""
    return replace(parse_transaction(make_record(), make_owners(), now_ms=NOW_MS), **changes)


def make_body(document: Document, chunk: Chunk, chunks: int, facts: EmbedderFacts) -> bytes:
    """Return the body of a row of a transaction's document."""
    return Bodies(TRANSACTIONS, facts).encode(document.key, encode_head(document), chunk, chunks)


def use_next_describer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code be the next release, in which transactions are described by a new version."""
    newer = replace(TRANSACTIONS, version=TRANSACTIONS.version + 1)
    monkeypatch.setitem(registry._SOURCES, TRANSACTIONS.name, newer)
