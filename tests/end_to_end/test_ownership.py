"""Whose work it is: runs that stand back from what another may not do yet, and runs that lost what they had claimed."""

from __future__ import annotations

from collections import Counter

import pytest

from flows.ingest import ingest
from flows.migrate import migrate
from flows.reconcile import reconcile
from tests.end_to_end.pipeline import HeldRequest, Pipeline, SourceData, beside
from tests.loopback.gemini import LoopbackGemini

ROWS = 300
BY_SHARD = {"shard_rows": 100, "shards_in_flight": 1}
CHECK = "transaction"


def paid(server: LoopbackGemini) -> Counter[str]:
    return Counter({text: times for text, times in server.embedded.items() if text != CHECK})


@pytest.mark.long
def test_nobody_else_spends_what_a_load_at_its_budget_may_not(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        whole = pipeline.migrate(dry_run=True)
        message = pipeline.refusal(**BY_SHARD, budget_usd=whole["cost_usd"] / 2)
        assert "of the run's budget" in message
        spent = paid(server)
        assert 0 < len(spent) < whole["embedded"]
        for flow in (ingest, reconcile):
            state = pipeline.run(flow)
            assert state.is_completed()
            assert f"{state.message}".startswith("waiting: ")
        assert paid(server) == spent
        (job,) = pipeline.jobs()
        assert job["status"] == "retrying"
        # Given again it may spend the same sum once more, which is enough.
        report = pipeline.migrate(**BY_SHARD, budget_usd=whole["cost_usd"])
        assert report["read"] == ROWS
        assert set(paid(server).values()) == {1}
        # Now the source is loaded, and what is missing was lost.
        pipeline.store["vectordocuments"].delete_one({})
        state = pipeline.run(reconcile)
        assert "1 missing" in f"{state.message}"


def test_a_run_whose_work_another_run_claimed_ends_and_leaves_everything_to_it(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        held.hold(2)  # the check and the first shard are answered
        with beside(lambda: pipeline.run(migrate, **BY_SHARD)) as running:
            held.wait(running)
            jobs = pipeline.store["embeddingjobs"]
            jobs.update_one({}, {"$set": {"metadata.runId": "another run", "workerId": "elsewhere"}})
            claimed = jobs.find_one({})
            held.release()
            state = running.result()
    assert state.is_failed()
    assert "another run took this one for dead" in f"{state.message}"
    assert jobs.find_one({}) == claimed
    assert pipeline.store["ragcheckpoints"].count_documents({}) >= 1
    assert list((pipeline.home / "shards").rglob("plan.bson"))


@pytest.mark.long
def test_shards_given_to_other_owners_before_a_stop_are_looked_at_again_and_not_paid_again(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini(faults=lambda index: "403" if index >= 3 else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.refusal(**BY_SHARD)
        stored = next(iter(pipeline.documents().values()))
        contract = {"contractId": stored["metadata"]["facts"]["contractId"]}
        teams = [team["_id"] for team in pipeline.source["teams"].find({"_id": {"$ne": stored["teamId"]}})]
        new_team = next(team for team in teams if pipeline.source["websites"].find_one({"team": team}))
        pipeline.source["smartcontracts"].update_one(contract, {"$set": {"team": new_team}})
        server.faults = ()
        pipeline.migrate(**BY_SHARD)
        assert set(paid(server).values()) == {1}
    moved = pipeline.store["vectordocuments"].distinct("teamId", {"metadata.facts.contractId": contract["contractId"]})
    assert moved == [new_team]
