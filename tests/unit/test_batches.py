"""Batches hold every item once, in order, and never more than their size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.batches import batched


@given(st.lists(st.integers()), st.integers(min_value=1, max_value=9))
def test_every_item_is_in_one_batch_and_only_the_last_may_be_short(items: list[int], size: int) -> None:
    batches = list(batched(iter(items), size))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)
