"""Embedders: a generation is filled and asked by its own model, whatever is configured now, or clearly not at all."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from blocks.embedders import Embedders, chosen, embedder_of, fitted
from blocks.gemini import GeminiEmbedder
from blocks.vector_store import VectorStore
from blocks.wordllama import MODEL, LocalEmbedder
from tasks.domain.errors import InputError, TerminalError
from tasks.domain.generations import Generation

GEMINI = GeminiEmbedder(api_key=SecretStr("planted"), texts_per_minute=77)
LOCAL = LocalEmbedder()
STORE = VectorStore(uri=SecretStr("mongodb://127.0.0.1:9"), database="somewhere", embedder="local")


def of_gemini(**changes: Any) -> Generation:
    fields: dict[str, Any] = {"model": "gemini-embedding-2", "dimensions": 768, "task": "RETRIEVAL_DOCUMENT"}
    return Generation(**{"name": "next", "embedder": "gemini", "form": "float32", **fields, **changes})


def of_local(dimensions: int, **changes: Any) -> Generation:
    return of_gemini(embedder="local", **{"model": MODEL, "dimensions": dimensions, "task": "none", **changes})


def test_an_embedder_is_fitted_to_a_generation_and_keeps_key_quota_and_connections() -> None:
    made = fitted(GEMINI, of_gemini())
    assert (made.facts.model, made.facts.dimensions) == ("gemini-embedding-2", 768)
    assert isinstance(made, GeminiEmbedder)
    assert (made.api_key, made.facts.texts_per_minute) == (GEMINI.api_key, 77)
    assert made._rest is GEMINI._rest
    assert made.facts.usd_per_million_tokens != GEMINI.facts.usd_per_million_tokens
    assert GEMINI.facts.dimensions == 1_536
    assert fitted(LOCAL, of_local(64)).facts.dimensions == 64


def test_one_that_makes_such_vectors_already_is_taken_as_it_is() -> None:
    assert fitted(LOCAL, of_local(256)) is LOCAL
    assert fitted(GEMINI, of_gemini(model="gemini-embedding-001", dimensions=1_536)) is GEMINI


@pytest.mark.parametrize(
    ("embedder", "generation"),
    [
        (LOCAL, of_local(65)),
        (LOCAL, of_local(256, model="wordllama of another version")),
        (GEMINI, of_gemini(task="CLUSTERING")),
        (GEMINI, of_gemini(dimensions=5_000)),
    ],
)
def test_what_no_embedder_makes_is_refused_with_what_to_do(embedder: Any, generation: Generation) -> None:
    with pytest.raises(TerminalError, match=r"generation next is of .*Switch to another generation"):
        fitted(embedder, generation)


def test_a_choice_that_an_embedder_does_not_have_is_a_wrong_input() -> None:
    assert chosen(GEMINI, model="gemini-embedding-2", dimensions=None).facts.model == "gemini-embedding-2"
    assert chosen(LOCAL, model=None, dimensions=128).facts.dimensions == 128
    assert chosen(LOCAL, model=None, dimensions=None).facts == LOCAL.facts
    with pytest.raises(InputError, match="64, 128 or 256"):
        chosen(LOCAL, model=None, dimensions=100)
    with pytest.raises(InputError, match="choose the embedder gemini"):
        chosen(LOCAL, model="gemini-embedding-2", dimensions=None)
    with pytest.raises(InputError, match="no 4000 dimensions"):
        chosen(GEMINI, model=None, dimensions=4_000)


def test_a_model_says_whose_it_is() -> None:
    assert (embedder_of(MODEL), embedder_of("gemini-embedding-2")) == ("local", "gemini")


def test_each_generation_is_asked_by_the_embedder_that_has_its_model() -> None:
    embedders = Embedders(LOCAL, None, GEMINI)
    assert embedders.of(STORE.at(of_local(64))).facts.dimensions == 64
    assert embedders.of(STORE.at(of_gemini())).facts.model == "gemini-embedding-2"
    assert embedders.of(STORE.at(of_local(256))) is LOCAL


def test_without_its_embedder_a_generation_can_not_be_asked_and_the_setting_is_named() -> None:
    with pytest.raises(TerminalError, match=r"next is of gemini-embedding-2.*set GEMINI_API_KEY"):
        Embedders(LOCAL).of(STORE.at(of_gemini()))
