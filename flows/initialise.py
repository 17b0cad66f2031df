"""Initialise: collections, validators and indexes of the store, and what differs from the design."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from blocks.vector_store import Drift
from flows.blocks import load_embedder, load_vectors


@flow(name="initialise", flow_run_name="initialise the vector store")
def initialise() -> State[dict[str, Any]]:
    """Make the store's collections, validators and indexes; report drift.

    Runs before the first migration and after every upgrade. A rerun makes what is missing and changes nothing
    that is there: an index or validator that differs is reported, and a person decides. The result has the keys
    ``created``, ``differs`` and ``notes``.
    """
    logger = get_run_logger()
    vectors = load_vectors().at()
    drift = vectors.initialise(load_embedder(vectors).facts.dimensions)
    for line in drift.created:
        logger.info("made %s", line)
    for line in drift.notes:
        logger.info("%s", line)
    for line in drift.differs:
        logger.warning("drift: %s", line)
    create_markdown_artifact(_as_markdown(drift), key="store-drift", description="What initialise made and found")
    message = f"{len(drift.created)} made, {len(drift.differs)} differ"
    return Completed(message=message, data=asdict(drift))


def _as_markdown(drift: Drift) -> str:
    parts = []
    for title, lines in (
        ("Made", drift.created),
        ("Differs, left as it is", drift.differs),
        ("Notes", drift.notes),
    ):
        parts.append(f"## {title}\n" + ("\n".join(f"- {line}" for line in lines) or "nothing"))
    return "\n\n".join(parts)
