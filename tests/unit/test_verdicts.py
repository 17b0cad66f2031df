"""Verdicts: what each fault of a source is called, which records are named, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tasks.domain.documents import DescribedRecord
from tasks.domain.errors import TerminalError
from tasks.domain.measures import (
    Reach,
    Stored,
    ceilings_of,
    find_suspects,
    ids_to_read_again,
    is_representative,
    measure_alone,
    measure_run,
    measure_sample,
    measure_so_far,
    measure_target,
    next_baseline,
    triage,
    withhold,
)
from tasks.domain.profiles import Profile, read_profile
from tasks.domain.tables import to_table as to_described
from tasks.domain.verdicts import (
    SOURCE_RULES,
    TARGET_RULES,
    Action,
    Finding,
    Judgement,
    Measure,
    Rule,
    judge,
    judge_alone,
    rules_for,
)
from tests.observations import (
    COLUMNS,
    NOW_MS,
    Row,
    doubled,
    make_profile,
    make_rows,
    scaled,
    shifted,
    swapped,
    to_table,
    truncated,
    with_nulls,
)

ROWS = make_rows(2_000)
IDS = {row["record_id"] for row in ROWS}
BEFORE = make_profile(ROWS)
WHOLE, PART = Reach(whole=True, now_ms=NOW_MS), Reach(whole=False, now_ms=NOW_MS)

RULE = Rule("missing", "fields are set", "look", warn=0.1, quarantine=0.2, stop=0.3, least=10)


def measure(value: float, *, of: int = 100, name: str = "missing") -> Measure:
    return Measure(name, "from", value, of, "20 of 100 records have no from", ("64c1", "64c2"))


def judged(rows: list[Row], before: Profile | None = BEFORE, reach: Reach = WHOLE) -> Judgement:
    profile = make_profile(rows)
    rules = rules_for(SOURCE_RULES, representative=is_representative(profile, reach))
    return judge_alone("transaction", measure_run(profile, before, COLUMNS, reach, read=profile.read), rules)


def stops(judgement: Judgement) -> set[str]:
    return {finding.name for finding in judgement.worst(Action.STOP)}


# -- rules


@pytest.mark.parametrize(
    ("value", "action"),
    [(0.1, None), (0.11, Action.WARN), (0.2, Action.WARN), (0.21, Action.QUARANTINE), (0.31, Action.STOP)],
)
def test_what_follows_is_the_most_severe_bound_that_is_passed(value: float, action: Action | None) -> None:
    found = judge([measure(value)], [RULE])
    assert [finding.action for finding in found] == ([action] if action else [])


def test_a_share_of_few_records_says_nothing() -> None:
    assert judge([measure(1.0, of=9)], [RULE]) == []
    assert len(judge([measure(1.0, of=10)], [RULE])) == 1


def test_a_lower_bound_is_the_least_that_may_be() -> None:
    rule = Rule("empty", "a source holds records", "look", stop=1, lower=True, least=0)
    assert len(judge([measure(0, of=0, name="empty")], [rule])) == 1
    assert judge([measure(1, name="empty")], [rule]) == []


def test_a_finding_survives_as_plain_values() -> None:
    [finding] = judge([measure(0.25)], [RULE])
    assert Finding.from_record(finding.to_record()) == finding


def test_drift_only_warns_where_the_run_looked_at_a_few_records() -> None:
    drifting = replace(RULE, drifts=True)
    [loose] = rules_for([drifting], representative=False)
    assert loose.bounds == {Action.WARN: 0.1}
    assert rules_for([drifting]) == (drifting,)


def test_freshness_is_asked_of_sources_that_promise_it() -> None:
    assert "stale" not in {rule.name for rule in rules_for(SOURCE_RULES)}
    assert next(rule for rule in rules_for(SOURCE_RULES, fresh_days=2) if rule.name == "stale").warn == 2


def test_every_measure_has_a_rule_and_stands_once() -> None:
    profile = make_profile(ROWS)
    columns = replace(COLUMNS, fresh_days=1.0)
    every = (
        measure_run(profile, BEFORE, columns, WHOLE, read=profile.read),
        measure_run(profile, None, columns, WHOLE, read=profile.read),
        measure_sample(profile, BEFORE, columns, WHOLE, planned=profile.read, again=profile),
        measure_target(Stored(1, 1, 0, 0, 0, 1), replace(BEFORE, documents=1)),
    )
    for measures in every:
        assert {one.name for one in measures} <= {rule.name for rule in (*SOURCE_RULES, *TARGET_RULES)}
        assert len({(one.name, one.about) for one in measures}) == len(measures)


# -- faults, each held against the last good run


def test_a_sound_run_is_found_sound() -> None:
    assert judged(ROWS).findings == ()
    assert judged(ROWS, before=None).findings == ()
    assert judged(make_rows(2_000, seed=9)[:1_000], reach=PART).findings == ()


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (with_nulls, {"missing", "emptied"}),
        (doubled, {"doubled"}),
        (shifted, {"moved"}),
        (scaled, {"scaled", "scale", "far"}),
        (truncated, {"fewer", "lost"}),
        (swapped, {"swapped", "exchanged"}),
    ],
)
def test_a_fault_of_the_whole_source_stops_the_run_and_names_its_records(
    fault: Callable[[list[Row]], list[Row]], names: set[str]
) -> None:
    judgement = judged(fault(ROWS))
    assert names <= stops(judgement)
    for finding in judgement.worst(Action.STOP):
        assert finding.examples
        assert {record[3:] for record in finding.examples} <= {record[3:] for record in IDS}
    with pytest.raises(TerminalError) as failed:
        judgement.require_sound("before anything was embedded")
    assert any(record in str(failed.value) for record in IDS)


@pytest.mark.parametrize("fault", [with_nulls, doubled, swapped])
def test_what_is_wrong_in_itself_stops_a_first_run_too(fault: Callable[[list[Row]], list[Row]]) -> None:
    assert judged(fault(ROWS), before=None).action == Action.STOP


def test_a_coin_that_is_moved_by_the_thousand_million_stops_a_first_run_too() -> None:
    assert "far" in stops(judged(scaled(ROWS), before=None))


def test_an_empty_source_stops_a_whole_run_and_names_what_it_held() -> None:
    [finding] = [finding for finding in judged([]).findings if finding.name == "empty"]
    assert finding.action == Action.STOP
    assert set(finding.examples) <= IDS
    assert "2,000" in finding.message
    assert judged([], reach=PART).findings == ()


def test_a_source_that_never_held_a_record_is_said_and_stops_nothing() -> None:
    for before in (None, make_profile([])):
        assert [(found.name, found.action) for found in judged([], before).findings] == [("nothing", Action.WARN)]


def test_a_shift_by_a_time_zone_shows_in_records_that_nobody_saw_before() -> None:
    before, now = make_profile(make_rows(8_000)), make_profile(shifted(make_rows(8_000, seed=5)))
    measures = measure_run(now, before, COLUMNS, WHOLE, read=now.read)
    [finding] = [found for found in judge(measures, rules_for(SOURCE_RULES)) if found.name == "hour_shift"]
    assert finding.action == Action.STOP
    assert "+5 h" in finding.words


def test_a_record_that_was_amended_on_purpose_stops_nothing() -> None:
    amended = [{**ROWS[0], "time_ms": ROWS[0]["time_ms"] + 3_600_000}, {**ROWS[1], "amount": "7"}, *ROWS[2:]]
    assert judged(amended).action in (None, Action.WARN)


def test_times_that_moved_by_odd_amounts_are_no_time_zone() -> None:
    moved = [{**row, "time_ms": row["time_ms"] + 61_000} for row in ROWS]
    assert "moved" not in {finding.name for finding in judged(moved).findings}


def test_a_team_that_lost_its_records_is_named() -> None:
    lost = ROWS[0]["team_id"]
    rows = [row for row in ROWS if row["team_id"] != lost]
    [finding] = [finding for finding in judged(rows).findings if finding.name == "team_fewer"]
    assert (finding.about, finding.action) == (lost, Action.STOP)


def test_a_record_that_is_not_accounted_for_stops_the_run() -> None:
    profile = make_profile(ROWS)
    measures = measure_run(profile, None, COLUMNS, WHOLE, read=profile.read + 1)
    assert "unaccounted" in {finding.name for finding in judge(measures, SOURCE_RULES)}


def test_refused_records_stop_the_run_by_reason_and_orphans_only_warn() -> None:
    profile = make_profile(ROWS[:800])
    profile.add_refused("tx_hash_missing", sorted(IDS)[:200])
    profile.add_refused("contract_unknown", sorted(IDS)[200:400])
    found = {finding.name: finding for finding in judge(measure_alone(profile, COLUMNS), SOURCE_RULES)}
    assert (found["refused"].about, found["refused"].action) == ("tx_hash_missing", Action.STOP)
    assert set(found["refused"].examples) <= IDS
    assert found["orphaned"].action == Action.WARN


def test_a_run_of_which_most_is_stored_already_is_not_compared_in_shape() -> None:
    profile = make_profile(scaled(ROWS[:100], 1))
    profile.add_unchanged([row["record_id"] for row in ROWS[100:]], {ROWS[0]["team_id"]: 950, ROWS[1]["team_id"]: 950})
    assert not is_representative(profile, WHOLE)
    assert profile.read == 2_000
    measures = measure_run(profile, BEFORE, COLUMNS, WHOLE, read=2_000)
    found = judge(measures, rules_for(SOURCE_RULES, representative=False))
    assert {finding.name for finding in found if finding.action == Action.STOP} == {"scaled"}
    assert not [one for one in measures if one.name == "lost" and one.value]


def test_a_later_run_that_looked_at_few_records_brings_the_numbers_and_leaves_the_shape() -> None:
    changed = [{**row, "amount": "9"} for row in ROWS[:50]]
    profile = make_profile(changed)
    profile.add_unchanged([row["record_id"] for row in ROWS[50:1_900]], {ROWS[0]["team_id"]: 925})
    gone = ROWS[1_900:]
    still = make_profile(ROWS[:1_900])
    carried = next_baseline(profile, BEFORE, WHOLE, again=still)
    assert carried is not None
    assert (carried.read, carried.records) == (1_900, BEFORE.records)
    assert carried.amounts == BEFORE.amounts
    followed = [row["key"] for row in changed if row["key"] in BEFORE.witnesses]
    assert {carried.witnesses[key].values["amount"] for key in followed} == {"9"}
    assert not carried.witnesses.keys() & {row["key"] for row in gone}
    assert BEFORE.read == 2_000
    assert judged(changed + ROWS[50:1_900], carried).findings == ()


def test_a_run_that_looked_at_most_of_its_source_is_what_later_ones_are_held_against() -> None:
    profile = make_profile(ROWS[:1_500])
    assert next_baseline(profile, BEFORE, WHOLE) is profile
    assert next_baseline(profile, None, WHOLE) is profile
    assert next_baseline(profile, BEFORE, PART) is BEFORE
    assert next_baseline(profile, None, PART) is None


# -- before anything is spent


def again(rows: list[Row]) -> Profile:
    wanted = set(ids_to_read_again(BEFORE))
    return make_profile([row for row in rows if row["record_id"] in wanted])


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (with_nulls, {"missing", "emptied"}),
        (shifted, {"moved"}),
        (scaled, {"scaled", "scale", "far"}),
        (truncated, {"fewer", "lost"}),
        (swapped, {"swapped", "exchanged"}),
        (lambda rows: [], {"empty", "lost"}),
    ],
)
def test_a_sample_and_the_records_followed_tell_the_fault_before_anything_is_spent(
    fault: Callable[[list[Row]], list[Row]], names: set[str]
) -> None:
    rows = fault(ROWS)
    sample = make_profile(rows[::4], ceilings=ceilings_of(BEFORE))
    measures = measure_sample(sample, BEFORE, COLUMNS, WHOLE, planned=len(rows), again=again(rows))
    judgement = judge_alone("transaction", measures, rules_for(SOURCE_RULES))
    assert names <= stops(judgement)
    with pytest.raises(TerminalError, match="64c"):
        judgement.require_sound("before anything was embedded")


def test_a_sound_sample_passes() -> None:
    measures = measure_sample(make_profile(ROWS[::4]), BEFORE, COLUMNS, WHOLE, planned=len(ROWS), again=again(ROWS))
    assert judge(measures, rules_for(SOURCE_RULES)) == []


def test_a_second_copy_is_known_though_the_first_is_stored_and_not_looked_at() -> None:
    copies = make_profile(doubled(ROWS)[len(ROWS) :])
    [found] = judge(measure_so_far(copies, BEFORE, COLUMNS), SOURCE_RULES)
    assert (found.name, found.about, found.action) == ("doubled", "earlier records", Action.STOP)
    assert set(found.examples) & {row["record_id"] for row in ROWS}
    # Whoever deleted the first copies imported the file anew.
    assert judge(measure_so_far(copies, BEFORE, COLUMNS, again=Profile("transaction")), SOURCE_RULES) == []


def test_a_source_that_forgets_loses_its_records_by_right() -> None:
    sample, again = make_profile(ROWS[1_000:]), make_profile(ROWS[1_000:])
    for reach, lost in ((WHOLE, {"lost"}), (replace(WHOLE, forgets=True), set())):
        measures = measure_sample(sample, BEFORE, COLUMNS, reach, planned=len(ROWS), again=again)
        assert {found.name for found in judge(measures, SOURCE_RULES)} == lost
        whole = measure_run(sample, BEFORE, COLUMNS, reach, read=sample.read)
        assert {found.name for found in judge(whole, SOURCE_RULES)} & {"lost"} == lost


def test_a_source_that_doubled_is_said_before_it_is_read() -> None:
    measures = measure_sample(make_profile(ROWS[::4]), BEFORE, COLUMNS, WHOLE, planned=2 * len(ROWS), again=again(ROWS))
    [finding] = judge(measures, rules_for(SOURCE_RULES))
    assert (finding.name, finding.action) == ("more", Action.WARN)


# -- one shard


def test_rows_behind_a_finding_that_quarantines_are_withheld_and_no_others() -> None:
    rows = [*swapped(ROWS[:200]), *ROWS[200:]]
    found = triage(read_profile(to_table(rows), COLUMNS, source="transaction"), COLUMNS, "shard 3")
    assert sorted(found.withheld) == list(range(200))
    assert {finding.name for finding in found.withheld.values()} == {"swapped"}
    found.judgement.require_sound("nothing of it was embedded")


def test_a_row_that_is_withheld_becomes_a_dead_letter_that_says_why() -> None:
    rows = [*swapped(ROWS[:150]), *ROWS[150:]]
    found = triage(read_profile(to_table(rows), COLUMNS, source="transaction"), COLUMNS, "shard 3")
    described = [
        DescribedRecord(row["record_id"], row["team_id"], "contract_1", row["key"], "A text.", b"", b"") for row in rows
    ]
    kept, letters = withhold(to_described(DescribedRecord, described), found.withheld, source="transaction")
    assert kept.column("record_id").to_pylist() == [row["record_id"] for row in rows[150:]]
    assert [str(letter.record_id) for letter in letters] == [row["record_id"] for row in rows[:150]]
    assert {letter.code for letter in letters} == {"quarantined_swapped"}
    assert "150 of 2,000 records name their contract as the sender" in letters[0].reason
    assert (letters[0].team_id, letters[0].holder_id) == (rows[0]["team_id"], "contract_1")


def test_a_few_suspicious_rows_of_a_shard_are_left_alone() -> None:
    rows = [*swapped(ROWS[:20]), *ROWS[20:]]
    assert triage(read_profile(to_table(rows), COLUMNS, source="transaction"), COLUMNS, "shard 3").withheld == {}


def test_suspicious_rows_are_known_however_few_unless_a_person_means_them() -> None:
    rows = [*swapped(ROWS[:3]), *ROWS[3:]]
    reading = read_profile(to_table(rows), COLUMNS, source="transaction")
    assert sorted(find_suspects(reading, COLUMNS)) == [0, 1, 2]
    assert {found.action for found in find_suspects(reading, COLUMNS).values()} == {Action.QUARANTINE}
    for meant in ("swapped", "swapped:from"):
        assert find_suspects(reading, COLUMNS, accept=(meant,)) == {}
    bad = read_profile(to_table(swapped(ROWS[:400])), COLUMNS, source="transaction")
    assert triage(bad, COLUMNS, "shard 3").judgement.action == Action.STOP
    accepted = triage(bad, COLUMNS, "shard 3", accept=("swapped",))
    assert (accepted.withheld, accepted.judgement.good) == ({}, True)


def test_amounts_beyond_what_the_last_good_run_saw_are_withheld() -> None:
    rows = [*scaled(ROWS[:10]), *ROWS[10:]]
    reading = read_profile(to_table(rows), COLUMNS, source="transaction", ceilings=ceilings_of(BEFORE))
    assert sorted(triage(reading, COLUMNS, "shard 3").withheld) == list(range(10))


def test_a_shard_of_which_most_is_wrong_stops() -> None:
    found = triage(read_profile(to_table(swapped(ROWS)), COLUMNS, source="transaction"), COLUMNS, "shard 3")
    with pytest.raises(TerminalError, match=r"shard 3, nothing of it was embedded: 2,000 of 2,000 records"):
        found.judgement.require_sound("nothing of it was embedded")


# -- the store


def test_a_store_that_holds_every_record_is_found_sound() -> None:
    stored = Stored(in_source=100, stored=95, refused=3, arrived=2, orphaned=0, documents=120)
    before = replace(BEFORE, documents=118)
    assert judge(measure_target(stored, before), rules_for(TARGET_RULES)) == []


def test_a_record_without_vectors_stops_and_is_named() -> None:
    stored = Stored(100, 94, 3, 2, 0, 120, differences=("1 record has no vectors",), lost=("64c1",))
    found = judge(measure_target(stored, None), rules_for(TARGET_RULES))
    assert {finding.name for finding in found} == {"target_incomplete", "target_differs"}
    assert all(finding.action == Action.STOP and finding.examples == ("64c1",) for finding in found)


def test_a_store_that_lost_its_documents_stops() -> None:
    stored = Stored(100, 100, 0, 0, 0, documents=500)
    [finding] = judge(measure_target(stored, replace(BEFORE, documents=1_000)), rules_for(TARGET_RULES))
    assert (finding.name, finding.action) == ("target_fewer", Action.STOP)


# -- what people read


def test_a_finding_that_a_person_accepts_is_a_warning() -> None:
    judgement = judge_alone("transaction", [measure(0.5)], [RULE])
    assert not judgement.good
    for name in ("missing", "missing:from"):
        accepted = judgement.accepting({name})
        assert accepted.good
        assert [finding.action for finding in accepted.findings] == [Action.WARN]
        accepted.require_sound("nothing was written")
    assert judgement.accepting({"missing:to"}).action == Action.STOP


def test_the_message_names_records_what_to_do_and_how_to_accept() -> None:
    with pytest.raises(TerminalError) as failed:
        judge_alone("transaction", [measure(0.5)], [RULE]).require_sound("before anything was embedded")
    assert str(failed.value) == (
        "the quality gate stopped transaction, before anything was embedded: 20 of 100 records have no from, for "
        "example 64c1, 64c2. What to do: look. (Names to accept: missing:from)"
    )


def test_the_artifact_keeps_its_table_whatever_the_values_hold() -> None:
    nasty = Measure("missing", "a|b", 0.5, 100, "one|two\nthree", ("64c1",))
    text = judge_alone("transaction", [nasty], [RULE]).to_markdown()
    [row] = [line for line in text.splitlines() if line.startswith("| stop")]
    assert row == "| stop | missing: a\\|b | one\\|two three | 0.3 | 64c1 |"


def test_the_counts_are_of_expectations_and_those_that_hold() -> None:
    judgement = judge_alone("transaction", [measure(0.25)], [RULE])
    assert (judgement.expectations, judgement.kept) == (3, 1)
