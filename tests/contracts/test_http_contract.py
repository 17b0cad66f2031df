"""What the service tells of itself to writers of clients, and which pages of other origins may ask it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pymongo import MongoClient

from deployments.http.answers import ANSWERS, EXAMPLES
from deployments.http.guard import HEADERS, OPEN_UNDER_API
from tests.builders import SITE_ID
from tests.rag import RagService, Row, put_owners, rows_of, running_rag, transfers

ORIGIN = "https://app.example"
RETRIEVE = "/api/rag/retrieve"


@pytest.fixture(scope="module")
def service(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RagService]:
    database = mongo_client["test_http_contract"]
    put_owners(database)
    chosen = {"cryptique_cors_origins": f"{ORIGIN}, http://localhost:3000", "cryptique_http_rate_limit": 60}
    try:
        with running_rag(
            mongo_uri, database, tmp_path_factory.mktemp("rag"), rows_of(transfers(5)), **chosen
        ) as running:
            yield running
    finally:
        mongo_client.drop_database("test_http_contract")


@pytest.fixture(scope="module")
def schema(service: RagService) -> Row:
    answer = service.client.get("/api/openapi.json")
    assert answer.status_code == 200
    found: Row = answer.json()
    return found


def require_fits(schema: Row, part: Row, value: Any) -> None:
    """Assert that a value is as a part of the schema says."""
    Draft202012Validator({**part, "components": schema["components"]}).validate(value)


def require_answer(schema: Row, path: str, answer: Row) -> None:
    """Assert that an answer of an address is as the schema says, and holds nothing that it doesn't tell of."""
    told = schema["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    require_fits(schema, told, answer)
    assert answer["data"].keys() <= ANSWERS[path].model_fields.keys()


# -- the schema and the page -----------------------------------------------------------------------------------------


def test_the_schema_tells_of_the_api_alone_and_of_all_of_it(service: RagService, schema: Row) -> None:
    app: Any = service.client.app
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.openapi_schema = None
        every = app.openapi()["paths"]
    assert schema["paths"].keys() == {path for path in every if path.startswith("/api/")}
    assert schema["paths"].keys() >= {RETRIEVE, "/api/rag/generate", "/api/rag/feedback"}
    operations = [one for item in schema["paths"].values() for one in item.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all({"200", "400", "401", "404", "429", "503"} <= one["responses"].keys() for one in operations)
    assert not any("422" in one["responses"] for one in operations)
    assert schema["security"] == [{"bearer": []}]
    assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    told = service.client.get("/api/openapi.json").text + service.client.get("/api/docs").text
    assert not re.search(r"/admin|/metrics|/health|monitoring|Probed", told)


def test_every_reference_of_the_schema_leads_somewhere(service: RagService, schema: Row) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', service.client.get("/api/openapi.json").text))
    assert names == schema["components"]["schemas"].keys()


def test_true_answers_are_as_the_schema_says(service: RagService, schema: Row) -> None:
    asked = {"query": "USDT transfers", "siteId": SITE_ID}
    bodies = {
        RETRIEVE: asked,
        "/api/rag/generate": asked,
        "/api/rag/feedback": {"requestId": "abcd-1234", "siteId": SITE_ID, "rating": 4},
        "/api/rag/documents": {"text": "A text.", "siteId": SITE_ID},
        "/api/ai/query": {**asked, "timeframe": "all"},
    }
    assert bodies.keys() == ANSWERS.keys() == schema["paths"].keys()
    for path, body in bodies.items():
        answer = service.post(path, body)
        require_answer(schema, path, answer.json())
    read_only = service.post("/api/rag/documents", bodies["/api/rag/documents"], role="viewer")
    said = schema["paths"]["/api/rag/documents"]["post"]["responses"]
    require_fits(schema, said["403"]["content"][read_only.headers["content-type"]]["schema"], read_only.json())
    assert said["202"]["content"] == said["200"]["content"]
    refusals = [service.post(RETRIEVE, {}), service.post(RETRIEVE, {**asked, "siteId": "no"})]
    refusals.append(service.client.post(RETRIEVE, json=asked))
    for refusal in refusals:
        said = schema["paths"][RETRIEVE]["post"]["responses"][str(refusal.status_code)]["content"]
        require_fits(schema, said[refusal.headers["content-type"]]["schema"], refusal.json())


def test_the_examples_are_requests_that_are_answered(service: RagService, schema: Row) -> None:
    assert EXAMPLES.keys() <= schema["paths"].keys()
    for path, example in EXAMPLES.items():
        assert service.post(path, {**example, "siteId": SITE_ID}).status_code == 200, path
        assert schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"] == example


def test_the_page_needs_no_script_no_token_and_nothing_from_elsewhere(service: RagService, schema: Row) -> None:
    page = service.client.get("/api/docs")
    assert page.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
    assert "<script" not in page.text
    assert " style=" not in page.text
    assert set(re.findall(r'(?:href|src)="([^"#][^"]*)"', page.text)) == {
        "/api/docs.css",
        "/api/openapi.json",
        "data:,",
    }
    assert service.client.get("/api/docs.css").headers["content-type"].startswith("text/css")
    for path, item in schema["paths"].items():
        assert f"POST {path}" in page.text
        body = item["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for key in schema["components"]["schemas"][body]["properties"]:
            assert f"<code>{key}</code>" in page.text, (path, key)


def test_what_is_open_is_counted_by_client(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = mongo_client["test_http_contract_rates"]
    try:
        with running_rag(
            mongo_uri, database, tmp_path_factory.mktemp("rag"), [], cryptique_http_rate_limit=3
        ) as service:
            statuses = [service.client.get(path).status_code for path in sorted(OPEN_UNDER_API) * 2]
    finally:
        mongo_client.drop_database("test_http_contract_rates")
    assert statuses == [200, 200, 200, 429, 429, 429]


# -- other origins ---------------------------------------------------------------------------------------------------


def preflight(service: RagService, path: str = RETRIEVE, **headers: str) -> Any:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    asked |= {"Access-Control-Request-Headers": "authorization,content-type"}
    return service.client.options(path, headers={**asked, **headers})


def test_a_page_of_an_allowed_origin_may_ask_and_read_refusals_too(service: RagService) -> None:
    may = preflight(service)
    assert may.status_code == 200
    assert may.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in may.headers["access-control-allow-methods"]
    assert "Authorization" in may.headers["access-control-allow-headers"]
    assert may.headers["x-request-id"]
    body = {"query": "USDT transfers", "siteId": SITE_ID}
    token = {"Authorization": f"Bearer {service.token()}"}
    for headers, status in ((token, 200), ({}, 401)):
        answer = service.client.post(RETRIEVE, json=body, headers={**headers, "Origin": ORIGIN})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
    too_large = service.client.post(RETRIEVE, content=b"x" * 1_000_001, headers={"Origin": ORIGIN})
    assert (too_large.status_code, too_large.headers["access-control-allow-origin"]) == (413, ORIGIN)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{ORIGIN}.evil.example", "http://app.example", "*"]
)
def test_a_page_of_any_other_origin_may_not(service: RagService, origin: str) -> None:
    refused = preflight(service, Origin=origin)
    assert refused.status_code == 400
    answer = service.client.post(RETRIEVE, json={}, headers={"Origin": origin})
    for one in (refused, answer):
        assert "access-control-allow-origin" not in one.headers


def test_only_the_api_is_for_pages_of_others(service: RagService) -> None:
    assert preflight(service, "/admin/monitoring").status_code == 405
    answer = service.client.get("/health/live", headers={"Origin": ORIGIN})
    assert "access-control-allow-origin" not in answer.headers


def test_preflights_are_counted_by_client_and_apart_from_pages(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = mongo_client["test_http_contract_preflights"]
    chosen = {"cryptique_http_rate_limit": 1, "cryptique_cors_origins": ORIGIN}
    try:
        with running_rag(mongo_uri, database, tmp_path_factory.mktemp("rag"), [], **chosen) as service:
            statuses = [preflight(service).status_code for _ in range(12)]
            assert statuses == [200] * 10 + [429] * 2
            assert service.client.get("/api/docs").status_code == 200
    finally:
        mongo_client.drop_database("test_http_contract_preflights")


def test_without_the_setting_no_page_of_others_may_ask(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = mongo_client["test_http_contract_closed"]
    try:
        with running_rag(mongo_uri, database, tmp_path_factory.mktemp("rag"), []) as service:
            for answer in (preflight(service), service.client.post(RETRIEVE, json={}, headers={"Origin": ORIGIN})):
                assert answer.status_code in (401, 405)
                assert not [name for name in answer.headers if name.startswith("access-control")]
    finally:
        mongo_client.drop_database("test_http_contract_closed")
