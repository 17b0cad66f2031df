"""Everything that is wrong with the configuration, found at once and leaving nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from blocks.mongo import MongoSource
from blocks.wordllama import LocalEmbedder
from deployments.embedded import find_mongod
from deployments.register_blocks import PipelineBlocks, make_blocks
from deployments.settings import Settings, inspect_settings
from flows.blocks import PipelineEmbedder
from tasks.domain.errors import InputError, PipelineError

_NEEDED = ("transactions", "smartcontracts", "teams", "websites")
_PREFECT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at, and what was found."""

    what: str
    says: str
    problem: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def check_configuration() -> list[Finding]:
    """Return what was looked at: settings, both databases, embedder, shard files, backups, the Prefect server.

    Nothing is written, but for a small object where shard files are shared and one in the backup store, which are
    removed at once.
    """
    settings, problems = inspect_settings()
    findings = [Finding("settings", problem, problem=True) for problem in problems]
    if not problems:
        findings.append(Finding("settings", f"embedder {settings.embedder}, database {settings.vectors_database}"))
    blocks = make_blocks(settings)
    findings.extend(_check_embedded() if settings.embedded else _check_databases(blocks))
    if blocks.embedder is not None:
        findings.append(_check_embedder(blocks.embedder))
    findings.append(_look("shard files", blocks.shards.check))
    findings.append(_look("backups", blocks.backups.check))
    findings.append(_check_prefect(settings))
    return findings


def _check_embedded() -> list[Finding]:
    try:
        find_mongod()
    except PipelineError as error:
        return [Finding("embedded mongod", str(error), problem=True)]
    return [Finding("embedded mongod", "serves source and vectors; it is started when needed")]


def _check_databases(blocks: PipelineBlocks) -> list[Finding]:
    return [
        _look("source", lambda: _describe_source(blocks.source)),
        _look("vector store", lambda: _describe_store(blocks)),
    ]


def _describe_source(source: MongoSource) -> str:
    try:
        version = source.check()
        missing = source.find_missing_collections(_NEEDED)
        if missing:
            raise InputError(
                f"database {source.database} has no {', '.join(missing)}: is CRYPTIQUE_SOURCE_DATABASE right?"
            )
        return f"MongoDB {version}, {source.count('transactions'):,} transactions"
    finally:
        source.close()


def _describe_store(blocks: PipelineBlocks) -> str:
    vectors = blocks.vectors
    try:
        version = vectors.check()
        if blocks.embedder is not None:
            blocks.embedders.of(vectors)
        return f"MongoDB {version}, {vectors.full_name}"
    finally:
        vectors.close()


def _check_embedder(embedder: PipelineEmbedder) -> Finding:
    facts = embedder.facts
    kind = "offline, no cost" if isinstance(embedder, LocalEmbedder) else "answers"

    def describe() -> str:
        embedder.check()
        return f"{facts.model}, {facts.dimensions} dimensions: {kind}"

    return _look("embedder", describe)


def _look(what: str, describe: Callable[[], str]) -> Finding:
    try:
        return Finding(what, describe())
    except PipelineError as error:
        return Finding(what, str(error), problem=True)


def _check_prefect(settings: Settings) -> Finding:
    if settings.prefect_api_url is None:
        return Finding("Prefect server", "none named: a local one is started when needed")
    try:
        answer = httpx.get(f"{settings.prefect_api_url}/health", timeout=_PREFECT_TIMEOUT_S)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return Finding(
            "Prefect server",
            f"PREFECT_API_URL does not answer ({type(error).__name__}): start the server, or unset it for a local one",
            problem=True,
        )
    return Finding("Prefect server", "answers")
