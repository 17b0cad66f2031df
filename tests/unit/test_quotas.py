"""Quotas: no window holds more than its quota, days end at midnight Pacific time, and what is spent is said."""

from __future__ import annotations

import pickle
from collections import deque
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.errors import (
    BudgetSpentError,
    NotSentError,
    PipelineError,
    QuotaSpentError,
    StoppedError,
    TerminalError,
    ThrottledError,
    TransientError,
)
from tasks.domain.quotas import (
    NANO_USD,
    SLOTS_PER_TEXT,
    SLOTS_PER_TOKEN,
    Allowance,
    Bucket,
    Quota,
    Spending,
    cost_nano_usd,
    largest_batch,
    make_bucket,
    quota_day,
    text_bucket,
    token_bucket,
    wait_before,
)
from tasks.domain.vectors import EmbedderFacts

NOON = datetime(2026, 11, 3, 20, tzinfo=UTC)
INT32 = 2**31 - 1


def greediest(bucket: Bucket, *, slots_per_unit: int, batch: int, seconds: float) -> list[float]:
    """Return when each unit passes if batches are taken as early as the server's arithmetic lets them be."""
    passed: list[float] = []
    active, updated, now = 0, 0.0, 0.0
    while True:
        # As the server: what has emptied is rounded down to whole slots, and never below nothing.
        wanted = batch * slots_per_unit
        missing = active + wanted - bucket.capacity
        if missing > 0:
            now = max(now, updated + missing / bucket.decay_per_second + 1e-9)
        if now > seconds:
            return passed
        active = max(0, active - int(bucket.decay_per_second * (now - updated))) + wanted
        if active > bucket.capacity:  # rounded down by one slot too many: the next look finds it
            active -= wanted
            now += 1 / bucket.decay_per_second
            continue
        updated = now
        passed.extend([now] * batch)


def most_in_a_window(moments: list[float], window: float) -> int:
    recent: deque[float] = deque()
    most = 0
    for moment in moments:
        recent.append(moment)
        while recent[0] <= moment - window:
            recent.popleft()
        most = max(most, len(recent))
    return most


@pytest.mark.parametrize("per_minute", [1, 2, 3, 7, 10, 19, 20, 21, 60, 100, 300, 1_000, 3_000])
def test_no_window_of_a_minute_holds_more_than_the_quota_and_nine_tenths_of_it_are_used(per_minute: int) -> None:
    bucket = make_bucket(per_minute, slots_per_unit=SLOTS_PER_TEXT)
    for batch in {1, bucket.largest}:
        moments = greediest(bucket, slots_per_unit=SLOTS_PER_TEXT, batch=batch, seconds=600)
        assert most_in_a_window(moments, 60) <= per_minute
        steady = [moment for moment in moments if moment >= 60]
        assert len(steady) / (per_minute * 9) > 0.9 - 1 / (per_minute * 9)


@given(per_minute=st.integers(1, 100_000_000), slots=st.sampled_from([SLOTS_PER_TEXT, SLOTS_PER_TOKEN]))
def test_a_bucket_fits_into_32_bits_holds_its_largest_batch_and_empties(per_minute: int, slots: int) -> None:
    bucket = make_bucket(per_minute, slots_per_unit=slots)
    assert 1 <= bucket.largest * slots <= bucket.capacity <= INT32
    assert bucket.decay_per_second > 0
    # Even if the requests of a window arrive up to a second closer together than they were let through.
    assert bucket.capacity + bucket.decay_per_second * 60.99 < (per_minute + 1) * slots


def test_common_quotas_allow_the_batches_that_gemini_takes() -> None:
    tier_1 = Quota(texts_per_minute=3_000, tokens_per_minute=1_000_000)
    assert largest_batch(tier_1) == (100, 33_333)
    free = Quota(texts_per_minute=100, tokens_per_minute=30_000, texts_per_day=1_000)
    assert largest_batch(free) == (3, 1_000)
    assert largest_batch(Quota()) == (None, None)
    assert text_bucket(Quota()) is token_bucket(Quota()) is None


def test_a_batch_is_a_fiftieth_of_a_day_or_a_budget_at_most() -> None:
    assert largest_batch(Quota(texts_per_day=500)) == (10, None)
    assert largest_batch(Quota(usd_per_day=1.5), usd_per_million_tokens=0.15) == (None, 200_000)
    assert largest_batch(Quota(usd_per_day=1.5), usd_per_million_tokens=0.15, budget_usd=0.15) == (None, 20_000)
    assert largest_batch(Quota(texts_per_day=1, usd_per_day=1e-9), usd_per_million_tokens=0.15) == (1, 1)


# -- Google's day ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "name", "ends"),
    [
        ("2026-11-03T20:00", "2026-11-03", "2026-11-04T08:00"),
        ("2026-07-01T06:59:59", "2026-06-30", "2026-07-01T07:00"),
        ("2026-07-01T07:00", "2026-07-01", "2026-07-02T07:00"),
        # Summer time begins on 8 March at 10:00 UTC: a day of 23 hours.
        ("2026-03-08T08:00", "2026-03-08", "2026-03-09T07:00"),
        ("2026-03-08T07:59:59", "2026-03-07", "2026-03-08T08:00"),
        # It ends on 1 November at 9:00 UTC: a day of 25 hours.
        ("2026-11-01T07:00", "2026-11-01", "2026-11-02T08:00"),
        ("2026-11-02T07:59:59", "2026-11-01", "2026-11-02T08:00"),
    ],
)
def test_a_day_ends_at_midnight_pacific_time(now: str, name: str, ends: str) -> None:
    day = quota_day(datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert (day.name, day.ends) == (name, datetime.fromisoformat(ends).replace(tzinfo=UTC))
    assert day.ends.utcoffset() == timedelta(0)


def test_a_day_is_the_same_in_every_time_zone_and_needs_one() -> None:
    assert quota_day(NOON) == quota_day(NOON.astimezone(timezone(timedelta(hours=9))))
    with pytest.raises(ValueError, match="time zone"):
        quota_day(NOON.replace(tzinfo=None))


@given(st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)))  # noqa: DTZ001 - made aware below
def test_every_moment_is_in_one_day_and_the_next_begins_where_it_ends(moment: datetime) -> None:
    day = quota_day(moment.replace(tzinfo=UTC))
    assert timedelta(0) < day.ends - moment.replace(tzinfo=UTC) <= timedelta(hours=25)
    assert quota_day(day.ends).name > day.name == quota_day(day.ends - timedelta(microseconds=1)).name


# -- what a request may still spend ------------------------------------------------------------------------


def wait(spending: Spending, allowance: Allowance, *, texts: int = 10, nano_usd: int = 0) -> float:
    return wait_before(spending, allowance, texts=texts, nano_usd=nano_usd, now=NOON)


def test_bulk_work_leaves_a_share_of_the_day_to_ongoing_work() -> None:
    quota = Quota(texts_per_day=1_000, usd_per_day=2.0)
    bulk, ongoing = Allowance.of(quota, keep_back=0.05), Allowance.of(quota)
    assert (bulk.day_texts, bulk.day_nano_usd) == (950, 1_900_000_000)
    spent = Spending("2026-11-03", texts=941)
    assert wait(spent, ongoing) == 0
    with pytest.raises(QuotaSpentError, match=r"941 of the 950 texts.*5% of the day being kept.*2026-11-04 08:00 UTC"):
        wait(spent, bulk)
    with pytest.raises(ValueError, match="share"):
        Allowance.of(quota, keep_back=1)


def test_the_last_text_of_a_day_passes_and_the_next_does_not() -> None:
    allowance = Allowance.of(Quota(texts_per_day=1_000))
    assert wait(Spending("2026-11-03", texts=990), allowance) == 0
    with pytest.raises(QuotaSpentError, match="CRYPTIQUE_GEMINI_TEXTS_PER_DAY") as caught:
        wait(Spending("2026-11-03", texts=991), allowance)
    assert caught.value.until == datetime(2026, 11, 4, 8, tzinfo=UTC)


def test_a_day_s_dollars_and_a_run_s_budget_are_told_apart() -> None:
    allowance = Allowance.of(Quota(usd_per_day=2.0), budget_usd=0.5)
    assert wait(Spending("2026-11-03", nano_usd=NANO_USD), allowance, nano_usd=NANO_USD // 2) == 0
    with pytest.raises(QuotaSpentError, match=r"\$1\.9000 of the \$2\.0000 that CRYPTIQUE_GEMINI_USD_PER_DAY"):
        wait(Spending("2026-11-03", nano_usd=1_900_000_000), allowance, nano_usd=200_000_000)
    with pytest.raises(BudgetSpentError, match=r"\$0\.4000 of the run's budget of \$0\.5000") as caught:
        wait(Spending("2026-11-03", nano_usd=NANO_USD, run_nano_usd=400_000_000), allowance, nano_usd=200_000_000)
    assert (caught.value.spent_usd, caught.value.budget_usd) == (0.4, 0.5)


def test_a_pause_is_waited_for_and_a_closed_day_is_not() -> None:
    until = NOON + timedelta(seconds=37.5)
    assert wait(Spending("2026-11-03", closed_until=until), Allowance()) == 37.5
    assert wait(Spending("2026-11-03", closed_until=NOON - timedelta(seconds=1)), Allowance()) == 0
    with pytest.raises(QuotaSpentError, match="the service said so") as caught:
        wait(Spending("2026-11-03", spent_until=until, spent_reason="the service said so"), Allowance())
    assert caught.value.until == until
    assert wait(Spending("2026-11-03", spent_until=NOON, spent_reason="yesterday"), Allowance()) == 0


def test_a_thousand_costs_add_up_to_the_price() -> None:
    assert sum(cost_nano_usd(1_000, 0.15) for _ in range(1_000)) == round(0.15 * NANO_USD)
    assert cost_nano_usd(75, 0.15) == 11_250


def test_a_quota_is_what_an_embedder_states() -> None:
    local = EmbedderFacts("model", 4, "none", max_texts_per_request=10, max_tokens_per_text=100)
    assert Quota.of(local).unlimited
    paid = EmbedderFacts("model", 4, "none", 10, 100, texts_per_minute=1, usd_per_day=2.5)
    assert Quota.of(paid) == Quota(texts_per_minute=1, usd_per_day=2.5)
    assert not Quota.of(paid).unlimited


@pytest.mark.parametrize(
    "error",
    [
        QuotaSpentError("the day is over", NOON),
        BudgetSpentError(0.4, 0.5),
        StoppedError(),
        ThrottledError("too fast", retry_after_seconds=2.5),
        NotSentError("no connection"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes_with_what_they_say(error: PipelineError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_what_is_spent_is_neither_tried_again_nor_left_to_a_person_to_mend() -> None:
    for kind in (QuotaSpentError, BudgetSpentError, StoppedError):
        assert not issubclass(kind, TransientError | TerminalError)
    assert issubclass(ThrottledError, TransientError)
    assert issubclass(NotSentError, TransientError)
