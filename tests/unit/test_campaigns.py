"""Campaigns: what one cost and brought. Amounts of different tokens are never one sum, and users are only counted."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from blocks.tokens import count_tokens
from tasks.domain.campaigns import CAMPAIGNS, MIXED_NOTE
from tasks.domain.chunks import MAX_CONTENT_CHARS
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.rows import encode_head
from tests.builders import NOW, NOW_MS, RECIPIENT, TEAM_ID, TOKEN_ADDRESS, TX_HASH, WALLET

SITE_ID = "0b4ff0ab-6e5c-4f0e-9a8e-7d5a1c2b3d4e"
CAMPAIGN_ID = ObjectId("64f000000000000000000001")
CREATED = datetime(2025, 3, 3, 12, tzinfo=UTC)
UPDATED = datetime(2025, 6, 12, 9, 30, tzinfo=UTC)
OTHER_HASH = "0x" + "ab" * 32
OWNERS = Owners.from_records(
    [],
    [{"_id": TEAM_ID}],
    [{"_id": ObjectId(), "siteId": SITE_ID, "team": TEAM_ID, "Name": "Tidewater", "Domain": "tidewater.example"}],
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(max_size=30),
        st.datetimes(),
        st.sampled_from([Decimal128("NaN"), Decimal128("1E+6000"), Int64(3), WALLET, TX_HASH, "USD", 1e300]),
        st.builds(ObjectId),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["currency", "amount", "txHash", "value", "chainName", "chainId", "contractAddress"])
            | st.text(max_size=9),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def moved(tx_hash: str = TX_HASH, value: object = 1.5, **changes: Any) -> dict[str, Any]:
    """Return an entry of a campaign's transactions."""
    entry: dict[str, Any] = {
        "txHash": tx_hash,
        "contractAddress": TOKEN_ADDRESS,
        "walletAddress": WALLET,
        "value": value,
        "timestamp": UPDATED,
        "chainId": 1,
        "chainName": "Ethereum",
    }
    return {**entry, **changes}


def make_campaign(**changes: Any) -> dict[str, Any]:
    """Return a campaign; a change whose name begins with ``stats__`` is one of its ``stats``."""
    stats: dict[str, Any] = {
        "visitors": 40,
        "uniqueVisitors": ["user_1700000000001_a", "ann.harbour@mail.example", "user_3"],
        "web3Users": 5,
        "uniqueWeb3Users": ["user_3"],
        "uniqueWallets": 2,
        "uniqueWalletAddresses": [WALLET, RECIPIENT],
        "transactedUsers": 1,
        "uniqueTransactedWallets": [WALLET],
        "conversions": 2,
        "conversionsValue": 5_001.5,
        "totalTransactionValue": 5_001.5,
        "averageTransactionValue": 2_500.75,
        "cac": 450,
        "roi": 1_011.44,
        "totalDuration": 5_200,
        "averageDuration": 130,
        "visitDuration": 5_200,
        "bounces": 10,
        "bounceRate": 25,
        "sessionDurations": {"session_1": 130},
        "transactions": [moved(), moved(OTHER_HASH, 5_000, contractAddress=RECIPIENT, chainId=8453, chainName="Base")],
    }
    record: dict[str, Any] = {
        "_id": CAMPAIGN_ID,
        "siteId": SITE_ID,
        "name": "Spring liquidity",
        "domain": "tidewater.example",
        "path": "/pools",
        "source": "twitter",
        "medium": "social",
        "campaign": "spring-liquidity",
        "utm_id": "utm_7cf436149ed1",
        "shortUrl": "https://go.tidewater.example/abc123",
        "budget": {"currency": "USD", "amount": 450},
        "sessions": [ObjectId("64f000000000000000000002"), ObjectId("64f000000000000000000003")],
        "createdAt": CREATED,
        "updatedAt": UPDATED,
    }
    for name, value in changes.items():
        holder, _, inner = name.partition("__")
        if inner:
            stats[inner] = value
        else:
            record[holder] = value
    return {"stats": stats, **record}


def describe(**changes: Any) -> Document:
    return CAMPAIGNS.describe(make_campaign(**changes), OWNERS, NOW_MS)


def facts(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = describe(**changes).metadata["facts"]
    return found


def warnings(**changes: Any) -> str | None:
    found: str | None = facts(**changes).get("warnings")
    return found


def refusal(**changes: Any) -> str:
    with pytest.raises(RecordError) as refused:
        describe(**changes)
    return refused.value.code


def test_the_text_tells_where_it_ran_what_it_cost_and_what_it_brought() -> None:
    assert describe().content == (
        "Campaign Spring liquidity, Website Tidewater (tidewater.example). "
        "Source twitter, medium social, landing page /pools, created 3 March 2025, budget 450 USD. "
        "Brought 40 visitors (3 unique), 5 web3 users, 2 wallets, 1 with transactions, "
        "2 transactions on Base and Ethereum. "
        "ROI 1,011 % (adds up different tokens), 450 USD per acquired wallet, average visit 2 min 10 s, "
        "bounce rate 25 %."
    )
    assert count_tokens([describe().content])[0] <= 130


def test_a_slug_that_only_repeats_the_name_is_not_told_again() -> None:
    assert "utm campaign" not in describe(campaign="Spring_Liquidity").content
    assert "utm campaign pools-2025," in describe(campaign="pools-2025").content
    assert "landing page" not in describe(path="/").content


def test_the_facts_hold_the_exact_figures() -> None:
    assert facts() == {
        "name": "Spring liquidity",
        "source": "twitter",
        "medium": "social",
        "utmCampaign": "spring-liquidity",
        "utmId": "utm_7cf436149ed1",
        "host": "tidewater.example",
        "path": "/pools",
        "cost": 450.0,
        "currency": "USD",
        "createdAt": CREATED,
        "updatedAt": UPDATED,
        "sessions": 2,
        "uniqueVisitors": 3,
        "uniqueWeb3Users": 1,
        "visitors": 40,
        "web3Users": 5,
        "uniqueWallets": 2,
        "transactedUsers": 1,
        "conversions": 2,
        "bounces": 10,
        "totalDuration": 5_200.0,
        "averageDuration": 130.0,
        "visitDuration": 5_200.0,
        "bounceRate": 25.0,
        "cac": 450.0,
        "mixedTokens": {
            "conversionsValue": 5_001.5,
            "totalTransactionValue": 5_001.5,
            "averageTransactionValue": 2_500.75,
            "roi": 1_011.44,
            "note": MIXED_NOTE,
        },
        "transactions": 2,
        "txHashes": sorted([TX_HASH, OTHER_HASH]),
        "valueByContract": [
            {"contractAddress": RECIPIENT, "chain": "Base", "transactions": 1, "value": "5000"},
            {"contractAddress": TOKEN_ADDRESS, "chain": "Ethereum", "transactions": 1, "value": "1.5"},
        ],
        "wallets": sorted([WALLET, RECIPIENT]),
        "transactedWallets": [WALLET],
    }


def test_the_metadata_say_what_it_is_about() -> None:
    metadata = {name: value for name, value in describe().metadata.items() if name != "facts"}
    assert metadata == {
        "timeframe": {"start": CREATED, "end": UPDATED},
        "dataType": "campaign",
        "tags": ["campaign", "twitter", "social", "spring-liquidity", "conversions", "base", "ethereum"],
        "category": "campaign",
        "importance": 8,
        "aggregationLevel": "raw",
        "confidence": 1.0,
    }


def test_a_campaign_is_its_record_since_utm_ids_are_missing_or_doubled() -> None:
    document = describe()
    assert document.key == f"campaign:{SITE_ID}:{CAMPAIGN_ID}"
    assert (document.source_type, document.source_id) == ("campaign", str(CAMPAIGN_ID))
    assert (document.holder_id, document.site_id, document.team_id) == (SITE_ID, SITE_ID, str(TEAM_ID))
    assert describe(utm_id=None).key == document.key
    assert "utmId" not in facts(utm_id=None)


@pytest.mark.parametrize("raw", ["imported-1", None, 17])
def test_an_id_that_is_no_object_id_refuses_the_campaign(raw: object) -> None:
    assert refusal(_id=raw) == "id_not_objectid"


def test_a_campaign_without_an_owner_is_refused() -> None:
    assert refusal(siteId=None) == "site_missing"
    assert refusal(siteId="gone-1") == "site_unknown"


def test_missing_fields_are_no_fault() -> None:
    document = CAMPAIGNS.describe({"_id": CAMPAIGN_ID, "siteId": SITE_ID}, OWNERS, NOW_MS)
    assert document.content == (
        "Campaign without a name, Website Tidewater (tidewater.example). Nothing is counted for it yet."
    )
    assert document.metadata["facts"] == {}
    assert document.metadata["confidence"] == 1.0
    assert "timeframe" not in document.metadata


# --- time


def test_a_campaign_runs_from_its_creation_to_its_last_update() -> None:
    assert describe(updatedAt=None).metadata["timeframe"] == {"start": CREATED, "end": CREATED}
    assert describe(createdAt=CREATED.isoformat()) == describe()
    assert CAMPAIGNS.time_field == "createdAt"
    assert CAMPAIGNS.read_time(make_campaign()) == round(CREATED.timestamp() * 1000)


@pytest.mark.parametrize("raw", ["soon", datetime(1970, 1, 1, tzinfo=UTC), NOW + timedelta(days=3)])
def test_a_creation_that_can_not_be_is_left_out_with_the_timeframe(raw: object) -> None:
    document = describe(createdAt=raw)
    assert "timeframe" not in document.metadata
    assert document.metadata["facts"]["warnings"] == "createdAt is no time between 2015 and now, and is left out"


def test_an_update_before_the_creation_is_left_out_and_named() -> None:
    assert warnings(updatedAt=CREATED - timedelta(days=1)) == "updatedAt lies before createdAt and is left out"


# --- budget, bounces, ROI


@pytest.mark.parametrize(
    ("amount", "cost"),
    [(1500.5, 1500.5), (Decimal128("300.10"), 300.1), ("1250.50", 1250.5), (0, 0.0), (Int64(7), 7.0)],
)
def test_a_budget_is_read_in_every_form(amount: object, cost: float) -> None:
    assert facts(budget={"currency": "USD", "amount": amount})["cost"] == cost


@pytest.mark.parametrize("amount", ["1,250.50", math.nan, -40, "much", Decimal128("NaN")])
def test_a_budget_that_can_not_be_is_left_out_and_named(amount: object) -> None:
    found = facts(budget={"currency": "USD", "amount": amount})
    assert "cost" not in found
    assert found["warnings"] == f"budget.amount {str(amount)!r} left out"


@pytest.mark.parametrize("budget", [None, ""])
def test_no_budget_is_no_fault_and_no_return(budget: object) -> None:
    document = describe(budget=budget, stats__roi=0, stats__cac=0)
    found = document.metadata["facts"]
    assert "warnings" not in found
    assert "roi" not in found["mixedTokens"]
    assert "cac" not in found
    assert "ROI" not in document.content


def test_a_budget_that_is_no_document_is_left_out_and_named() -> None:
    assert warnings(budget=450) == "budget of type int left out"
    assert warnings(budget={"currency": ["USD"], "amount": 450}) == (
        "budget.currency is no name of a currency and is left out"
    )


def test_any_currency_is_told_as_it_stands() -> None:
    assert "budget 300 shells" in describe(budget={"currency": "shells", "amount": 300}).content
    assert "budget 300 of unknown currency" in describe(budget={"amount": 300}).content


@pytest.mark.parametrize("raw", [100.01, 315.5, -1, math.nan])
def test_a_bounce_rate_above_all_visits_is_left_out_and_named(raw: float) -> None:
    document = describe(stats__bounceRate=raw)
    assert "bounceRate" not in document.metadata["facts"]
    assert "bounce rate" not in document.content
    assert document.metadata["facts"]["warnings"] == f"stats.bounceRate {str(raw)!r} left out"
    assert facts(stats__bounceRate=100)["bounceRate"] == 100


def test_no_total_of_different_tokens_stands_in_a_text_and_the_facts_say_what_it_is() -> None:
    document = describe()
    assert "5,001" not in document.content + document.summary
    assert "2,500" not in document.content + document.summary
    assert "different tokens" in document.metadata["facts"]["mixedTokens"]["note"]


def test_a_roi_below_zero_is_one() -> None:
    assert "ROI -99.84 % (adds up different tokens)" in describe(stats__roi=-99.84).content


@pytest.mark.parametrize("name", ["roi", "cac", "conversionsValue"])
def test_a_figure_that_is_none_is_left_out_and_named(name: str) -> None:
    assert warnings(**{f"stats__{name}": math.inf}) == f"stats.{name} 'inf' left out"


# --- statistics


def test_statistics_that_are_missing_or_no_document_leave_the_campaign() -> None:
    assert "Nothing is counted for it yet." in describe(stats=None).content
    assert warnings(stats="none") == "stats of type str left out"


@pytest.mark.parametrize(
    ("name", "raw"), [("visitors", -1), ("visitors", "many"), ("conversions", 1.5), ("bounces", math.nan)]
)
def test_a_counter_that_can_not_be_is_left_out_and_named(name: str, raw: object) -> None:
    found = facts(**{f"stats__{name}": raw})
    assert name not in found
    assert found["warnings"] == f"stats.{name} {str(raw)!r} left out"


def test_counters_and_durations_are_read_from_text_too() -> None:
    found = facts(stats__visitors="12", stats__totalDuration="37.20")
    assert (found["visitors"], found["totalDuration"]) == (12, 37.2)


# --- transactions


def test_a_transaction_counts_once_by_its_hash_however_it_is_written() -> None:
    twice = [moved(), moved(), moved(TX_HASH.upper().replace("0X", "0x")), moved(TX_HASH.removeprefix("0x"))]
    found = facts(stats__transactions=twice, stats__conversions=1)
    assert found["transactions"] == 1
    assert found["txHashes"] == [TX_HASH]
    assert found["valueByContract"] == [
        {"contractAddress": TOKEN_ADDRESS, "chain": "Ethereum", "transactions": 1, "value": "1.5"}
    ]
    assert "warnings" not in found


def test_conversions_that_the_list_does_not_bear_out_are_named() -> None:
    found = facts(stats__conversions=9)
    assert (found["conversions"], found["transactions"]) == (9, 2)
    assert found["warnings"] == "conversions says 9, and the list has 2 different transactions"


def test_without_a_list_the_conversions_stand_alone() -> None:
    document = describe(stats__transactions=None)
    assert "2 conversions." in document.content
    assert "transactions" not in document.metadata["facts"]
    assert "warnings" not in document.metadata["facts"]


def test_values_are_added_up_exactly_and_only_within_a_contract_on_a_chain() -> None:
    hashes = [f"0x{number:064x}" for number in range(1, 5)]
    listed = [
        moved(hashes[0], 0.1),
        moved(hashes[1], Decimal128("0.2")),
        moved(hashes[2], "7", chainName="Base", chainId=8453),
        moved(hashes[3], 4, contractAddress=RECIPIENT),
    ]
    found = facts(stats__transactions=listed, stats__conversions=4)
    assert found["valueByContract"] == [
        {"contractAddress": TOKEN_ADDRESS, "chain": "Ethereum", "transactions": 2, "value": "0.3"},
        {"contractAddress": RECIPIENT, "chain": "Ethereum", "transactions": 1, "value": "4"},
        {"contractAddress": TOKEN_ADDRESS, "chain": "Base", "transactions": 1, "value": "7"},
    ]
    assert facts(stats__transactions=listed[::-1], stats__conversions=4) == found


def test_a_transaction_under_two_contracts_is_one_transaction() -> None:
    found = facts(stats__transactions=[moved(), moved(contractAddress=RECIPIENT)], stats__conversions=1)
    assert found["transactions"] == 1
    assert len(found["valueByContract"]) == 2


@pytest.mark.parametrize("odd", [None, "0xabc", {}, moved("soon"), moved("")])
def test_what_has_no_hash_is_no_transaction(odd: Any) -> None:
    found = facts(stats__transactions=[moved(), odd], stats__conversions=1)
    assert found["transactions"] == 1
    assert found["warnings"] == "stats.transactions: what has no hash left out"


@pytest.mark.parametrize("value", [math.nan, "much", Decimal128("1E+6000"), -1, 1e300])
def test_a_value_that_can_not_be_is_left_out_and_the_transaction_counts(value: object) -> None:
    found = facts(stats__transactions=[moved(value=value)], stats__conversions=1)
    assert found["transactions"] == 1
    assert "value" not in found["valueByContract"][0]
    assert "stats.transactions.value" in found["warnings"]


def test_two_entries_of_one_transaction_that_disagree_are_named() -> None:
    listed = [moved(value=1), moved(value=3), moved(value=None)]
    for order in (listed, listed[::-1]):
        found = facts(stats__transactions=order, stats__conversions=1)
        assert found["valueByContract"][0]["value"] == "3"
        assert "disagree" in found["warnings"]


@pytest.mark.parametrize(
    "chain", [{"chainName": "Error"}, {"chainName": None, "chainId": 1.0}, {"chainName": "Unknown (ID: 1)"}]
)
def test_a_chain_is_found_by_its_name_or_its_id(chain: dict[str, Any]) -> None:
    assert facts(stats__transactions=[moved(**chain)])["valueByContract"][0]["chain"] == "Ethereum"


# --- people and wallets


def test_no_user_is_ever_named() -> None:
    mail, long_id = "ann.harbour@mail.example", "user_1700000000001_a"
    document = describe(
        name=f"Letter to {mail}", content=long_id, path=f"/p/{long_id}?u={mail}", term="user_3", source=long_id.upper()
    )
    told = str(document).lower()
    for personal in (mail, "harbour", long_id, "user_3", "session_1"):
        assert personal not in told
    assert describe(stats__uniqueVisitors="user_9").metadata["facts"]["warnings"] == (
        "stats.uniqueVisitors of type str left out"
    )


def test_wallets_stand_in_the_facts_each_once_and_placeholders_are_none() -> None:
    listed = [WALLET, WALLET.upper().replace("0X", "0x"), "No Wallet Detected", "", None, RECIPIENT]
    assert facts(stats__uniqueWalletAddresses=listed)["wallets"] == sorted([WALLET, RECIPIENT])


def test_no_address_and_no_hash_stands_in_the_text() -> None:
    document = describe(name=f"For {WALLET}")
    for public in (WALLET, RECIPIENT, TOKEN_ADDRESS, TX_HASH):
        assert public not in document.content + document.summary


def test_durations_by_session_are_not_even_read() -> None:
    assert "stats" not in CAMPAIGNS.fields
    assert not any("sessionDurations" in field for field in CAMPAIGNS.fields)


# --- names


def test_names_are_shown_without_what_hides_in_them_and_cut() -> None:
    assert facts(name="Silver\0fen \u202eevil\u202c")["name"] == "Silver fen evil"
    long = ", ".join(f"Post {part}" for part in range(400))
    document = describe(name=long)
    assert len(document.metadata["facts"]["name"]) <= 200
    assert len(document.summary) <= MAX_SUMMARY_CHARS
    assert len(document.content) < 1_000


def test_what_is_no_text_is_left_out_and_named() -> None:
    assert warnings(name=404, source=["x"]) == "name of type int left out; source of type list left out"


@given(
    st.dictionaries(st.sampled_from([field for field in CAMPAIGNS.fields if "." not in field]), ANYTHING),
    st.dictionaries(
        st.sampled_from([field.replace(".", "__") for field in CAMPAIGNS.fields if "." in field]), ANYTHING
    ),
)
def test_a_campaign_of_anything_is_described_or_refused(fields: dict[str, Any], stats: dict[str, Any]) -> None:
    for changes in ({**fields, **stats}, {**fields, **stats, "siteId": SITE_ID}):
        record = make_campaign(**changes)
        try:
            document = CAMPAIGNS.describe(record, OWNERS, NOW_MS)
        except RecordError:
            continue
        assert encode_head(document) == encode_head(CAMPAIGNS.describe(record, OWNERS, NOW_MS))
        assert bson.encode(document.metadata)
        assert len(document.content) < MAX_CONTENT_CHARS
        assert len(document.summary) <= MAX_SUMMARY_CHARS
        assert WALLET not in document.content
