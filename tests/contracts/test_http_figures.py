"""Questions for figures over HTTP: exact, cited, counted where no document holds them, refused where nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from tests.contracts.test_http_contract import require_answer
from tests.golden import make_golden
from tests.loopback.gemini import LoopbackGemini
from tests.questions.documents import aggregate_documents, row_documents, stored_of
from tests.rag import RagService, Row, running_rag

KEY = "loopback-key"
TEAM, OTHER = "Aurora Markets", "Quillon Finance"


class Told:
    """The documents of two teams of a small golden set, and who they are."""

    def __init__(self) -> None:
        golden = make_golden(transactions=120, sessions=1_500)
        self.golden = golden
        self.teams = {one["name"]: str(one["_id"]) for one in golden.records["teams"]}
        self.sites = {str(one.get("Domain")): one["siteId"] for one in golden.records["websites"] if one.get("siteId")}
        documents = [*row_documents(golden), *aggregate_documents(golden, "UTC", lambda _, one: one.level != "week")]
        mine = {self.teams[TEAM], self.teams[OTHER]}
        self.rows: list[Row] = [
            {"_id": ObjectId(), **row} for row in stored_of(documents) if str(row["teamId"]) in mine
        ]


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def gemini() -> Iterator[LoopbackGemini]:
    with LoopbackGemini(api_key=KEY, models=("gemini-2.5-flash",)) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    mongo_uri: str,
    mongo_client: MongoClient[Row],
    tmp_path_factory: pytest.TempPathFactory,
    told: Told,
    gemini: LoopbackGemini,
) -> Iterator[RagService]:
    database = mongo_client["test_http_figures"]
    database["teams"].insert_many(told.golden.records["teams"])
    database["websites"].insert_many(told.golden.records["websites"])
    chosen = {"gemini_api_key": KEY, "gemini_base_url": gemini.url}
    try:
        with running_rag(mongo_uri, database, tmp_path_factory.mktemp("rag"), told.rows, **chosen) as running:
            yield running
    finally:
        mongo_client.drop_database("test_http_figures")


@pytest.fixture(autouse=True)
def _a_writer_that_knows_nothing(gemini: LoopbackGemini) -> None:
    gemini.writer = lambda _: "NOT_KNOWN"
    gemini.prompts.clear()


def ask(service: RagService, told: Told, query: str, *, site: str = "aurora-swap.example", team: str = TEAM) -> Any:
    body = {"query": query, "siteId": told.sites[site]}
    return service.post("/api/rag/generate", body, team=told.teams[team]).json()


def figures_of(told: Told, label: str, topic: str = "visits") -> Row:
    (facts,) = (
        row["metadata"]["facts"]
        for row in told.rows
        if row["siteId"] == told.sites["aurora-swap.example"]
        and (facts := row["metadata"].get("facts", {})).get("topic") == topic
        and facts["label"] == label
        and facts["scope"] == "site"
    )
    found: Row = facts["figures"]
    return found


def test_a_figure_is_that_of_its_document_which_is_cited_and_no_model_is_asked(
    service: RagService, told: Told, gemini: LoopbackGemini
) -> None:
    answer = ask(service, told, "How many sessions and visitors were there in May 2024?")
    assert gemini.prompts == []
    assert answer["success"] is True
    assert answer["metadata"]["model"] == "figures"
    assert answer["metadata"]["tokensUsed"] == 0
    wanted = figures_of(told, "2024-05")
    said = {one["name"]: one for one in answer["figures"]}
    assert {name: said[name]["value"] for name in ("sessions", "visitors")} == {
        "sessions": wanted["sessions"],
        "visitors": wanted["visitors"],
    }
    assert {one["window"] for one in answer["figures"]} == {"May 2024"}
    (cited,) = answer["citations"]
    assert said["sessions"]["citations"] == [cited["number"]] == [1]
    assert cited["metadata"]["facts"]["figures"]["sessions"] == wanted["sessions"]
    assert "May 2024" in cited["content"]
    assert "[1]" in answer["content"]


def test_what_no_document_holds_is_counted_from_the_records(service: RagService, told: Told) -> None:
    answer = ask(service, told, "How many sessions were there from May to July 2024?")
    months = [figures_of(told, f"2024-0{month}")["sessions"] for month in (5, 6, 7)]
    (sessions,) = (one["value"] for one in answer["figures"] if one["name"] == "sessions")
    assert sessions == sum(months) == answer["metadata"]["recordsCounted"] > 0
    assert all(one["sourceType"] == "session" for one in answer["citations"])


@pytest.mark.parametrize(
    "query",
    [
        "How many visitors will there be next month?",
        "How many visitors did Nimbus Swap have?",
        "How many visitors were there in March 2019?",
        "How many sessions did Quillon have in May 2024?",
    ],
)
def test_what_can_t_be_known_is_refused_with_what_would_be_needed(service: RagService, told: Told, query: str) -> None:
    answer = ask(service, told, query)
    assert answer["success"] is False
    assert answer["refused"]["reason"]
    assert answer["refused"]["needed"] in answer["error"]
    assert answer["citations"] == answer["sources"] == []


def test_a_team_gets_the_figures_of_its_own_alone(service: RagService, told: Told) -> None:
    mine = ask(service, told, "How many sessions were there in May 2024?")
    theirs = ask(service, told, "How many sessions were there in May 2024?", site="quillon.example", team=OTHER)
    assert mine["figures"][0]["subject"] != theirs["figures"][0]["subject"]
    for answer, team in ((mine, TEAM), (theirs, OTHER)):
        rows = {row["documentId"]: row for row in told.rows}
        assert {str(rows[one["documentId"]]["teamId"]) for one in answer["citations"]} == {told.teams[team]}


def overview(service: RagService, told: Told, query: str, **more: Any) -> Any:
    body = {"query": query, "siteId": told.sites["aurora-swap.example"], "teamId": told.teams[OTHER], **more}
    return service.post("/api/ai/query", body, team=told.teams[TEAM]).json()


def test_an_overview_shows_the_figures_of_a_month_and_how_they_changed(
    service: RagService, told: Told, gemini: LoopbackGemini
) -> None:
    wanted = figures_of(told, "2024-05")
    seen = f"There were {wanted['sessions']} sessions"
    gemini.writer = lambda _: f"{seen} [1]."
    answer = overview(service, told, "How was the traffic?", timeframe="May 2024")
    assert answer["success"] is True
    assert answer["data"].keys() >= {"metrics", "visualizations", "tables", "insights"}
    assert answer["insights"][-1] == f"{seen}."
    shown = {one["title"]: one["value"] for one in answer["metrics"]}
    assert (shown["Sessions"], shown["Visitors"]) == (wanted["sessions"], wanted["visitors"])
    series = answer["visualizations"][0]
    assert series["type"] == "multiLine"
    assert sum(one["sessions"] for one in series["data"]) == wanted["sessions"]
    (pages,) = (one for one in answer["tables"] if one["title"] == "Top pages")
    assert [column["key"] for column in pages["columns"]] == ["page", "views"]
    assert [list(row.values()) for row in pages["data"]] == [list(one.values()) for one in wanted["topPages"]]
    assert {one["sourceType"] for one in answer["citations"]} == {"analytics"}


@pytest.mark.parametrize(
    ("query", "titles", "kinds"),
    [
        ("Where do we stand?", {"Sessions", "Transactions"}, {"multiLine", "multiBar", "pie"}),
        ("Show the conversion funnel", {"Visitors", "Wallets that transacted"}, {"composed"}),
        ("How did our campaigns do?", {"Campaigns"}, {"composed", "scatter"}),
        ("How much was staked in our contracts?", {"Staking calls"}, {"area"}),
    ],
)
def test_an_overview_shows_what_the_question_is_about(
    service: RagService, told: Told, query: str, titles: set[str], kinds: set[str]
) -> None:
    answer = overview(service, told, query, timeframe="all")
    assert {one["title"] for one in answer["metrics"]} >= titles
    assert {one["type"] for one in answer["visualizations"]} >= kinds
    known = {row["documentId"]: str(row["teamId"]) for row in told.rows}
    assert {known[one["documentId"]] for one in answer["citations"]} == {told.teams[TEAM]}


def test_what_a_model_says_beside_the_figures_is_not_shown(
    service: RagService, told: Told, gemini: LoopbackGemini
) -> None:
    gemini.writer = lambda _: "There were 987654 sessions [1]."
    answer = overview(service, told, "How was the traffic?", timeframe="2024-05")
    assert answer["metrics"]
    assert "987654" not in str(answer)


def test_a_time_without_records_shows_nothing_and_says_so(service: RagService, told: Told) -> None:
    answer = overview(service, told, "How was the traffic?", timeframe="7d")
    assert answer["success"] is False
    assert "nothing is recorded" in answer["error"].lower()
    wrong = overview(service, told, "How was the traffic?", timeframe="a while")
    assert wrong["success"] is False
    assert "30d" in wrong["error"]


def test_answers_with_figures_are_as_the_published_schema_says(service: RagService, told: Told) -> None:
    schema = service.client.get("/api/openapi.json").json()
    kinds = set()
    for query in ("How many sessions and visitors were there in May 2024?", "What will the visitors be next year?"):
        answer = ask(service, told, query)
        require_answer(schema, "/api/rag/generate", answer)
        kinds |= {kind for kind in ("figures", "refused") if kind in answer["data"]}
    assert kinds == {"figures", "refused"}
    body = {"query": "How did the site do?", "siteId": told.sites["aurora-swap.example"], "timeframe": "all"}
    overview = service.post("/api/ai/query", body, team=told.teams[TEAM]).json()
    require_answer(schema, "/api/ai/query", overview)
    assert overview["metrics"]
    assert overview["visualizations"]
