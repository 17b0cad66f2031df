"""Tables: rows go into a shard file and come out the same, whatever their fields hold."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.tables import from_table, to_table
from tasks.domain.transactions import Transaction
from tests.builders import make_transaction


@dataclass(frozen=True, slots=True)
class Sample:
    text: str
    maybe_text: str | None
    number: int
    maybe_number: int | None
    share: float
    maybe_share: float | None
    flag: bool
    maybe_flag: bool | None
    data: bytes
    maybe_data: bytes | None


texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-(2**63), 2**63 - 1)
shares = st.floats(allow_nan=False)
samples = st.builds(
    Sample,
    texts,
    st.none() | texts,
    numbers,
    st.none() | numbers,
    shares,
    st.none() | shares,
    st.booleans(),
    st.none() | st.booleans(),
    st.binary(),
    st.none() | st.binary(),
)


@given(st.lists(samples, max_size=5))
def test_rows_come_out_as_they_went_in(rows: list[Sample]) -> None:
    table = to_table(Sample, rows)
    assert table.num_rows == len(rows)
    assert list(from_table(Sample, table)) == rows


def test_a_table_without_rows_has_the_columns_of_one_with_rows() -> None:
    assert to_table(Transaction, []).schema == to_table(Transaction, [make_transaction()]).schema
    assert list(from_table(Transaction, to_table(Transaction, []))) == []


def test_a_transaction_comes_out_as_it_went_in() -> None:
    rows = [make_transaction(), make_transaction(amount=str(2**256 - 1), block_number=None, staking_confidence=1.0)]
    assert list(from_table(Transaction, to_table(Transaction, rows))) == rows


def test_a_number_that_no_column_holds_is_an_error_and_not_another_number() -> None:
    with pytest.raises((OverflowError, pa.ArrowInvalid)):
        to_table(Transaction, [make_transaction(block_number=2**63)])


def test_columns_may_come_in_another_order() -> None:
    table = to_table(Transaction, [make_transaction()])
    turned = table.select(table.column_names[::-1])
    assert list(from_table(Transaction, turned)) == [make_transaction()]
