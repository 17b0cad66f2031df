"""Tallies: packed counts by address, whose merging is that of dictionaries."""

from __future__ import annotations

from collections import Counter

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.aggregates.tallies import WALLET_BYTES, Tally

#: Zero bytes at the end of a key are what numpy's strings lose.
KEYS = st.binary(min_size=WALLET_BYTES, max_size=WALLET_BYTES) | st.sampled_from(
    [b"\0" * 20, b"\1" + b"\0" * 19, b"\0" * 19 + b"\1", b"\1" * 20, b"\xff" * 20]
)
COUNTS = st.dictionaries(KEYS, st.integers(1, 2**40), max_size=20)


def tally(counts: dict[bytes, int]) -> Tally:
    return Tally.from_numbers(counts, WALLET_BYTES)


@given(COUNTS)
def test_a_tally_is_the_dictionary_it_was_made_of(counts: dict[bytes, int]) -> None:
    assert dict(tally(counts).items()) == counts
    assert [key for key, _ in tally(counts).items()] == sorted(counts)
    assert [tally(counts).key_bytes(place) for place in range(len(counts))] == sorted(counts)


@given(st.lists(COUNTS, min_size=1, max_size=5))
def test_merging_adds_up_whatever_the_order_and_grouping(parts: list[dict[bytes, int]]) -> None:
    expected: Counter[bytes] = Counter()
    for part in parts:
        expected.update(part)
    tallies = [tally(part) for part in parts]
    assert dict(Tally.merged(tallies).items()) == expected
    assert Tally.merged(tallies[::-1]) == Tally.merged(tallies)
    assert Tally.merged([Tally.merged(tallies[:2]), *tallies[2:]]) == Tally.merged(tallies)


@given(st.lists(COUNTS, min_size=1, max_size=4))
def test_of_moments_the_earliest_stays(parts: list[dict[bytes, int]]) -> None:
    merged = Tally.merged([Tally.from_numbers(part, WALLET_BYTES, "min") for part in parts])
    keys = {key for part in parts for key in part}
    assert dict(merged.items()) == {key: min(part[key] for part in parts if key in part) for key in keys}


@given(st.dictionaries(KEYS, st.integers(1, 3), max_size=120), st.integers(1, 10))
def test_the_most_frequent_come_first_and_equal_ones_in_order_of_their_keys(
    counts: dict[bytes, int], most: int
) -> None:
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    assert tally(counts).top(most) == expected


@given(COUNTS)
def test_a_tally_survives_bson_to_the_byte(counts: dict[bytes, int]) -> None:
    stored = bson.encode(tally(counts).stored())
    again = Tally.from_stored(bson.decode(stored), WALLET_BYTES)
    assert again == tally(counts)
    assert bson.encode(again.stored()) == stored


@given(COUNTS, COUNTS)
def test_shared_keys_are_those_of_both(one: dict[bytes, int], other: dict[bytes, int]) -> None:
    assert tally(one).shared(tally(other)) == tally(other).shared(tally(one)) == len(one.keys() & other.keys())


def test_wallets_cost_24_bytes_each_when_stored() -> None:
    stored = tally({number.to_bytes(20): number for number in range(1, 1_001)}).stored()
    assert len(stored["keys"]) + len(stored["numbers"]) == 24_000


@given(COUNTS)
def test_halves_merge_to_the_whole(counts: dict[bytes, int]) -> None:
    assert Tally.merged(tally(counts).halves()) == tally(counts)


def test_an_address_and_its_bytes_are_the_same_key() -> None:
    address = "0x" + "ab" * 19 + "00"
    counted = Tally.of_addresses({address: 3, "0x" + "01" * 20: 1})
    assert counted == tally({bytes.fromhex(address[2:]): 3, b"\1" * 20: 1})
    assert counted.addresses() == {"0x" + "01" * 20: 1, address: 3}


def test_numbers_that_do_not_belong_to_their_keys_are_refused() -> None:
    stored = tally({b"\1" * 20: 1, b"\2" * 20: 1}).stored()
    with pytest.raises(ValueError, match="buffer size"):
        Tally.from_stored({**stored, "numbers": stored["numbers"][:-1]}, WALLET_BYTES)
    with pytest.raises(ValueError, match="2 keys, but 3 numbers"):
        Tally.from_stored({**stored, "numbers": b"\0" * 24}, WALLET_BYTES)
