"""Profiles: figures that add up in any order, the same records followed in every run, the rows behind suspicions."""

from __future__ import annotations

import statistics
import zlib
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.columns import Columns
from tasks.domain.documents import Document
from tasks.domain.profiles import (
    BINS_PER_DECADE,
    FAR,
    MALFORMED,
    MAX_VALUES,
    MISSING,
    OTHERS,
    SWAPPED,
    WITNESSES,
    Profile,
    hash_of,
    observe,
    read_profile,
    seen_share_for,
    share_for,
)
from tests.observations import COLUMNS, Row, doubled, make_profile, make_rows, swapped, to_table

ROWS = make_rows(400)


def make_document(metadata: dict[str, Any]) -> Document:
    return Document(
        source_type="transaction",
        source_id="64c000000000000000000001",
        key="transaction:contract_1:0x1",
        holder_id="contract_1",
        team_id="64a000000000000000000001",
        site_id="site",
        content="A text.",
        summary="A text.",
        metadata=metadata,
    )


def merged(parts: list[list[Row]]) -> Profile:
    whole = Profile("transaction")
    for part in parts:
        whole.merge(make_profile(part))
    return whole


@given(st.lists(st.integers(0, len(ROWS)), max_size=5), st.randoms(use_true_random=False))
def test_a_runs_profile_is_that_of_its_shards_however_cut_and_in_whatever_order(
    cuts: list[int], random: Random
) -> None:
    edges = [0, *sorted(cuts), len(ROWS)]
    parts = [ROWS[start:end] for start, end in pairwise(edges)]
    random.shuffle(parts)
    assert merged(parts) == make_profile(ROWS)


def test_a_profile_survives_being_packed() -> None:
    profile = make_profile([{**row, "warnings": "gas_used 'x' left out"} for row in ROWS])
    profile.add_refused("amount_negative", ["64c000000000000000000001"])
    profile.add_unchanged(["64c000000000000000000002"], {"64a000000000000000000001": 1})
    profile.documents = 7
    assert Profile.from_bytes(profile.to_bytes()) == profile
    assert Profile.from_record(orjson.loads(orjson.dumps(profile.to_record()))) == profile


def test_a_profile_of_another_version_is_nothing_to_compare_with() -> None:
    other = zlib.compress(orjson.dumps({"version": 0, "source": "transaction"}))
    assert Profile.from_bytes(other) is None


def test_no_records_have_a_profile_too() -> None:
    profile = make_profile([])
    assert profile == Profile("transaction")
    assert profile.read == 0


def test_the_records_named_are_those_whose_ids_sort_first() -> None:
    rows = [{**row, "from": None} for row in ROWS]
    ids = sorted(row["record_id"] for row in rows)
    assert merged([rows[200:], rows[:200]]).missing["from"].examples == tuple(ids[:5])


def test_an_empty_text_is_missing_and_a_column_that_is_not_there_is_missing_in_every_row() -> None:
    table = to_table([{**ROWS[0], "from": ""}, *ROWS[1:10]]).drop_columns(["chain"])
    profile = read_profile(table, COLUMNS, source="transaction").profile
    assert profile.missing["from"].count == 1
    assert profile.missing["chain"].count == 10
    assert profile.missing["to"].count == 0


def test_every_record_that_was_read_is_counted_once() -> None:
    profile = make_profile(ROWS)
    profile.add_refused("amount_negative", ["64c000000000000000000001", "64c000000000000000000002"])
    profile.add_unchanged(["64c000000000000000000003"], {"64a000000000000000000001": 1})
    assert profile.read == len(ROWS) + 3
    assert sum(profile.teams.values()) == len(ROWS) + 1


# -- followed records


def test_the_copies_of_a_record_meet_however_far_apart_their_shards_lie() -> None:
    rows = doubled(ROWS)
    profile = merged([rows[:50], rows[700:], rows[50:700]])
    assert {witness.count for witness in profile.witnesses.values()} == {2}
    some = next(iter(profile.witnesses.values()))
    assert some.ids[0].startswith("64c")
    assert some.ids[1].startswith("65d")


def test_a_copy_says_what_the_record_with_the_first_id_says() -> None:
    later = {**ROWS[0], "record_id": "f" * 24, "amount": "7"}
    for order in ([ROWS[0], later], [later, ROWS[0]]):
        assert merged([[row] for row in order]).witnesses[ROWS[0]["key"]].values["amount"] == ROWS[0]["amount"]


def test_smaller_shares_follow_some_of_the_records_that_larger_ones_do() -> None:
    larger, smaller = (make_profile(ROWS, share=share).witnesses for share in (0.5, 0.1))
    assert set(smaller) < set(larger) < {row["key"] for row in ROWS}
    assert all(hash_of(key) < 0.1 for key in smaller)


def test_profiles_of_different_shares_merge_to_the_smaller() -> None:
    profile = make_profile(ROWS[:200], share=1.0, seen_share=0.5)
    profile.merge(make_profile(ROWS[200:], share=0.1, seen_share=1.0))
    assert (profile.share, profile.seen_share) == (0.1, 0.5)
    assert set(profile.witnesses) == {row["key"] for row in ROWS if hash_of(row["key"]) < 0.1}
    assert profile.seen == {row["record_id"] for row in ROWS if hash_of(row["record_id"]) < 0.5}


def test_a_source_larger_than_planned_does_not_grow_its_profile() -> None:
    profile = Profile("transaction")
    for seed in range(12):
        profile.merge(make_profile(make_rows(200, seed=seed)))
    assert profile.records == 2_400
    assert WITNESSES / 2 < len(profile.witnesses) <= 2 * WITNESSES
    assert profile.share < 1


def test_about_as_many_records_are_followed_whatever_the_size_of_the_run() -> None:
    assert share_for(0) == seen_share_for(0) == 1.0
    assert share_for(WITNESSES) == 1.0
    assert share_for(871_781) * 871_781 == pytest.approx(WITNESSES)
    hashes = [hash_of(row["key"]) for row in make_rows(2_000)]
    assert np.histogram(hashes, bins=10, range=(0, 1))[0] == pytest.approx(200, abs=60)


# -- sizes and times


@given(st.lists(st.floats(1e-18, 1e40), min_size=1, max_size=50))
def test_the_median_of_a_unit_is_known_within_a_bin(amounts: list[float]) -> None:
    rows = [{**ROWS[0], "amount": f"{amount:.30f}", "unit": "X"} for amount in amounts]
    known = make_profile(rows).amounts["X"].median_decades()
    assert known is not None
    exact = np.log10(statistics.median_low(float(f"{amount:.30f}") for amount in amounts))
    assert abs(known - exact) <= 1 / BINS_PER_DECADE


def test_zeros_and_negative_figures_are_counted_apart() -> None:
    rows = [{**ROWS[0], "amount": amount, "unit": "X"} for amount in ("0", "0", "2", None, "")]
    sizes = make_profile(rows).amounts["X"]
    assert (sizes.zeros, sizes.positives, sizes.negatives, sizes.total) == (2, 1, 0, 3)
    figures = make_profile([{**ROWS[0], "gasUsed": gas} for gas in (-1.0, 5.0, None)]).figures["gasUsed"]
    assert (figures.negatives, figures.positives) == (1, 1)


def test_the_largest_uint256_is_a_size_like_any_other() -> None:
    profile = make_profile([{**ROWS[0], "amount": str(2**256 - 1)}])
    [(size, record_id)] = profile.amounts["ETH"].largest
    assert size == pytest.approx(2.0**256)
    assert record_id == ROWS[0]["record_id"]


def test_the_largest_amounts_of_each_unit_are_kept_with_their_records() -> None:
    for unit, sizes in make_profile(ROWS).amounts.items():
        amounts = sorted(
            ((float(row["amount"]), row["record_id"]) for row in ROWS if row["unit"] == unit), reverse=True
        )
        assert list(sizes.largest) == amounts[:3]


def test_more_units_than_are_kept_are_counted_together() -> None:
    rows = [{**ROWS[0], "unit": f"T{at}", "chain": f"C{at}"} for at in range(MAX_VALUES + 100)]
    profile = make_profile(rows)
    assert len(profile.amounts) == len(profile.kinds["chain"]) == MAX_VALUES
    assert profile.amounts[OTHERS].total == profile.kinds["chain"][OTHERS] == 101


def test_hours_and_days_are_those_of_utc() -> None:
    moment = datetime(2024, 2, 29, 23, 59, tzinfo=UTC)
    profile = make_profile([{**ROWS[0], "time_ms": round(moment.timestamp() * 1000)}, {**ROWS[0], "time_ms": None}])
    assert profile.hours[23] == sum(profile.hours) == 1
    assert profile.days == {(moment.date() - datetime(1970, 1, 1, tzinfo=UTC).date()).days: 1}
    assert profile.newest == (ROWS[0]["record_id"],)


def test_times_before_1970_are_counted_too() -> None:
    profile = make_profile([{**ROWS[0], "time_ms": -1}])
    assert profile.hours[23] == 1
    assert profile.days == {-1: 1}


# -- suspicions


def test_the_rows_behind_each_suspicion_are_known() -> None:
    sound = [{**row, "status": "success"} for row in ROWS[:6]]
    rows = [
        {**sound[0], "from": None},
        {**sound[1], "from": "0xABC"},
        swapped([sound[2]])[0],
        {**sound[3], "amount": "10000001", "unit": "ETH"},
        {**sound[4], "amount": "501", "unit": "USDT"},
        {**sound[5], "unit": "ETH"},
    ]
    reading = read_profile(to_table(rows), COLUMNS, source="transaction", ceilings={"USDT": 500, "ETH": 1})
    rows_of = {about: np.flatnonzero(mask).tolist() for about, mask in reading.masks.items()}
    assert rows_of == {
        (MISSING, "from"): [0],
        (MALFORMED, "from"): [1],
        (SWAPPED, "from"): [2],
        (FAR, "ETH"): [3],
        (FAR, "USDT"): [4],
    }
    assert reading.profile.suspects["from"].examples == (ROWS[2]["record_id"],)


def test_a_contract_that_calls_itself_is_no_exchange() -> None:
    row = {**ROWS[0], "from": ROWS[0]["contractAddress"]}
    assert make_profile([row]).suspects["from"].count == 0


def test_a_warning_is_the_same_whatever_the_value_it_is_about() -> None:
    rows = [
        {**ROWS[0], "warnings": "gas_used 'a' left out; block_number '12' left out"},
        {**ROWS[1], "warnings": "gas_used 'b' left out"},
    ]
    profile = make_profile(rows)
    assert {name: tally.count for name, tally in profile.warned.items()} == {
        "gas_used … left out": 2,
        "block_number … left out": 1,
    }


# -- from documents


def test_a_documents_facts_and_metadata_are_its_columns() -> None:
    ended = datetime(2025, 7, 1, 12, tzinfo=UTC)
    document = make_document(
        {
            "timeframe": {"start": datetime(2025, 7, 1, tzinfo=UTC), "end": ended},
            "contractAddress": "0xc",
            "facts": {"from": "0xa", "amount": "1.5", "unit": "ETH", "gasUsed": 21_000, "status": 1},
        }
    )
    bare = make_document({})
    [first, second] = observe([document, bare], COLUMNS).to_pylist()
    assert first["time_ms"] == round(ended.timestamp() * 1000)
    assert (first["from"], first["contractAddress"], first["gasUsed"]) == ("0xa", "0xc", 21_000.0)
    assert first["status"] == "1"
    assert (first["record_id"], first["key"], first["team_id"]) == (document.source_id, document.key, document.team_id)
    assert {name for name, value in second.items() if value is not None} == {"record_id", "key", "team_id"}


def test_figures_that_are_no_numbers_are_missing() -> None:
    documents = [make_document({"facts": {"gasUsed": value}}) for value in ("many", None, "7", 3)]
    table = observe(documents, Columns(figures=("gasUsed",)))
    assert table.column("gasUsed").to_pylist() == [None, None, 7.0, 3.0]
    assert isinstance(table, pa.Table)


def test_work_that_is_no_load_follows_nobody() -> None:
    rows = make_rows(50)
    profile = make_profile(rows, share=share_for(None), seen_share=seen_share_for(None))
    profile.add_unchanged([row["record_id"] for row in rows], {})
    assert (profile.read, profile.witnesses, profile.seen) == (100, {}, set())
