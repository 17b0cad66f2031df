"""The local embedder: the promise of an embedder, kept without a network."""

from __future__ import annotations

import copy
import logging
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Never

import numpy as np
import pytest

from blocks.wordllama import LocalEmbedder, _load_model
from tasks.domain.errors import RecordError
from tasks.domain.vectors import Embedder

TEXTS = ["a swap of two tokens", "a transfer to a cold wallet", "🦊🔥", "שלום עולם", "مرحبا", "转账"]


def test_rows_are_float32_of_length_one_in_the_order_of_the_texts() -> None:
    embedder = LocalEmbedder()
    rows = embedder.embed_documents(TEXTS)
    assert rows.dtype == np.float32
    assert rows.shape == (len(TEXTS), 256)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    backwards = embedder.embed_documents(TEXTS[::-1])
    assert np.allclose(backwards[::-1], rows, atol=1e-6)
    assert np.unique(rows.round(4), axis=0).shape == rows.shape


def test_a_text_has_the_same_vector_alone_and_beside_a_very_long_one() -> None:
    embedder = LocalEmbedder()
    together = embedder.embed_documents(["a transfer", "word " * 20_000, "a swap"])
    assert np.allclose(together[0], embedder.embed_query("a transfer"), atol=1e-6)
    assert np.allclose(together[2], embedder.embed_query("a swap"), atol=1e-6)


def test_a_question_finds_the_text_that_answers_it() -> None:
    embedder = LocalEmbedder()
    rows = embedder.embed_documents(TEXTS[:2])
    assert int((rows @ embedder.embed_query("which token was swapped?")).argmax()) == 0


@pytest.mark.parametrize("dimensions", [64, 128])
def test_fewer_dimensions_are_the_first_ones_at_length_one(dimensions: int) -> None:
    rows = LocalEmbedder.model_validate({"dimensions": dimensions}).embed_documents(TEXTS)
    full = LocalEmbedder().embed_documents(TEXTS)[:, :dimensions]
    assert rows.shape == (len(TEXTS), dimensions)
    assert np.allclose(rows, full / np.linalg.norm(full, axis=1, keepdims=True), atol=1e-6)


def test_it_works_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Never:
        raise AssertionError("the local embedder asked for a network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _load_model.cache_clear()
    LocalEmbedder().check()


@pytest.mark.parametrize("texts", [[""], ["a swap", "", "a transfer"]])
def test_a_text_without_a_word_is_a_record_error(texts: list[str]) -> None:
    with pytest.raises(RecordError, match="no words the model knows") as caught:
        LocalEmbedder().embed_documents(texts)
    assert caught.value.code == "embedding_refused"


def test_half_a_character_is_a_record_error() -> None:
    with pytest.raises(RecordError) as caught:
        LocalEmbedder().embed_query("half: \ud83e")
    assert caught.value.code == "embedding_refused"


def test_no_text_gives_no_row_and_too_many_are_refused() -> None:
    assert LocalEmbedder().embed_documents([]).shape == (0, 256)
    with pytest.raises(ValueError, match="1001 texts"):
        LocalEmbedder().embed_documents(["a"] * 1_001)


def test_several_threads_share_one_model() -> None:
    embedder = LocalEmbedder()
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(embedder.embed_query, TEXTS * 3))
    assert np.allclose(np.stack(results), np.tile(embedder.embed_documents(TEXTS), (3, 1)), atol=1e-6)
    assert _load_model.cache_info().currsize == 1


def test_it_keeps_the_promise_of_an_embedder_and_costs_nothing() -> None:
    embedder = copy.deepcopy(LocalEmbedder())
    assert isinstance(embedder, Embedder)
    facts = embedder.facts
    assert (facts.model, facts.dimensions, facts.task) == ("wordllama-l2-supercat-256", 256, "none")
    assert (facts.texts_per_minute, facts.tokens_per_minute, facts.usd_per_million_tokens) == (
        None,
        None,
        0.0,
    )


def test_loading_the_model_leaves_the_root_logger_as_it_was() -> None:
    program = (
        "import logging, blocks.wordllama as b; before = (logging.root.handlers[:], logging.root.level);"
        "b._load_model(); assert before == (logging.root.handlers, logging.root.level), logging.root.handlers"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert logging.getLogger("wordllama").level == logging.NOTSET
