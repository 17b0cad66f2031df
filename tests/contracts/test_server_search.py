"""A server's own vector search beside the index: the same answers under the same conditions, with it and without it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr
from pymongo.database import Database
from pymongo.uri_parser import parse_uri

from blocks import search_indexes, server_search
from blocks.embedders import Embedders
from blocks.search_indexes import SearchIndexes
from blocks.server_search import ServerView
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from tasks.domain.collections import VECTOR_FILTERS
from tasks.domain.retrieval.filters import AnyOf, Between, Filter, overlapping
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.vectors import Matrix
from tests.contracts.test_search_index import BEGAN, CHAINS, DIMENSIONS, TEAMS, Record, eventually, make_row
from tests.loopback.search_server import SearchServer

EMBEDDER = LocalEmbedder(dimensions=DIMENSIONS)


@pytest.fixture
def server(mongo_uri: str) -> Iterator[SearchServer]:
    host, port = parse_uri(mongo_uri)["nodelist"][0]
    with SearchServer(mongo_uri, host, port, fields=VECTOR_FILTERS, dimensions=DIMENSIONS) as running:
        yield running


@pytest.fixture
def vectors(server: SearchServer, database: Database[Record]) -> Iterator[VectorStore]:
    draw = random.Random(7)
    database["vectordocuments"].insert_many([make_row(number, draw) for number in range(400)])
    store = VectorStore(uri=SecretStr(server.uri), database=database.name, embedder="local")
    store.require_model(EMBEDDER.facts, replace=False, write=True)
    yield store
    store.close()


@pytest.fixture
def indexes(vectors: VectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchIndexes]:
    monkeypatch.setattr(server_search, "_FEW", 5)
    made = SearchIndexes(vectors, Embedders(EMBEDDER), tmp_path)
    made.open()
    yield made
    made.stop()


def asked(draw: random.Random) -> Matrix:
    vector = np.array([draw.gauss(0, 1) for _ in range(DIMENSIONS)], dtype=np.float32)
    found: Matrix = vector / np.linalg.norm(vector)
    return found


def drawn(draw: random.Random) -> tuple[Tenant, Filter]:
    tenant = draw.choice(
        [Tenant(str(draw.choice(TEAMS))), Tenant(str(draw.choice(TEAMS)), f"site-{draw.randint(0, 2)}")]
    )
    start = BEGAN.timestamp() + draw.randint(0, 20) * 86_400
    return tenant, draw.choice(
        [
            Filter(),
            overlapping(start, start + 9 * 86_400),
            Filter((AnyOf("source", ("transaction",)),)),
            Filter((AnyOf("chain", (draw.choice(CHAINS),)),)),
            Filter((AnyOf("chain", (draw.choice(CHAINS),), negated=True),), (Between("amount", 10, above=True),)),
            Filter((AnyOf("source", ("$ne", "transaction")),)),
        ]
    )


def test_the_server_s_neighbours_are_those_of_the_index_under_any_conditions(
    indexes: SearchIndexes, server: SearchServer
) -> None:
    view = indexes.live()
    assert isinstance(view, ServerView)
    draw = random.Random(11)
    for _ in range(120):
        tenant, where = drawn(draw)
        vector = asked(draw)
        plain = view.index.nearest(view.index.choose(tenant, where), vector, 10)
        found = view.nearest(view.choose(tenant, where), vector, 10)
        assert [(one.document_id, one.fold, one.row_id) for one in found] == [
            (one.document_id, one.fold, one.row_id) for one in plain
        ]
        assert [one.score for one in found] == pytest.approx([one.score for one in plain], abs=2e-6)
    assert len(server.asked) > 60
    assert all(stage["filter"]["teamId"] in TEAMS for stage in server.asked)


def test_what_was_deleted_meanwhile_is_not_named(indexes: SearchIndexes, database: Database[Record]) -> None:
    view = indexes.live()
    chosen = view.choose(Tenant(str(TEAMS[0])), Filter())
    vector = asked(random.Random(3))
    best = view.nearest(chosen, vector, 3)
    database["vectordocuments"].delete_one({"_id": best[0].row_id})
    after = view.nearest(view.choose(Tenant(str(TEAMS[0])), Filter()), vector, 3)
    assert best[0] not in after


def test_where_the_server_fails_or_its_index_is_not_ready_the_index_answers(
    indexes: SearchIndexes, server: SearchServer, vectors: VectorStore, tmp_path: Path
) -> None:
    view = indexes.live()
    assert isinstance(view, ServerView)
    chosen, vector = view.choose(Tenant(str(TEAMS[1])), Filter()), asked(random.Random(5))
    before = view.nearest(chosen, vector, 10)
    server.fails = True
    failed = view.nearest(chosen, vector, 10)
    assert [one.document_id for one in failed] == [one.document_id for one in before]
    server.queryable = False
    other = SearchIndexes(vectors, Embedders(EMBEDDER), tmp_path / "other")
    other.open()
    assert not isinstance(other.live(), ServerView)
    other.stop()


def test_a_service_takes_the_server_s_search_when_it_comes_and_leaves_it_when_it_goes(
    vectors: VectorStore, server: SearchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_indexes, "_LOOK_FOR_SEARCH_S", 0.1)
    server.queryable = False
    made = SearchIndexes(vectors, Embedders(EMBEDDER), tmp_path)
    made.start()
    try:
        assert made.wait(30)
        assert not isinstance(made.live(), ServerView)
        server.queryable = True
        eventually(lambda: isinstance(made.live(), ServerView), seconds=10, every=0.1)
        server.queryable = False
        eventually(lambda: not isinstance(made.live(), ServerView), seconds=10, every=0.1)
    finally:
        made.stop()


def test_a_plain_mongod_has_no_search_of_its_own_and_a_setting_can_leave_it_alone(
    mongo_uri: str, database: Database[Record], vectors: VectorStore, tmp_path: Path
) -> None:
    plain = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="local")
    assert plain.searches_itself() is False
    assert vectors.searches_itself() is True
    plain.close()
    made = SearchIndexes(vectors, Embedders(EMBEDDER), tmp_path, by_server=False)
    made.open()
    assert not isinstance(made.live(), ServerView)
    made.stop()
