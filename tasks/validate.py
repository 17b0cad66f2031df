"""Validate: expectations over a shard's columns, before anything is spent on it; what can't be right is withheld."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource
from blocks.records import open_records
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from tasks.domain.columns import Columns
from tasks.domain.dead_letters import WITHHELD, DeadLetter
from tasks.domain.documents import DescribedRecord
from tasks.domain.errors import TerminalError
from tasks.domain.measures import ceilings_of, find_suspects, triage, withhold
from tasks.domain.owners import OWNER_CODES
from tasks.domain.profiles import Profile, Reading, read_profile, seen_share_for, share_for
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.domain.tables import to_table
from tasks.domain.verdicts import Finding
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
def validate_shard(
    run: Run, shard: Shard, source: MongoSource, store: ShardStore, vectors: VectorStore, *, judged: bool = True
) -> Shard:
    """Return the shard once it is fit to be paid for, with what its records are like; safe to repeat.

    Records that can't be right are withheld as dead letters, if they are more than a few (``verdicts.py``) or were
    withheld before. Without ``judged`` only the latter are: for comparing what is stored already. Raises
    ``TerminalError``, which names records, for a shard that is no dirt but damage.
    """
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
    if shard.observed is None:
        return shard
    return _withhold(run, shard, table, open_records(source, run.scope.source).kind.columns, store, vectors, judged)


def _withhold(
    run: Run, shard: Shard, table: pa.Table, columns: Columns, store: ShardStore, vectors: VectorStore, judged: bool
) -> Shard:
    """Return the shard without the rows that aren't trusted, its profile whole."""
    name, profile = run.scope.source, Profile.from_bytes(shard.profile)
    assert profile is not None
    assert shard.observed is not None
    observed = store.read_table(shard.observed)
    ceilings = ceilings_of(vectors.load_profile(name))

    def read(rows: pa.Table) -> Reading:
        shares = {"share": share_for(run.planned), "seen_share": seen_share_for(run.planned)}
        return read_profile(rows, columns, source=name, ceilings=ceilings, **shares)

    reading = read(observed)
    withheld = _withheld_before(run, reading, observed, columns, vectors)
    rows = np.arange(observed.num_rows)
    if withheld:
        rows = np.setdiff1d(rows, list(withheld))
        reading = read(observed.take(pa.array(rows)))
        for row, finding in withheld.items():
            profile.add_refused(f"{WITHHELD}{finding.name}", [observed.column(columns.record_id)[row].as_py()])
    if judged:
        found = triage(reading, columns, f"shard {shard.number}", accept=run.accept)
        found.judgement.require_sound("so nothing of it was embedded or written")
        withheld |= {int(rows[row]): finding for row, finding in found.withheld.items()}
    profile.merge(reading.profile)
    shard = replace(shard, profile=profile.to_bytes())
    if not withheld:
        return shard
    kept, letters = withhold(table, withheld, source=name)
    number = f"{shard.number:06d}"
    refused = store.write_table(run.key, f"{number}.refused-validate", to_table(DeadLetter, letters))
    return shard.moved_on(store.write_table(run.key, f"{number}.validated", kept), refused)


def _withheld_before(
    run: Run, reading: Reading, observed: pa.Table, columns: Columns, vectors: VectorStore
) -> dict[int, Finding]:
    """Return the rows that were withheld by an earlier run and are no better now."""
    suspects = find_suspects(reading, columns, accept=run.accept)
    if not suspects or not vectors.has_dead_letters():
        return {}
    ids = {row: ObjectId(observed.column(columns.record_id)[row].as_py()) for row in suspects}
    before = vectors.find_withheld(run.scope.source, ids.values())
    return {row: finding for row, finding in suspects.items() if ids[row].binary in before}


def _expectations(table: pa.Table) -> list[_Expectation]:
    """Return each expectation with how many rows break it. All are computed over whole columns."""
    found = [_Expectation(f"{name} is set", table.column(name).null_count) for name in _REQUIRED]
    ids = table.column("record_id")
    found.append(_Expectation("every record comes once", len(ids) - pc.count_distinct(ids).as_py()))
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(table.column("content"))), 0)
    found.append(_Expectation("every record has a text", pc.sum(blank).as_py() or 0))
    return found


assert set(_REQUIRED) <= set(DescribedRecord.__slots__)
