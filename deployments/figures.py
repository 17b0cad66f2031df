"""The ``aggregate`` command: exact figures of days, weeks, months and all time, as documents in the store."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from deployments.console import JsonOption, print_json, quiet_prefect, reported, services
from deployments.runs import (
    AcceptOption,
    BatchOption,
    BudgetOption,
    DataDocsOption,
    RetriesOption,
    print_report,
    summary,
    with_progress,
)


class FiguresSource(StrEnum):
    """Of which rows figures are made."""

    TRANSACTIONS = "transactions"
    SESSIONS = "sessions"


def aggregate(
    of: Annotated[
        list[FiguresSource] | None,
        typer.Option(help="Of which rows; both, if not given. Sessions give visits, funnels and campaigns."),
    ] = None,
    time_zone: Annotated[
        list[str] | None,
        typer.Option(help="Days on this zone's clocks too, such as Europe/Berlin; kept up to date from then on."),
    ] = None,
    forget_time_zone: Annotated[
        list[str] | None, typer.Option(help="Take the figures on this zone's clocks away.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Compute every day from its rows again.")] = False,
    no_embed: Annotated[bool, typer.Option("--no-embed", help="Only compute the figures.")] = False,
    batch: BatchOption = False,
    budget_usd: BudgetOption = None,
    retries: RetriesOption = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compute the figures; tell what embedding them would cost.")
    ] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Remove vectors of periods without rows, however many.")
    ] = False,
    accept: AcceptOption = None,
    data_docs: DataDocsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the figures of all teams up to date: days whose rows changed are computed, and their documents embedded.

    Only what changed costs anything, so run it as often as you like; `make up` runs it every hour.

    Try first: cryptique-rag aggregate --dry-run
    """
    with reported(), quiet_prefect():
        parameters: dict[str, Any] = {
            "of": [source.value for source in of or FiguresSource],
            "time_zones": list(time_zone or []),
            "forget_time_zones": list(forget_time_zone or []),
            "rebuild": rebuild,
            "embed": not no_embed,
            "batch": batch,
            "budget_usd": budget_usd,
            "retries": retries,
            "dry_run": dry_run,
            "remove_orphans": remove_orphans,
            "accept": list(accept or []),
            "data_docs": data_docs,
        }
        with services():
            from flows.aggregate import aggregate as aggregate_flow

            report = with_progress("aggregating", aggregate_flow, parameters)
        figures = report.pop("figures")
        if as_json:
            print_json({"figures": figures, **(summary(report) if report else {})})
            return
        for name, value in figures.items():
            shown = ", ".join(value) if isinstance(value, list) else f"{value:,}"
            print(f"{name.replace('_', ' ')}: {shown}")
        if report:
            print_report(report)
