"""Answers in words over HTTP: who writes them, what is checked, what they cost, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from tests.builders import OTHER_TEAM_ID, SITE_ID
from tests.loopback.gemini import LoopbackGemini
from tests.rag import RagService, Row, put_owners, rows_of, running_rag, transfers

GENERATE = "/api/rag/generate"
KEY = "loopback-key"


@pytest.fixture(scope="module")
def gemini() -> Iterator[LoopbackGemini]:
    with LoopbackGemini(api_key=KEY, models=("gemini-2.5-flash",)) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory, gemini: LoopbackGemini
) -> Iterator[RagService]:
    database = mongo_client["test_http_generate"]
    put_owners(database)
    chosen = {
        "gemini_api_key": KEY,
        "gemini_base_url": gemini.url,
        "cryptique_gemini_usd_per_day": 0.05,
        "cryptique_gemini_chat_seconds": 5,
    }
    try:
        with running_rag(
            mongo_uri, database, tmp_path_factory.mktemp("rag"), rows_of(transfers(7)), **chosen
        ) as running:
            yield running
    finally:
        mongo_client.drop_database("test_http_generate")


@pytest.fixture(autouse=True)
def _a_fresh_writer(gemini: LoopbackGemini, service: RagService) -> None:
    gemini.writer, gemini.faults = first_sentence, ()
    gemini.prompts.clear()
    service.parts.vectors.open_database()["ragstore"].delete_many({"nanoUsd": {"$exists": True}})


def documents_of(request: Any) -> list[Any]:
    found: list[Any] = json.loads(request["contents"][0]["parts"][0]["text"])["documents"]
    return found


def first_sentence(request: Any) -> str:
    first = documents_of(request)[0]
    return f"{first['text'].split('. ')[0]} [{first['n']}]."


def ask(service: RagService, **more: Any) -> Any:
    return service.post(GENERATE, {"query": "USDT transfers of more than 30", "siteId": SITE_ID, **more})


def test_the_model_writes_from_the_documents_and_the_answer_cites_them(
    service: RagService, gemini: LoopbackGemini
) -> None:
    answer = ask(service, contextLimit=2, maxTokens=50, temperature=0).json()
    data = answer["data"]
    assert answer["success"] is True
    assert {key: answer[key] for key in ("content", "sources", "metadata")} == {
        key: data[key] for key in ("content", "sources", "metadata")
    }
    assert data["metadata"]["model"] == "gemini-2.5-flash"
    assert data["metadata"]["contextCount"] == len(data["sources"]) == 2
    assert data["metadata"]["tokensUsed"] > 0
    assert data["content"].endswith("[1].")
    (cited,) = data["citations"]
    assert (cited["number"], cited["source"]) == (1, data["sources"][0])
    (prompt,) = gemini.prompts
    assert prompt["generationConfig"]["maxOutputTokens"] == 50
    assert len(documents_of(prompt)) == 2


@pytest.mark.parametrize("wrong", ["It was 987654 USDT [1].", "It was so [7].", "It was so.", ""])
def test_an_answer_that_does_not_rest_on_its_documents_is_never_shown(
    service: RagService, gemini: LoopbackGemini, wrong: str
) -> None:
    gemini.writer = lambda _: wrong
    data = ask(service).json()["data"]
    assert data["metadata"]["model"] == "extractive"
    assert data["metadata"]["note"]
    assert data["citations"]
    assert not wrong or wrong not in data["content"]


@pytest.mark.parametrize("fault", ["429", "500-key-echoed", "503", "401", "drop", "html"])
def test_where_the_model_fails_sentences_answer_and_no_key_is_told(
    service: RagService, gemini: LoopbackGemini, fault: str
) -> None:
    gemini.faults = lambda _: fault
    answer = ask(service)
    data = answer.json()["data"]
    assert (answer.status_code, data["metadata"]["model"]) == (200, "extractive")
    assert data["content"]
    assert KEY not in answer.text


def test_what_it_costs_counts_against_the_days_dollars_and_ends_with_them(
    service: RagService, gemini: LoopbackGemini
) -> None:
    assert ask(service, maxTokens=8_192).json()["data"]["metadata"]["model"] == "gemini-2.5-flash"
    books = service.parts.vectors.open_database()["ragstore"]
    (spent,) = books.find({"nanoUsd": {"$exists": True}})
    used = ask(service, maxTokens=10).json()["data"]["metadata"]["tokensUsed"]
    assert 0 < spent["nanoUsd"] < 2_000_000  # the 8,192 tokens that were not written are not counted
    (again,) = books.find({"nanoUsd": {"$exists": True}})
    assert again["tokens"] == spent["tokens"] + used
    books.update_one({"_id": spent["_id"]}, {"$set": {"nanoUsd": 49_999_999}})
    before = len(gemini.prompts)
    assert ask(service).json()["data"]["metadata"]["model"] == "extractive"
    assert len(gemini.prompts) == before


def test_nothing_found_and_nothing_known_are_said(service: RagService, gemini: LoopbackGemini) -> None:
    for query in (f"transaction 0x{999:064x}", "USDT transfers of more than 9000"):
        answer = service.post(GENERATE, {"query": query, "siteId": SITE_ID}).json()
        assert (answer["success"], answer["data"]["sources"], answer["content"]) == (False, [], "")
        assert answer["error"]
    assert gemini.prompts == []
    gemini.writer = lambda _: "NOT_KNOWN."
    answer = ask(service).json()
    assert (answer["success"], answer["content"]) == (False, "")


def test_another_teams_site_is_not_there_and_no_prompt_holds_its_documents(
    service: RagService, gemini: LoopbackGemini
) -> None:
    assert ask(service, siteId="site-a").status_code == 404
    other = service.post(GENERATE, {"query": "USDT transfers", "siteId": "site-a"}, team=OTHER_TEAM_ID)
    assert other.json()["success"] is False
    assert gemini.prompts == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"query": {"$ne": 1}},
        {"query": ""},
        {"contextLimit": 0},
        {"contextLimit": 21},
        {"contextLimit": "3"},
        {"maxTokens": 0},
        {"maxTokens": 8_193},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": "0"},
        {"siteId": None},
    ],
)
def test_bad_input_is_refused_in_the_contracts_words(service: RagService, wrong: Any) -> None:
    answer = ask(service, **wrong)
    assert (answer.status_code, answer.json()["success"]) == (400, False)
