"""Forecasts: what a sample says of the whole, and how long a quota makes it take."""

from __future__ import annotations

import pytest

from tasks.domain.forecasts import TIERS, Forecast, seconds_at
from tasks.domain.quotas import Quota


def test_a_sample_of_everything_is_exact() -> None:
    assert Forecast.of_sample(records=40, sampled=40, texts=37, tokens=2_113) == Forecast(40, 40, 37, 2_113)


def test_a_tenth_of_the_records_stands_for_all() -> None:
    forecast = Forecast.of_sample(records=871_781, sampled=1_000, texts=990, tokens=60_000)
    assert (forecast.texts, forecast.tokens) == (863_063, 52_306_860)


def test_an_empty_source_needs_nothing() -> None:
    assert Forecast.of_sample(records=0, sampled=0, texts=0, tokens=0) == Forecast(0, 0, 0, 0)


def test_the_narrower_of_two_quotas_decides() -> None:
    quota = Quota(texts_per_minute=3_000, tokens_per_minute=1_000_000)
    assert seconds_at(quota, texts=3_000, tokens=100) == 60.0
    assert seconds_at(quota, texts=10, tokens=2_000_000) == 120.0


def test_without_a_quota_nothing_waits() -> None:
    assert seconds_at(Quota(), texts=871_781, tokens=60_000_000) is None


def test_a_quota_a_day_is_used_on_as_many_days() -> None:
    assert seconds_at(Quota(texts_per_day=1_000), texts=1_000, tokens=1) is None
    assert seconds_at(Quota(texts_per_day=1_000), texts=2_001, tokens=1) == 2 * 86_400


@pytest.mark.parametrize(("tier", "hours"), [("tier 1", 4.84), ("tier 2", 2.91), ("tier 3", 1.45)])
def test_the_whole_source_takes_the_hours_that_each_tier_allows(tier: str, hours: float) -> None:
    seconds = seconds_at(TIERS[tier], texts=871_781, tokens=871_781 * 60)
    assert seconds is not None
    assert round(seconds / 3600, 2) == hours
