"""Documents: the words a transaction is found by. What they claim is in the record, what costs tokens in the facts."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.actions import UNNAMED, find_action
from tasks.domain.documents import MAX_SUMMARY_CHARS
from tasks.domain.transaction_documents import describe_transaction
from tasks.domain.transactions import parse_transaction
from tests.builders import (
    ESCROW_ID,
    ESCROW_OID,
    NOW_MS,
    SITE_ID,
    TEAM_ID,
    TOKEN_ADDRESS,
    TOKEN_ID,
    TX_HASH,
    WALLET,
    make_call,
    make_owners,
    make_record,
    make_transaction,
)

OWNERS = make_owners()
ZERO = "0x" + "0" * 40


def content(**changes: Any) -> str:
    return describe_transaction(make_transaction(**changes)).content


def content_of(record: dict[str, Any]) -> str:
    return describe_transaction(parse_transaction(record, OWNERS, now_ms=NOW_MS)).content


def metadata(**changes: Any) -> dict[str, Any]:
    return describe_transaction(make_transaction(**changes)).metadata


def test_a_token_transfer_says_what_how_much_where_when_who_and_whether_it_worked() -> None:
    assert content() == (
        "Token transfer: 12.5 USDT, Tether USD (USDT) on Ethereum. 8 May 2022. By wallet 0x57f999. Succeeded."
    )


def test_a_failure_stands_in_front_because_it_turns_all_that_follows() -> None:
    assert content(status="failed").startswith("Failed (reverted): Token transfer")
    assert "Succeeded" not in content(status="failed")
    assert content(status="pending").endswith("Pending.")
    assert not re.search("Succeeded|Failed|Pending", content(status=None))


def test_the_document_is_filed_under_its_contract_and_hash_for_its_owner() -> None:
    document = describe_transaction(make_transaction())
    assert document.key == f"transaction:{TOKEN_ID}:{TX_HASH}"
    assert (document.team_id, document.site_id) == (str(TEAM_ID), SITE_ID)
    assert document.source_id == "64c000000000000000000001"


def test_no_full_address_hash_or_call_data_is_in_the_text() -> None:
    text = content()
    assert TX_HASH not in text
    assert WALLET not in text
    assert not re.search(r"[0-9a-f]{20}", text)


def test_the_summary_names_the_minute_and_the_status() -> None:
    summary = describe_transaction(make_transaction()).summary
    assert summary == "Token transfer · 12.5 USDT · Tether USD (USDT) on Ethereum · 2022-05-08 14:51 UTC · success"


def test_the_facts_hold_every_exact_figure_and_leave_out_what_is_missing() -> None:
    facts = metadata(allowance=None, gas_used=0)["facts"]
    assert facts["txHash"] == TX_HASH
    assert facts["from"] == WALLET
    assert facts["amount"] == "12.5"
    assert facts["unit"] == "USDT"
    assert facts["gasUsed"] == 0
    assert not {"allowance", "stakingType", "warnings", "amountBelow"} & facts.keys()
    assert None not in facts.values()


def test_the_metadata_are_the_ones_that_the_application_filters_by() -> None:
    found = metadata()
    when = datetime(2022, 5, 8, 14, 51, 6, tzinfo=UTC)
    assert found["timeframe"] == {"start": when, "end": when}
    assert found["dataType"] == "transaction"
    assert found["chainId"] == "1"
    assert found["contractAddress"] == TOKEN_ADDRESS
    assert found["aggregationLevel"] == "raw"
    assert found["tags"] == ["transfer", "ethereum", "success", "usdt"]
    assert found["confidence"] == 1.0


def test_milliseconds_of_a_block_time_survive_bson() -> None:
    for milliseconds in (1_642_114_917_001, 1_642_114_917_999, 1_438_269_973_007):
        frame = metadata(block_time_ms=milliseconds)["timeframe"]
        decoded = bson.decode(bson.encode(frame), bson.CodecOptions(tz_aware=True))
        assert round(decoded["start"].timestamp() * 1000) == milliseconds


def test_a_row_without_time_chain_or_address_has_no_such_metadata() -> None:
    found = metadata(block_time_ms=None, chain=None, chain_id=None, contract_address=None)
    assert not {"timeframe", "chainId", "contractAddress"} & found.keys()
    assert " on " not in content(chain=None)


@pytest.mark.parametrize(
    ("month", "name"), [(1, "January"), (3, "March"), (5, "May"), (8, "August"), (10, "October"), (12, "December")]
)
def test_months_are_english_on_every_machine(month: int, name: str) -> None:
    moment = datetime(2022, month, 3, tzinfo=UTC)
    said = content(block_time_ms=round(moment.timestamp() * 1000))
    assert f" 3 {name} 2022." in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"from_address": ZERO}, "Tokens minted from the zero address: 12.5 USDT"),
        ({"to_address": ZERO}, "Tokens burned to the zero address: 12.5 USDT"),
        ({"method": "transferFrom"}, "Token transfer: 12.5 USDT"),
        ({"amount": "0"}, "Token transfer: 0 USDT"),
        ({"amount": None, "unit": None}, "Token transfer, Tether USD"),
        ({"amount_below": True, "amount": "0.0001"}, "less than 0.0001 USDT"),
        ({"amount": str(2**256 - 1)}, "the largest possible amount of USDT"),
        ({"unit": None}, "12.5 units"),
        ({"creates_contract": True}, "Deployed a new contract"),
        ({"contract_name": None}, "an unlabelled contract on Ethereum"),
        ({"contract_name": "Unlabelled contract 0x12"}, "an unlabelled contract on Ethereum"),
        ({"contract_name": "Coinbase (0x71660c…f511)"}, "Coinbase on Ethereum"),
        ({"contract_type": "escrow"}, "Tether USD (USDT) (staking contract)"),
        ({"contract_name": "Router"}, "Token Tether USD (USDT)."),
        ({"staking_lock_days": 730}, "Lock of 730 days."),
        ({"staking_amount": "5"}, "5 tokens"),
    ],
    ids=repr,
)
def test_the_text_says_what_the_record_says(changes: dict[str, Any], words: str) -> None:
    assert words in content(**changes)


def test_a_bare_transfer_sends_the_chains_coin_even_if_it_sends_none() -> None:
    bare = make_call("", "", value_eth="0.8", tx_type="Transfer", method_signature=None, input="0x")
    assert content_of(bare).startswith("Sent native coin: 0.8 ETH, Router on Ethereum.")
    assert content_of({**bare, "value_eth": "0"}).startswith("Sent native coin: 0 ETH")


def test_the_zero_of_a_call_is_not_worth_a_word_whatever_its_sign() -> None:
    for zero in ("0", "-0", -0.0, "0e5", None, ""):
        assert content_of(make_call("swap", "0x12345678", value_eth=zero)).startswith("Swapped one token for another, ")


@pytest.mark.parametrize(
    ("selector", "amount", "start"),
    [
        ("0x095ea7b3", 2**256 - 1, "Unlimited approval of token spending, Router"),
        ("0x095ea7b3", 5, "Approval of token spending, Router"),
        ("0x095ea7b3", 0, "Approval of token spending, revoked, Router"),
        ("0xa22cb465", 1, "Unlimited operator approval for all NFTs of a collection, Router"),
        ("0xa22cb465", 0, "Operator approval for all NFTs of a collection, revoked, Router"),
    ],
)
def test_an_approval_is_told_by_its_call_data_with_or_without_a_name(selector: str, amount: int, start: str) -> None:
    method = {"0x095ea7b3": "approve", "0xa22cb465": "setApprovalForAll"}[selector]
    assert content_of(make_call(method, selector, 1, amount)).startswith(start)
    assert content_of(make_call("", selector, 1, amount, functionName="")).startswith(start)


def test_a_contract_creation_is_not_called_unlimited_because_its_bytes_look_like_an_approval() -> None:
    creation = make_call("approve", "0x095ea7b3", 1, 2**256 - 1, tx_type="Contract Creation")
    assert content_of(creation).startswith("Deployed a new contract")


def test_a_lock_says_its_amount_and_length() -> None:
    lock = make_call("create_lock", "0x65fc3873", 5 * 10**18, 1_715_093_466, contract=ESCROW_OID, contractId=ESCROW_ID)
    text = content_of(lock)
    assert text.startswith("Locked tokens for voting power in a vote-escrow contract: 5 tokens, veToken (staking")
    assert "Lock of 730 days." in text


def test_a_long_name_goes_to_the_end_whole_and_is_cut_everywhere_else() -> None:
    name = "moon " * 4_000
    record = make_record(token_name=name, token_symbol="S" * 10_000)
    document = describe_transaction(parse_transaction(record, OWNERS, now_ms=NOW_MS))
    assert document.content.endswith("Token name: " + name.strip())
    assert document.content.count("S") < 200
    assert len(document.summary) <= MAX_SUMMARY_CHARS
    assert all(len(tag) <= 80 for tag in document.metadata["tags"])


def test_importance_orders_what_analysts_ask_about() -> None:
    def of(record: dict[str, Any]) -> int:
        return describe_transaction(parse_transaction(record, OWNERS, now_ms=NOW_MS)).metadata["importance"]

    ordinary = of(make_record())
    assert of(make_call("approve", "0x095ea7b3")) < ordinary < of(make_call("castVote", "0x56781388"))
    assert of(make_record(status="Failed")) > ordinary
    small, large = (of(make_call("deposit", "0xd0e30db0", value_eth=value)) for value in ("0.5", "50"))
    assert small == ordinary < large
    assert of(make_record(value_eth="50 ETH")) == ordinary


def test_every_warning_takes_a_tenth_of_confidence_down_to_a_half() -> None:
    assert metadata(warnings="a left out")["confidence"] == 0.9
    assert metadata(warnings="a left out; b left out")["confidence"] == 0.8
    assert metadata(warnings="; ".join("abcdefghijk"))["confidence"] == 0.5


def test_a_left_out_value_full_of_semicolons_is_one_warning() -> None:
    record = make_record(gas_used=";" * 30)
    assert describe_transaction(parse_transaction(record, OWNERS, now_ms=NOW_MS)).metadata["confidence"] == 0.9


@pytest.mark.parametrize(
    ("method", "contract", "category"),
    [
        ("create_lock", None, "staking"),
        ("increase_unlock_time", None, "staking"),
        ("withdraw_early", None, "staking"),
        ("emergencyWithdraw", None, "staking"),
        ("unlock", None, "staking"),
        ("deposit", "Wrapped Ether", "wrap"),
        ("deposit", "Aave: Lending Pool", "lending"),
        ("deposit", "Beacon Deposit Contract", "staking"),
        ("deposit", None, "deposit"),
        ("withdraw", "Wrapped Ether", "wrap"),
        ("withdraw", None, "withdrawal"),
        ("exit", "Polygon (Matic): Root Chain Manager", "bridge"),
        ("exit", None, "staking"),
        ("castVoteBySig", None, "governance"),
        ("swapExactETHForTokens", None, "swap"),
        ("atomicMatch_", None, "marketplace"),
        ("approve", None, "approval"),
        ("safeTransferFrom", None, "transfer"),
        ("mint", "Uniswap V3: Positions NFT", "liquidity"),
        ("mint", None, "mint"),
        ("burn", None, "burn"),
        ("claimAirdrop", None, "airdrop"),
        ("SubToJunionOnYoutubeXD_lvfsnfguwqne", None, "other"),
    ],
)
def test_a_method_means_what_it_does_on_its_contract(method: str, contract: str | None, category: str) -> None:
    assert find_action(method, contract).category == category


@pytest.mark.parametrize("method", ["_", "$", "___"])
def test_a_method_without_a_letter_is_unnamed(method: str) -> None:
    assert find_action(method, None) == UNNAMED
    assert content(method=method, is_transfer=False, amount=None).startswith("Called an unnamed method, ")


@given(st.from_regex(r"[A-Za-z_$][A-Za-z0-9_$]{0,120}", fullmatch=True), st.none() | st.text(max_size=30))
def test_every_method_has_a_short_phrase_that_opens_a_sentence(method: str, contract: str | None) -> None:
    action = find_action(method, contract)
    assert action.category.islower()
    assert 0 < len(action.phrase) <= 100
    assert action.phrase[0].isupper()
