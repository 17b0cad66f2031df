"""What runs and how it ended, as ``embeddingjobs`` and the commands tell it; and the commands that start such runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deployments.cli import app
from deployments.runs import SUMMARY_FIELDS
from flows.jobs import worker_id
from flows.reconcile import reconcile
from tasks.domain.transaction_documents import DESCRIBER_VERSION
from tests.end_to_end.pipeline import HeldRequest, Pipeline, Record, SourceData, beside
from tests.loopback.gemini import LoopbackGemini

DONE, FAILED, WRONG_INPUT = 0, 1, 2

Command = Callable[..., Result]


@pytest.fixture
def command(pipeline: Pipeline, prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command as this pipeline's user gives it, in this process."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for name in list(os.environ):
        if name.startswith(("CRYPTIQUE_", "GEMINI_")):
            monkeypatch.delenv(name)
    for name, value in (
        ("CRYPTIQUE_SOURCE_URI", pipeline.uri),
        ("CRYPTIQUE_SOURCE_DATABASE", pipeline.source.name),
        ("CRYPTIQUE_VECTORS_DATABASE", pipeline.store.name),
        ("CRYPTIQUE_EMBEDDER", "local"),
        ("CRYPTIQUE_HOME", str(pipeline.home)),
        ("PREFECT_API_URL", prefect_api),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Pipeline, "_registered", None)

    def run(*arguments: str) -> Result:
        with pipeline.results_in_home():
            return CliRunner().invoke(app, list(arguments))

    return run


@pytest.fixture
def migrated(pipeline: Pipeline, source_data: SourceData) -> Pipeline:
    """A migrated source of 40 records, of which three are refused."""
    rows = source_data.some(40)
    spoiled = {1: "NaN", 11: "NaN", 21: "-3.2"}
    pipeline.load(source_data, [{**row, "value_eth": spoiled.get(at, row["value_eth"])} for at, row in enumerate(rows)])
    pipeline.migrate()
    return pipeline


def ended_process() -> str:
    """Return the worker id of a process of this machine that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = worker_id(process.pid)
    process.communicate(b"\n")
    assert found is not None
    return found


def listed(command: Command, *arguments: str) -> list[Record]:
    result = command("jobs", "--json", *arguments)
    assert result.exit_code == DONE, result.output
    jobs: list[Record] = json.loads(result.stdout)["jobs"]
    return jobs


# -- jobs --------------------------------------------------------------------------------------------------


def test_a_job_is_told_whole_and_all_are_listed_the_newest_first(migrated: Pipeline, command: Command) -> None:
    (job,) = migrated.jobs()
    flow_run = migrated.last_run_id
    result = command("jobs", "show", job["jobId"])
    assert result.exit_code == DONE, result.output
    told = {line[:18].strip(): line[18:] for line in result.stdout.splitlines()}
    assert told["what"] == "migrate transactions all time"
    assert (told["status"], told["progress"], told["dead-lettered"]) == ("completed", "40 of 40 records", "3")
    assert (told["documents created"], told["taken up again"]) == ("37", "0 times")
    assert told["worker"] == f"{socket.gethostname()} ({job['workerId']})"
    assert told["flow runs"] == str(flow_run)
    # An example of each reason for dead letters.
    errors = [line for line in result.stdout.splitlines() if line.startswith("error")]
    assert len(errors) == 2
    assert "amount_unreadable record " in errors[0]
    assert "2 records, such as this one: " in errors[0]
    assert "amount_negative record " in errors[1]

    whole = json.loads(command("jobs", "show", "--json", job["jobId"]).stdout)
    assert (whole["jobId"], whole["status"], whole["processGone"]) == (job["jobId"], "completed", False)
    assert [error["errorCode"] for error in whole["errors"]] == ["amount_unreadable", "amount_negative"]

    migrated.complete(reconcile)
    first, second = migrated.jobs()
    listing = command("jobs")
    assert listing.exit_code == DONE, listing.output
    header, newer, older = listing.stdout.splitlines()
    assert header.split() == ["job", "status", "done", "written", "refused", "cost", "began", "took", "worker"]
    assert newer.startswith(second["jobId"])
    assert second["jobId"].startswith("reconcile-")
    assert older.startswith(first["jobId"])
    for figure in ("completed", "100 % of 40", " 37 ", " 3 ", socket.gethostname()):
        assert figure in older

    as_data = listed(command)
    assert [job["jobId"] for job in as_data] == [second["jobId"], first["jobId"]]
    assert as_data[1]["progress"] == {"total": 40, "processed": 40, "failed": 3, "percentage": 100.0}
    assert [job["processGone"] for job in as_data] == [False, False]
    assert listed(command, "--limit", "1") == as_data[:1]
    assert listed(command, "--status", "failed") == []
    assert "no job with this status" in command("jobs", "--status", "failed").stdout

    # The beginning of its id is enough, as long as it is only one's.
    assert command("jobs", "show", "migrate-").stdout == result.stdout
    migrated.migrate()
    assert command("jobs", "show", "migrate-").exit_code == WRONG_INPUT
    missing = command("jobs", "show", "migrate-nothing")
    assert missing.exit_code == WRONG_INPUT
    assert "there is no job migrate-nothing" in missing.stderr


def test_before_the_first_run_there_is_no_job(pipeline: Pipeline, command: Command) -> None:
    result = command("jobs")
    assert (result.exit_code, result.stdout) == (DONE, "no job yet\n")
    assert listed(command) == []


def test_a_run_at_work_shows_how_far_it_is_and_one_whose_process_is_gone_is_said_to_be_so(
    pipeline: Pipeline, source_data: SourceData, command: Command
) -> None:
    pipeline.load(source_data, source_data.some(60))
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        held.hold(3)  # the check, a request for each of two shards, and the one that is held
        with beside(lambda: pipeline.migrate(shard_rows=20, shards_in_flight=1)) as running:
            held.wait(running)
            try:
                (job,) = listed(command)
                assert (job["status"], job["processGone"]) == ("processing", False)
                assert job["progress"] == {"total": 60, "processed": 40, "failed": 0, "percentage": 66.67}
                assert job["estimatedCompletionAt"] is not None
                told = command("jobs", "show", job["jobId"]).stdout
                assert "status            processing\n" in told
                assert "expected end" in told
                worker = job["workerId"]
                # As it is found after a kill: the record as the process left it, and no process.
                box = pipeline.store["embeddingjobs"]
                box.update_one({}, {"$set": {"workerId": ended_process()}})
                assert listed(command)[0]["processGone"] is True
                assert "processing, but its process is gone" in command("jobs").stdout
                box.update_one({}, {"$set": {"workerId": worker}})
            finally:
                held.release()
            running.result()
    (job,) = listed(command)
    assert (job["status"], job["progress"]["percentage"], job["processGone"]) == ("completed", 100.0, False)


def test_a_job_that_failed_keeps_its_error_and_counts_how_often_it_was_taken_up(
    pipeline: Pipeline, source_data: SourceData, command: Command
) -> None:
    pipeline.load(source_data, source_data.some(60))
    with LoopbackGemini(faults=lambda index: "403" if index >= 2 else None) as server:
        pipeline.use_gemini(server)
        pipeline.refusal(shard_rows=20, shards_in_flight=1)
        (job,) = listed(command, "--status", "failed")
        assert (job["progress"]["processed"], job["retryConfig"]["retryCount"]) == (20, 0)
        assert "run: Gemini refuses GEMINI_API_KEY" in command("jobs", "show", job["jobId"]).stdout
        server.faults = ()
        pipeline.migrate(shard_rows=20, shards_in_flight=1)
    told = command("jobs", "show", job["jobId"]).stdout
    assert "taken up again    1 times" in told
    assert "status            completed" in told
    assert "Gemini refuses GEMINI_API_KEY" in told
    assert len(json.loads(command("jobs", "show", job["jobId"], "--json").stdout)["metadata"]["runIds"]) == 2


@pytest.mark.long
def test_a_run_whose_budget_is_spent_is_paused_until_somebody_resumes_it(
    pipeline: Pipeline, source_data: SourceData, command: Command
) -> None:
    pipeline.load(source_data, source_data.some(60))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        options: dict[str, Any] = {"shard_rows": 20, "shards_in_flight": 1, "budget_usd": 0.0003}
        assert "budget" in pipeline.refusal(**options)
        (job,) = listed(command)
        assert (job["status"], job["errors"][-1]["errorCode"]) == ("retrying", "budget")
        assert "paused until somebody resumes it" in command("jobs").stdout
        # The same sum again, for what is left: nothing that was paid for is paid for again.
        assert pipeline.migrate(**options)["written"] == 60
        assert {times for text, times in server.embedded.items() if text != "transaction"} == {1}
    (job,) = listed(command)
    assert (job["status"], job["retryConfig"]["retryCount"]) == ("completed", 1)


# -- the commands that start runs --------------------------------------------------------------------------


@pytest.mark.long
def test_backfill_replay_and_reconcile_tell_what_they_did_and_what_can_not_be_meant(
    migrated: Pipeline, command: Command
) -> None:
    result = command("backfill", "--rebuild", "everything", "--limit", "5", "--json")
    assert result.exit_code == DONE, result.output
    report = json.loads(result.stdout)
    assert tuple(report) == SUMMARY_FIELDS
    assert (report["read"], report["written"] + report["dead_lettered"]) == (5, 5)
    dry = json.loads(command("backfill", "--stored-describer", str(DESCRIBER_VERSION), "--dry-run", "--json").stdout)
    assert (dry["dry_run"], dry["read"], dry["written"]) == (True, 37, 0)
    unknown = command("backfill", "--team", "0" * 24)
    assert unknown.exit_code == WRONG_INPUT
    assert f"no contract belongs to team {'0' * 24}" in unknown.stderr
    reversed_window = command("backfill", "--start", "2025-02-01", "--end", "2025-01-01")
    assert (reversed_window.exit_code, reversed_window.stdout) == (WRONG_INPUT, "")

    migrated.transactions.update_many({"value_eth": "NaN"}, {"$set": {"value_eth": "1.5"}})
    dry = command("replay", "--dry-run")
    assert dry.exit_code == DONE, dry.output
    assert "2 dead letters would be resolved, 1 stay open" in dry.stdout
    result = command("replay", "--json", "--reason", "amount_unreadable", "--reason", "amount_negative")
    assert result.exit_code == DONE, result.output
    report = json.loads(result.stdout)
    assert tuple(report) == ("resolved", "still_open", *SUMMARY_FIELDS)
    assert (report["resolved"], report["still_open"], report["written"]) == (2, 1, 2)
    unknown = command("replay", "--reason", "typo")
    assert unknown.exit_code == WRONG_INPUT
    assert "there are: amount_negative 1" in unknown.stderr

    migrated.store["vectordocuments"].delete_one({})
    told = command("reconcile", "--no-heal")
    assert told.exit_code == FAILED
    assert "source and store differ: 1 missing" in told.stderr
    mended = command("reconcile", "--json")
    assert mended.exit_code == DONE, mended.output
    report = json.loads(mended.stdout)
    assert (report["compared"], report["missing"], report["mended"], report["written"]) == (40, 1, 1, 1)
    assert "dead-lettered" in command("reconcile", "--no-heal").stdout
