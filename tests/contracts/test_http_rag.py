"""The retrieval service on a real mongod: the application's contract, who may see what, and what bad input gets."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pymongo import MongoClient

from tests.builders import (
    OTHER_TEAM_ID,
    SHARED_ID,
    SHARED_OID,
    SITE_ID,
    TEAM_ID,
)
from tests.rag import SECRET, RagService, Row, hash_of, put_owners, rows_of, running_rag, swaps, transfers

RETRIEVE = "/api/rag/retrieve"


@pytest.fixture(scope="module")
def service(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RagService]:
    database = mongo_client["test_http_rag"]
    put_owners(database)
    try:
        with running_rag(
            mongo_uri, database, tmp_path_factory.mktemp("rag"), rows_of([*transfers(20), *swaps(20)])
        ) as running:
            yield running
    finally:
        mongo_client.drop_database("test_http_rag")


def ask(service: RagService, query: str, **more: Any) -> Any:
    return service.post(RETRIEVE, {"query": query, "siteId": SITE_ID, **more})


def test_the_contract_has_its_keys_under_data_and_at_the_top(service: RagService) -> None:
    answer = ask(service, "USDT transfers", limit=3)
    assert answer.status_code == 200
    body = answer.json()
    assert body["success"] is True
    data = body["data"]
    for key in ("context", "sources", "metadata"):
        assert body[key] == data[key]
    assert data["metadata"].keys() >= {"query", "siteId", "matchCount", "minScore", "maxScore"}
    assert (data["metadata"]["query"], data["metadata"]["siteId"]) == ("USDT transfers", SITE_ID)
    assert data["metadata"]["matchCount"] == len(data["sources"]) == 3
    assert data["context"].split("\n\n") == [one["content"] for one in data["results"]]
    assert data["sources"] == [f"transaction:{one['source'].split(':')[1]}" for one in data["results"]]
    scores = [one["score"] for one in data["results"]]
    assert (min(scores), max(scores)) == (data["metadata"]["minScore"], data["metadata"]["maxScore"])
    assert all(0.6 <= score <= 1 for score in scores)


def test_conditions_are_explained(service: RagService) -> None:
    data = ask(service, "USDT transfers of more than 150", limit=10).json()["data"]
    amounts = {float(one["metadata"]["facts"]["amount"]) for one in data["results"]}
    assert amounts == {160.0, 170.0, 180.0, 190.0, 200.0}
    assert {"words": "USDT", "meaning": "token USDT"} in data["understood"]["conditions"]
    assert data["understood"]["fitting"] == 5


def test_a_hash_is_found_exactly_and_another_teams_is_not(service: RagService) -> None:
    data = ask(service, f"who sent {hash_of(7).upper().replace('0X', '0x')}?").json()["data"]
    assert [one["metadata"]["facts"]["txHash"] for one in data["results"]] == [hash_of(7)]
    assert data["metadata"]["maxScore"] == 1
    other = ask(service, f"transaction {hash_of(105)}").json()
    assert (other["success"], other["data"]["sources"], other["data"]["context"]) == (True, [], "")
    mine = service.post(RETRIEVE, {"query": hash_of(105), "siteId": "site-a"}, team=OTHER_TEAM_ID).json()
    assert len(mine["data"]["results"]) == 1


@pytest.mark.parametrize("site", ["site-a", "no-such-site", f"team:{OTHER_TEAM_ID}", f"team:{TEAM_ID}", "*"])
def test_a_site_that_is_not_the_teams_is_not_there(service: RagService, site: str) -> None:
    answer = service.post(RETRIEVE, {"query": "swaps", "siteId": site})
    assert answer.status_code == 404
    assert (answer.json()["success"], answer.json()["error"]) == (False, "this team has no such site")


def test_the_team_of_the_token_decides_whatever_the_body_says(service: RagService) -> None:
    body = {"query": "failed swaps", "siteId": SITE_ID, "teamId": str(OTHER_TEAM_ID), "team": str(OTHER_TEAM_ID)}
    found = service.post(RETRIEVE, {**body, "limit": 50, "minScore": 0}).json()["data"]["results"]
    assert not [one for one in found if one["metadata"]["facts"]["contractId"] == SHARED_ID]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "text",
        None,
        {"siteId": SITE_ID},
        {"query": "swaps"},
        {"query": "", "siteId": SITE_ID},
        {"query": " \t", "siteId": SITE_ID},
        {"query": "swaps", "siteId": ""},
        {"query": {"$ne": ""}, "siteId": SITE_ID},
        {"query": "swaps", "siteId": {"$gt": ""}},
        {"query": "swaps", "siteId": [SITE_ID]},
        {"query": 7, "siteId": SITE_ID},
        {"query": "swaps", "siteId": SITE_ID, "limit": 0},
        {"query": "swaps", "siteId": SITE_ID, "limit": 51},
        {"query": "swaps", "siteId": SITE_ID, "limit": "5"},
        {"query": "swaps", "siteId": SITE_ID, "limit": True},
        {"query": "swaps", "siteId": SITE_ID, "limit": {"$gt": 0}},
        {"query": "swaps", "siteId": SITE_ID, "minScore": 2},
        {"query": "swaps", "siteId": SITE_ID, "minScore": "0"},
        {"query": "a\0b", "siteId": SITE_ID},
        {"query": "x" * 2_001, "siteId": SITE_ID},
    ],
)
def test_bad_input_is_refused_in_the_contracts_words(service: RagService, body: Any) -> None:
    answer = service.post(RETRIEVE, body)
    assert answer.status_code == 400
    assert answer.json()["success"] is False
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"query": "\xff"}', b'{"query": "\\ud800", "siteId": "x"}', b"[" * 9_999]
)
def test_what_is_no_json_is_refused(service: RagService, content: bytes) -> None:
    headers = {"Authorization": f"Bearer {service.token()}", "Content-Type": "application/json"}
    answer = service.client.post(RETRIEVE, content=content, headers=headers)
    assert (answer.status_code, answer.json()["success"]) == (400, False)


# -- tokens --------------------------------------------------------------------------------------------------------


def claims(**changes: Any) -> dict[str, Any]:
    return {"teamId": str(TEAM_ID), "sub": "u", "role": "viewer", "exp": int(time.time()) + 600, **changes}


def test_every_address_of_the_api_wants_a_token(service: RagService) -> None:
    app: Any = service.client.app
    paths = [(path, method) for path, of_path in app.openapi()["paths"].items() for method in of_path]
    asked = [(path, method) for path, method in paths if path.startswith("/api/")]
    assert len(asked) >= 2
    for path, method in asked:
        assert service.client.request(method, path, json={}).status_code == 401, path


def unsigned(payload: dict[str, Any], algorithm: str) -> str:
    parts = ({"alg": algorithm, "typ": "JWT"}, payload)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, ""])


@pytest.mark.parametrize(
    "token",
    [
        "",
        "nonsense",
        "a.b.c",
        unsigned(claims(), "none"),
        unsigned(claims(), "HS256"),
        jwt.encode(claims(), "another-secret-of-32-characters-and-more", algorithm="HS256"),
        jwt.encode(claims(), SECRET * 2, algorithm="HS512"),
        jwt.encode(claims(exp=int(time.time()) - 60), SECRET, algorithm="HS256"),
        jwt.encode(claims(nbf=int(time.time()) + 600), SECRET, algorithm="HS256"),
        jwt.encode({key: value for key, value in claims().items() if key != "exp"}, SECRET, algorithm="HS256"),
        jwt.encode(claims(teamId={"$ne": None}), SECRET, algorithm="HS256"),
        jwt.encode(claims(teamId="not-an-id"), SECRET, algorithm="HS256"),
        jwt.encode(claims(teamId=None), SECRET, algorithm="HS256"),
        "x" * 20_000,
    ],
)
def test_a_bad_token_opens_nothing(service: RagService, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = service.client.post(RETRIEVE, json={"query": "swaps", "siteId": SITE_ID}, headers=headers)
    assert answer.status_code in (401, 429)
    assert answer.json()["success"] is False
    assert token[:60] not in answer.text or not token


def test_tokens_of_a_private_key_are_read_by_the_public_one_and_the_public_one_signs_nothing(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    keys = [rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP256R1())]
    pem = b"".join(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        for key in keys
    )
    (folder / "jwt.pem").write_bytes(pem)
    database = mongo_client["test_http_rag_keys"]
    put_owners(database)
    chosen = {
        "cryptique_jwt_secret": None,
        "cryptique_jwt_public_keys": folder / "jwt.pem",
        "cryptique_jwt_issuer": "cryptique",
        "cryptique_jwt_audience": "rag",
    }
    try:
        with running_rag(mongo_uri, database, folder, [], **chosen) as service:
            body = {"query": "swaps", "siteId": SITE_ID}
            good = claims(iss="cryptique", aud="rag")
            for key, algorithm in zip(keys, ("RS256", "ES256"), strict=True):
                assert service.post(RETRIEVE, body, token=jwt.encode(good, key, algorithm=algorithm)).status_code == 200
                for wrong in (claims(), claims(iss="cryptique", aud="other"), claims(iss="other", aud="rag")):
                    token = jwt.encode(wrong, key, algorithm=algorithm)
                    assert service.post(RETRIEVE, body, token=token).status_code == 401
            # The public key as a secret: what a reader that trusts the token's own header takes.
            header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
            payload = base64.urlsafe_b64encode(json.dumps(good).encode()).rstrip(b"=")
            mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(header + b"." + payload, pem)
            forged = b".".join([header, payload, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()
            assert service.post(RETRIEVE, body, token=forged).status_code == 401
    finally:
        mongo_client.drop_database("test_http_rag_keys")


# -- rates and feedback --------------------------------------------------------------------------------------------


def test_a_team_that_asks_too_often_waits_and_another_does_not(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = mongo_client["test_http_rag_rates"]
    put_owners(database)
    folder = tmp_path_factory.mktemp("rates")
    try:
        with running_rag(mongo_uri, database, folder, [], cryptique_api_rate_limit=3) as service:
            answers = [ask(service, "swaps") for _ in range(5)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
            assert int(answers[-1].headers["Retry-After"]) >= 1
            other = service.post(RETRIEVE, {"query": "swaps", "siteId": "site-a"}, team=OTHER_TEAM_ID)
            assert other.status_code == 200
    finally:
        mongo_client.drop_database("test_http_rag_rates")


def test_feedback_is_kept_once_for_an_answer_and_the_last_word_counts(service: RagService) -> None:
    answer = ask(service, "USDT transfers")
    given = {"requestId": answer.headers["X-Request-ID"], "siteId": SITE_ID, "rating": 2, "comment": "no"}
    assert service.post("/api/rag/feedback", given).status_code == 200
    assert service.post("/api/rag/feedback", {**given, "rating": 5}).status_code == 200
    (kept,) = service.parts.vectors.open_database()["ragfeedback"].find({})
    assert (kept["rating"], kept["requestId"], kept["teamId"]) == (5, given["requestId"], TEAM_ID)
    for wrong in ({"rating": 6}, {"rating": 0}, {"requestId": "no id!"}, {"comment": "x" * 501}):
        assert service.post("/api/rag/feedback", {**given, **wrong}).status_code == 400
    assert SHARED_OID not in kept.values()
