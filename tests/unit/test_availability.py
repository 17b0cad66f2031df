"""What looks saw, cut into stretches: the same sums as those that alerts go by, wherever a span is cut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.alerts import Looks
from tasks.domain.availability import count_looks, find_outages, find_stretches

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
END = BEGIN + timedelta(hours=2)
MOMENTS = st.lists(st.tuples(st.integers(0, 7_199), st.booleans()), unique_by=lambda look: look[0], max_size=40)


def looks(*seen: tuple[float, bool]) -> list[tuple[float, int]]:
    return [(BEGIN.timestamp() + after, int(failed)) for after, failed in sorted(seen)]


@given(MOMENTS, st.integers(1, 7_199))
def test_two_halves_of_a_span_add_up_to_it_and_to_what_alerts_go_by(seen: list[tuple[int, bool]], cut: int) -> None:
    found = find_stretches(looks(*seen), until=END, covers_s=360)
    middle = BEGIN + timedelta(seconds=cut)
    whole, first, second = (
        count_looks(found, since, until) for since, until in ((BEGIN, END), (BEGIN, middle), (middle, END))
    )
    assert first.good_s + second.good_s == whole.good_s
    assert first.bad_s + second.bad_s == whole.bad_s
    assert first.unknown_s + second.unknown_s == whole.unknown_s
    assert whole == Looks.from_times(looks(*seen), since=BEGIN.timestamp(), until=END.timestamp(), covers_s=360)


def test_looks_that_fail_one_after_the_other_are_one_outage_and_a_pause_makes_two() -> None:
    found = find_stretches(
        looks((0, False), (60, True), (120, True), (180, False), (600, True), (4_000, True)), until=END, covers_s=360
    )
    assert [(int((end - begin).total_seconds()), begin - BEGIN) for begin, end in find_outages(found)] == [
        (360, timedelta(seconds=4_000)),
        (360, timedelta(seconds=600)),
        (120, timedelta(seconds=60)),
    ]


def test_without_a_look_nobody_can_tell() -> None:
    found = count_looks(find_stretches([], until=END, covers_s=360), BEGIN, END)
    assert (found.availability, found.unknown_s) == (None, 7_200)
