"""Lags are counted in tenths of a second and told as shares of the changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.changes import Lags


def test_nothing_that_changed_has_no_lag() -> None:
    assert Lags().quantile_s(0.95) is None


def test_a_quantile_is_the_lag_that_this_share_stayed_within() -> None:
    lags = Lags()
    lags.add(tuple(10_000 - 100 * number for number in range(100)), now_ms=10_000)
    assert lags.quantile_s(0.5) == pytest.approx(5.0)
    assert lags.quantile_s(1.0) == pytest.approx(10.0)


def test_a_clock_that_runs_ahead_counts_as_no_lag() -> None:
    lags = Lags()
    lags.add((2_000,), now_ms=1_000)
    assert lags.quantile_s(1.0) == pytest.approx(0.1)


@given(st.lists(st.integers(min_value=0, max_value=10**7), min_size=1), st.floats(min_value=0.01, max_value=1.0))
def test_at_least_the_share_lies_within_the_quantile(ages_ms: list[int], share: float) -> None:
    lags = Lags()
    lags.add(tuple(-age for age in ages_ms), now_ms=0)
    quantile = lags.quantile_s(share)
    assert quantile is not None
    assert sum(age <= quantile * 1000 for age in ages_ms) >= share * len(ages_ms) - 1e-9
