"""The command that an alert offers: it asks for the work that failed, and for nothing that was not asked for."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect import Flow
from prefect.client.schemas.objects import FlowRun

from flows.backup import backup
from flows.hooks import resume_command
from flows.ingest import ingest
from flows.migrate import migrate
from flows.reconcile import reconcile
from flows.restore import restore


@pytest.mark.parametrize(
    ("flow", "parameters", "command"),
    [
        (reconcile, {}, "reconcile"),
        (reconcile, {"heal": True, "retries": 3}, "reconcile"),
        # A reconciliation that only tells must not be offered as one that mends, and pays.
        (reconcile, {"heal": False}, "reconcile --no-heal"),
        (reconcile, {"retries": 0, "shard_rows": 7}, "reconcile --retries 0 --shard-rows 7"),
        (migrate, {"retries": 0, "dry_run": False, "teams": [], "budget_usd": None}, "migrate --retries 0"),
        (migrate, {"resume": False, "limit": 1, "replace_model": True}, "migrate --limit 1 --replace-model"),
        (migrate, {"teams": ["a", "b"], "sources": ["transactions"]}, "migrate --team a --team b"),
        (ingest, {"until_idle": True}, "ingest --until-idle"),
        (backup, {"kind": "daily", "rotate": False, "retries": 3}, "backup --kind daily --no-rotate"),
        (
            restore,
            {"backup": "20261123T020000Z-0a1b", "swap": True, "overwrite": "live", "collections": ["deadletters"]},
            "restore --backup 20261123T020000Z-0a1b --swap --overwrite live --collection deadletters",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_command_of_an_alert_asks_for_the_same_again(
    flow: Flow[..., Any], parameters: dict[str, Any], command: str
) -> None:
    run = FlowRun(flow_id=uuid4(), parameters=parameters)
    assert resume_command(flow, run) == f"cryptique-rag {command}"


def test_what_the_command_line_cannot_say_is_the_same_run_again() -> None:
    run = FlowRun(flow_id=uuid4(), parameters={"batch_records": 3})
    assert resume_command(ingest, run) == f"prefect flow-run retry {run.id} --entrypoint flows.ingest.ingest"
