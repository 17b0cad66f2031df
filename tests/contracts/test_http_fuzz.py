"""Whatever is sent to the HTTP service: no 500, no internals, and nobody inside without the token."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.database import Database

from deployments.http.guard import OPEN_UNDER_API
from tests.contracts.test_http import BEARER, TOKEN, Service, filled

Row = dict[str, Any]
#: What no stranger should read of us.
INTERNALS = re.compile(
    r"Traceback|File \"|site-packages|pymongo|starlette|fastapi|sqlite|/srv/|/home/|\.py\b|mongodb://|replicaSet",
    re.IGNORECASE,
)
PATHS = [
    *("/health/live", "/health/ready", "/health/details", "/metrics", "/admin", "/admin/monitoring"),
    *("/admin/monitoring.json", "/admin/runbook", "/admin/assets/monitoring.css", "/docs", "/openapi.json", "/"),
    *OPEN_UNDER_API,
]
OPEN = {"/health/live", "/health/ready", *OPEN_UNDER_API}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]

_char = st.characters(codec="utf-8", exclude_categories=("Cs",))
_segment = st.text(_char, min_size=1, max_size=20) | st.sampled_from(
    ["..", "%2e%2e", "%00", "assets", "admin", "{name}", "~root"]
)
_paths = (
    st.sampled_from(PATHS)
    | st.sampled_from(PATHS)
    | st.sampled_from([path + "/" for path in PATHS])
    | st.builds(lambda parts: "/" + "/".join(parts), st.lists(_segment, max_size=5))
)
_latin = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
_auth = (
    st.sampled_from([None, "Bearer wrong", "Basic", "Basic !!!", "Basic YWRtaW46d3Jvbmc=", "Digest x", "Bearer "])
    | _latin
)
_headers = st.dictionaries(
    st.sampled_from(
        [
            "X-Request-ID",
            "X-Forwarded-For",
            "Content-Type",
            "Accept",
            "If-None-Match",
            "Range",
            "Cookie",
            "Origin",
            "Host",
        ]
    ),
    _latin,
    max_size=4,
)
_queries = st.dictionaries(st.text(_char, max_size=10), st.text(_char, max_size=30), max_size=3)


@pytest.fixture
def service(mongo_uri: str, database: Database[Row], tmp_path: Path) -> Iterator[Service]:
    made = Service(mongo_uri, database.name, tmp_path / "home", cryptique_http_rate_limit=10_000_000)
    filled(made)
    yield made
    made.parts.vectors.close()


def fuzz(service: Service, examples: int, *, allowed: set[int]) -> Counter[int]:
    """Send so many requests; return how many were answered with each status."""
    statuses: Counter[int] = Counter()
    clients = iter(range(10**9))

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(
        method=st.just("GET") | st.just("GET") | st.sampled_from(METHODS),
        path=_paths,
        query=_queries,
        headers=_headers,
        authorization=_auth,
        admin=st.booleans(),
        body=st.binary(max_size=2_000),
    )
    def send(
        method: str,
        path: str,
        query: dict[str, str],
        headers: dict[str, str],
        authorization: str | None,
        admin: bool,
        body: bytes,
    ) -> None:
        number = next(clients)
        client = service.of(f"198.{18 + number // 65_536}.{number // 256 % 256}.{number % 256}")
        sent = dict(headers)
        if authorization is not None:
            sent["Authorization"] = authorization
        if admin:
            sent |= BEARER
        try:
            request = client.build_request(method, path, params=query, headers=sent, content=body)
        except Exception:  # noqa: BLE001 - what no client can send says nothing of the service
            return
        answer = client.send(request, follow_redirects=False)
        statuses[answer.status_code] += 1
        assert answer.status_code in allowed, (method, path, sent, answer.text)
        assert TOKEN not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        if not admin:
            known = request.url.path
            assert answer.status_code >= 400 or known in OPEN, (method, path)
            if known not in OPEN:
                assert answer.status_code not in (200, 307), (method, path)
        if answer.status_code >= 400:
            assert not INTERNALS.search(answer.text.replace(str(answer.request.url.path), "")), answer.text
            if answer.content and request.url.path not in OPEN:
                assert answer.headers["content-type"] == "application/problem+json"

    # Every address as it is meant to be asked, and then whatever chance brings.
    for path, admin in product(PATHS, (False, True)):
        send.hypothesis.inner_test("GET", path, {}, {}, None, admin, b"")
    send()
    return statuses


ANSWERS = {200, 304, 307, 400, 401, 404, 405, 413, 422}


@pytest.mark.parametrize("examples", [150, pytest.param(5_000, marks=pytest.mark.long)])
def test_nothing_breaks_the_service_and_nobody_comes_in(service: Service, examples: int) -> None:
    statuses = fuzz(service, examples, allowed=ANSWERS)
    sys.stdout.write(f"{sum(statuses.values()):,} requests: {dict(sorted(statuses.items()))}\n")
    assert statuses[401] > 0
    assert statuses[404] > 0
    assert statuses[200] > 0


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.long)])
def test_nothing_is_told_either_while_mongodb_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    monkeypatch.setattr("deployments.http.health._LOOK_HOLDS_S", 0.0)
    for waits in ("health._READY_WITHIN_S", "overview._WITHIN_S", "metrics._WITHIN_S"):
        monkeypatch.setattr(f"deployments.http.{waits}", 0.1)
    service = Service(
        "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=50",
        "gone",
        tmp_path / "home",
        cryptique_http_rate_limit=10_000_000,
    )
    statuses = fuzz(service, examples, allowed={*ANSWERS, 503})
    sys.stdout.write(f"{sum(statuses.values()):,} requests: {dict(sorted(statuses.items()))}\n")
    assert statuses[503] > 0
    assert statuses[200] > 0  # what needs no store answers
