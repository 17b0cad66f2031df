"""Runs: what makes two runs the same work, so that a second one takes up the first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import bson
import pytest

from tasks.domain.runs import Run, Scope, fingerprint
from tasks.domain.vectors import EmbedderFacts
from tasks.domain.windows import Window

FACTS = EmbedderFacts("model", 4, "document", 100, 2_048)
JUNE = datetime(2025, 6, 1, tzinfo=UTC)


def test_the_order_of_teams_and_contracts_makes_no_other_work() -> None:
    one = fingerprint(Scope(team_ids=("a", "b"), contract_ids=("x", "y")), FACTS, shard_size=5)
    two = fingerprint(Scope(team_ids=("b", "a"), contract_ids=("y", "x")), FACTS, shard_size=5)
    assert one == two


def test_prices_and_quotas_make_no_other_work() -> None:
    assert fingerprint(Scope(), FACTS) == fingerprint(Scope(), replace(FACTS, usd_per_million_tokens=1.0))


@pytest.mark.parametrize(
    ("scope", "facts", "choices"),
    [
        (Scope(limit=5), FACTS, {}),
        (Scope(window=Window(JUNE, None)), FACTS, {}),
        (Scope(window=Window(None, JUNE)), FACTS, {}),
        (Scope(team_ids=("a",)), FACTS, {}),
        (Scope(contract_ids=("a",)), FACTS, {}),
        (Scope(), replace(FACTS, model="other"), {}),
        (Scope(), replace(FACTS, dimensions=8), {}),
        (Scope(), replace(FACTS, task="query"), {}),
        (Scope(), FACTS, {"shard_size": 5}),
    ],
)
def test_another_scope_model_or_choice_is_other_work(
    scope: Scope, facts: EmbedderFacts, choices: dict[str, Any]
) -> None:
    assert fingerprint(scope, facts, **choices) != fingerprint(Scope(), FACTS)


def test_a_scope_is_whole_only_without_any_bound() -> None:
    assert Scope().whole
    for scope in (Scope(limit=1), Scope(team_ids=("a",)), Scope(contract_ids=("a",)), Scope(window=Window(JUNE, None))):
        assert not scope.whole


def test_a_scope_is_named_for_a_person() -> None:
    assert str(Scope()) == "transactions all time"
    scope = Scope(window=Window(JUNE, None), team_ids=("a",), contract_ids=("x", "y"), limit=5_000)
    assert str(scope) == "transactions 2025-06-01.., 1 team, 2 contracts, first 5,000"


def test_a_run_began_when_its_work_did() -> None:
    run = Run(key="k", id="i", scope=Scope(), started_ms=1_748_736_000_000)
    assert run.started == JUNE


@pytest.mark.parametrize(
    "scope",
    [
        Scope(),
        Scope("session", Window(JUNE, None), ("a", "b"), ("x",), 5_000),
        Scope(window=Window(None, JUNE)),
    ],
    ids=["whole", "bounded", "until"],
)
def test_a_scope_comes_back_as_it_was_from_what_a_job_keeps_of_it(scope: Scope) -> None:
    kept = bson.decode(bson.encode(scope.to_record()), bson.CodecOptions(tz_aware=True))
    assert Scope.from_record(kept) == scope


def test_all_flow_runs_that_were_at_a_work_wrote_its_rows() -> None:
    run = Run(key="k", id="third", scope=Scope(), started_ms=0, earlier_ids=("first", "second"))
    assert run.ids == {"first", "second", "third"}
    assert Run(key="k", id="only", scope=Scope(), started_ms=0).ids == {"only"}


@pytest.mark.parametrize("doubt", ["target_was_empty", "may_have_written", "rebuild", "thorough"])
def test_a_run_that_is_asked_for_more_or_knows_less_looks_at_every_record(doubt: str) -> None:
    run = Run(key="k", id="i", scope=Scope(), started_ms=0)
    assert run.may_skip
    assert not replace(run, **{doubt: True}).may_skip
