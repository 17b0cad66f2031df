"""Search over migrated rows: nobody sees another team's, and the answer is the exact one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from pymongo import MongoClient

from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from deployments.register_blocks import make_blocks
from tasks.domain.errors import TerminalError
from tasks.domain.retrieval.tenants import Tenant
from tasks.retrieve import Hit, search
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, open_pipeline, repeated, vector_of
from tests.loopback.gemini import LoopbackGemini

QUESTIONS = ["failed swaps on a router", "who claimed rewards from staking", "NFT mints"]
#: Scores are float32 and rounded to six digits.
CLOSE = 3e-6


class Filled:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        store = make_blocks(pipeline.settings).vectors
        assert isinstance(store, VectorStore)
        self.vectors = store
        self.embedder = LocalEmbedder()
        self.documents = pipeline.documents()

    def search(self, questions: list[str], tenant: Tenant, limit: int) -> list[list[Hit]]:
        return search(questions, tenant, limit=limit, vectors=self.vectors, embedder=self.embedder)

    def scores(self, question: str) -> dict[str, float]:
        """Return the cosine of every stored document with the question, by brute force."""
        asked = self.embedder.embed_query(question).astype(np.float64)
        return {key: float(vector_of(row).astype(np.float64) @ asked) for key, row in self.documents.items()}


@pytest.fixture(scope="module")
def filled(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Filled]:
    """2,000 real rows, and forty times the same text under ids in no order."""
    row = source_data.transactions[0]
    twins = [
        repeated(row, 1 + number, tx_hash=f"0x{(number * 7919) % 40:064x}", method_name="unheardOfMethod")
        for number in range(40)
    ]
    with open_pipeline(mongo_uri, mongo_client, tmp_path_factory.mktemp("search")) as pipeline:
        pipeline.load(source_data, [*source_data.some(2_000), *twins])
        pipeline.migrate()
        opened = Filled(pipeline)
        yield opened
        opened.vectors.close()


def tenants(data: SourceData) -> dict[Any, list[str]]:
    sites: dict[Any, list[str]] = {team["_id"]: [] for team in data.teams}
    for site in data.websites:
        sites[site["team"]].append(site["siteId"])
    return sites


def test_the_answer_is_the_one_that_comparing_every_vector_gives(filled: Filled) -> None:
    for limit in (1, 10, 50):
        for question, hits in zip(QUESTIONS, filled.search(QUESTIONS, Tenant(None), limit), strict=True):
            exact = filled.scores(question)
            best = sorted(exact.values(), reverse=True)[:limit]
            assert len(hits) == limit
            assert np.allclose([hit.score for hit in hits], best, atol=CLOSE)
            assert np.allclose([exact[hit.document_id] for hit in hits], [hit.score for hit in hits], atol=CLOSE)
            assert len({hit.document_id for hit in hits}) == limit


def test_a_hit_says_what_its_document_holds(filled: Filled) -> None:
    ((hit, *_),) = filled.search(["a swap"], Tenant(None), 5)
    row = filled.documents[hit.document_id]
    assert (hit.source_type, hit.source_id) == (row["sourceType"], str(row["sourceId"]))
    assert (hit.content, hit.metadata) == (row["content"], row["metadata"])


def test_more_hits_than_there_are_documents_are_all_documents(filled: Filled) -> None:
    (hits,) = filled.search(["anything"], Tenant(None), 5_000)
    assert {hit.document_id for hit in hits} == filled.documents.keys()


def test_equal_texts_rank_by_their_document_ids_however_many_they_are(filled: Filled) -> None:
    tied = sorted(key for key, row in filled.documents.items() if "unheard of method" in row["content"])
    assert len(tied) == 40
    question = filled.documents[tied[0]]["content"]
    for limit in (1, 5, 39, 40):
        (hits,) = filled.search([question], Tenant(None), limit)
        assert [hit.document_id for hit in hits] == tied[:limit]


def test_a_team_sees_all_of_its_own_documents_and_none_of_another_team(filled: Filled, source_data: SourceData) -> None:
    for team in source_data.teams:
        own = {key for key, row in filled.documents.items() if row["teamId"] == team["_id"]}
        (hits,) = filled.search(["tokens"], Tenant(str(team["_id"])), 5_000)
        assert {hit.document_id for hit in hits} == own
    # The filter comes before the ranking: a team's few documents fill its answer, whoever else has better ones.
    by_team = Counter(row["teamId"] for row in filled.documents.values())
    smallest = min(by_team, key=lambda team: by_team[team])
    (hits,) = filled.search([QUESTIONS[0]], Tenant(str(smallest)), 5)
    assert len(hits) == min(5, by_team[smallest])


def test_a_site_sees_its_own_documents_and_those_of_its_team_that_have_no_single_site(
    filled: Filled, source_data: SourceData
) -> None:
    sites = tenants(source_data)
    several = next(team for team, of_team in sites.items() if len(of_team) == 2)
    single = next(team for team, of_team in sites.items() if len(of_team) == 1)
    vectors = filled.pipeline.store["vectordocuments"]
    of_several = sorted(key for key, row in filled.documents.items() if row["teamId"] == several)
    first, second = sites[several]
    # The transactions of a team with two sites have its scope; one document of each site stands beside them.
    vectors.update_one({"documentId": of_several[0]}, {"$set": {"siteId": first}})
    vectors.update_one({"documentId": of_several[1]}, {"$set": {"siteId": second}})
    try:
        (seen,) = filled.search(["tokens"], Tenant(str(several), first), 5_000)
        assert {hit.document_id for hit in seen} == {*of_several} - {of_several[1]}
        (seen,) = filled.search(["tokens"], Tenant(str(several), second), 5_000)
        assert {hit.document_id for hit in seen} == {*of_several} - {of_several[0]}
    finally:
        for key in of_several[:2]:
            vectors.update_one({"documentId": key}, {"$set": {"siteId": f"team:{several}"}})
    own = {key for key, row in filled.documents.items() if row["teamId"] == single}
    (seen,) = filled.search(["tokens"], Tenant(str(single), sites[single][0]), 5_000)
    assert {hit.document_id for hit in seen} == own
    # Another team's site opens nothing, not even the scope of the team that asks for it.
    (seen,) = filled.search(["tokens"], Tenant(str(single), first), 5_000)
    assert seen == []


def test_a_team_without_documents_gets_no_hits(filled: Filled) -> None:
    assert filled.search(["a", "b"], Tenant(str(ObjectId())), 10) == [[], []]


def test_archived_documents_are_not_found(filled: Filled) -> None:
    question = filled.documents[min(filled.documents)]["content"]
    (before,) = filled.search([question], Tenant(None), 1)
    vectors = filled.pipeline.store["vectordocuments"]
    vectors.update_one({"documentId": before[0].document_id}, {"$set": {"status": "archived"}})
    try:
        (after,) = filled.search([question], Tenant(None), 10)
        assert before[0].document_id not in {hit.document_id for hit in after}
    finally:
        vectors.update_one({"documentId": before[0].document_id}, {"$set": {"status": "active"}})


def test_a_question_in_the_vectors_of_another_model_is_refused_with_what_to_do(filled: Filled) -> None:
    with LoopbackGemini() as server:
        settings = filled.pipeline.make_settings(gemini_api_key=server.api_key, gemini_base_url=server.url)
        other = make_blocks(settings).gemini
        with pytest.raises(TerminalError, match=r"the store's vectors are of wordllama.*CRYPTIQUE_EMBEDDER"):
            search(["a"], Tenant(None), limit=1, vectors=filled.vectors, embedder=other)  # type: ignore[arg-type]
        assert server.request_count == 0
