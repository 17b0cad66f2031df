"""Smart contracts: what a team tracks on which chain. What the application only defaults to is no fact."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.documents import Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import team_scope
from tasks.domain.rows import encode_head
from tasks.domain.smart_contracts import SMART_CONTRACTS, shown_contract
from tests.builders import (
    ESCROW_ID,
    NOW,
    NOW_MS,
    OTHER_TEAM_ID,
    OWNERLESS_ID,
    SHARED_ID,
    SITE_ID,
    TEAM_ID,
    TOKEN_ADDRESS,
    TOKEN_ID,
    TOKEN_OID,
    make_contract,
    make_owners,
)

OWNERS = make_owners()
CREATED = datetime(2024, 3, 3, 12, tzinfo=UTC)
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=300),
    st.datetimes(),
    st.builds(ObjectId),
    st.sampled_from([Decimal128("NaN"), Int64(3), "main", "escrow", "Binance Smart Chain", TOKEN_ADDRESS]),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)


def make_record(**changes: Any) -> dict[str, Any]:
    record = make_contract(lastBlock=19_000_000, createdAt=CREATED, lastUpdated=CREATED + timedelta(days=5))
    return {**record, **changes}


def describe(**changes: Any) -> Document:
    return SMART_CONTRACTS.describe(make_record(**changes), OWNERS, NOW_MS)


def facts(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = describe(**changes).metadata["facts"]
    return found


def refusal(**changes: Any) -> str:
    with pytest.raises(RecordError) as refused:
        describe(**changes)
    return refused.value.code


def test_a_contract_is_described_by_its_name_chain_token_and_since_when_it_is_tracked() -> None:
    document = describe()
    assert document.content == (
        "Smart contract Tether USD (USDT) on Ethereum, token symbol USDT, verified, tracked since 3 March 2024. "
        "Address begins with 0xdac17f."
    )
    assert document.summary == "Smart contract · Tether USD (USDT) on Ethereum · USDT"
    assert document.metadata == {
        "timeframe": {"start": CREATED, "end": CREATED + timedelta(days=5)},
        "dataType": "insight",
        "tags": ["smart contract", "ethereum", "usdt", "verified"],
        "category": "contract",
        "chainId": "1",
        "contractAddress": TOKEN_ADDRESS,
        "importance": 5,
        "aggregationLevel": "raw",
        "confidence": 1.0,
        "facts": {
            "contractId": TOKEN_ID,
            "name": "Tether USD (USDT)",
            "tokenSymbol": "USDT",
            "address": TOKEN_ADDRESS,
            "chain": "Ethereum",
            "contractType": "main",
            "verified": True,
            "lastBlock": 19_000_000,
            "createdAt": CREATED,
            "lastUpdated": CREATED + timedelta(days=5),
        },
    }


def test_a_contract_is_its_contract_id_and_belongs_to_its_team() -> None:
    document = describe()
    assert document.key == f"smart_contract:{TOKEN_ID}"
    assert (document.source_type, document.source_id) == ("smart_contract", str(TOKEN_OID))
    assert (document.holder_id, document.site_id, document.team_id) == (TOKEN_ID, SITE_ID, str(TEAM_ID))


def test_a_contract_of_a_team_with_several_websites_is_the_whole_teams() -> None:
    assert describe(contractId=SHARED_ID).site_id == team_scope(str(OTHER_TEAM_ID))


def test_staking_details_are_defaults_of_a_schema_and_never_told() -> None:
    details = {"apy": 12.5, "lockPeriod": 90, "rewardToken": "REWARD", "totalStaked": 1_000_000}
    assert describe(contractType="escrow", stakingDetails=details) == describe(contractType="escrow")
    assert "stakingDetails" not in SMART_CONTRACTS.fields


def test_an_escrow_is_a_staking_contract_and_a_missing_type_is_main() -> None:
    document = describe(contractId=ESCROW_ID, contractType="escrow")
    assert document.content.startswith("Staking (vote-escrow) contract ")
    assert "staking" in document.metadata["tags"]
    assert facts(contractType=None) == facts()


def test_an_unknown_type_is_main_and_named() -> None:
    found = facts(contractType="vault")
    assert found["contractType"] == "main"
    assert found["warnings"] == "contractType is neither main nor escrow, and is taken for main"


@pytest.mark.parametrize("raw", ["imported-1", None, 17])
def test_an_id_that_is_no_object_id_refuses_the_contract(raw: object) -> None:
    assert refusal(_id=raw) == "id_not_objectid"


def test_a_contract_without_an_owner_is_refused() -> None:
    assert refusal(contractId=None) == "contract_missing"
    assert refusal(contractId="contract_gone") == "contract_unknown"
    assert refusal(contractId=OWNERLESS_ID) == "owner_missing"


def test_an_address_is_told_in_lower_case_whatever_its_case() -> None:
    assert facts(address=TOKEN_ADDRESS.upper().replace("0X", "0x"))["address"] == TOKEN_ADDRESS


@pytest.mark.parametrize("raw", [TOKEN_ADDRESS[:-4], "harbour-bell.example", 17, "0x" + "g" * 40])
def test_an_address_that_lacks_digits_is_left_out_since_padding_it_would_name_another_contract(raw: object) -> None:
    document = describe(address=raw)
    assert "contractAddress" not in document.metadata
    assert document.metadata["facts"]["warnings"] == "address is not 0x and 40 hexadecimal digits, and is left out"
    assert "Address" not in document.content


@pytest.mark.parametrize(
    ("raw", "chain", "chain_id"),
    [
        ("Ethereum Mainnet", "Ethereum", "1"),
        ("Binance Smart Chain", "BNB Chain", "56"),
        ("Unknown (ID: 56)", "BNB Chain", "56"),
        ("Zetrix", "Zetrix", None),
        ("Error", None, None),
        (None, None, None),
    ],
)
def test_a_chain_has_one_name_whatever_it_is_called(raw: str | None, chain: str | None, chain_id: str | None) -> None:
    document = describe(blockchain=raw)
    assert document.metadata["facts"].get("chain") == chain
    assert document.metadata.get("chainId") == chain_id


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Pendle contract 0x0000…7ea0", "Pendle contract"),
        ("Router (0x1b02...4506)", "Router"),
        (f"Router {TOKEN_ADDRESS}", "Router"),
        ("Unlabelled contract 0x0000…4b05", None),
        ("", None),
        (None, None),
        ("Kelp, part 1" * 30, ("Kelp, part 1" * 30)[:80]),
    ],
)
def test_a_name_is_told_without_the_address_that_labellers_append(name: str | None, shown: str | None) -> None:
    assert shown_contract(name) == shown


def test_a_contract_without_a_name_says_so() -> None:
    assert describe(name=None, tokenSymbol=None).content.startswith(
        "Smart contract an unlabelled contract on Ethereum,"
    )


def test_names_are_shown_without_what_hides_in_them() -> None:
    assert facts(name="Kelp\0 Signal", tokenSymbol="K\u202eE")["name"] == "Kelp Signal"
    assert facts(name=404)["warnings"] == "name of type int left out"


@pytest.mark.parametrize("raw", [datetime(1970, 1, 1, tzinfo=UTC), NOW + timedelta(days=2), "soon", [1]])
def test_a_creation_that_can_not_be_is_left_out_with_the_timeframe(raw: object) -> None:
    document = describe(createdAt=raw, lastUpdated=None)
    assert "timeframe" not in document.metadata
    assert document.metadata["facts"]["warnings"] == "createdAt is no time between 2015 and now, and is left out"


def test_a_missing_creation_is_no_fault() -> None:
    found = facts(createdAt=None, lastUpdated=None)
    assert "warnings" not in found
    assert "createdAt" not in found


def test_times_are_read_from_text_too() -> None:
    assert facts(createdAt=CREATED.isoformat()) == facts()
    assert SMART_CONTRACTS.read_time(make_record(createdAt=CREATED.isoformat())) == round(CREATED.timestamp() * 1000)


def test_an_update_before_the_creation_is_left_out() -> None:
    document = describe(lastUpdated=CREATED - timedelta(days=1))
    assert document.metadata["timeframe"] == {"start": CREATED, "end": CREATED}
    assert document.metadata["facts"]["warnings"] == "lastUpdated lies before createdAt and is left out"


def test_a_last_block_is_a_whole_number_or_left_out() -> None:
    assert facts(lastBlock=19_000_011.0)["lastBlock"] == 19_000_011
    assert facts(lastBlock="19,000,010")["warnings"] == "lastBlock '19,000,010' left out"


def test_the_contracts_of_a_team_are_found_by_their_ids() -> None:
    def chosen(teams: list[str], holders: list[str]) -> list[str]:
        ids: list[str] = SMART_CONTRACTS.owned_by(OWNERS, teams, holders)["contractId"]["$in"]
        return sorted(ids)

    assert chosen([str(TEAM_ID)], []) == sorted([TOKEN_ID, ESCROW_ID])
    assert chosen([], [SHARED_ID]) == [SHARED_ID]
    assert chosen([str(TEAM_ID)], [SHARED_ID]) == []
    assert len(chosen([], [])) == 4


@given(st.dictionaries(st.sampled_from(SMART_CONTRACTS.fields), ANYTHING))
def test_a_contract_is_described_or_refused_whatever_its_fields_hold(fields: dict[str, Any]) -> None:
    for changes in (fields, {**fields, "contractId": TOKEN_ID}):
        record = make_record(**changes)
        try:
            document = SMART_CONTRACTS.describe(record, OWNERS, NOW_MS)
        except RecordError:
            continue
        assert document == SMART_CONTRACTS.describe(record, OWNERS, NOW_MS)
        assert encode_head(document)
        assert bson.encode(document.metadata)
        assert TOKEN_ADDRESS not in document.content
        assert len(document.content) < 500
