"""Manifests: every record that was read has exactly one outcome, and the sum over owners hides nothing."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import TerminalError
from tasks.domain.manifests import Counts, Manifest, Owner

numbers = st.integers(0, 10**9)
counts = st.builds(Counts, numbers, numbers, numbers, numbers, numbers, numbers)
owners = st.builds(Owner, st.none() | st.sampled_from(["t1", "t2"]), st.none() | st.sampled_from(["c1", "c2", "c3"]))
manifests = st.builds(
    Manifest,
    st.dictionaries(owners, counts, max_size=5),
    st.dictionaries(st.sampled_from(["amount_negative", "tx_hash_missing"]), numbers),
    numbers,
    numbers,
)


def copy(manifest: Manifest) -> Manifest:
    return Manifest.from_record(manifest.to_record())


def test_a_manifest_closes_only_if_every_owners_records_add_up() -> None:
    manifest = Manifest()
    manifest.add(Owner("t1", "c1"), read=3, written=1, unchanged=1, dead_lettered=1)
    manifest.require_closed("shard 1")
    manifest.add(Owner("t1", "c2"), read=1)
    manifest.add(Owner("t2", "c3"), written=1)
    assert manifest.total.closes
    with pytest.raises(TerminalError) as failed:
        manifest.require_closed("shard 1")
    assert "shard 1" in str(failed.value)
    assert "c2" in str(failed.value)
    assert "c3" in str(failed.value)
    assert "c1" not in str(failed.value)


def test_records_of_nobody_are_counted_and_named_as_such() -> None:
    manifest = Manifest()
    manifest.add(Owner(None, None), read=1)
    with pytest.raises(TerminalError, match="team unknown, unknown: read 1"):
        manifest.require_closed("the run")


def test_removed_and_chunks_are_no_records() -> None:
    assert Counts(read=1, written=1, removed=7, chunks=9).closes
    assert not Counts(read=2, written=1).closes


@given(manifests, manifests)
def test_merging_adds_every_figure_of_both(one: Manifest, two: Manifest) -> None:
    merged = copy(one)
    merged.merge(two)
    assert merged.total == one.total + two.total
    assert (merged.embedded, merged.tokens) == (one.embedded + two.embedded, one.tokens + two.tokens)
    for code in merged.refused:
        assert merged.refused[code] == one.refused.get(code, 0) + two.refused.get(code, 0)
    for owner in merged.by_owner:
        assert merged.by_owner[owner] == one.by_owner.get(owner, Counts()) + two.by_owner.get(owner, Counts())


@given(manifests)
def test_a_checkpoint_gives_back_the_same_manifest(manifest: Manifest) -> None:
    assert Manifest.from_record(orjson.loads(orjson.dumps(manifest.to_record()))) == manifest


def test_records_that_were_not_looked_at_count_as_if_they_had_been() -> None:
    skipped, looked_at = Manifest(), Manifest()
    skipped.add_unchanged({("t1", "c1", 1): 3, ("t1", "c1", 4): 2, (None, "c2", 1): 1})
    looked_at.add(Owner("t1", "c1"), read=5, unchanged=5, chunks=11)
    looked_at.add(Owner(None, "c2"), read=1, unchanged=1, chunks=1)
    assert skipped == looked_at
    skipped.require_closed("shard 1")
    skipped.add_unchanged({})
    assert skipped == looked_at
