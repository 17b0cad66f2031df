"""The golden set holds every class of dirt that is known of the source; each is looked for in the records."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import bson
import pytest
from bson import Int64, ObjectId

from tasks.domain.owners import team_scope
from tests.golden import Golden, Record, make_golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return make_golden()


Is = Callable[[Record], Any]


def value(record: Record) -> str:
    raw = record.get("value_eth")
    return raw if isinstance(raw, str) else ""


def wallet(record: Record, field: str = "walletAddress") -> Any:
    return (record.get("wallet") or {}).get(field)


def input_of(record: Record) -> str:
    return record.get("input") or ""


def staking(record: Record) -> Record:
    return record.get("stakingAnalysis") or {}


def journeys(record: Record) -> list[Record]:
    return [journey for journey in record.get("userJourneys") or () if isinstance(journey, dict)]


def snapshots(record: Record) -> list[Record]:
    return [entry for entry in record.get("analyticsSnapshot") or () if isinstance(entry, dict)]


def text_of(record: Record, field: str) -> str:
    raw = record.get(field)
    return raw if isinstance(raw, str) else ""


ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FIGURES = ("visitors", "web3Users", "walletsConnected", "pageViews")

#: Collection, what the dirt is, and how a record that has it is known.
DIRT: list[tuple[str, str, Is]] = [
    # ownership
    ("sessions", "a siteId that is no UUID", lambda r: text_of(r, "siteId") and not UUID.fullmatch(r["siteId"])),
    ("websites", "a website without team", lambda r: "siteId" in r and "team" not in r),
    ("websites", "a team as text", lambda r: isinstance(r.get("team"), str)),
    ("transactions", "contract alone", lambda r: r.get("contract") and not r.get("contractId")),
    ("transactions", "contractId alone", lambda r: r.get("contractId") and not r.get("contract")),
    ("transactions", "contract as text", lambda r: isinstance(r.get("contract"), str)),
    # transactions: fields that importers leave out
    *(
        ("transactions", f"no {field}", lambda r, field=field: r.get("tx_hash") and r.get(field) is None)
        for field in (
            "block_time",
            "block_number",
            "status",
            "gas_used",
            "tx_type",
            "method_name",
            "method_signature",
            "input",
            "token_symbol",
            "value_eth",
            "stakingAnalysis",
        )
    ),
    *(
        ("transactions", f"status {status}", lambda r, status=status: r.get("status") == status)
        for status in ("Success", "Failed", "Unknown", "success", "failed", "pending")
    ),
    # transactions: amounts
    ("transactions", "a bare native amount", lambda r: re.fullmatch(r"0\.\d+", value(r))),
    ("transactions", "the repr of a float", lambda r: re.fullmatch(r"[\d.]+e-\d+", value(r))),
    ("transactions", "an amount with a marker", lambda r: re.fullmatch(r"[\d.]*[1-9]\d* (ERC|BEP)20", value(r))),
    ("transactions", "an amount with commas", lambda r: re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)? \w+", value(r))),
    *(
        ("transactions", f"zero as {zero}", lambda r, zero=zero: value(r) == zero)
        for zero in ("0", "0 ERC20", "0 BEP20", "0 ETH", "0 MATIC", "0 ARB", "0 OP", "0 ABC")
    ),
    ("transactions", "an empty amount", lambda r: r.get("value_eth") == ""),
    ("transactions", "less than an amount", lambda r: value(r) == "<0.0001"),
    (
        "transactions",
        "six decimals taken for 18",
        lambda r: (
            value(r).endswith(" QUSD")
            and input_of(r)[:10] == "0xa9059cbb"
            and Decimal(value(r).split()[0].replace(",", "")) * 10**18 == int(input_of(r)[74:138], 16) > 0
        ),
    ),
    (
        "transactions",
        "an amount inflated by trailing call data",
        lambda r: (
            input_of(r)[:10] == "0xa9059cbb"
            and len(input_of(r)) > 138
            and Decimal(value(r).split()[0]) > int(input_of(r)[74:138], 16)
        ),
    ),
    # transactions: addresses, times, chains
    (
        "transactions",
        "a mixed-case address",
        lambda r: text_of(r, "from_address") != text_of(r, "from_address").lower(),
    ),
    ("transactions", "a recipient without its zeros", lambda r: 3 < len(text_of(r, "to_address")) < 42),
    ("transactions", "a creation without recipient", lambda r: r.get("to_address") == ""),
    ("transactions", "block_time as text", lambda r: re.match(r"\d{4}-\d\d-\d\dT", text_of(r, "block_time"))),
    ("transactions", "block_time in seconds", lambda r: isinstance(r.get("block_time"), int)),
    (
        "transactions",
        "block_time that is the import's",
        lambda r: (
            isinstance(r.get("block_time"), datetime) and 0 < (r["createdAt"] - r["block_time"]).total_seconds() < 5
        ),
    ),
    *(
        ("transactions", f"chain {chain}", lambda r, chain=chain: r.get("chain") == chain)
        for chain in (
            *("Ethereum", "BNB Chain", "Base", "Polygon", "Arbitrum", "Optimism"),
            *("Ethereum Mainnet", "Binance Smart Chain", "Unknown (ID: 56)", "Error"),
        )
    ),
    ("transactions", "a whole number as double", lambda r: isinstance(r.get("block_number"), float)),
    ("transactions", "a whole number as long", lambda r: isinstance(r.get("block_number"), Int64)),
    # staking
    ("transactions", "fields of an older version", lambda r: "stakingType" in r and "stakingConfidence" in r),
    (
        "transactions",
        "increase_amount stored as create_lock",
        lambda r: input_of(r)[:10] == "0x4957677c" and staking(r).get("stakingType") == "create_lock",
    ),
    (
        "transactions",
        "withdraw stored as increase_amount",
        lambda r: input_of(r)[:10] == "0x3ccfd60b" and staking(r).get("stakingType") == "increase_amount",
    ),
    (
        "transactions",
        "a transfer stored as staking",
        lambda r: input_of(r)[:10] == "0xa9059cbb" and staking(r).get("isStaking"),
    ),
    (
        "transactions",
        "a mint stored as staking",
        lambda r: r.get("method_name") == "mint" and staking(r).get("isStaking"),
    ),
    (
        "transactions",
        "a past lock dropped",
        lambda r: (
            input_of(r)[:10] == "0x65fc3873"
            and "amount" in staking(r).get("details", {})
            and "unlockTime" not in staking(r)["details"]
        ),
    ),
    (
        "transactions",
        "withdraw_early, by its name alone, stored as withdraw",
        lambda r: (
            not r.get("input")
            and not r.get("method_signature")
            and text_of(r, "functionName").startswith("withdraw_early(")
            and staking(r).get("stakingType") == "withdraw"
        ),
    ),
    *(
        ("transactions", f"selector {selector}", lambda r, selector=selector: input_of(r)[:10] == selector)
        for selector in (
            *("0x65fc3873", "0x4957677c", "0xeff7a612", "0x3ccfd60b", "0x2e1a7d4d"),
            *("0x8239f064", "0xdb2e21bc", "0xa694fc3a", "0x2e17de78"),
        )
    ),
    # contracts
    ("smartcontracts", "no contractType", lambda r: "contractType" not in r),
    ("smartcontracts", "no name", lambda r: "name" not in r),
    ("smartcontracts", "no tokenSymbol", lambda r: "tokenSymbol" not in r),
    ("smartcontracts", "no team", lambda r: "team" not in r),
    ("smartcontracts", "defaults for stakingDetails", lambda r: (r.get("stakingDetails") or {}).get("apy") == 0),
    # analytics
    ("analytics", "bounceRate as text", lambda r: isinstance(r.get("bounceRate"), str)),
    ("analytics", "no hourlyStats", lambda r: "hourlyStats" not in r),
    ("analytics", "no dailyStats", lambda r: "dailyStats" not in r),
    ("analytics", "no journeys", lambda r: "userJourneys" not in r),
    ("analytics", "more than 200,000 bytes", lambda r: len(bson.encode(r)) > 200_000),
    ("analytics", "a page key without its dots", lambda r: "/faq_html" in (r.get("pageViews") or {})),
    ("analytics", "a page key with an escape", lambda r: any("%20" in key for key in r.get("pageViews") or {})),
    ("analytics", "a page key that is a URL", lambda r: any(key[:4] == "http" for key in r.get("pageViews") or {})),
    (
        "analytics",
        "uniqueVisitors and userId disagree",
        lambda r: isinstance(r.get("userId"), list) and r.get("uniqueVisitors") != len(r["userId"]),
    ),
    (
        "analytics",
        "walletsConnected and wallets disagree",
        lambda r: isinstance(r.get("wallets"), list) and r.get("walletsConnected") != len(r["wallets"]),
    ),
    (
        "analytics",
        "new and returning are not the total",
        lambda r: (
            all(type(r.get(name)) in (int, float) for name in ("newVisitors", "returningVisitors", "totalVisitors"))
            and r["newVisitors"] + r["returningVisitors"] != r["totalVisitors"]
        ),
    ),
    *(
        (
            "analytics",
            f"a journey of the segment {segment}",
            lambda r, segment=segment: any(journey.get("userSegment") == segment for journey in journeys(r)),
        )
        for segment in ("converter", "engaged", "bounced", "browser")
    ),
    *(
        (
            "analytics",
            f"a journey from {form}",
            lambda r, form=form: any(
                re.fullmatch(form, text_of(journey, "acquisitionSource")) for journey in journeys(r)
            ),
        )
        for form in (r"google/cpc", r"referral/\w+\.\w+", "referral/Direct", "direct")
    ),
    (
        "analytics",
        "25 days spent on a site",
        lambda r: any(journey.get("totalTimeSpent") == 2_180_000 for journey in journeys(r)),
    ),
    # statistics
    *(
        (
            f"{period}stats",
            "newest first",
            lambda r: (
                len(snapshots(r)) > 1
                and all(isinstance(entry.get("timestamp"), datetime) for entry in snapshots(r)[:2])
                and snapshots(r)[0]["timestamp"] > snapshots(r)[1]["timestamp"]
            ),
        )
        for period in ("hourly", "daily")
    ),
    *((f"{period}stats", "no timezone", lambda r: "timezone" not in r) for period in ("hourly", "daily")),
    *(
        (
            f"{period}stats",
            "entries of zeros without a time",
            lambda r: any(
                "timestamp" not in entry and all(entry.get(name) == 0 for name in FIGURES) for entry in snapshots(r)
            ),
        )
        for period in ("weekly", "monthly")
    ),
    *(
        (
            f"{period}stats",
            "entries of an hour alone",
            lambda r: any(entry.keys() == {"hour"} for entry in snapshots(r)),
        )
        for period in ("weekly", "monthly")
    ),
    # sessions
    *(
        ("sessions", f"no wallet as {word!r}", lambda r, word=word: word in (r.get("wallet") or {}).values())
        for word in (
            *("", "No Wallet Detected", "No Wallet Connected", "Not Connected"),
            *("No Chain Detected", "Error", "Unknown"),
        )
    ),
    (
        "sessions",
        "a mixed-case wallet",
        lambda r: ADDRESS.fullmatch(str(wallet(r))) and wallet(r) != wallet(r).lower(),
    ),
    (
        "sessions",
        "a web3 user without wallet",
        lambda r: r.get("isWeb3User") and not ADDRESS.fullmatch(str(wallet(r))),
    ),
    *(
        ("sessions", f"referrer {form}", lambda r, form=form: re.fullmatch(form, text_of(r, "referrer")))
        for form in ("direct", "Direct", r"https://.*")
    ),
    ("sessions", "utmData null", lambda r: r.get("userId") and "utmData" in r and r["utmData"] is None),
    ("sessions", "fields of utmData null", lambda r: r.get("utmData") and r["utmData"]["utm_id"] is None),
    ("sessions", "no country", lambda r: r.get("userId") and not r.get("country")),
    ("sessions", "a country that is no code", lambda r: len(text_of(r, "country")) > 2),
    (
        "sessions",
        "a user agent as version",
        lambda r: str((r.get("browser") or {}).get("version")).startswith("Mozilla/5.0"),
    ),
    ("sessions", "a session before by its sessionId", lambda r: text_of(r, "previousSessionId").startswith("session_")),
    ("sessions", "a session before by its _id", lambda r: ObjectId.is_valid(text_of(r, "previousSessionId"))),
    ("sessions", "a count as double", lambda r: isinstance(r.get("pagesViewed"), float)),
    # events and campaigns
    ("granularevents", "personal text", lambda r: "@" in str((r.get("eventData") or {}).get("innerText"))),
    ("campaigns", "no utm_id", lambda r: r.get("siteId") and "utm_id" not in r),
    ("campaigns", "no budget", lambda r: r.get("siteId") and "budget" not in r),
    (
        "campaigns",
        "bounceRate above 100",
        lambda r: isinstance((r.get("stats") or {}).get("bounceRate"), float) and r["stats"]["bounceRate"] > 100,
    ),
    (
        "campaigns",
        "totals of several tokens",
        lambda r: (
            len({row["contractAddress"] for row in (r.get("stats") or {}).get("transactions") or ()}) > 1
            and r["stats"]["totalTransactionValue"] > 0
        ),
    ),
    ("teams", "no subscription", lambda r: "subscription" not in r),
    *(
        ("teams", f"plan {plan}", lambda r, plan=plan: (r.get("subscription") or {}).get("plan") == plan)
        for plan in ("offchain", "basic", "pro", "enterprise")
    ),
]


@pytest.mark.parametrize(("collection", "dirt", "has"), DIRT, ids=[f"{name}: {dirt}" for name, dirt, _ in DIRT])
def test_the_golden_set_holds_the_dirt(golden: Golden, collection: str, dirt: str, has: Is) -> None:
    assert any(has(record) for record in golden.records[collection])


def test_five_of_48_sites_have_no_uuid_and_three_more_no_website(golden: Golden) -> None:
    sites = {record["siteId"] for record in golden.records["analytics"] if record.get("siteId")}
    known = {record["siteId"] for record in golden.records["websites"] if record.get("siteId")}
    assert len({site for site in sites if not UUID.fullmatch(site)}) == 5
    assert len(sites - known) == 8


def test_websites_have_their_team_from_either_side_or_from_two_that_disagree(golden: Golden) -> None:
    listed = defaultdict(set)
    for team in golden.records["teams"]:
        for website in team.get("websites") or ():
            listed[website].add(team["_id"])
    websites = [record for record in golden.records["websites"] if record.get("siteId")]
    teams = {team["_id"] for team in golden.records["teams"]}
    assert any("team" not in record and len(listed[record["_id"]]) == 1 for record in websites)
    assert any("team" not in record and len(listed[record["_id"]]) == 2 for record in websites)
    assert any(isinstance(record.get("team"), ObjectId) and record["team"] not in teams for record in websites)


def test_a_team_has_no_website_one_or_several_and_its_transactions_go_where_that_says(golden: Golden) -> None:
    sites = {row.site_id == team_scope(row.team_id) for row in golden.transactions}
    assert sites == {True, False}


def test_hashes_repeat_in_a_contract_in_a_team_and_across_teams(golden: Golden) -> None:
    rows = golden.transactions
    by_hash = defaultdict(list)
    for row in rows:
        by_hash[row.tx_hash].append(row)
    kinds = set()
    for group in by_hash.values():
        for row in group[1:]:
            first = group[0]
            kinds.add((row.contract_id == first.contract_id, row.team_id == first.team_id, row.chain == first.chain))
    assert {(True, True, True), (False, True, True), (False, False, True)} <= kinds


def test_contracts_that_are_gone_left_orphans(golden: Golden) -> None:
    known = {record.get("contractId") for record in golden.records["smartcontracts"]}
    assert any(
        record.get("contractId") and record["contractId"] not in known for record in golden.records["transactions"]
    )


def test_a_transfer_names_the_token_in_contract_address_and_not_the_tracked_contract(golden: Golden) -> None:
    addresses = {record.get("contractId"): record.get("address") for record in golden.records["smartcontracts"]}
    assert any(
        record.get("contract_address") and record["contract_address"] != addresses[record["contractId"]]
        for record in golden.records["transactions"]
        if record.get("contractId") in addresses
    )


def test_calls_of_contracts_that_are_no_escrow_are_stored_as_staking(golden: Golden) -> None:
    escrow = {row["contractId"] for row in golden.records["smartcontracts"] if row.get("contractType") == "escrow"}
    assert any(
        staking(record).get("isStaking")
        and record["contractId"] not in escrow
        and input_of(record)[:10] == "0x2e1a7d4d"
        for record in golden.records["transactions"]
        if record.get("contractId")
    )


def test_wallets_repeat_across_visitors_and_sign_transactions_of_the_team(golden: Golden) -> None:
    visitors = defaultdict(set)
    for visit in golden.visits:
        if visit.wallet is not None:
            visitors[visit.wallet].add(visit.visitor)
    assert any(len(found) > 1 for found in visitors.values())
    team_of = {site_id: site.team_id for site_id, site in golden.owners.by_site_id.items()}
    signed = {(row.team_id, row.from_address) for row in golden.transactions}
    bridged = {(team_of[visit.site_id], visit.wallet) for visit in golden.visits if visit.wallet} & signed
    assert len(bridged) > 50


def test_nearly_all_hours_tell_no_change_and_totals_only_run(golden: Golden) -> None:
    still = pairs = 0
    for record in golden.records["hourlystats"]:
        entries = [entry for entry in snapshots(record) if isinstance(entry.get("timestamp"), datetime)]
        entries.sort(key=lambda entry: entry["timestamp"])
        for before, after in pairwise(entries):
            pairs += 1
            still += all(before.get(name) == after.get(name) for name in FIGURES)
    assert still / pairs > 0.9


def test_journeys_are_in_some_rows_of_analytics_alone(golden: Golden) -> None:
    rows = golden.records["analytics"]
    assert len(rows) == 48
    assert sum("userJourneys" not in record for record in rows) == 31
    assert sum("hourlyStats" not in record for record in rows) == 28
    assert sum("dailyStats" not in record for record in rows) == 32
