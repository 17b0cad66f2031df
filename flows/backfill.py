"""Backfill: a past window, some teams or contracts, or what an older describer or model stored, once more."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.memory import limit_heaps
from flows.batches import DEFAULT_POLL_S, require_batches
from flows.blocks import Parts, load_parts
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.jobs import was_begun
from flows.load import LoadOptions, load, load_each, make_scope, prepare, rehearse
from flows.parameters import (
    TRANSACTIONS,
    Accept,
    Batch,
    BatchPollSeconds,
    Budget,
    ChildRuns,
    ContractIds,
    DataDocs,
    DryRun,
    End,
    GenerationName,
    Limit,
    Retries,
    ShardRows,
    ShardsInFlight,
    Sources,
    Start,
    TeamIds,
    names_of,
    run_name,
)
from flows.partition import work_fingerprint
from flows.records import Selection, load_records, rehearse_records
from flows.report import LoadReport, message_of
from flows.stages import task_runner
from tasks.domain.errors import InputError
from tasks.domain.registry import describer_version
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import DEFAULT_SHARD_ROWS, DEFAULT_SHARDS_IN_FLIGHT
from tasks.policy import DEFAULT_RETRIES

Rebuild = Literal["changed", "everything"]


@flow(
    name="backfill",
    flow_run_name=run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def backfill(
    sources: Sources = TRANSACTIONS,
    start: Start = None,
    end: End = None,
    teams: TeamIds = [],  # noqa: B006
    contracts: ContractIds = [],  # noqa: B006
    limit: Limit = None,
    rebuild: Annotated[
        Rebuild,
        Field(
            description="changed: embed only texts that changed. everything: embed every text again, and pay for it."
        ),
    ] = "changed",
    stored_describer: Annotated[
        int | None,
        Field(ge=1, description="Only records whose stored text was made by this version of the describer; none: all."),
    ] = None,
    stored_model: Annotated[
        str | None, Field(min_length=1, description="Only records whose stored vectors are of this model; none: all.")
    ] = None,
    shard_rows: ShardRows = DEFAULT_SHARD_ROWS,
    shards_in_flight: ShardsInFlight = DEFAULT_SHARDS_IN_FLIGHT,
    child_runs: ChildRuns = 0,
    batch: Batch = False,
    batch_poll_seconds: BatchPollSeconds = DEFAULT_POLL_S,
    budget_usd: Budget = None,
    dry_run: DryRun = False,
    accept: Accept = [],  # noqa: B006
    data_docs: DataDocs = False,
    generation: GenerationName = None,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Take a past window, team or contract through the stages again; never moves where ``ingest`` goes on.

    By default only what changed is embedded and written. ``stored_describer`` and ``stored_model`` choose by what
    made the stored vectors: such records are read from the source again and described by today's code; another model
    than the run's can only be replaced in the whole store. The same backfill started twice at once is refused the
    second time; one that was cut off goes on where it stopped. The result has the fields of ``LoadReport``.
    """
    limit_heaps()
    parts = load_parts(retries=retries, generation=generation)
    options = LoadOptions(
        shard_rows=shard_rows,
        shards_in_flight=shards_in_flight,
        child_runs=child_runs,
        budget_usd=budget_usd,
        rebuild=rebuild == "everything",
        batch=batch,
        batch_poll_s=batch_poll_seconds,
        accept=tuple(accept),
        data_docs=data_docs,
    )
    if batch:
        require_batches(parts, child_runs=child_runs)
        if stored_describer is not None or stored_model is not None:
            raise InputError(
                "batch works on ranges of the source, not on records chosen by what is stored of them: leave out "
                "batch, or stored_describer and stored_model"
            )
    scopes = {
        name: make_scope(parts.owners, start=start, end=end, teams=teams, contracts=contracts, limit=limit, source=name)
        for name in names_of(sources)
    }
    chosen_by_stored = stored_describer is not None or stored_model is not None
    if chosen_by_stored and len(scopes) > 1:
        raise InputError("each source has describers of its own: choose one with stored_describer or stored_model")

    def run_one(name: str, budget: float | None) -> LoadReport:
        scope, began = scopes[name], time.monotonic()
        work = work_fingerprint(scope, parts.of_source(name), shard_rows=0, rebuild=options.rebuild)
        work += f"-{stored_describer}-{stored_model}"
        begun = was_begun(work, parts, resume=True)
        replaces = _require_stored(scope, parts, stored_describer, stored_model, begun=begun)
        parts.vectors.require_model(parts.facts, replace=replaces, write=False)
        get_run_logger().info("%s with %s into %s", scope, parts.facts.model, parts.vectors.full_name)
        if not chosen_by_stored:
            if dry_run:
                return rehearse(scope, parts, options, began=began)
            return load("backfill", scope, parts, replace(options, budget_usd=budget), began=began)
        criteria = parts.vectors.lineage_criteria(scope, describer=stored_describer, model=stored_model)

        def select(_: Run) -> Selection:
            return Selection(parts.vectors.read_record_ids(criteria, limit=limit or 0))

        if dry_run:
            return rehearse_records(scope, select, parts, rebuild=options.rebuild)[0]
        prepare(parts, replace_model=replaces)
        report, _ = load_records(
            "backfill",
            work,
            scope,
            select,
            parts,
            began=began,
            rebuild=options.rebuild,
            budget_usd=budget,
            resume=True,
        )
        return report

    report = load_each(list(scopes), run_one, budget_usd=budget_usd)
    return Completed(message=message_of(report), data=asdict(report))


def _require_stored(scope: Scope, parts: Parts, describer: int | None, model: str | None, *, begun: bool) -> bool:
    """Return whether the whole store is to change its model.

    Raises ``InputError`` for a version that stored nothing, unless it was ``begun``: its last may be replaced by now.
    """
    newest = describer_version(scope.source)
    if describer is not None and describer > newest:
        raise InputError(
            f"stored_describer {describer} is newer than this code, whose describer is {newest}: nothing "
            "was stored by it, or this is the older code"
        )
    if model is None or model == parts.facts.model:
        return False
    everywhere = Scope(scope.source)
    there = parts.vectors.holds(parts.vectors.lineage_criteria(everywhere, describer=None, model=model))
    if not there and not begun:
        raise InputError(f"no stored vector is of the model {model}: `lineage.model` of the documents tells theirs")
    if not scope.whole or describer is not None:
        raise InputError(
            f"vectors of {model} can only be replaced by {parts.facts.model} in the whole store: in a part of it they "
            "would be hidden from searches, which compare vectors of one model. Leave out window, teams, contracts, "
            "limit and stored_describer"
        )
    return True
