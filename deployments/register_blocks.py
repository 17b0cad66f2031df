"""Register the blocks that flows load: from the environment to the Prefect server, as often as you like."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from pydantic import SecretStr

from blocks.audit import audit
from blocks.backups import BackupStore
from blocks.embedders import Embedders
from blocks.gemini import GeminiEmbedder
from blocks.mongo import MongoSource
from blocks.monitor import Monitor
from blocks.quota import make_limits
from blocks.s3 import S3Bucket
from blocks.shards import ShardStore
from blocks.slack import SlackNotifier
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from deployments.settings import Settings
from deployments.work_pool import POOL
from flows.blocks import ALERTS, BACKUPS, GEMINI, LOCAL, MONITOR, SHARDS, SOURCE, VECTORS, PipelineEmbedder
from tasks.domain.quotas import Quota


@dataclass(frozen=True, slots=True)
class PipelineBlocks:
    """The blocks that the settings describe; ``gemini`` and ``alerts`` are None where there is no key or webhook."""

    source: MongoSource
    vectors: VectorStore
    shards: ShardStore
    backups: BackupStore
    local: LocalEmbedder
    monitor: Monitor
    gemini: GeminiEmbedder | None
    alerts: SlackNotifier | None = None

    @property
    def embedder(self) -> PipelineEmbedder | None:
        """Return the embedder that fills the store, or None where it is Gemini and there is no key."""
        return self.gemini if self.vectors.embedder == "gemini" else self.local

    @property
    def embedders(self) -> Embedders:
        """Return all embedders that are configured; each generation is asked in its own model."""
        return Embedders(self.embedder, self.local, self.gemini)

    def by_name(self) -> dict[str, Block]:
        """Return the blocks by the names under which flows load them."""
        named = {
            SOURCE: self.source,
            VECTORS: self.vectors,
            SHARDS: self.shards,
            BACKUPS: self.backups,
            LOCAL: self.local,
            MONITOR: self.monitor,
            GEMINI: self.gemini,
            ALERTS: self.alerts,
        }
        return {name: block for name, block in named.items() if block is not None}


def make_blocks(settings: Settings, *, embedded_uri: str | None = None) -> PipelineBlocks:
    """Return the blocks that the settings describe. ``embedded_uri`` serves where no URI is set."""
    source_uri = settings.cryptique_source_uri or SecretStr(embedded_uri or "mongodb://127.0.0.1")
    return PipelineBlocks(
        source=MongoSource(
            uri=source_uri, database=settings.cryptique_source_database, pseudonym_key=_find_pseudonym_key(settings)
        ),
        vectors=VectorStore(
            uri=settings.cryptique_vectors_uri or source_uri,
            database=settings.vectors_database,
            embedder=settings.embedder,
            vector_form=settings.cryptique_vector_form,
        ),
        shards=_shards(settings),
        backups=_backups(settings),
        local=LocalEmbedder(),
        monitor=Monitor(
            folder=settings.home.resolve(),
            logs=settings.logs_folder,
            limits=settings.limits,
            public_url=settings.cryptique_public_url,
            pool=POOL,
        ),
        gemini=None if settings.gemini_api_key is None else _gemini(settings, settings.gemini_api_key),
        alerts=None
        if settings.slack_webhook_url is None
        else SlackNotifier(
            url=settings.slack_webhook_url,
            kind=settings.cryptique_alert_webhook_kind,
            allow_private=settings.allows_private_webhook,
        ),
    )


_PSEUDONYM_KEY = "pseudonym.key"


def _find_pseudonym_key(settings: Settings) -> SecretStr | None:
    """Return the key that is set, or else the one that was made here before, or None."""
    if settings.cryptique_pseudonym_key is not None:
        return settings.cryptique_pseudonym_key
    try:
        return SecretStr((settings.cryptique_home / _PSEUDONYM_KEY).read_text().strip())
    except FileNotFoundError:
        return None


def _make_pseudonym_key(settings: Settings) -> None:
    """Make a random key where none is set and none was made; of several processes one does."""
    if _find_pseudonym_key(settings) is not None:
        return
    protect_home(settings.cryptique_home)
    path = settings.cryptique_home / _PSEUDONYM_KEY
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with open(partial, "x", opener=lambda name, flags: os.open(name, flags, stat.S_IRUSR | stat.S_IWUSR)) as file:
            file.write(secrets.token_hex(16))
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _shards(settings: Settings) -> ShardStore:
    place = settings.shards_bucket
    return ShardStore(
        folder=settings.shards_folder,
        shared=settings.shared_shards,
        bucket=None if place is None else _bucket(settings, place),
        docs=settings.home / "quality",
    )


def _backups(settings: Settings) -> BackupStore:
    place = settings.backups_bucket
    bucket = None
    if place is not None:
        bucket = _bucket(
            settings,
            place,
            storage_class=settings.cryptique_backup_storage_class,
            encryption=settings.cryptique_backup_encryption,
            # one without the other is a problem that the settings tell
            kms_key_id=settings.cryptique_backup_kms_key if _has_key_service(settings) else None,
        )
    return BackupStore(
        bucket=bucket,
        folder=settings.backups_folder,
        mounted=settings.mounted_backups is not None,
        recipients=settings.backup_recipients,
        identities=settings.backup_identities,
        keep_daily=settings.cryptique_backup_keep_daily,
        keep_weekly_days=settings.cryptique_backup_keep_weekly_days,
        keep_monthly=settings.cryptique_backup_keep_monthly,
        drill_uri=settings.cryptique_drill_uri,
    )


def _has_key_service(settings: Settings) -> bool:
    return settings.cryptique_backup_encryption in ("aws:kms", "aws:kms:dsse")


def _bucket(settings: Settings, place: tuple[str, str], **chosen: Any) -> S3Bucket:
    keys = (settings.cryptique_s3_access_key, settings.cryptique_s3_secret_key)
    if None in keys:  # one alone is a problem that the settings tell
        keys = (None, None)
    return S3Bucket(
        bucket=place[0],
        prefix=place[1],
        endpoint=settings.s3_endpoint,
        region=settings.cryptique_s3_region,
        access_key=keys[0],
        secret_key=keys[1],
        **chosen,
    )


def _gemini(settings: Settings, api_key: SecretStr) -> GeminiEmbedder:
    return GeminiEmbedder(
        api_key=api_key,
        base_url=settings.gemini_base_url,
        model=settings.cryptique_gemini_model,
        dimensions=settings.cryptique_gemini_dimensions,
        client=settings.cryptique_gemini_client,
        texts_per_minute=settings.cryptique_gemini_texts_per_minute or None,
        tokens_per_minute=settings.cryptique_gemini_tokens_per_minute or None,
        texts_per_day=settings.cryptique_gemini_texts_per_day,
        usd_per_day=settings.cryptique_gemini_usd_per_day,
        concurrency=settings.cryptique_gemini_concurrency,
        batch_texts_per_job=settings.cryptique_gemini_batch_texts,
        batch_tokens_per_job=settings.cryptique_gemini_batch_tokens,
    )


def register_blocks(settings: Settings, *, embedded_uri: str | None = None) -> list[str]:
    """Save the blocks, encrypted, and Gemini's quota as limits, with the Prefect server in use; return all names.

    A second call overwrites.
    """
    _make_pseudonym_key(settings)
    blocks = make_blocks(settings, embedded_uri=embedded_uri)
    # Before the block that needs them: a run that starts meanwhile finds both.
    limits = [] if blocks.gemini is None else make_limits(Quota.of(blocks.gemini.facts))
    saved = []
    for name, block in blocks.by_name().items():
        block.save(name, overwrite=True, _sync=True)  # type: ignore[call-arg]
        saved.append(f"{block.get_block_type_slug()}/{name}")
    audit("configuration_registered", f"blocks were saved: {', '.join(saved)}", blocks=", ".join(saved))
    return saved + [f"global-concurrency-limit/{name}" for name in limits]


def protect_home(home: Path) -> None:
    """Make the home folder readable by its owner only: it holds block secrets' key and records' excerpts."""
    home.mkdir(parents=True, exist_ok=True)
    os.chmod(home, stat.S_IRWXU)
