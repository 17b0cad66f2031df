"""A migration whose process, Prefect server and mongod are killed: the short run of ``tests/chaos``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Plan, wreak_havoc

#: The long one has 50 kills over 20,000 rows: `make chaos`.
SHORT = Plan(seed=5, kills=5, late_kills=1, rows=3_000, shard_rows=250, latency_s=0.02)


@pytest.mark.long
def test_a_migration_that_is_killed_five_times_with_its_servers_stores_what_an_undisturbed_one_stores(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    try:
        outcome = wreak_havoc(SHORT, tmp_path / "home", say=said.append)
    except AssertionError as error:
        pytest.fail("\n".join([*said, str(error)]))
    assert len(outcome.kills) >= SHORT.kills
    assert {kill.victim for kill in outcome.kills} >= {"worker", "mongod", "prefect"}
    assert outcome.looks == len(outcome.kills)
    assert outcome.ends[-1] == "completed"
    assert outcome.resumes >= 1
    assert (outcome.shards, outcome.documents) == (12, 3_081)
