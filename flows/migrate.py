"""Migrate: the whole source, shard by shard, resumable, into ``vectordocuments``."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.memory import limit_heaps
from flows.batches import DEFAULT_POLL_S, require_batches
from flows.blocks import load_parts
from flows.figures import bring_up_to_date, require_figures
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.load import LoadOptions, load, load_each, make_scope, rehearse
from flows.parameters import (
    TRANSACTIONS,
    Accept,
    Batch,
    BatchPollSeconds,
    Budget,
    ChildRuns,
    ContractIds,
    DataDocs,
    Documents,
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
from flows.report import LoadReport, choices_of, message_of, publish_choices
from flows.stages import task_runner
from tasks.domain.shards import DEFAULT_SHARD_ROWS, DEFAULT_SHARDS_IN_FLIGHT
from tasks.policy import DEFAULT_RETRIES


@flow(
    name="migrate",
    flow_run_name=run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def migrate(
    sources: Sources = TRANSACTIONS,
    documents: Documents = "rows",
    start: Start = None,
    end: End = None,
    teams: TeamIds = [],  # noqa: B006
    contracts: ContractIds = [],  # noqa: B006
    limit: Limit = None,
    shard_rows: ShardRows = DEFAULT_SHARD_ROWS,
    shards_in_flight: ShardsInFlight = DEFAULT_SHARDS_IN_FLIGHT,
    child_runs: ChildRuns = 0,
    batch: Batch = False,
    batch_poll_seconds: BatchPollSeconds = DEFAULT_POLL_S,
    budget_usd: Budget = None,
    dry_run: DryRun = False,
    resume: Annotated[bool, Field(description="Take up an unfinished run of the same work where it stopped.")] = True,
    replace_model: Annotated[
        bool, Field(description="Replace stored vectors of another model, which embeds everything again.")
    ] = False,
    remove_orphans: Annotated[
        bool, Field(description="Remove vectors of records gone from the source, however many they are.")
    ] = False,
    accept: Accept = [],  # noqa: B006
    data_docs: DataDocs = False,
    generation: GenerationName = None,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Migrate source records into the vector store: extract, validate, chunk, embed, upsert, checkpoint, reconcile.

    Run it for the first load and whenever the store may lag behind. A rerun embeds and writes only what changed; a
    run that was cut off goes on at its first unfinished shard. Ends as completed when every record is written,
    unchanged or a dead letter with its reason; fails, with what to do, when source and store differ. Pauses by itself
    while the day's quota is spent, and with ``batch`` while its jobs run. Fails, naming records, where the data can't
    be what it should be: before anything is spent, if some of them show it; ``accept`` lets a finding pass. The result
    has the fields of ``LoadReport``.
    Several sources are gone through one after the other, each with a job of its own. With ``documents`` their figures
    are brought up to date first, as ``aggregate`` does, and stored beside the rows or in their place: what was stored
    before stays. A dry run with ``both`` tells the cost of each choice.
    """
    limit_heaps()
    figures_of = require_figures(sources) if documents != "rows" else []
    parts = load_parts(retries=retries, generation=generation)
    options = LoadOptions(
        shard_rows=shard_rows,
        shards_in_flight=shards_in_flight,
        child_runs=child_runs,
        budget_usd=budget_usd,
        resume=resume,
        replace_model=replace_model,
        remove_orphans=remove_orphans,
        batch=batch,
        batch_poll_s=batch_poll_seconds,
        accept=tuple(accept),
        data_docs=data_docs,
    )
    if batch:
        require_batches(parts, child_runs=child_runs)
    chosen = [*(["aggregates"] if figures_of else []), *(sources if documents != "aggregates" else [])]
    scopes = {
        name: make_scope(parts.owners, start=start, end=end, teams=teams, contracts=contracts, limit=limit, source=name)
        for name in names_of(chosen)
    }
    parts.vectors.require_model(parts.facts, replace=replace_model, write=False)
    if figures_of:
        parts.vectors.initialise(parts.facts.dimensions, loading=not dry_run)
        get_run_logger().info("figures: %s", bring_up_to_date(parts, figures_of))

    def run_one(name: str, budget: float | None) -> LoadReport:
        scope, began = scopes[name], time.monotonic()
        get_run_logger().info("%s with %s into %s", scope, parts.facts.model, parts.vectors.full_name)
        if dry_run:
            return rehearse(scope, parts, options, began=began)
        return load("migrate", scope, parts, replace(options, budget_usd=budget), began=began)

    report = load_each(list(scopes), run_one, budget_usd=budget_usd)
    choices = choices_of(report) if dry_run else {}
    if choices:
        publish_choices(choices)
    return Completed(message=message_of(report), data=asdict(report) | ({"choices": choices} if choices else {}))
