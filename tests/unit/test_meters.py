"""What a meter counts adds up over minutes and processes, and is written once whatever becomes of the writing."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from blocks.meters import Writer
from tasks.domain.errors import TransientError
from tasks.domain.meters import BUCKETS_S, Measure, Meter, measure_row, merged, read_measure

NOON = datetime(2026, 11, 23, 12, 0, 30, tzinfo=UTC)


def test_calls_of_a_minute_add_up_and_minutes_do_too() -> None:
    meter = Meter()
    meter.count("embed", at=NOON, seconds=0.2, texts=100, tokens=7_000, usd=0.5)
    meter.count("embed", at=NOON, seconds=3.0, error="ThrottledError", throttled=True)
    meter.count("embed", at=NOON + timedelta(minutes=1), seconds=0.1, error="TransientError")
    meter.count("search", at=NOON, seconds=0.1, results=5, score=0.8)
    meter.add("embed", at=NOON, reused=7)
    first, searched, second = meter.take()
    assert meter.take() == []
    assert (first.minute, first.calls, first.failed, first.throttled) == (NOON.replace(second=0), 2, 1, 1)
    assert (first.texts, first.tokens, first.usd, first.reused) == (100, 7_000, 0.5, 7)
    assert (searched.kind, searched.results, searched.scores, searched.scored) == ("search", 5, 0.8, 1)
    both = first + second
    assert dict(both.errors) == {"ThrottledError": 1, "TransientError": 1}
    assert both.error_rate == pytest.approx(2 / 3)
    assert merged([first, searched, second], "embed") == both
    assert merged([], "embed") is None


def test_a_quantile_is_as_near_as_its_bucket() -> None:
    choose = random.Random(7)
    durations = sorted(choose.lognormvariate(0, 1.2) for _ in range(5_000))
    meter = Meter()
    for seconds in durations:
        meter.count("http", at=NOON, seconds=seconds)
    (measure,) = meter.take()
    for share in (0.5, 0.95, 0.99):
        exact, told = durations[int(share * len(durations)) - 1], measure.quantile_s(share)
        bucket = next(index for index, bound in enumerate(BUCKETS_S) if exact <= bound)
        assert told is not None
        assert BUCKETS_S[bucket - 1] <= told <= BUCKETS_S[bucket]
    assert Measure(NOON, "http").quantile_s(0.5) is None


def test_threads_lose_no_count() -> None:
    meter = Meter()

    def count() -> None:
        for _ in range(2_000):
            meter.count("http", at=NOON, seconds=0.01)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.calls for one in meter.take()) == 8_000


def test_a_measure_comes_back_from_plain_values() -> None:
    meter = Meter()
    meter.count("search", at=NOON, seconds=0.3, error="a.code", score=0.5)
    (measure,) = meter.take()
    assert read_measure(measure_row("id", measure, now=NOON)) == measure


def test_what_could_not_be_written_is_written_with_the_next_under_the_same_id() -> None:
    class Store:
        def __init__(self) -> None:
            self.rows: dict[str, Measure] = {}
            self.fails = True

        def add_measures(self, measures: Mapping[str, Measure]) -> None:
            self.rows |= measures  # it arrived, and the answer is lost
            if self.fails:
                raise TransientError("gone")

    meter, store = Meter(), Store()
    writer = Writer(meter)
    meter.count("embed", at=NOON, seconds=0.1)
    with pytest.raises(TransientError):
        writer.flush(store)
    meter.count("embed", at=NOON, seconds=0.1)
    store.fails = False
    writer.flush(store)
    writer.flush(store)
    assert sum(one.calls for one in store.rows.values()) == 2
