"""Shards: what is left to do of one is told by its files, whichever stage it comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.domain.shards import Shard, ShardFile

EMPTY, FULL = ShardFile("empty", 0, 8, 1), ShardFile("full", 5, 80, 2)
STORED = Shard(number=1, read=5, rows=EMPTY, refused=(EMPTY,), unchanged=FULL)


def test_a_shard_whose_records_are_all_stored_has_nothing_left_to_do() -> None:
    assert STORED.is_stored
    assert Shard(number=1, read=0, rows=EMPTY, refused=(EMPTY,)).is_stored


@pytest.mark.parametrize(
    "shard",
    [
        replace(STORED, rows=FULL),
        replace(STORED, refused=(FULL,)),
        replace(STORED, refused=(EMPTY, FULL)),
        replace(STORED, gone=b"ids"),
    ],
    ids=["rows", "refused", "refused later", "gone"],
)
def test_one_record_that_is_new_refused_or_gone_is_something_to_do(shard: Shard) -> None:
    assert not shard.is_stored


def test_a_shard_that_needed_no_vector_still_has_rows_to_write() -> None:
    embedded = replace(STORED.moved_on(EMPTY, EMPTY), chunks=FULL)
    assert not embedded.is_stored
