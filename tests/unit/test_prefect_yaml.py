"""prefect.yaml: every deployment can be loaded, says what it is, and would run with the parameters it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint

from deployments.work_pool import BACKUPS, POOL, queues, worker_limit
from tasks.domain.registry import PLURALS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.safe_load(TEXT)
DEPLOYMENTS: dict[str, dict[str, Any]] = {deployment["name"]: deployment for deployment in FILE["deployments"]}

#: What only the load, or the person, that starts it can say.
REQUIRED: dict[str, dict[str, Any]] = {
    "partition": {"run_key": "20260101T000000-0a1b2c3d", "number": 0, "load_run": "a flow run"},
    "build-generation": {"name": "next"},
}

each_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS.keys())


def load(deployment: dict[str, Any]) -> Flow[..., Any]:
    return load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)


@each_deployment
def test_an_entrypoint_is_a_module_path_to_the_flow_of_that_name(deployment: dict[str, Any]) -> None:
    assert re.fullmatch(r"flows(\.\w+)+", deployment["entrypoint"])
    flow = deployment["entrypoint"].rpartition(".")[2].replace("_", "-")
    name = load(deployment).name
    assert flow.startswith(name)
    assert deployment["name"].startswith(name)


@each_deployment
def test_the_parameters_are_what_the_flow_takes(deployment: dict[str, Any]) -> None:
    found = load(deployment)
    given = {**REQUIRED.get(deployment["name"], {}), **deployment["parameters"]}
    found.validate_parameters(given)
    assert set(found.parameters.required) <= given.keys()


@each_deployment
def test_every_deployment_says_what_it_does_and_where_it_runs(deployment: dict[str, Any]) -> None:
    assert len(deployment["description"]) > 60
    assert "cryptique" in deployment["tags"]
    assert deployment["work_pool"]["name"] == POOL
    assert deployment["work_pool"]["work_queue_name"] in {queue.name for queue in queues()}


@each_deployment
def test_how_many_run_at_once_and_what_becomes_of_one_more_is_said(deployment: dict[str, Any]) -> None:
    limit = deployment["concurrency_limit"]
    assert limit["limit"] >= 1
    assert ConcurrencyLimitStrategy(limit["collision_strategy"])


@each_deployment
def test_a_schedule_has_a_time_zone_and_a_name_of_its_own(deployment: dict[str, Any]) -> None:
    schedules = deployment.get("schedules", [])
    assert "schedule" not in deployment
    for schedule in schedules:
        assert ZoneInfo(schedule["timezone"])
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        # Without it every `prefect deploy` makes the schedule anew, and one that was paused runs again.
        assert schedule["slug"]
    assert len({schedule["slug"] for schedule in schedules}) == len(schedules)


def test_every_flow_has_a_deployment() -> None:
    flows = {
        name
        for path in sorted((ROOT / "flows").glob("*.py"))
        for name in re.findall(r'^@flow\(\s*name="([\w-]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"migrate", "build-generation"} <= flows
    assert {load(deployment).name for deployment in DEPLOYMENTS.values()} == flows


def test_each_night_every_source_is_compared() -> None:
    assert DEPLOYMENTS["reconcile"]["parameters"]["sources"] == list(PLURALS)


@pytest.mark.parametrize("child_runs", [1, 2, 5])
def test_ongoing_work_comes_first_and_bulk_work_never_fills_the_worker(child_runs: int) -> None:
    found = {queue.name: queue for queue in queues(child_runs)}
    by_priority = sorted(found.values(), key=lambda queue: queue.priority)
    assert [queue.name for queue in by_priority] == ["ongoing", "backups", "bulk", "partitions"]
    assert found["ongoing"].concurrency_limit is None
    assert found["partitions"].concurrency_limit == child_runs
    limits = [queue.concurrency_limit for queue in by_priority[1:]]
    assert None not in limits
    assert 0 < sum(limit or 0 for limit in limits) < worker_limit(child_runs)
    assert DEPLOYMENTS["ingest"]["work_pool"]["work_queue_name"] == "ongoing"
    for name in ("migrate", "backfill", "replay", "reconcile"):
        assert DEPLOYMENTS[name]["work_pool"]["work_queue_name"] == "bulk"
        assert DEPLOYMENTS[name]["concurrency_limit"]["limit"] == 1


def test_a_backup_is_made_every_day_and_drilled_every_week_and_waits_for_no_bulk_work() -> None:
    daily, weekly = DEPLOYMENTS["backup-daily"], DEPLOYMENTS["backup-weekly"]
    assert (daily["parameters"]["kind"], weekly["parameters"]["kind"]) == ("daily", "weekly")
    assert weekly["parameters"]["drill"]
    assert weekly["parameters"]["source_collections"]
    assert [one["schedules"][0]["cron"] for one in (daily, weekly)] == ["0 2 * * *", "0 3 * * 0"]
    for name in ("backup-daily", "backup-weekly", "verify", "restore", "undo-restore"):
        assert DEPLOYMENTS[name]["work_pool"]["work_queue_name"] == BACKUPS
    assert not any("schedules" in DEPLOYMENTS[name] for name in ("verify", "restore", "undo-restore"))


def test_it_holds_no_path_of_a_machine_and_each_worker_says_where_the_project_lies() -> None:
    assert FILE["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $CRYPTIQUE_ROOT }}"}}]
    assert not re.search(r"[\s\"'](/[a-z]+/|[A-Z]:\\)", TEXT)
