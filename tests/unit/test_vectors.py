"""Vectors: texts are packed within a request's limits, and a broken reply is never stored."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.domain.errors import TransientError
from tasks.domain.vectors import NORM_TOLERANCE, checked_vectors, pack_batches


@given(
    tokens=st.lists(st.integers(0, 3_000), max_size=300),
    max_texts=st.integers(1, 100),
    max_tokens=st.none() | st.integers(1, 5_000),
)
def test_every_text_is_in_exactly_one_batch_within_the_limits(
    tokens: list[int], max_texts: int, max_tokens: int | None
) -> None:
    batches = list(pack_batches(tokens, max_texts=max_texts, max_tokens=max_tokens))
    assert [index for batch in batches for index in range(len(tokens))[batch]] == list(range(len(tokens)))
    for batch in batches:
        held = tokens[batch]
        assert 1 <= len(held) <= max_texts
        assert max_tokens is None or sum(held) <= max_tokens or len(held) == 1


@given(tokens=st.lists(st.integers(1, 50), min_size=1, max_size=200), max_texts=st.integers(1, 20))
def test_a_batch_is_closed_only_when_the_next_text_would_not_fit(tokens: list[int], max_texts: int) -> None:
    batches = list(pack_batches(tokens, max_texts=max_texts, max_tokens=100))
    for one, two in pairwise(batches):
        assert one.stop - one.start == max_texts or sum(tokens[one]) + tokens[two.start] > 100


def test_a_text_above_the_limit_travels_alone() -> None:
    batches = list(pack_batches([1, 9_999, 1, 1], max_texts=100, max_tokens=100))
    assert batches == [slice(0, 1), slice(1, 2), slice(2, 4)]


def test_no_texts_make_no_request() -> None:
    assert list(pack_batches([], max_texts=100, max_tokens=100)) == []


@given(
    arrays.arrays(
        np.float32,
        (5, 8),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    ).filter(lambda rows: bool((np.abs(rows).max(axis=1) > 1e-18).all()))
)
def test_every_vector_has_length_one_and_keeps_its_direction(rows: Any) -> None:
    unit = checked_vectors(rows, count=5, dimensions=8)
    assert unit.dtype == np.float32
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() < NORM_TOLERANCE
    widest = np.abs(rows).argmax(axis=1)
    assert (np.sign(unit[range(5), widest]) == np.sign(rows[range(5), widest])).all()


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_whatever_numbers_come_a_vector_has_length_one_or_is_refused(rows: Any) -> None:
    try:
        unit = checked_vectors(rows, count=3, dimensions=4)
    except TransientError:
        return
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() < NORM_TOLERANCE


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ([], "0 vectors for 2 texts"),
        ([[1.0, 0.0]], "1 vectors for 2 texts"),
        ([[1.0, 0.0]] * 3, "3 vectors for 2 texts"),
        ([[1.0, 0.0], [1.0]], "dimensions"),
        ([[1.0, 0.0, 0.0]] * 2, "dimensions"),
        ([[], []], "dimensions"),
        ([[1.0, math.nan], [1.0, 0.0]], "NaN or infinity"),
        ([[1.0, -math.inf], [1.0, 0.0]], "NaN or infinity"),
        ([[1.0, 1e300], [1.0, 0.0]], "NaN or infinity"),
        ([[0.0, 0.0], [1.0, 0.0]], "zeros"),
        ([[1e-300, 0.0], [1.0, 0.0]], "zeros"),
        ([[3e38, 3e38], [1.0, 0.0]], "infinity"),
        ([[1e-45, 3e-45], [1.0, 0.0]], "zeros"),
        ([[None, 1.0], [1.0, 0.0]], "NaN|numbers"),
        ([["a", "b"], [1.0, 0.0]], "numbers"),
        ([[{}, 1.0], [1.0, 0.0]], "numbers"),
        ([None, None], "no vector"),
        ([1.0, 2.0], "no vector"),
    ],
    ids=repr,
)
def test_a_broken_reply_is_asked_for_again(reply: Any, words: str) -> None:
    with pytest.raises(TransientError, match=words):
        checked_vectors(reply, count=2, dimensions=2)


def test_no_texts_have_no_vectors() -> None:
    assert checked_vectors([], count=0, dimensions=4).shape == (0, 4)
