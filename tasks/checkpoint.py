"""Checkpoint: the proof that a shard is finished, written when all else of it is."""

from __future__ import annotations

from bson import ObjectId
from prefect import task

from blocks.memory import release_memory
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from tasks.domain.manifests import Manifest, ShardOutcome
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.policy import STAGE


@task(name="checkpoint", task_run_name="checkpoint {shard.number}", **STAGE)
def checkpoint_shard(
    run: Run,
    shard: Shard,
    outcome: ShardOutcome,
    store: ShardStore,
    vectors: VectorStore,
) -> Manifest:
    """Put down the shard's dead letters and counts, drop its files, and return the counts. Safe to repeat.

    The order survives a kill: vectors, dead letters, checkpoint, and only then are the files deleted.
    """
    now = (
        vectors.read_time()
    )  # checkpoints expire by the server's clock: a worker's that lags would let them go at once
    vectors.save_dead_letters(outcome.letters, run_id=run.id, now=now)
    if outcome.stored_ids and vectors.has_dead_letters():
        ids = [ObjectId(outcome.stored_ids[at : at + 12]) for at in range(0, len(outcome.stored_ids), 12)]
        vectors.resolve_dead_letters(run.scope.source, ids, run_id=run.id, now=now)
    vectors.save_checkpoint(run.key, shard.number, outcome, owners=run.owners, now=now)
    store.drop_shard(run.key, shard.number)
    release_memory()
    return outcome.manifest
