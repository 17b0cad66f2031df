"""The runbook's entries: one for each alert, and the commands in them are commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pymongo import MongoClient

from deployments.http.dashboard import anchor_of
from tasks.domain.alerts import ALERT_NAMES
from tests.end_to_end.pipeline import Record, SourceData, open_pipeline
from tests.end_to_end.test_runbook import RUNBOOK, Place, sections

OF_RUNS = {"run-failed", "run-crashed", "run-late", "run-long", "run-waits", "work-pool"}
OF_ALERTS = ("Alerts", "Deploy, and go back")
TOLD, FAILED = 0, 1


def test_each_alert_has_one_entry_and_each_entry_an_alert() -> None:
    headings = re.findall(r"^### (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    entries = [anchor_of(heading) for heading in headings if heading.startswith("alert-")]
    assert sorted(entries) == sorted(f"alert-{name}" for name in {*ALERT_NAMES, *OF_RUNS})


def test_each_entry_says_what_is_seen_where_to_look_and_what_to_do() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    for name in ALERT_NAMES:
        entry = text.split(f"### alert-{name}\n")[1].split("\n### ")[0].split("\n## ")[0]
        assert "**Symptom**" in entry, name
        assert "```sh\n" in entry, name
        assert "**Fix**" in entry, name
        assert "scalate**" in entry, name


@pytest.mark.long  # each command takes some seconds
def test_every_command_of_the_alerts_runs(
    prefect_api: str, mongo_uri: str, mongo_client: MongoClient[Record], tmp_path: Path, source_data: SourceData
) -> None:
    with open_pipeline(mongo_uri, mongo_client, tmp_path / "home") as pipeline:
        pipeline.load(source_data, source_data.some(60))
        place = Place(pipeline, prefect_api, tmp_path / "backups")
        place.do("cryptique-rag initialise && cryptique-rag register && cryptique-rag migrate")
        place.do("prefect work-pool create cryptique --type process || true")
        commands = dict.fromkeys(command for title in OF_ALERTS for command in sections()[title])
        assert len(commands) >= 12
        for command in commands:
            done = place.give(command)
            # A look that finds something wrong says so by its exit code; a command that is none ends with 2.
            wanted = (
                (TOLD, FAILED)
                if command.startswith(("cryptique-rag health", "cryptique-rag config check"))
                else (TOLD,)
            )
            assert done.returncode in wanted, f"{command}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr, command
