"""What a run takes over from the one that it goes on with: the budget is the work's, not the run's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flows.jobs import _choices
from tasks.domain.jobs import JobOrigin

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def origin(budget: float | None) -> JobOrigin:
    return JobOrigin("work", "prefect", "", "host", "migrate", {"budgetUsd": budget, "claimedAt": NOW})


def before(status: str, *, budget: float | None, allowed: float | None, code: str = "run") -> dict[str, Any]:
    choices: dict[str, Any] = {"budgetUsd": budget, "records": {"name": "the ids"}}
    if allowed is not None:
        choices["budgetAllowedUsd"] = allowed
    return {"status": status, "errors": [{"errorCode": code}], "metadata": {"choices": choices}}


@pytest.mark.parametrize(
    ("given", "previous", "allowed"),
    [
        (10.0, None, 10.0),
        (None, None, None),
        # Somebody lets it go on after it was spent: the same sum again, or another one more.
        (10.0, before("retrying", budget=10.0, allowed=10.0, code="budget"), 20.0),
        (5.0, before("retrying", budget=10.0, allowed=10.0, code="budget"), 15.0),
        # It was killed or failed after that: nobody allowed more.
        (10.0, before("processing", budget=10.0, allowed=20.0, code="budget"), 20.0),
        (10.0, before("failed", budget=10.0, allowed=20.0), 20.0),
        # Another sum after a failure is the new limit of the whole work.
        (1.0, before("failed", budget=100.0, allowed=100.0), 1.0),
        (50.0, before("cancelled", budget=10.0, allowed=10.0), 50.0),
        # Given again without a budget: any sum.
        (None, before("retrying", budget=10.0, allowed=10.0, code="budget"), None),
    ],
)
def test_what_the_work_may_spend_in_all(given: float | None, previous: dict[str, Any] | None, allowed: float) -> None:
    assert _choices(origin(given), previous).get("budgetAllowedUsd") == allowed


def test_a_run_that_goes_on_keeps_what_was_chosen_before_it_claims_the_work() -> None:
    found = _choices(origin(None), before("failed", budget=None, allowed=None))
    assert found["records"] == {"name": "the ids"}
    assert found["claimedAt"] == NOW
