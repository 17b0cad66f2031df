"""The command as people and programs use it: what it prints where, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from deployments.runs import SUMMARY_FIELDS
from deployments.sample import SAMPLE_QUESTIONS, load_sample

ROWS = 1_000
DONE, FAILED, WRONG_INPUT = 0, 1, 2
_COMMAND = Path(sys.executable).with_name("cryptique-rag")
_SETTINGS = ("CRYPTIQUE_", "GEMINI_", "PREFECT_")


def run(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an empty folder, with these settings and no other."""
    home.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    environment |= {"CRYPTIQUE_HOME": str(home / "work"), **settings}
    return subprocess.run(
        [_COMMAND, *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def database(mongo_client: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    """A source with generated rows, for all tests of this module."""
    name = f"cli_{uuid4().hex[:12]}"
    load_sample(mongo_client[name], rows=ROWS)
    yield mongo_client[name]
    mongo_client.drop_database(name)


@pytest.fixture(scope="module")
def settings(mongo_uri: str, prefect_api: str, database: Database[dict[str, Any]]) -> dict[str, str]:
    """The session's servers, by the environment."""
    return {
        "CRYPTIQUE_SOURCE_URI": mongo_uri,
        "CRYPTIQUE_SOURCE_DATABASE": database.name,
        "CRYPTIQUE_EMBEDDER": "local",
        "PREFECT_API_URL": prefect_api,
    }


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]) -> dict[str, Any]:
    """The report of a first migration of that source."""
    first = run(tmp_path_factory.mktemp("first") / "home", "migrate", "--json", **settings)
    assert first.returncode == DONE, first.stderr
    report: dict[str, Any] = json.loads(first.stdout)
    return report


def test_migrate_ends_with_one_line_of_json_whose_counts_close(
    tmp_path: Path, settings: Mapping[str, str], migrated: dict[str, Any]
) -> None:
    report = migrated
    assert tuple(report) == SUMMARY_FIELDS
    assert report["read"] == ROWS == report["written"] + report["unchanged"] + report["dead_lettered"]
    assert report["written"] > 0
    assert report["cost_usd"] == pytest.approx(report["tokens"] * 0.15 / 1_000_000, abs=1e-6)
    second = json.loads(run(tmp_path, "migrate", "--json", **settings).stdout)
    assert (second["written"], second["tokens"]) == (0, 0)
    assert second["unchanged"] == report["written"]


def test_a_question_is_answered_with_documents_of_the_asked_team_alone(
    tmp_path: Path, settings: Mapping[str, str], database: Database[dict[str, Any]], migrated: dict[str, Any]
) -> None:
    team = str(database.vectordocuments.find_one({}, {"teamId": 1})["teamId"])  # type: ignore[index]
    answer = run(tmp_path, "search", SAMPLE_QUESTIONS[0], "--team", team, "--limit", "4", "--json", **settings)
    assert answer.returncode == DONE, answer.stderr
    results = json.loads(answer.stdout)["results"]
    assert len(results) == 4
    assert set(results[0]) == {"documentId", "sourceType", "sourceId", "score", "content", "metadata", "folded"}
    owners = database.vectordocuments.distinct("teamId", {"documentId": {"$in": [r["documentId"] for r in results]}})
    assert [str(owner) for owner in owners] == [team]
    for_people = run(tmp_path, "search", SAMPLE_QUESTIONS[0], "--all-teams", **settings)
    assert f"transaction {results[0]['metadata']['facts']['txHash'][:2]}" in for_people.stdout


def test_a_file_of_questions_gives_a_run_with_each_record_once(
    tmp_path: Path, settings: Mapping[str, str], database: Database[dict[str, Any]], migrated: dict[str, Any]
) -> None:
    asked = tmp_path / "questions.jsonl"
    asked.write_text(
        "".join(json.dumps({"qid": f"q{n}", "question": q}) + "\n" for n, q in enumerate(SAMPLE_QUESTIONS))
    )
    answered = tmp_path / "run.jsonl"
    result = run(tmp_path, "search", "--questions", str(asked), "--run", str(answered), "--all-teams", **settings)
    assert result.returncode == DONE, result.stderr
    lines = [json.loads(line) for line in answered.read_text().splitlines()]
    assert [line["qid"] for line in lines] == ["q0", "q1", "q2"]
    known = {str(record["_id"]) for record in database.transactions.find({}, {"_id": 1})}
    for line in lines:
        # Records whose texts are the same stand behind the one that is shown.
        assert 0 < len(line["ids"]) == len(set(line["ids"]))
        assert set(line["ids"]) <= known


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "anything"], "--team ID, or --all-teams"),
        (["search", "anything", "--team", "abc"], "24 hexadecimal digits"),
        (["search", "anything", "--all-teams", "--site", "x"], "--site needs --team"),
        (["search", "--all-teams"], "ask one question"),
        (["migrate", "--start", "2025-13-01"], "write a date"),
        (["migrate", "--start", "2025-02-01", "--end", "2025-01-01"], "--start must lie before --end"),
        (["migrate", "--limit", "-3"], "--limit"),
        (["migrate", "--team", "zz"], "24 hexadecimal digits"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_input_ends_with_two_before_any_server_is_started(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == WRONG_INPUT
    assert says in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert not (tmp_path / "work").exists()


def test_an_unknown_team_is_wrong_input_and_nothing_is_made(
    tmp_path: Path, settings: Mapping[str, str], mongo_client: MongoClient[dict[str, Any]]
) -> None:
    elsewhere = f"{settings['CRYPTIQUE_SOURCE_DATABASE']}_elsewhere"
    result = run(tmp_path, "migrate", "--team", "0" * 24, CRYPTIQUE_VECTORS_DATABASE=elsewhere, **settings)
    assert result.returncode == WRONG_INPUT
    assert f"no contract belongs to team {'0' * 24}" in result.stderr
    assert elsewhere not in mongo_client.list_database_names()


def test_a_source_that_does_not_answer_fails_the_run_with_what_to_look_at(
    tmp_path: Path, settings: Mapping[str, str]
) -> None:
    closed = {**settings, "CRYPTIQUE_SOURCE_URI": "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300"}
    result = run(tmp_path, "migrate", **closed)
    assert result.returncode == FAILED
    assert "error: MongoDB of CRYPTIQUE_SOURCE_URI does not answer" in result.stderr


def test_config_check_tells_everything_that_is_wrong_at_once_and_writes_nothing(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        "config",
        "check",
        CRYPTIQUE_SOURCE_URI="mongodb://someone:planted-password@127.0.0.1:1/?serverSelectionTimeoutMS=300",
        CRYPTIQUE_EMBEDDER="gemini",
        CRYPTIQUE_VECTOR_FORM="triples",
        PREFECT_API_URL="http://127.0.0.1:1/api",
    )
    assert result.returncode == WRONG_INPUT
    for what in ("GEMINI_API_KEY", "CRYPTIQUE_VECTOR_FORM", "CRYPTIQUE_SOURCE_URI", "PREFECT_API_URL"):
        assert what in result.stdout
    assert "planted-password" not in result.stdout + result.stderr
    assert not (tmp_path / "work").exists()


def test_config_check_is_content_with_working_settings(tmp_path: Path, settings: Mapping[str, str]) -> None:
    result = run(tmp_path, "config", "check", "--json", **settings)
    assert result.returncode == DONE, result.stdout
    findings = json.loads(result.stdout)
    assert findings["ok"] is True
    assert any(f"{ROWS:,} transactions" in finding["says"] for finding in findings["findings"])


def test_initialise_makes_the_store_once_and_says_what_the_server_can_not(
    tmp_path: Path, settings: Mapping[str, str], mongo_client: MongoClient[dict[str, Any]]
) -> None:
    elsewhere = f"{settings['CRYPTIQUE_SOURCE_DATABASE']}_initialised"
    settings = {**settings, "CRYPTIQUE_VECTORS_DATABASE": elsewhere}
    first = json.loads(run(tmp_path, "initialise", "--json", **settings).stdout)
    assert "collection vectordocuments" in first["created"]
    assert any("no vector search index" in note for note in first["notes"])
    second = run(tmp_path, "initialise", **settings)
    assert second.returncode == DONE
    assert "everything was there already" in second.stdout
    mongo_client.drop_database(elsewhere)


def test_every_command_explains_itself(tmp_path: Path) -> None:
    for command in (["demo"], ["migrate"], ["search"], ["config", "check"]):
        result = run(tmp_path, *command, "--help")
        assert result.returncode == DONE
        assert len(result.stdout) > 200


def test_the_demo_migrates_answers_and_leaves_its_record_and_a_second_one_writes_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, "demo", "--rows", str(ROWS), GEMINI_API_KEY="planted-and-never-used")
    assert first.returncode == DONE, first.stderr
    for figure in (
        "read",
        "written",
        "skipped (unchanged)",
        "dead-lettered",
        "chunks",
        "Gemini would have cost",
        "rows/s",
    ):
        assert figure in first.stdout
    assert first.stdout.count("Q: ") == len(SAMPLE_QUESTIONS)
    assert first.stdout.count("transaction 0x") == 3 * len(SAMPLE_QUESTIONS)
    assert "/runs/flow-run/" in first.stdout
    second = run(tmp_path, "demo", "--rows", str(ROWS))
    assert second.returncode == DONE, second.stderr
    assert "Everything was stored already" in second.stdout
    assert run(tmp_path, "stop").stdout == "nothing was running\n"
