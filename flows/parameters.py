"""Parameters: what several flows can be told, with the words that the UI shows beside each."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from prefect import runtime
from pydantic import Field

from flows.stages import MAX_IN_FLIGHT
from tasks.domain.generations import NAME_PATTERN
from tasks.domain.registry import PLURALS
from tasks.domain.windows import Window

ObjectIdText = Annotated[str, Field(pattern="^[0-9a-f]{24}$")]
SourceName = Literal[
    "websites",
    "smart_contracts",
    "campaigns",
    "analytics",
    "user_journeys",
    "texts",
    "aggregates",
    "monthly_stats",
    "weekly_stats",
    "daily_stats",
    "hourly_stats",
    "sessions",
    "granular_events",
    "transactions",
]
TRANSACTIONS: list[SourceName] = ["transactions"]
assert get_args(SourceName) == tuple(PLURALS)

Sources = Annotated[list[SourceName], Field(min_length=1, description="Which sources; each is gone through by itself.")]
#: ``rows``: each record. ``aggregates``: exact figures of days to all time, made of them. ``both``.
StoredAs = Literal["rows", "aggregates", "both"]
Documents = Annotated[
    StoredAs,
    Field(
        description="What of the sources is stored: each row, the figures of days, weeks, months and all time made of "
        "them (transactions and sessions have such), or both."
    ),
]
Start = Annotated[datetime | None, Field(description="First block time to take, UTC; none: from the first.")]
End = Annotated[datetime | None, Field(description="First block time not to take, UTC; none: to the last.")]
TeamIds = Annotated[list[ObjectIdText], Field(description="Only these teams' records, by id; none: all.")]
ContractIds = Annotated[list[str], Field(description="Only these contracts' records, by contractId; none: all.")]
Limit = Annotated[int | None, Field(ge=1, description="At most this many records, in the order of their ids.")]
ShardRows = Annotated[int, Field(ge=1, le=50_000, description="Records in a shard, the unit of retry.")]
ShardsInFlight = Annotated[
    int, Field(ge=1, le=MAX_IN_FLIGHT, description="Shards at work at once, at most, while the embedder is waited for.")
]
MAX_CHILD_RUNS = 16
ChildRuns = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_CHILD_RUNS,
        description="0: this process does it all. 2 to 5: as many child runs at once, on all workers of the pool, "
        "which must share one shard store.",
    ),
]
Batch = Annotated[bool, Field(description="Embed through Gemini's batch jobs: half the price, up to 24 hours.")]
BatchPollSeconds = Annotated[
    float, Field(gt=0, le=21_600, description="Seconds between two looks at batch jobs; their results stay two days.")
]
Budget = Annotated[
    float | None,
    Field(gt=0, description="Dollars that the run may spend on embeddings; at that it pauses. None: any sum."),
]
DryRun = Annotated[bool, Field(description="Count rows, tokens, cost and time; write nothing, embed nothing.")]
Accept = Annotated[
    list[str],
    Field(
        description="Findings about the data that are meant, by the names that a stopped run gives: fewer, missing:to."
    ),
]
DataDocs = Annotated[bool, Field(description="Let Great Expectations judge a small run too, and write Data Docs.")]
GenerationName = Annotated[
    str | None,
    Field(pattern=NAME_PATTERN, description="Which generation of vectors the run is about; none: the live one."),
]
Retries = Annotated[int, Field(ge=0, le=10, description="How often a stage is tried again.")]


def names_of(sources: Collection[str]) -> list[str]:
    """Return the names by which the stages know the sources, in the order in which they are loaded, each once."""
    return [name for plural, name in PLURALS.items() if plural in sources]


def run_name() -> str:
    """Return what a run is about, from its parameters: ``dry run: migrate transactions 2025-06-01..2025-07-01``."""
    given = runtime.flow_run.parameters
    try:
        window: Window | str = Window(_moment(given.get("start")), _moment(given.get("end")))
    except ValueError:
        window = "an impossible window"  # the flow itself says what is wrong with it
    flow = str(runtime.flow_run.flow_name)
    sources = given.get("sources") or TRANSACTIONS
    parts = [f"{flow} {sources[0] if len(sources) == 1 else f'{len(sources)} sources'} {window}"]
    for name in ("teams", "contracts"):
        chosen = list(given.get(name) or ())
        if chosen:
            parts.append(f"{name.removesuffix('s')} {chosen[0]}" if len(chosen) == 1 else f"{len(chosen)} {name}")
    if given.get("limit"):
        parts.append(f"first {given['limit']:,}")
    return ("dry run: " if given.get("dry_run") else "") + ", ".join(parts)


def _moment(value: Any) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value if isinstance(value, datetime) else None
