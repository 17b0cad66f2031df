"""Posting: one record of the store's own through the stages at once, in the process that took it; no run of Prefect's.

The stages are those of every run, called as plain functions, so that what they write is what a later run would: it
finds the record stored as it is. The record comes first. Whatever stops here, the next run of its source goes on.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from bson import ObjectId

from blocks.code_version import read_code_version
from flows.blocks import Parts
from tasks.chunk import DescribedChunk, chunk_shard
from tasks.domain.changes import ChangeBatch
from tasks.domain.dead_letters import DeadLetter
from tasks.domain.errors import (
    BudgetSpentError,
    PipelineError,
    QuotaSpentError,
    ShardDamagedError,
    StoppedError,
    TerminalError,
    TransientError,
)
from tasks.domain.manifests import ShardOutcome
from tasks.domain.posted_texts import NAME
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import Shard
from tasks.domain.tables import from_table
from tasks.embed import embed_shard
from tasks.extract import extract_changes
from tasks.upsert import upsert_shard
from tasks.validate import validate_shard

_LOGGER = logging.getLogger("cryptique.posting")
_NUMBER = 0
#: Under this number stand the vectors that were not paid for here.
_OF_EQUAL_TEXTS = 1
#: Another process may be at the same record: it is looked at again this often.
_MOST_REPAIRS = 4


class WaitingError(PipelineError):
    """The record is kept and not embedded; the next run does it. ``until``: before that moment none can."""

    def __init__(self, message: str, until: datetime | None = None) -> None:
        super().__init__(message)
        self.until = until


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of a record: ``chunks`` documents, or the letter that says why it is refused.

    ``embedded`` texts were paid for.
    """

    chunks: int = 0
    embedded: int = 0
    refused: DeadLetter | None = None


def store_text(record: dict[str, Any], parts: Parts, *, now: datetime, within_s: float) -> Posted:
    """Take a posted text, which is kept already, through the stages. Safe to repeat, and to call beside any run.

    Equal texts of its team give their vectors. What was paid for before a failure is found by the next call in this
    place. Raises ``WaitingError`` where the embedder can't be asked within so many seconds; errors of the store are its
    own.
    """
    parts = parts.of_source(NAME)
    # Derived, so that a second try has what the first one paid for; and such that files left behind are swept.
    key = f"{record['createdAt']:%Y%m%dT%H%M%S}-{record['_id'].binary[:4].hex()}"
    run = Run(key, "posted", Scope(NAME), int(now.timestamp() * 1000), code_version=read_code_version())
    timer = threading.Timer(within_s, parts.stopping.set)
    timer.daemon = True
    timer.start()
    try:
        for attempt in range(1 + _MOST_REPAIRS):
            try:
                posted = _take_through(record, run, parts, now)
            except ShardDamagedError as error:
                _LOGGER.info("text %s is looked at again: %s", record["_id"], error)
                if attempt == _MOST_REPAIRS:
                    raise WaitingError("another run is at this text") from error
            else:
                parts.store.drop_run(key)
                return posted
    finally:
        timer.cancel()
    raise AssertionError("the last attempt returns or raises")


def _take_through(record: dict[str, Any], run: Run, parts: Parts, now: datetime) -> Posted:
    source, store, vectors = parts.source, parts.store, parts.vectors
    batch = ChangeBatch(_NUMBER, (record["_id"],), (), {})
    shard = extract_changes.fn(run, batch, source, parts.owners, store, vectors, parts.facts, parts.size)
    if shard.is_stored:
        outcome = upsert_shard.fn(run, shard, store, vectors)
        _settle(outcome, run, vectors=parts.vectors, now=now)
        return Posted(chunks=outcome.manifest.total.chunks)
    shard = validate_shard.fn(run, shard, source, store, vectors)
    shard = chunk_shard.fn(run, shard, store, source, vectors, parts.facts, parts.size)
    _take_vectors_of_equal_texts(record, run, shard, parts)
    shard = _embed(run, shard, parts)
    outcome = upsert_shard.fn(run, shard, store, vectors)
    _settle(outcome, run, vectors=vectors, now=now)
    letter = next(iter(outcome.letters), None)
    return Posted(outcome.manifest.total.chunks, outcome.manifest.embedded, letter)


def _take_vectors_of_equal_texts(record: dict[str, Any], run: Run, shard: Shard, parts: Parts) -> None:
    """Put down vectors that the team has paid for already as if the run had found them."""
    chunks = from_table(DescribedChunk, parts.store.read_table(shard.rows))
    wanted = {chunk.content_hash for chunk in chunks}
    known = parts.vectors.find_vectors_of_equal_texts(record) if wanted else {}
    found = {key: vector for key, vector in known.items() if key in wanted}
    if found:
        with parts.store.paid_texts(run.key, shard=shard.number) as paid:
            paid.keep(list(found), np.stack(list(found.values())), tokens=[0] * len(found), shard=_OF_EQUAL_TEXTS)


def _embed(run: Run, shard: Shard, parts: Parts) -> Shard:
    try:
        embedded: Shard = embed_shard.fn(
            run, shard, parts.store, parts.embedder, parts.slots, gate=parts.gate, stop=parts.stopping
        )
    except QuotaSpentError as error:
        _LOGGER.warning("a text waits: %s", error)
        raise WaitingError("the day's budget of embeddings is spent", error.until) from error
    except (BudgetSpentError, StoppedError, TransientError, TerminalError) as error:
        _LOGGER.warning("a text waits: %s", error)
        raise WaitingError("the embedder does not answer in time") from error
    return embedded


def _settle(outcome: ShardOutcome, run: Run, *, vectors: Any, now: datetime) -> None:
    """Put down why a text is refused, or close what was put down before."""
    vectors.save_dead_letters(outcome.letters, run_id=run.id, now=now)
    if outcome.stored_ids and vectors.has_dead_letters():
        vectors.resolve_dead_letters(NAME, [ObjectId(outcome.stored_ids[:12])], run_id=run.id, now=now)
