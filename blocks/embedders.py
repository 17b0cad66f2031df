"""Embedders: which one makes a generation's vectors, and asks its questions."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from blocks.gemini import GeminiEmbedder
from blocks.vector_store import VectorStore
from blocks.wordllama import MODEL, LocalEmbedder
from tasks.domain.errors import InputError, TerminalError
from tasks.domain.generations import EmbedderName, Generation
from tasks.domain.vectors import Embedder

_Configured = GeminiEmbedder | LocalEmbedder


def embedder_of(model: str) -> EmbedderName:
    """Return which embedder makes vectors of a model."""
    return "local" if model == MODEL else "gemini"


def fitted(embedder: _Configured, generation: Generation) -> _Configured:
    """Return the embedder with a generation's model and dimensions; key, quotas and connections are the same.

    Raises ``TerminalError`` where it can't make such vectors.
    """
    if _makes(embedder, generation):
        return embedder
    wanted: dict[str, object] = {"dimensions": generation.dimensions}
    if isinstance(embedder, GeminiEmbedder):
        wanted["model"] = generation.model
    copy = embedder.model_copy(update=wanted)
    if not _makes(copy, generation) or not _is_allowed(embedder, wanted):
        raise TerminalError(
            f"the generation {generation.name} is of {generation.made_by}, task {generation.task}, which the "
            f"{generation.embedder} embedder of this version doesn't make: it has {embedder.facts.model}, task "
            f"{embedder.facts.task}. Switch to another generation, or go back to the version that built it"
        )
    return copy


def chosen(embedder: _Configured, *, model: str | None, dimensions: int | None) -> _Configured:
    """Return the embedder with another model or other dimensions, or raise ``InputError`` if it has none such."""
    wanted = {"model": model, "dimensions": dimensions}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if isinstance(embedder, LocalEmbedder) and changes.pop("model", MODEL) != MODEL:
        raise InputError(f"the offline embedder has one model, {MODEL}: for {model} choose the embedder gemini")
    if not _is_allowed(embedder, changes):
        raise InputError(
            f"the embedder has no {' with '.join(str(value) for value in changes.values())} dimensions: "
            + ("it makes 64, 128 or 256" if isinstance(embedder, LocalEmbedder) else "look at Gemini's models")
        )
    return embedder.model_copy(update=changes)


class Embedders:
    """The embedders that the settings configure; each generation is asked in its own model."""

    def __init__(self, *configured: Embedder | None) -> None:
        self._configured = [embedder for embedder in configured if embedder is not None]

    def of(self, vectors: VectorStore) -> Embedder:
        """Return the embedder of a store's generation.

        In a store that never had another generation it is the first that was given. Raises ``TerminalError`` where
        the generation's vectors are of an embedder that is not configured, or of a model that it doesn't have.
        """
        generation = vectors.describe_generation()
        if generation is None:
            vectors.require_model(self._configured[0].facts, replace=False, write=False)
            return self._configured[0]
        wanted: type[_Configured] = LocalEmbedder if generation.embedder == "local" else GeminiEmbedder
        for embedder in self._configured:
            if _makes(embedder, generation):
                return embedder
            if isinstance(embedder, wanted):
                return fitted(embedder, generation)
        raise TerminalError(
            f"the generation {generation.name} is of {generation.made_by}, and only an embedder of that model can ask "
            f"it: set GEMINI_API_KEY{'' if generation.embedder == 'gemini' else ' or CRYPTIQUE_EMBEDDER=local'}, or "
            "switch to another generation"
        )


def _makes(embedder: Embedder, generation: Generation) -> bool:
    facts = embedder.facts
    return (facts.model, facts.dimensions, facts.task) == (generation.model, generation.dimensions, generation.task)


def _is_allowed(embedder: _Configured, changes: Mapping[str, object]) -> bool:
    """Return whether a block may have such fields; a copy of one is not checked."""
    given = {name: getattr(embedder, name) for name in type(embedder).model_fields}
    try:
        type(embedder)(**{**given, **changes})
    except ValidationError:
        return False
    return True
