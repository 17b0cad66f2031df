"""The notifier against a webhook that behaves and one that doesn't: it never raises, and never shows the address."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from blocks.slack import SlackNotifier
from tasks.domain.incidents import Incident, Message, format_discord, format_slack
from tests.loopback.slack import LoopbackSlack

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MESSAGE = Message("failed", Incident("c", "migrate", "critical", "migrate failed", "a < b & c", NOW, NOW), 1, 0)


def notifier(slack: LoopbackSlack, **settings: Any) -> SlackNotifier:
    values = {"url": slack.url, "backoff_seconds": 0.01, "timeout_seconds": 20, **settings}
    return SlackNotifier.model_validate(values)


def test_a_message_arrives_as_it_was_made() -> None:
    with LoopbackSlack() as slack:
        for payload in (format_slack(MESSAGE), format_discord(MESSAGE)):
            delivery = notifier(slack).send(payload)
            assert (delivery.delivered, delivery.status) == (True, 200)
            assert slack.requests[-1].payload == payload
    assert all(request.content_type.startswith("application/json") for request in slack.requests)


def test_discords_empty_answer_is_a_delivery() -> None:
    with LoopbackSlack(faults=[204]) as slack:
        assert notifier(slack).send({"content": "x"}).delivered


@pytest.mark.parametrize("retry_after", ["0", "0.05", "0.5", None, "nonsense", "nan"])
def test_after_429_the_message_is_sent_again_whatever_the_header_says(retry_after: str | None) -> None:
    with LoopbackSlack(faults=[429], retry_after=retry_after) as slack:
        assert notifier(slack).send({"text": "x"}).delivered
    assert [request.taken for request in slack.requests] == [False, True]


@pytest.mark.parametrize("fault", [500, 502, 503, 504, "drop"])
def test_server_errors_and_lost_connections_are_tried_again(fault: int | str) -> None:
    with LoopbackSlack(faults=[fault, fault]) as slack:
        assert notifier(slack).send({"text": "x"}).delivered
    assert [request.taken for request in slack.requests] == [False, False, True]


def test_a_pause_that_is_too_long_is_not_waited_for() -> None:
    with LoopbackSlack(faults=[429], retry_after="3600") as slack:
        delivery = notifier(slack).send({"text": "x"})
    assert (delivery.delivered, delivery.status) == (False, 429)
    assert len(slack.requests) == 1


@pytest.mark.parametrize(("fault", "tries"), [(400, 1), (403, 1), (404, 1), (410, 1), (500, 4), (429, 4)])
def test_what_fails_for_good_is_told_and_not_raised(fault: int, tries: int) -> None:
    with LoopbackSlack(faults=lambda index: fault, retry_after="0.01") as slack:
        delivery = notifier(slack).send({"text": "x"})
    assert (delivery.delivered, delivery.says) == (False, f"the webhook answered {fault}")
    assert len(slack.requests) == tries


def test_a_web_page_is_no_webhook() -> None:
    with LoopbackSlack(faults=["page"]) as slack:
        delivery = notifier(slack).send({"text": "x"})
    assert not delivery.delivered
    assert "web page" in delivery.says


def test_a_webhook_that_hangs_is_left_after_the_time_out_and_not_asked_twice() -> None:
    with LoopbackSlack(faults=["hang"]) as slack:
        delivery = notifier(slack, timeout_seconds=1).send({"text": "x"})
    assert (delivery.delivered, delivery.says) == (False, "the webhook did not answer within 1 s")
    assert len(slack.requests) == 1


def test_nobody_who_listens_is_told_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with LoopbackSlack(token="T0-very-secret", faults=[None, 404, "drop", "drop", "drop", "drop"]) as slack:
        block = notifier(slack)
        said += [repr(block.send({"text": "x"})) for _ in range(3)]
        slack.stop()
        said.append(repr(block.send({"text": "x"})))
        wrong = SlackNotifier.model_validate({"url": f"{slack.url}\n", "backoff_seconds": 0.0})
        said.append(repr(wrong.send({"text": "x"})))
        said.append(repr(SlackNotifier.model_validate({"url": "nonsense T0-very-secret"}).send({"text": "x"})))
        said += [repr(block), str(block), block.model_dump_json()]
    assert [("delivered=True" in one) for one in said[:6]] == [True, False, False, False, False, False]
    assert "can't be reached" in said[3]
    assert "T0-very-secret" not in "\n".join([*said, caplog.text])


def test_a_proxy_of_the_environment_is_not_used_for_hosts_that_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with LoopbackSlack() as slack:
        assert notifier(slack).send({"text": "x"}).delivered


def test_a_webhook_that_leads_elsewhere_is_not_followed() -> None:
    asked: list[str] = []

    class Moved(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(302 if self.path == "/hook" else 200)
            self.send_header("Location", "/inside")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Moved) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        delivery = SlackNotifier(url=SecretStr(url)).send({"text": "x"})
        server.shutdown()
    assert (delivery.delivered, delivery.status) == (False, 302)
    assert asked == ["POST /hook"]
