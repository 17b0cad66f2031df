"""Aggregate: exact figures of days, weeks, months and all time as documents in the vector store."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.memory import limit_heaps
from flows.batches import DEFAULT_POLL_S, require_batches
from flows.blocks import load_parts
from flows.figures import FiguresOf, bring_up_to_date
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.load import LoadOptions, load, prepare, rehearse
from flows.parameters import Accept, Batch, BatchPollSeconds, Budget, DataDocs, GenerationName, Retries
from flows.report import message_of
from flows.stages import task_runner
from tasks.domain.runs import Scope
from tasks.policy import DEFAULT_RETRIES

ALL_FIGURES: list[FiguresOf] = ["transactions", "sessions"]


@flow(
    name="aggregate",
    flow_run_name="aggregate",
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def aggregate(
    of: Annotated[
        list[FiguresOf],
        Field(min_length=1, description="Of which rows. Sessions give visits, funnels and campaigns as well."),
    ] = ALL_FIGURES,
    time_zones: Annotated[
        list[str],
        Field(description="Days on these zones' clocks too, by IANA name; once asked for, they are kept up to date."),
    ] = [],  # noqa: B006
    forget_time_zones: Annotated[list[str], Field(description="Take the figures on these zones' clocks away.")] = [],  # noqa: B006
    rebuild: Annotated[
        bool, Field(description="Compute every day from its rows again. What is the same is not embedded again.")
    ] = False,
    embed: Annotated[bool, Field(description="False: only compute; `migrate` of aggregates embeds them.")] = True,
    batch: Batch = False,
    batch_poll_seconds: BatchPollSeconds = DEFAULT_POLL_S,
    budget_usd: Budget = None,
    dry_run: Annotated[
        bool, Field(description="Compute the figures, which costs nothing; tell what embedding them would cost.")
    ] = False,
    remove_orphans: Annotated[
        bool, Field(description="Remove the vectors of periods that have no rows any more, however many.")
    ] = False,
    accept: Accept = [],  # noqa: B006
    data_docs: DataDocs = False,
    generation: GenerationName = None,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Bring the figures of all teams up to date and store them as documents: what most questions are answered from.

    Looks at every row of transactions and sessions, cheaply; computes the days of teams and websites whose rows
    changed, came or went; makes the documents that tell those days, their weeks, months and all time, and embeds the
    ones whose text changed. Amounts of different units are never added. Run it hourly. The result has the fields of
    ``FiguresReport`` under ``figures``, and those of ``LoadReport``.
    """
    limit_heaps()
    began = time.monotonic()
    parts = load_parts(retries=retries, generation=generation)
    if batch:
        require_batches(parts, child_runs=0)
    parts.vectors.require_model(parts.facts, replace=False, write=False)
    if embed and not dry_run:
        prepare(parts, replace_model=False, loading=True)
    else:
        parts.vectors.initialise(parts.facts.dimensions)
    figures = bring_up_to_date(parts, of, time_zones=time_zones, forget_time_zones=forget_time_zones, rebuild=rebuild)
    if not embed:
        return Completed(message=str(figures), data={"figures": asdict(figures)})
    options = LoadOptions(
        budget_usd=budget_usd,
        remove_orphans=remove_orphans,
        batch=batch,
        batch_poll_s=batch_poll_seconds,
        accept=tuple(accept),
        data_docs=data_docs,
    )
    scope = Scope("aggregate")
    report = (
        rehearse(scope, parts, options, began=began) if dry_run else load("migrate", scope, parts, options, began=began)
    )
    return Completed(message=f"{figures}; {message_of(report)}", data={"figures": asdict(figures), **asdict(report)})
