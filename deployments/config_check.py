"""Everything that is wrong with the configuration, found at once and without writing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import httpx

from deployments.settings import Settings, load_settings
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
    """Return what was looked at: the settings, both databases, the embedder and the Prefect server."""
    try:
        settings = load_settings()
    except InputError as error:
        return [Finding("settings", problem, problem=True) for problem in str(error).split("; ")]
    findings = [Finding("settings", f"embedder {settings.embedder}, database {settings.vectors_database}")]
    findings.extend(_check_databases(settings))
    findings.append(_check_embedder(settings))
    findings.append(_check_prefect(settings))
    return findings


def _check_databases(settings: Settings) -> list[Finding]:
    from blocks.mongo import MongoSource
    from blocks.vector_store import VectorStore
    from deployments.embedded import find_mongod
    from deployments.register_blocks import make_blocks
    from flows.blocks import SOURCE, VECTORS

    if settings.embedded:
        try:
            find_mongod()
        except PipelineError as error:
            return [Finding("embedded mongod", str(error), problem=True)]
        return [Finding("embedded mongod", "serves source and vectors; it is started when needed")]
    blocks = make_blocks(settings)
    source, vectors = blocks[SOURCE], blocks[VECTORS]
    assert isinstance(source, MongoSource)
    assert isinstance(vectors, VectorStore)
    findings = []
    try:
        version = source.check()
        missing = source.find_missing_collections(_NEEDED)
        if missing:
            findings.append(
                Finding(
                    "source",
                    f"database {source.database} has no {', '.join(missing)}: is CRYPTIQUE_SOURCE_DATABASE right?",
                    problem=True,
                )
            )
        else:
            findings.append(Finding("source", f"MongoDB {version}, {source.count('transactions'):,} transactions"))
    except PipelineError as error:
        findings.append(Finding("source", str(error), problem=True))
    finally:
        source.close()
    try:
        version = vectors.check()
        vectors.require_model(_facts(settings), replace=False, write=False)
        findings.append(Finding("vector store", f"MongoDB {version}, database {vectors.database}"))
    except PipelineError as error:
        findings.append(Finding("vector store", str(error), problem=True))
    finally:
        vectors.close()
    return findings


def _facts(settings: Settings) -> Any:
    from deployments.register_blocks import make_blocks

    return make_blocks(settings)[settings.embedder].facts  # type: ignore[attr-defined]


def _check_embedder(settings: Settings) -> Finding:
    from blocks.gemini import GeminiEmbedder
    from deployments.register_blocks import make_blocks

    embedder = make_blocks(settings)[settings.embedder]
    try:
        embedder.check()  # type: ignore[attr-defined]
    except PipelineError as error:
        return Finding("embedder", str(error), problem=True)
    facts = embedder.facts  # type: ignore[attr-defined]
    kind = "answers" if isinstance(embedder, GeminiEmbedder) else "offline, no cost"
    return Finding("embedder", f"{facts.model}, {facts.dimensions} dimensions: {kind}")


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
