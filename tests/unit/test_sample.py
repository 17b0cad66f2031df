"""The demo source: the same on every machine, sound where it is clean, and dirty where it says so."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice, pairwise
from typing import Any

import bson
import pytest
from bson import DatetimeMS, Decimal128, Int64, ObjectId

from deployments.sample import (
    HUGE_INPUT_DIGITS,
    LONG_NAME_CHARS,
    SAMPLE_QUESTIONS,
    SURVIVING,
    UNMIGRATABLE,
    planted_at,
    sample_contracts,
    sample_teams,
    sample_transactions,
    sample_websites,
)

ROWS = 12_000
#: Digest of the BSON of the first 2,000 rows of seed 1. Changes together with SAMPLE_VERSION, never alone.
DIGEST_OF_2000_ROWS = "f37fa28e97debaec2fa034a9f70807c3b3c83420c3f158baf2aaebf4e6ce8dda"


def digest(records: Iterator[dict[str, Any]]) -> str:
    total = hashlib.sha256()
    for record in records:
        total.update(bson.encode(record))
    return total.hexdigest()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(sample_transactions(ROWS))


@pytest.fixture(scope="module")
def clean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for row, record in enumerate(rows) if planted_at(row) is None]


def planted(rows: list[dict[str, Any]], dirt: str) -> dict[str, Any]:
    """Return the first row with dirt of that class."""
    return next(record for row, record in enumerate(rows) if planted_at(row) == dirt)


def test_the_same_seed_gives_the_same_bytes_everywhere() -> None:
    assert digest(sample_transactions(2_000, seed=1)) == DIGEST_OF_2000_ROWS
    assert digest(sample_transactions(2_000, seed=1)) == DIGEST_OF_2000_ROWS


def test_a_longer_sample_begins_with_a_shorter_one() -> None:
    assert digest(sample_transactions(1_000)) == digest(islice(sample_transactions(5_000), 1_000))


def test_another_seed_gives_other_rows_in_the_same_places() -> None:
    one, two = sample_transactions(1_000, seed=1), sample_transactions(1_000, seed=2)
    hashes = {record.get("tx_hash") for record in one} & {record.get("tx_hash") for record in two}
    assert hashes == {None}


def test_every_id_and_every_import_time_is_its_own(rows: list[dict[str, Any]]) -> None:
    assert len({record["_id"] for record in rows}) == ROWS
    times = [record["createdAt"] for record in rows if record.get("createdAt")]
    assert all(earlier < later for earlier, later in pairwise(times))


def test_rows_come_from_a_generator_that_keeps_none_of_them() -> None:
    def peak_of(rows: int) -> int:
        tracemalloc.start()
        try:
            for _ in sample_transactions(rows):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_of(2_000)  # fills the caches of wallets and contracts
    assert peak_of(2_000) < peak_of(500) + 200_000


def test_every_class_of_dirt_is_in_the_first_thousand_rows() -> None:
    assert Counter(filter(None, map(planted_at, range(1_000)))) == Counter(UNMIGRATABLE + SURVIVING)


def test_three_rows_in_a_thousand_cannot_be_migrated() -> None:
    found = Counter(planted_at(row) for row in range(100_000))
    assert 0.0029 < sum(found[dirt] for dirt in UNMIGRATABLE) / 100_000 < 0.0033
    assert set(found) == {None, *UNMIGRATABLE, *SURVIVING}


def test_dirt_that_cannot_be_migrated_is_what_its_name_says(rows: list[dict[str, Any]]) -> None:
    owned = {str(record["contractId"]) for record in sample_contracts()}
    assert "tx_hash" not in planted(rows, "missing_tx_hash")
    assert isinstance(planted(rows, "text_id")["_id"], str)
    assert planted(rows, "dangling_contract")["contractId"] not in owned
    assert not {"contract", "contractId"} & planted(rows, "no_contract").keys()
    with pytest.raises(ValueError):
        datetime.fromisoformat(planted(rows, "block_time_not_a_date")["block_time"])
    assert planted(rows, "block_time_2099")["block_time"].year == 2099
    assert isinstance(planted(rows, "block_time_after_9999")["block_time"], DatetimeMS)
    assert planted(rows, "amount_nan")["value_eth"] == "NaN"
    assert planted(rows, "amount_negative")["value_eth"].startswith("-")
    assert planted(rows, "amount_ambiguous")["value_eth"] == "0,015"
    assert planted(rows, "only_id").keys() == {"_id"}
    empty = planted(rows, "all_null")
    assert len(empty) > 20
    assert [name for name, value in empty.items() if value is not None] == ["_id"]


def test_planted_duplicates_repeat_the_row_before_them(rows: list[dict[str, Any]]) -> None:
    places = [row for row in range(ROWS) if planted_at(row) == "duplicate_key"]
    assert len(places) > 1
    for row in places:
        first, second = rows[row - 1], rows[row]
        assert {name for name in first if first[name] != second[name]} == {"_id", "createdAt"}


def test_only_planted_duplicates_share_contract_and_hash(rows: list[dict[str, Any]]) -> None:
    keys = Counter(
        (record["contractId"], record["tx_hash"])
        for record in rows
        if record.get("tx_hash") and record.get("contractId")
    )
    doubled = sum(1 for number in keys.values() if number > 1)
    assert doubled == sum(1 for row in range(ROWS) if planted_at(row) == "duplicate_key")


def test_ownerless_contracts_are_met_only_where_planted(rows: list[dict[str, Any]]) -> None:
    team_ids = {record["_id"] for record in sample_teams()}
    team_of = {record["contractId"]: record.get("team") for record in sample_contracts()}
    assert team_of[planted(rows, "contract_without_team")["contractId"]] is None
    assert team_of[planted(rows, "contract_of_unknown_team")["contractId"]] not in team_ids
    for row, record in enumerate(rows):
        if planted_at(row) not in UNMIGRATABLE:
            assert planted_at(row) == "contract_alone" or team_of[record["contractId"]] in team_ids


def test_dirt_that_survives_is_what_its_name_says(rows: list[dict[str, Any]]) -> None:
    assert "\0" in planted(rows, "nul_characters")["token_name"]
    assert "\u202e" in planted(rows, "bidi_override")["token_name"]
    assert "\u200d" in planted(rows, "zero_width")["token_symbol"]
    assert max(planted(rows, "emoji_token")["token_name"]) > "\U0001f000"
    assert "\u0600" < planted(rows, "rtl_token")["token_name"][0] < "\u06ff"
    name = planted(rows, "long_token_name")["token_name"]
    sentences = name.split(". ")
    assert len(name) == LONG_NAME_CHARS
    assert len(sentences) == len(set(sentences)) > 200
    assert len(planted(rows, "huge_input")["input"]) == 2 + HUGE_INPUT_DIGITS
    assert isinstance(planted(rows, "gas_used_text")["gas_used"], str)
    assert math.isnan(planted(rows, "gas_used_nan")["gas_used"])
    assert planted(rows, "gas_used_negative")["gas_used"] < 0
    assert isinstance(planted(rows, "gas_used_decimal128")["gas_used"], Decimal128)
    assert planted(rows, "block_number_hex")["block_number"].startswith("0x")
    assert isinstance(planted(rows, "unknown_extra_fields")["decoded"]["nested"], dict)
    assert "tx_type" not in planted(rows, "no_tx_type")
    alone = planted(rows, "contract_alone")
    assert "contractId" not in alone
    assert alone["contract"] in {record["_id"] for record in sample_contracts()}


def test_a_hash_stands_twice_in_a_team_on_a_chain_under_two_contracts(rows: list[dict[str, Any]]) -> None:
    second = planted(rows, "hash_twice_in_team")
    (first,) = (record for record in rows if record.get("tx_hash") == second["tx_hash"] and record is not second)
    contracts = {record["contractId"]: record for record in sample_contracts()}
    one, other = (contracts[record["contractId"]] for record in (first, second))
    assert one["_id"] != other["_id"]
    assert (one["team"], one["blockchain"]) == (other["team"], other["blockchain"])


def test_amounts_that_importers_got_wrong_are_what_the_call_data_says_they_are_not(rows: list[dict[str, Any]]) -> None:
    dollars = planted(rows, "six_decimals_as_18")
    units = int(dollars["input"][74:138], 16)
    assert dollars["value_eth"].endswith(" QUSD")
    assert Decimal(dollars["value_eth"].split()[0]) * 10**12 == Decimal(units) / 10**6 > 0
    inflated = planted(rows, "trailing_call_data")
    assert len(inflated["input"]) == 10 + 3 * 64
    assert Decimal(inflated["value_eth"].split()[0]) > 10**58 > int(inflated["input"][74:138], 16)


def test_staking_that_the_source_got_wrong_is_told_by_the_call(rows: list[dict[str, Any]]) -> None:
    contracts = {record["contractId"]: record for record in sample_contracts()}
    backfilled = planted(rows, "main_as_escrow")
    assert contracts[backfilled["contractId"]]["contractType"] == "main"
    assert backfilled["stakingAnalysis"]["isStaking"]
    dropped = planted(rows, "past_lock_dropped")
    assert contracts[dropped["contractId"]]["contractType"] == "escrow"
    assert dropped["stakingAnalysis"]["details"].keys() == {"amount"}
    unlock_s, made_s = int(dropped["input"][74:138], 16), dropped["createdAt"].timestamp()
    assert dropped["block_time"].timestamp() < unlock_s < made_s
    named = planted(rows, "staking_by_name_alone")
    assert not {"input", "method_signature", "method_name"} & named.keys()
    assert named["functionName"].startswith("withdraw_early(")
    assert named["stakingAnalysis"]["stakingType"] == "withdraw"


def test_every_record_can_be_stored(rows: list[dict[str, Any]]) -> None:
    for record in [*rows, *sample_teams(), *sample_websites(), *sample_contracts()]:
        assert bson.encode(record)


def test_every_selector_is_the_hash_of_its_signature(clean: list[dict[str, Any]]) -> None:
    named = {
        (record["method_signature"], record["functionName"])
        for record in clean
        if record.get("functionName") and "method_signature" in record
    }
    assert len({selector for selector, _ in named}) > 30
    for selector, function in named:
        name, _, arguments = function.rstrip(")").partition("(")
        types = ",".join(argument.split()[0] for argument in arguments.split(",") if argument)
        assert f"0x{keccak256(f'{name}({types})'.encode()).hex()[:8]}" == selector, function


def test_call_data_is_whole_words_after_the_selector_named(rows: list[dict[str, Any]]) -> None:
    both = [record for record in rows if record.get("input") and record.get("method_signature")]
    assert len(both) > ROWS / 2
    for record in both:
        assert record["input"].startswith(record["method_signature"])
        assert len(record["input"]) == 2 + HUGE_INPUT_DIGITS or (len(record["input"]) - 10) % 64 == 0
        int(record["input"], 16)


@pytest.mark.parametrize(
    ("selector", "position"),
    [
        ("0xa9059cbb", 1),
        ("0x23b872dd", 2),
        ("0x40c10f19", 1),
        ("0x38ed1739", 0),
        ("0x18cbafe5", 0),
        ("0x617ba037", 1),
        ("0xa415bcad", 1),
        ("0x573ade81", 1),
        ("0x69328dec", 1),
        ("0x58a997f6", 2),
    ],
)
def test_the_amount_shown_is_the_amount_in_the_call_data(
    clean: list[dict[str, Any]], selector: str, position: int
) -> None:
    decimals = {"QUSD": 6, "sUSD": 6}
    symbols = {record["contractId"]: record["tokenSymbol"] for record in sample_contracts()}
    seen = 0
    for record in clean:
        if record.get("input", "").startswith(selector) and record.get("value_eth"):
            symbol = record.get("token_symbol") or symbols[record["contractId"]]
            shown = Decimal(record["value_eth"].split()[0].replace(",", ""))
            start = 10 + 64 * position
            word = int(record["input"][start : start + 64], 16)
            assert Decimal(word).scaleb(-decimals.get(symbol, 18)) == shown
            seen += 1
    assert seen > 10


def test_stored_staking_details_agree_with_the_call_data(clean: list[dict[str, Any]]) -> None:
    locks = [
        record for record in clean if record.get("input", "").startswith("0x65fc3873") and record.get("stakingAnalysis")
    ]
    assert len(locks) > 50
    for record in locks:
        details = record["stakingAnalysis"]["details"]
        assert Decimal(int(record["input"][10:74], 16)).scaleb(-18) == Decimal(details["amount"])
        assert int(record["input"][74:138], 16) == details["unlockTimestamp"]
        assert details["lockDurationDays"] > 20


def test_stored_staking_is_wrong_as_in_the_source(clean: list[dict[str, Any]]) -> None:
    escrow = {record["contractId"] for record in sample_contracts() if record.get("contractType") == "escrow"}
    stored = [
        (record.get("method_name"), record["contractId"] in escrow, record["stakingAnalysis"])
        for record in clean
        if "stakingAnalysis" in record
    ]
    assert any(name == "transfer" and not own and of["isStaking"] for name, own, of in stored)
    assert any(name == "withdraw" and of["stakingType"] == "increase_amount" for name, _, of in stored)
    assert any(name == "increase_amount" and of["stakingType"] == "create_lock" for name, _, of in stored)
    assert any("stakingConfidence" in record for record in clean)


@pytest.mark.parametrize(
    ("field", "share"), [("status", 0.17), ("gas_used", 0.14), ("input", 0.18), ("block_time", 0.01)]
)
def test_fields_are_missing_as_often_as_in_real_data(clean: list[dict[str, Any]], field: str, share: float) -> None:
    missing = sum(field not in record for record in clean) / len(clean)
    assert missing == pytest.approx(share, abs=0.015)


def test_four_in_a_hundred_failed(clean: list[dict[str, Any]]) -> None:
    failed = sum(record.get("status") in {"Failed", "failed"} for record in clean) / len(clean)
    assert failed == pytest.approx(0.04, abs=0.01)
    assert {record.get("status") for record in clean} >= {"Success", "success", "pending", "Unknown", None}


def test_values_come_in_every_form_of_the_source(clean: list[dict[str, Any]]) -> None:
    values = [record.get("value_eth") for record in clean]
    texts = {value for value in values if value}
    assert {"0", "0 ERC20", "0 BEP20", "0 ETH", "0 MATIC", "0 ARB", "0 OP", "0 ABC"} <= texts
    assert {"5e-7", "<0.0001"} <= texts
    assert {None, ""} <= set(values)
    assert any(value.endswith(" BEP20") and value[0] != "0" for value in texts)
    assert any("," in value and value.endswith(" AURX") for value in texts)


def test_times_references_and_addresses_come_in_every_form(clean: list[dict[str, Any]]) -> None:
    times = [record.get("block_time") for record in clean]
    assert {type(time) for time in times} == {datetime, str, int, type(None)}
    assert {type(record.get("contract")) for record in clean} == {ObjectId, str, type(None)}
    assert {type(record.get("block_number")) for record in clean} == {int, Int64, float, type(None)}
    assert {len(record["to_address"]) for record in clean} >= {0, 40, 42}
    assert any(record["from_address"] != record["from_address"].lower() for record in clean)
    chains = {record["chain"] for record in clean}
    assert {"Ethereum Mainnet", "Binance Smart Chain", "Unknown (ID: 56)", "Error"} <= chains
    stamped = [record for record in clean if isinstance(record.get("block_time"), datetime)]
    assert any(abs((record["createdAt"] - record["block_time"]).total_seconds()) < 5 for record in stamped)
    assert all(datetime(2021, 1, 1, tzinfo=UTC) <= record["block_time"] for record in stamped)
    assert all(record["block_time"] < record["createdAt"] for record in stamped)


def test_blocks_of_a_chain_are_numbered_in_the_order_of_time(clean: list[dict[str, Any]]) -> None:
    blocks: dict[str, list[tuple[datetime, float]]] = {}
    for record in clean:
        time = record.get("block_time")
        if isinstance(time, datetime) and not time.microsecond:  # others were stamped with the import's "now"
            blocks.setdefault(record["chain"], []).append((time, record["block_number"]))
    for chain in ("Ethereum", "BNB Chain", "Polygon", "Arbitrum", "Optimism", "Base"):
        numbers = [number for _, number in sorted(blocks[chain])]
        assert numbers == sorted(numbers)


def test_some_hashes_stand_under_contracts_of_two_teams(clean: list[dict[str, Any]]) -> None:
    team_of = {record["contractId"]: record.get("team") for record in sample_contracts()}
    teams: dict[str, set[object]] = {}
    for record in clean:
        teams.setdefault(record["tx_hash"], set()).add(team_of[record["contractId"]])
    shared = sum(1 for owners in teams.values() if len(owners) > 1)
    assert 0.002 < shared / len(clean) < 0.006


def test_a_few_wallets_make_many_transactions(clean: list[dict[str, Any]]) -> None:
    wallets = Counter(record["from_address"].lower() for record in clean)
    assert len(wallets) > 3_000
    assert wallets.most_common(1)[0][1] > 0.02 * len(clean)


def test_teams_have_no_site_one_or_several() -> None:
    teams, websites = sample_teams(), sample_websites()
    sites = {record["_id"] for record in websites}
    assert {len(team["websites"]) for team in teams} == {0, 1, 2, 3}
    assert {site for team in teams for site in team["websites"]} == sites
    assert sum("team" not in record for record in websites) == 1
    assert len({record["siteId"] for record in websites}) == len(websites)
    assert all(record["Domain"].endswith(".example") for record in websites)


def test_contracts_lie_on_six_chains() -> None:
    contracts = sample_contracts()
    assert len({record["blockchain"] for record in contracts}) == 6
    for field in ("_id", "contractId", "address"):
        assert len({record[field] for record in contracts}) == len(contracts) >= 40


def test_the_questions_have_answers_in_the_sample(clean: list[dict[str, Any]]) -> None:
    kinds = {
        record["contractId"]: (record["name"], record["blockchain"], record.get("contractType"))
        for record in sample_contracts()
    }
    facts = [(record.get("method_name") or "", kinds[record["contractId"]], record.get("status")) for record in clean]
    assert len(SAMPLE_QUESTIONS) == 3
    assert sum(name in {"getReward", "claim"} and kind[2] == "escrow" for name, kind, _ in facts) > 100
    assert sum(name == "mint" and kind[1] == "Base" for name, kind, _ in facts) > 100
    assert sum(name.startswith("swap") and status == "Failed" for name, _, status in facts) > 50


def keccak256(data: bytes) -> bytes:
    """Return the hash that Ethereum uses: Keccak with its first padding, which hashlib's sha3 hasn't."""
    mask = 2**64 - 1

    def turn(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & mask

    constants, register = [], 1
    for _ in range(24):
        constant = 0
        for bit in range(7):
            if register & 1:
                constant |= 1 << ((1 << bit) - 1)
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    padded = bytearray(data + b"\1" + bytes(135 - len(data) % 136))
    padded[-1] |= 0x80
    state = [0] * 25
    for start in range(0, len(padded), 136):
        for i in range(17):
            state[i] ^= int.from_bytes(padded[start + 8 * i : start + 8 * i + 8], "little")
        for constant in constants:
            columns = [state[x] ^ state[x + 5] ^ state[x + 10] ^ state[x + 15] ^ state[x + 20] for x in range(5)]
            for i in range(25):
                state[i] ^= columns[(i - 1) % 5] ^ turn(columns[(i + 1) % 5], 1)
            x, y, moved = 1, 0, state[1]
            for step in range(24):
                x, y = y, (2 * x + 3 * y) % 5
                moved, state[x + 5 * y] = state[x + 5 * y], turn(moved, (step + 1) * (step + 2) // 2 % 64)
            for row in range(0, 25, 5):
                lane = state[row : row + 5]
                for i in range(5):
                    state[row + i] = lane[i] ^ (~lane[(i + 1) % 5] & mask & lane[(i + 2) % 5])
            state[0] ^= constant
    return b"".join(word.to_bytes(8, "little") for word in state[:4])
