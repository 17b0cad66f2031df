"""The HTTP service on a real mongod: who may see what, how often, what every answer carries, and what none tells."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pymongo.database import Database
from pymongo.uri_parser import parse_uri
from starlette.requests import Request

from blocks.rate_book import RateBook
from deployments.http.app import make_app
from deployments.http.guard import HEADERS, MAX_BODY_BYTES, client_of, read_networks
from deployments.http.parts import HttpParts
from deployments.http.serving import make_parts
from deployments.register_blocks import make_blocks
from tasks.domain.alerts import ALERT_NAMES, Alert
from tasks.domain.meters import Meter
from tasks.domain.probes import Reading
from tests.loopback.relay import Relay
from tests.rag import ADMIN_TOKEN as TOKEN
from tests.rag import make_settings

BEARER = {"Authorization": f"Bearer {TOKEN}"}
Row = dict[str, Any]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class Service:
    """The application in this process, and a client of it."""

    def __init__(self, uri: str, database: str, home: Path, **chosen: Any) -> None:
        settings = make_settings(uri, database, home, **chosen)
        self.parts: HttpParts = make_parts(settings, make_blocks(settings))
        self.app = make_app(self.parts)
        self.client = TestClient(self.app, raise_server_exceptions=False, client=("192.0.2.7", 5))

    def of(self, address: str) -> TestClient:
        return TestClient(self.app, raise_server_exceptions=False, client=(address, 5))


@pytest.fixture
def service(mongo_uri: str, database: Database[Row], tmp_path: Path) -> Iterator[Service]:
    made = Service(mongo_uri, database.name, tmp_path / "home")
    yield made
    made.parts.vectors.close()


def is_problem(answer: Any, status: int) -> Row:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body: Row = answer.json()
    assert body["status"] == status
    assert body["requestId"] == answer.headers["x-request-id"]
    return body


# -- what every answer carries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/nothing", "/admin/monitoring"])
def test_every_answer_has_the_headers_and_an_id(service: Service, path: str) -> None:
    answer = service.client.get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=63072000")
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


def test_a_sane_request_id_is_kept_and_another_is_replaced(service: Service) -> None:
    assert (
        service.client.get("/health/live", headers={"X-Request-ID": "abc-12345"}).headers["x-request-id"] == "abc-12345"
    )
    for given in ("short", "x" * 65, "a b c d e f g h", "../../etc/passwd"):
        assert service.client.get("/health/live", headers={"X-Request-ID": given}).headers["x-request-id"] != given


def test_whatever_goes_wrong_is_a_problem(service: Service) -> None:
    is_problem(service.client.get("/nothing"), 404)
    is_problem(service.client.post("/health/live"), 405)
    is_problem(service.client.post("/nothing", content=b"x" * (MAX_BODY_BYTES + 1)), 413)


def test_what_breaks_tells_nothing_but_an_id_and_the_log_has_the_rest(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    @service.app.get("/breaks")
    def breaks() -> None:
        raise RuntimeError("mongodb://user:password@inside/ in /srv/secret/place.py")

    with caplog.at_level(logging.ERROR, logger="cryptique.http"):
        answer = service.client.get("/breaks")
    body = is_problem(answer, 500)
    assert "password" not in answer.text
    assert "RuntimeError" not in answer.text
    (record,) = [one for one in caplog.records if one.name == "cryptique.http"]
    assert record.request_id == body["requestId"]  # type: ignore[attr-defined]
    assert "secret/place" in str(record.exc_info)


# -- who may see what ------------------------------------------------------------------------------------------------

CLOSED = ["/health/details", "/metrics", "/admin/monitoring", "/admin/monitoring.json", "/admin/runbook"]


@pytest.mark.parametrize("path", [*CLOSED, "/admin/assets/monitoring.css"])
def test_an_operations_page_is_for_who_has_the_token(service: Service, path: str) -> None:
    anybody = service.client.get(path)
    is_problem(anybody, 401)
    assert anybody.headers["www-authenticate"].startswith("Basic ")
    for headers in ({"Authorization": "Bearer wrong"}, basic("admin", "wrong"), basic("root", TOKEN)):
        is_problem(service.client.get(path, headers=headers), 401)
    assert service.client.get(path, headers=BEARER).status_code == 200
    assert service.client.get(path, headers=basic("admin", TOKEN)).status_code == 200


def test_every_address_but_health_is_closed(service: Service) -> None:
    open_ = {"/health/live", "/health/ready"}
    # What has a token of the application is asked in test_http_rag.py.
    paths = {path for path in service.app.openapi()["paths"] if not path.startswith("/api/")} - open_
    assert len(paths) >= 6
    for number, path in enumerate(sorted(paths)):
        is_problem(service.of(f"198.51.100.{number}").get(path.replace("{name}", "x")), 401)


def test_without_a_token_nobody_comes_in_and_it_says_which_setting(
    mongo_uri: str, database: Database[Row], tmp_path: Path
) -> None:
    service = Service(mongo_uri, database.name, tmp_path / "home", cryptique_admin_token=None)
    body = is_problem(service.client.get("/admin/monitoring", headers={"Authorization": "Bearer "}), 503)
    assert "CRYPTIQUE_ADMIN_TOKEN" in body["detail"]


def test_ten_failed_logins_in_an_hour_and_a_right_one_waits_too(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="cryptique.security"):
        for _ in range(10):
            is_problem(service.client.get("/metrics", headers=basic("admin", "guess")), 401)
        blocked = service.client.get("/metrics", headers=BEARER)
    is_problem(blocked, 429)
    assert 0 < int(blocked.headers["retry-after"]) <= 2 * 3_600
    assert service.of("192.0.2.8").get("/metrics", headers=BEARER).status_code == 200
    written = [one for one in caplog.records if one.name == "cryptique.security"]
    assert [one.event for one in written] == ["auth_failed"] * 10 + ["auth_blocked"]  # type: ignore[attr-defined]
    assert not any("guess" in one.getMessage() for one in written)


def test_who_did_not_try_to_log_in_did_not_fail_to(service: Service) -> None:
    for _ in range(15):
        is_problem(service.client.get("/metrics"), 401)
    assert service.client.get("/metrics", headers=BEARER).status_code == 200


# -- how often -------------------------------------------------------------------------------------------------------


def test_a_client_may_ask_so_often_whichever_process_answers(
    mongo_uri: str, database: Database[Row], tmp_path: Path
) -> None:
    both = [
        Service(
            mongo_uri,
            database.name,
            tmp_path / "home",
            cryptique_http_rate_limit=10,
            cryptique_http_rate_window_seconds=900,
        )
        for _ in range(2)
    ]
    statuses = [both[number % 2].client.get("/nothing").status_code for number in range(12)]
    assert statuses == [404] * 10 + [429] * 2
    refused = both[0].client.get("/nothing")
    assert 0 < int(refused.headers["retry-after"]) <= 1_800
    assert refused.headers["ratelimit-remaining"] == "0"
    assert both[1].of("192.0.2.9").get("/nothing").status_code == 404
    assert both[0].client.get("/health/live").status_code == 200


def test_a_limit_holds_among_many_at_once(tmp_path: Path) -> None:
    books = [RateBook(tmp_path / "rates.db") for _ in range(4)]

    def hit(number: int) -> bool:
        return books[number % 4].hit("one", limit=50, window_s=900, now_s=1_000_000.0).allowed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(hit, range(200))) == 50


def test_what_is_counted_ahead_is_within_the_limit_and_is_used_up(tmp_path: Path) -> None:
    alone, *both = (RateBook(tmp_path / "rates.db") for _ in range(3))
    start = 1_000_000.0
    found = [alone.hit("one", limit=600, window_s=900, now_s=start) for _ in range(700)]
    assert [one.allowed for one in found] == [True] * 600 + [False] * 100
    assert [one.left for one in found[:600]] == list(range(599, -1, -1))
    # Of two, one may have counted ahead what the other is refused: a fiftieth of what was left, and never too many.
    shared = sum(both[number % 2].hit("two", limit=600, window_s=900, now_s=start).allowed for number in range(900))
    assert shared == 600
    first = sum(both[0].hit("three", limit=600, window_s=900, now_s=start).allowed for _ in range(100))
    second = sum(both[1].hit("three", limit=600, window_s=900, now_s=start).allowed for _ in range(900))
    assert 588 <= first + second <= 600
    assert alone.hit("one", limit=600, window_s=900, now_s=start + 1_800).allowed


def test_a_window_slides_and_says_when_there_is_room_again(tmp_path: Path) -> None:
    book = RateBook(tmp_path / "rates.db")
    start = 900_000.0
    for number in range(10):
        assert book.hit("one", limit=10, window_s=900, now_s=start + number).allowed
    refused = book.hit("one", limit=10, window_s=900, now_s=start + 10)
    assert not refused.allowed
    assert not book.check("one", limit=10, window_s=900, now_s=start + 10 + refused.retry_after_s - 2).allowed
    assert book.check("one", limit=10, window_s=900, now_s=start + 10 + refused.retry_after_s).allowed
    assert book.check("one", limit=10, window_s=900, now_s=start + 1_350).left == 4
    assert book.check("other", limit=10, window_s=900, now_s=start).allowed


def test_a_book_that_was_deleted_is_shared_again(tmp_path: Path) -> None:
    both = [RateBook(tmp_path / "rates.db") for _ in range(2)]
    for book in both:
        assert book.hit("one", limit=5, window_s=900, now_s=1_000_000.0).allowed
    for path in tmp_path.iterdir():
        path.unlink()
    for book in both:
        book.hit("one", limit=5, window_s=900, now_s=1_000_000.0)
    allowed = [both[number % 2].hit("two", limit=5, window_s=900, now_s=1_000_000.0).allowed for number in range(10)]
    assert allowed == [True] * 5 + [False] * 5


def test_no_answer_leads_to_whom_the_host_header_names(service: Service) -> None:
    for path in ("/admin/monitoring/", "/metrics/", "/health/live/"):
        answer = service.client.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
        is_problem(answer, 404)
        assert "evil.example" not in answer.text


def test_a_book_that_can_not_be_written_lifts_no_limit(tmp_path: Path) -> None:
    (tmp_path / "rates.db").mkdir()
    book = RateBook(tmp_path / "rates.db")
    assert [book.hit("one", limit=2, window_s=900).allowed for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("peer", "forwarded", "who"),
    [
        ("192.0.2.7", "203.0.113.9", "192.0.2.7"),  # a stranger may claim anything
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
    ],
)
def test_who_asks_is_the_peer_or_whom_a_trusted_proxy_names(peer: str, forwarded: str, who: str) -> None:
    scope = {"type": "http", "client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
    assert client_of(scope, read_networks("10.0.0.0/8")) == who
    assert Request(scope).client is not None


# -- health ----------------------------------------------------------------------------------------------------------


def test_a_store_that_is_gone_or_hangs_is_not_ready_and_the_rest_answers(
    mongo_uri: str, database: Database[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.http.health._LOOK_HOLDS_S", 0.0)
    for waits in ("health._READY_WITHIN_S", "overview._WITHIN_S", "metrics._WITHIN_S"):
        monkeypatch.setattr(f"deployments.http.{waits}", 0.5)
    host, port = parse_uri(mongo_uri)["nodelist"][0]
    with Relay(host, port) as relay:
        service = Service(f"mongodb://127.0.0.1:{relay.port}/?directConnection=true", database.name, tmp_path / "home")
        assert service.client.get("/health/ready").json() == {"status": "ready", "parts": {"vectors": "ok"}}
        for break_ in (relay.hang, relay.cut):
            break_()
            answer = service.client.get("/health/ready")
            assert answer.status_code == 503
            assert answer.json()["parts"] == {"vectors": "MongoDB does not answer"}
            page = service.client.get("/admin/monitoring", headers=BEARER)
            assert page.status_code == 200
            assert "Can't be read now" in page.text or "Can&#39;t be read now" in page.text
            scraped = service.client.get("/metrics", headers=BEARER).text
            assert 'cryptique_scrape_ok{group="store"} 0.0' in scraped
            assert 'cryptique_scrape_ok{group="monitor"} 1.0' in scraped
            assert service.client.get("/health/live").status_code == 200
            relay.mend()
        service.parts.vectors.close()
        assert service.client.get("/health/ready").status_code == 200


def test_what_nobody_looked_at_lately_is_stale_and_what_failed_failed(service: Service) -> None:
    now = datetime.now(UTC)
    assert service.client.get("/health/details", headers=BEARER).json()["status"] == "unknown"
    service.parts.book.add_readings(
        [
            Reading("vectors", now, "failed", "gone", 0.1),
            Reading("disk", now, "ok", "half full", 0.1, {"used": 0.5}),
            Reading("queue", now - timedelta(hours=1), "ok", "none", 0.1),
        ]
    )
    found = service.client.get("/health/details", headers=BEARER).json()
    assert {name: one["verdict"] for name, one in found["probes"].items()} == {
        "disk": "ok",
        "queue": "stale",
        "vectors": "failed",
    }
    assert found["status"] == "warning"
    service.parts.book.begin_alert(Alert("disk", "critical", "Full", "so it is", "disk", now))
    assert service.client.get("/health/details", headers=BEARER).json()["status"] == "critical"


# -- metrics ---------------------------------------------------------------------------------------------------------


def filled(service: Service) -> datetime:
    """Write down a bit of everything, as of now."""
    now = datetime.now(UTC)
    service.parts.vectors.initialise(256)
    service.parts.book.add_readings(
        [
            Reading("vectors", now, "ok", "MongoDB answers.", 0.1, {"connections": 5.0}),
            Reading("source", now, "ok", "MongoDB answers.", 0.1),
            Reading("ingest", now, "ok", "fresh", 0.1, {"lag_s": 12.0}),
            Reading("prefect", now - timedelta(minutes=3), "failed", "gone", 0.1),
        ]
    )
    service.parts.book.begin_alert(Alert("queue", "warning", "Too many <jobs>", "101 jobs", "queue", now))
    meter = Meter()
    for seconds in (0.2, 0.3, 6.0):
        meter.count("embed", at=now, seconds=seconds, texts=100, tokens=1_000, usd=0.25)
    meter.count("embed", at=now, seconds=0.1, error="TransientError")
    service.parts.vectors.add_measures({uuid4().hex: one for one in meter.take()})
    return now


def test_prometheus_reads_what_there_is_and_no_label_is_an_id(service: Service) -> None:
    filled(service)
    answer = service.client.get("/metrics", headers=BEARER)
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    up = {sample.labels["probe"]: sample.value for sample in families["cryptique_up"].samples}
    assert up == {"vectors": 1.0, "source": 1.0, "ingest": 1.0, "prefect": 0.0}
    alerts = {sample.labels["name"]: sample.value for sample in families["cryptique_alert"].samples}
    assert set(alerts) == set(ALERT_NAMES)
    assert alerts["queue"] == 1.0
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families["cryptique_request_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert (buckets["0.25"], buckets["5"], buckets["7.5"], buckets["+Inf"]) == (2, 3, 4, 4)
    (failed,) = families["cryptique_requests_failed"].samples
    assert (failed.labels, failed.value) == ({"kind": "embed", "code": "TransientError"}, 1.0)
    assert families["cryptique_tokens_embedded"].samples[0].value == 3_000


def test_the_grafana_board_asks_only_for_what_there_is(service: Service) -> None:
    filled(service)
    board = json.loads((Path(__file__).parents[2] / "deployments" / "grafana" / "dashboard.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"cryptique_[a-z_]+", target["expr"])
    }
    there = {
        sample.name
        for family in text_string_to_metric_families(service.client.get("/metrics", headers=BEARER).text)
        for sample in family.samples
    }
    always = there | {"cryptique_dead_letters"}
    assert len(asked) >= 8
    assert asked <= always


# -- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page loads and links to, and its elements by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag in ("script", "link", "img"):
            self.loads.append(str(found.get("src") or found.get("href")))
        self.inline += [name for name in found if name == "style" or name.startswith("on")]


def test_the_page_shows_what_the_json_says_and_loads_nothing_from_elsewhere(service: Service) -> None:
    filled(service)
    answer = service.client.get("/admin/monitoring", headers=BEARER)
    found = service.client.get("/admin/monitoring.json", headers=BEARER).json()
    page = Page(answer.text)
    assert sorted(set(page.loads)) == [
        "/admin/assets/icon.svg",
        "/admin/assets/monitoring.css",
        "/admin/assets/monitoring.js",
    ]
    assert page.inline == []
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") >= 6
    assert "Too many &lt;jobs&gt;" in answer.text
    assert "<jobs>" not in answer.text
    assert [alert["name"] for alert in found["health"]["alerts"]] == ["queue"]
    assert found["health"]["alerts"][0]["runbook"] == "/admin/runbook#alert-queue"
    assert found["cost"]["usd_today"] == pytest.approx(0.75)
    assert "$0.7500 today" in answer.text
    assert [(one["stage"], one["code"], one["day"]) for one in found["errors"]["shown"]] == [
        ("embed", "TransientError", 1)
    ]
    assert sum(one["texts"] for one in found["throughput"]["hours"]) == 300
    assert found["runs"]["problem"] == "No Prefect server is named: set PREFECT_API_URL."
    for path in page.loads:
        asset = service.client.get(path, headers=BEARER)
        assert asset.status_code == 200
        again = service.client.get(path, headers={**BEARER, "If-None-Match": asset.headers["etag"]})
        assert again.status_code == 304


def test_availability_is_what_probes_saw_of_the_time_that_was_looked_at(service: Service) -> None:
    now = datetime.now(UTC)
    readings = [
        Reading(
            probe,
            now - timedelta(minutes=minute),
            "failed" if minute in (30, 31) and probe == "vectors" else "ok",
            "",
            0.1,
        )
        for minute in range(1, 61)
        for probe in ("source", "vectors", "prefect")
    ]
    service.parts.book.add_readings(readings)
    found = service.client.get("/admin/monitoring.json", headers=BEARER).json()["objective"]
    assert found["bad_s"] == pytest.approx(120, abs=1)
    assert found["availability"] == pytest.approx(58 / 60, abs=0.001)
    assert found["budget_left_min"] == pytest.approx((30 * 86_400 * 0.001 - 120) / 60, abs=0.1)
    assert found["unknown_s"] == pytest.approx(30 * 86_400 - 3_600, abs=2)


def test_the_runbook_has_an_anchor_for_every_alert(service: Service) -> None:
    text = service.client.get("/admin/runbook", headers=BEARER).text
    missing = [name for name in ALERT_NAMES if f'id="alert-{name}"' not in text]
    assert missing == []
