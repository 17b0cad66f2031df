"""Retention: no class costs another one its backups, and the newest good one of each outlives every clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.backups import BackupClass, BackupManifest, BackupState, DatabaseBackup, StoredBackup, began_at
from tasks.domain.retention import ROTATED, Retention, Rotated, choose, classes_for

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)


def make_backup(
    taken: datetime,
    *classes: BackupClass,
    state: BackupState = "good",
    began: datetime | None = None,
    tail: int = 0,
    readable: bool = True,
) -> StoredBackup:
    """Return a backup as the catalogue lists it; ``began`` is the clock of who made it, ``taken`` the database's."""
    began = began or taken
    backup_id = f"{began.year:04}{began.strftime('%m%dT%H%M%SZ')}-{tail:04x}"
    database = DatabaseBackup("store", "db", "6.0.5", Timestamp(1, 1), ())
    manifest = BackupManifest(backup_id, classes, began, taken, (database,), "0.1.0", {}, {})
    there = state != "unfinished" and readable
    return StoredBackup(backup_id, state, taken, manifest if there else None)


def series(name: BackupClass, days: int, count: int, *, start: datetime = NOON) -> list[StoredBackup]:
    return [make_backup(start - timedelta(days=days * number), name, tail=number) for number in range(count)]


def kept(stored: list[StoredBackup], retention: Retention = Retention()) -> set[str]:  # noqa: B008
    return {verdict.id for verdict in choose(stored, retention) if verdict.keep}


def of_class(stored: list[StoredBackup], name: Rotated, *, good: bool = True) -> list[StoredBackup]:
    return [
        one for one in stored if one.manifest and name in one.manifest.classes and (not good or one.state == "good")
    ]


# -- what it says of ordinary days ------------------------------------------------------------------------------


def test_seven_daily_ones_thirty_days_of_weekly_ones_and_twelve_monthly_ones_stay() -> None:
    daily, weekly, monthly = series("daily", 1, 40), series("weekly", 7, 10), series("monthly", 31, 20)
    wanted = {one.id for one in [*daily[:7], *weekly[:5], *monthly[:12]]}
    assert kept([*daily, *weekly, *monthly]) == wanted


def test_a_backup_of_two_classes_stays_while_either_wants_it() -> None:
    both = make_backup(NOON - timedelta(days=20), "daily", "monthly", tail=9)
    stored = [*series("daily", 1, 10), both]
    assert both.id in kept(stored)
    (verdict,) = [one for one in choose(stored, Retention()) if one.id == both.id]
    assert verdict.why == "the newest monthly one"


@pytest.mark.parametrize("state", ["unverified", "damaged"])
def test_one_that_proved_bad_stays_a_week_beside_a_newer_good_one_and_never_counts(state: BackupState) -> None:
    bad = make_backup(NOON, "daily", state=state, tail=0xBAD)
    good = series("daily", 1, 7, start=NOON - timedelta(days=1))
    assert kept([bad, *good]) == {bad.id, *(one.id for one in good)}
    for days, stays in ((6, True), (7, False)):
        newer = make_backup(NOON + timedelta(days=days), "daily")
        assert (bad.id in kept([newer, bad, *good])) is stays
    # A bad one says nothing about how old another bad one is.
    assert bad.id in kept([make_backup(NOON + timedelta(days=50), "daily", state="damaged"), bad])


def test_what_was_made_by_hand_or_is_not_finished_or_can_not_be_read_is_left_to_a_person() -> None:
    old = NOON - timedelta(days=4_000)
    others = [
        make_backup(old, "manual"),
        make_backup(old, "manual", state="damaged", tail=1),
        make_backup(old, "daily", state="unfinished", tail=2),
        make_backup(old, "daily", state="damaged", readable=False, tail=3),
    ]
    assert {one.id for one in others} <= kept([*others, *series("daily", 1, 20)])


def test_a_month_has_one_monthly_backup_that_is_good() -> None:
    first = make_backup(datetime(2026, 3, 1, 2, tzinfo=UTC), "daily", "monthly")
    assert classes_for("daily", NOON, []) == ("daily", "monthly")
    assert classes_for("weekly", NOON, [first]) == ("weekly",)
    assert classes_for("weekly", NOON, [replace(first, state="damaged")]) == ("weekly", "monthly")
    assert classes_for("daily", datetime(2026, 4, 1, tzinfo=UTC), [first]) == ("daily", "monthly")
    # A manual one takes no other's place, whatever the month lacks.
    assert classes_for("manual", NOON, []) == ("manual",)


def test_one_clock_that_jumps_lets_nothing_go_that_the_other_would_keep() -> None:
    weekly = series("weekly", 7, 3)
    ahead = make_backup(datetime(2099, 1, 1, tzinfo=UTC), "weekly", began=NOON + timedelta(days=7), tail=7)
    behind = make_backup(datetime(1971, 1, 1, tzinfo=UTC), "weekly", began=NOON + timedelta(days=14), tail=8)
    assert kept([*weekly, ahead, behind]) == {one.id for one in [*weekly, ahead, behind]}


def test_a_rule_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="one is kept"):
        Retention(daily=0)


# -- what it says whatever is stored ------------------------------------------------------------------------------

#: Some months, in which classes come in each other's way, and all that a clock can say.
_MOMENTS = st.one_of(
    st.integers(min_value=-90 * 86_400, max_value=0), st.integers(min_value=-60 * 10**9, max_value=250 * 10**9)
).map(lambda seconds: NOON + timedelta(seconds=seconds))
_STATES: Any = st.sampled_from(["good", "good", "good", "unverified", "damaged", "unfinished"])
_CLASSES: Any = st.one_of(
    st.just(("manual",)), st.lists(st.sampled_from(ROTATED), min_size=1, max_size=3, unique=True).map(tuple)
)


@st.composite
def catalogues(draw: st.DrawFn) -> list[StoredBackup]:
    count = draw(st.integers(min_value=0, max_value=14))
    stored = []
    for number in range(count):
        taken = draw(_MOMENTS)
        began = draw(st.one_of(st.just(taken), _MOMENTS))
        stored.append(make_backup(taken, *draw(_CLASSES), state=draw(_STATES), began=began, tail=number))
    return stored


_RETENTIONS = st.builds(
    Retention,
    daily=st.integers(min_value=1, max_value=8),
    weekly_days=st.integers(min_value=1, max_value=60),
    monthly=st.integers(min_value=1, max_value=13),
)


@given(catalogues(), _RETENTIONS)
def test_the_newest_good_one_of_each_class_stays_by_either_clock(
    stored: list[StoredBackup], retention: Retention
) -> None:
    stays = kept(stored, retention)
    for name in ROTATED:
        members = of_class(stored, name)
        if members:
            assert max(members, key=lambda one: (one.manifest.taken, one.id)).id in stays  # type: ignore[union-attr]
            assert max(members, key=lambda one: (str(began_at(one.id)), one.id)).id in stays


@given(catalogues(), _RETENTIONS)
def test_a_second_rotation_finds_nothing_to_do(stored: list[StoredBackup], retention: Retention) -> None:
    stays = kept(stored, retention)
    assert kept([one for one in stored if one.id in stays], retention) == stays


@given(catalogues(), _RETENTIONS, st.sampled_from(ROTATED))
def test_what_is_in_other_classes_alone_decides_nothing_about_a_class(
    stored: list[StoredBackup], retention: Retention, name: Rotated
) -> None:
    alone = [one for one in of_class(stored, name) if one.manifest and one.manifest.classes == (name,)]
    without = of_class(stored, name)
    assert kept(stored, retention) & {one.id for one in alone} == kept(without, retention) & {one.id for one in alone}


@given(catalogues(), _RETENTIONS)
def test_one_that_is_not_good_makes_no_good_one_go(stored: list[StoredBackup], retention: Retention) -> None:
    good = [one for one in stored if one.state == "good"]
    assert kept(stored, retention) & {one.id for one in good} == kept(good, retention)


@given(catalogues(), _RETENTIONS)
def test_manual_and_unfinished_ones_always_stay_and_each_has_one_verdict(
    stored: list[StoredBackup], retention: Retention
) -> None:
    verdicts = choose(stored, retention)
    assert [verdict.id for verdict in verdicts] == [one.id for one in stored]
    assert all(verdict.why for verdict in verdicts)
    for one in stored:
        if one.manifest is None or "manual" in one.manifest.classes:
            assert one.id in kept(stored, retention)


@given(catalogues(), _RETENTIONS)
def test_what_goes_is_older_by_both_clocks_than_a_good_one_that_stays(
    stored: list[StoredBackup], retention: Retention
) -> None:
    stays = kept(stored, retention)
    good = [one for one in stored if one.state == "good" and one.id in stays]
    for one in stored:
        if one.id not in stays:
            assert one.manifest is not None
            began, taken = began_at(one.id), one.manifest.taken
            assert began is not None
            assert any(other.manifest and other.manifest.taken >= taken for other in good)
            assert any((found := began_at(other.id)) and found >= began for other in good)
