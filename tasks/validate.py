"""Validate: expectations over a shard's columns, before anything is spent on it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from prefect import task

from blocks.shards import ShardStore
from tasks.domain.documents import DescribedRecord
from tasks.domain.errors import TerminalError
from tasks.domain.owners import OWNER_CODES
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.policy import STAGE

#: A shard of which more than half is refused is no dirt but a source that changed its shape, or the wrong one.
MAX_REFUSED_SHARE = 0.5
#: Below this many records a share says nothing.
_ENOUGH_RECORDS = 500
_REQUIRED = ("record_id", "team_id", "holder_id", "key", "content", "head")


@dataclass(frozen=True, slots=True)
class _Expectation:
    says: str
    violations: int


@task(name="validate", task_run_name="validate {shard.number}", **STAGE)
def validate_shard(run: Run, shard: Shard, store: ShardStore) -> Shard:
    """Return the shard as it came, once it is fit to be paid for. Raises ``TerminalError`` if it is not."""
    # Orphans of a deleted contract lie side by side and say nothing about the source's shape.
    codes = [code for file in shard.refused for code in store.read_table(file).column("code").to_pylist()]
    refused = sum(code not in OWNER_CODES for code in codes)
    if shard.read >= _ENOUGH_RECORDS and refused > shard.read * MAX_REFUSED_SHARE:
        raise TerminalError(
            f"{refused:,} of {shard.read:,} records of shard {shard.number} can't be used, so nothing of it was "
            "embedded or written: look at their reasons with a dry run of a small --limit, and check that "
            "CRYPTIQUE_SOURCE_DATABASE is the application's database"
        )
    table = store.read_table(shard.rows)
    broken = [expectation for expectation in _expectations(table) if expectation.violations]
    if broken:
        raise TerminalError(
            f"shard {shard.number} breaks what describing promises: "
            + "; ".join(f"{expectation.says} ({expectation.violations} rows)" for expectation in broken)
        )
    return shard


def _expectations(table: pa.Table) -> list[_Expectation]:
    """Return each expectation with how many rows break it. All are computed over whole columns."""
    found = [_Expectation(f"{name} is set", table.column(name).null_count) for name in _REQUIRED]
    ids = table.column("record_id")
    found.append(_Expectation("every record comes once", len(ids) - pc.count_distinct(ids).as_py()))
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table.column("content"))), 0)
    found.append(_Expectation("every record has a text", pc.sum(blank).as_py() or 0))
    return found


assert set(_REQUIRED) <= set(DescribedRecord.__slots__)
