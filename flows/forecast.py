"""Forecast: what a load will embed, from records all over its source, before any of it is paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from bson import ObjectId
from prefect import get_run_logger, task

from blocks.records import open_records
from flows.blocks import Parts
from flows.progress import duration
from flows.stages import extract_arguments
from tasks.chunk import DescribedChunk, chunk_shard
from tasks.domain.changes import ChangeBatch
from tasks.domain.forecasts import TIERS, Forecast, seconds_at
from tasks.domain.measures import ceilings_of, ids_to_read_again
from tasks.domain.profiles import Profile, read_profile
from tasks.domain.quotas import Quota
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run
from tasks.domain.shards import Shard, ShardRange
from tasks.domain.sources import Source
from tasks.domain.tables import from_table
from tasks.extract import extract_changes, extract_shard, source_criteria
from tasks.policy import STAGE

#: Texts of one source are alike: a thousand of them tell their mean to a percent or two, and cost a tenth of a second.
_SAMPLED_SHARDS, _SAMPLED_RECORDS = 40, 1_000


@task(name="forecast", task_run_name="forecast", **STAGE)
def forecast_load(
    run: Run, shards: Sequence[ShardRange], parts: Parts, before: Profile | None
) -> tuple[Forecast, Profile]:
    """Return what the shards will embed and what their records are like, from the first ones of some shards.

    ``before`` is what the last good run found them to be like. Logs the forecast by tier. Writes nothing.
    """
    kind = open_records(parts.source, run.scope.source).kind
    profile = Profile(kind.name)
    # A folder of its own, because the shards' numbers are taken; within the run's, with which it goes whatever happens.
    sample = replace(run, key=f"{run.key}/forecast", planned=0)
    step = max(1, len(shards) // _SAMPLED_SHARDS)
    sampled = 0
    seen: dict[bytes, int] = {}
    try:
        chosen = shards[::step]
        for shard in chosen:
            each = -(-_SAMPLED_RECORDS // min(_SAMPLED_SHARDS, len(chosen)))
            extracted = extract_shard.fn(
                sample, _first_records(shard, each, run, parts), *extract_arguments(parts, plain=True)
            )
            chunked = chunk_shard.fn(
                sample, extracted, parts.store, parts.source, parts.vectors, parts.facts, parts.size
            )
            sampled += extracted.read
            profile.merge(read_extracted(extracted, kind, parts, before))
            for row in from_table(DescribedChunk, parts.store.read_table(chunked.rows)):
                if Verdict(row.verdict).needs_vector:
                    seen[row.content_hash] = row.tokens
            parts.store.drop_shard(sample.key, shard.number)
    finally:
        parts.store.drop_run(sample.key)
    records = sum(shard.planned for shard in shards)
    forecast = Forecast.of_sample(records=records, sampled=sampled, texts=len(seen), tokens=sum(seen.values()))
    if forecast.texts:
        get_run_logger().info("forecast: %s", in_words(forecast, parts))
    return forecast, profile


def read_extracted(extracted: Shard, kind: Source, parts: Parts, before: Profile | None) -> Profile:
    """Return what extracted records are like, all of them witnesses."""
    profile = Profile.from_bytes(extracted.profile)
    assert profile is not None
    if extracted.observed is not None:
        table = parts.store.read_table(extracted.observed)
        profile.merge(read_profile(table, kind.columns, source=kind.name, ceilings=ceilings_of(before)).profile)
    return profile


def read_witnesses(run: Run, parts: Parts, before: Profile) -> Profile:
    """Return what those records are like now that the last good run followed. Writes nothing."""
    looking = replace(run, key=f"{run.key}/witnesses", planned=0, thorough=True)
    batch = ChangeBatch(0, tuple(map(ObjectId, ids_to_read_again(before))), (), {})
    kind = open_records(parts.source, run.scope.source).kind
    try:
        extracted = extract_changes.fn(looking, batch, *extract_arguments(parts, plain=True))
        return read_extracted(extracted, kind, parts, before)
    finally:
        parts.store.drop_run(looking.key)


def _first_records(shard: ShardRange, number: int, run: Run, parts: Parts) -> ShardRange:
    """Return the beginning of a shard, as a range."""
    records = open_records(parts.source, run.scope.source)
    if not records.are_in_order:
        return shard
    criteria = source_criteria(records.kind, run.scope, parts.owners)
    ids = parts.source.read_range(records.kind.collection, shard, criteria=criteria, fields=("_id",))
    ends = next(islice(ids, number, None), None)
    return shard if ends is None else replace(shard, upper=ends["_id"], planned=number)


def by_tier(texts: int, tokens: int, parts: Parts) -> dict[str, float | None]:
    """Return at least how many seconds so much embedding takes at each tier's quota, and at the configured one."""
    quotas: Mapping[str, Quota] = {**TIERS, "your quota": Quota.of(parts.facts)}
    return {name: seconds_at(quota, texts=texts, tokens=tokens) for name, quota in quotas.items()}


def in_words(forecast: Forecast, parts: Parts) -> str:
    """Return ``871,000 texts, 52,300,000 tokens, $7.85; at least 4 h 50 min in tier 1, ...``."""
    cost = forecast.tokens * parts.facts.usd_per_million_tokens / 1_000_000
    waits = [
        f"{duration(seconds)} in {name}" if name in TIERS else f"{duration(seconds)} at {name}"
        for name, seconds in by_tier(forecast.texts, forecast.tokens, parts).items()
        if seconds is not None
    ]
    price = f", ${cost:,.2f}" if parts.facts.usd_per_million_tokens else ""
    return (
        f"{forecast.texts:,} texts, {forecast.tokens:,} tokens{price}; at least {', '.join(waits)} "
        f"(from {forecast.sampled:,} of {forecast.records:,} records)"
    )
