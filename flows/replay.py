"""Replay: dead letters, after a fix: each is resolved, or stays with its new reason."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.memory import limit_heaps
from flows.blocks import Parts, load_parts, of_generation
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.jobs import was_begun
from flows.load import load_each, prepare
from flows.parameters import TRANSACTIONS, Budget, DryRun, GenerationName, ObjectIdText, Retries, Sources, names_of
from flows.records import Selection, load_records, rehearse_records
from flows.report import LoadReport, message_of
from flows.stages import task_runner
from tasks.domain.errors import InputError
from tasks.domain.runs import Run, Scope
from tasks.policy import DEFAULT_RETRIES


def _run_name() -> str:
    given = runtime.flow_run.parameters
    chosen = [", ".join(given.get("reasons") or ()) or "all dead letters"]
    if given.get("teams"):
        chosen.append(f"{len(given['teams'])} team{'s' if len(given['teams']) > 1 else ''}")
    for name, words in (("older_than_hours", "older than"), ("newer_than_hours", "newer than")):
        if given.get(name):
            chosen.append(f"{words} {given[name]:g} h")
    return ("dry run: " if given.get("dry_run") else "") + "replay " + ", ".join(chosen)


@flow(
    name="replay",
    flow_run_name=_run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def replay(
    sources: Sources = TRANSACTIONS,
    reasons: Annotated[
        list[str], Field(description="Only dead letters with these reason codes, such as amount_unreadable; none: all.")
    ] = [],  # noqa: B006
    teams: Annotated[list[ObjectIdText], Field(description="Only these teams' dead letters, by id; none: all.")] = [],  # noqa: B006
    older_than_hours: Annotated[
        float | None, Field(gt=0, description="Only those refused longer ago than this; none: any age.")
    ] = None,
    newer_than_hours: Annotated[
        float | None, Field(gt=0, description="Only those refused since then; none: any age.")
    ] = None,
    limit: Annotated[int | None, Field(ge=1, description="At most this many, the oldest first.")] = None,
    budget_usd: Budget = None,
    dry_run: DryRun = False,
    generation: GenerationName = None,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Take refused records through the stages again, as the source has them now.

    Run it after a fix of the code or of the source. A record that is stored now resolves its dead letter; one that
    is refused again stays one, with its new reason and one more attempt; one that is gone from the source resolves it
    too. The result has the fields of ``LoadReport``, and ``resolved`` and ``still_open``.
    """
    limit_heaps()
    parts = load_parts(retries=retries, generation=generation)
    parts.vectors.require_model(parts.facts, replace=False, write=False)
    get_run_logger().info("%d open dead letters", parts.vectors.count_open_letters({}))
    now = datetime.now(UTC)
    chosen = 0

    def replay_one(source: str, budget: float | None) -> LoadReport:
        nonlocal chosen
        # Of one source the work is named as ever, so that what was begun is found.
        choices = (sorted(reasons), sorted(teams), older_than_hours, newer_than_hours, limit)
        work = of_generation(f"replay-{source}-{choices}", parts)
        begun = was_begun(work, parts, resume=False)
        criteria = _criteria(source, parts, reasons, teams, older_than_hours, newer_than_hours, now, begun=begun)
        scope = Scope(source, team_ids=tuple(teams), limit=limit)

        def select(_: Run) -> Selection:
            ids = list(parts.vectors.read_open_letters(criteria, limit=limit or 0))
            return Selection(ids, {"chosen": len(ids)})

        if dry_run:
            report, figures = rehearse_records(scope, select, parts)
        else:
            began = time.monotonic()
            report, figures = load_records("replay", work, scope, select, parts, began=began, budget_usd=budget)
        chosen += figures["chosen"]
        return report

    if not dry_run:
        prepare(parts, replace_model=False)
    report = load_each(names_of(sources), replay_one, budget_usd=budget_usd)
    still_open = report.dead_lettered
    resolved = chosen - still_open
    words = "would be resolved" if dry_run else "resolved"
    message = f"{resolved:,} of {chosen:,} dead letters {words}, {still_open:,} stay open; {message_of(report)}"
    return Completed(message=message, data={**asdict(report), "resolved": resolved, "still_open": still_open})


def _criteria(
    source: str,
    parts: Parts,
    reasons: list[str],
    teams: list[str],
    older_than_hours: float | None,
    newer_than_hours: float | None,
    now: datetime,
    *,
    begun: bool,
) -> dict[str, Any]:
    """Return which open dead letters are meant; raise ``InputError`` for a reason that none has, or an empty age.

    A replay that goes on after a pause may have resolved the last with a reason itself.
    """
    if older_than_hours is not None and newer_than_hours is not None and older_than_hours >= newer_than_hours:
        raise InputError(
            f"nothing is older than {older_than_hours:g} hours and newer than {newer_than_hours:g}: exchange them"
        )
    known = parts.vectors.count_letters_by_code()
    unknown = [code for code in reasons if code not in known]
    if unknown and not begun:
        there = ", ".join(f"{code} {count:,}" for code, count in known.items()) or "none is open"
        raise InputError(f"no open dead letter has the reason {', '.join(unknown)}; there are: {there}")
    return parts.vectors.letter_criteria(
        source,
        codes=reasons,
        team_ids=teams,
        before=now - timedelta(hours=older_than_hours) if older_than_hours is not None else None,
        since=now - timedelta(hours=newer_than_hours) if newer_than_hours is not None else None,
    )
