"""What a log line holds, and what it never holds."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from tasks.domain.log_lines import (
    PERFORMANCE,
    RETENTION_DAYS,
    SECURITY,
    STREAMS,
    bound,
    conceal,
    file_name,
    is_over,
    line_of,
    may_go,
    read_file_name,
    redacted,
    streams_of,
)

#: How a key of Google begins; apart from the rest, so that nobody takes this file to hold one.
GOOGLE = "AIza"


def record(
    message: str = "a message", *args: Any, name: str = "prefect.flow_runs", level: int = logging.INFO, **extra: Any
) -> logging.LogRecord:
    found = logging.LogRecord(name, level, "place.py", 7, message, args, None)
    found.__dict__.update(extra)
    return found


def line(one: logging.LogRecord, **more: Any) -> dict[str, Any]:
    raw = line_of(one, **more)
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    found: dict[str, Any] = json.loads(raw)
    return found


def test_a_line_says_what_it_is_about_and_links_to_its_run() -> None:
    with bound(source="sessions", team=None), bound(team="67dc"):
        found = line(
            record("read %d", 5, flow_run_id="run-1", task_run_name="embed 3", rows=7), ui_url="http://prefect"
        )
    assert found["message"] == "read 5"
    assert (found["source"], found["team"], found["flow_run_id"], found["rows"]) == ("sessions", "67dc", "run-1", 7)
    assert found["link"] == "http://prefect/runs/flow-run/run-1"
    assert "source" not in line(record())
    assert datetime.fromisoformat(found["time"]).utcoffset() == timedelta(0)


def test_an_error_has_its_kind_and_stack_in_one_line() -> None:
    try:
        raise ValueError("two\nlines with password=hunter2secret")
    except ValueError:
        one = record("failed", level=logging.ERROR)
        one.exc_info = sys.exc_info()
    found = line(one)
    assert found["error"] == "ValueError"
    assert "Traceback" in found["stack"]
    assert "hunter2secret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("mongodb://reader:Pa55word!x@db.example/?replicaSet=rs0", "Pa55word!x"),
        ("GET https://host/v1?key=abcdEFGH1234&alt=json", "abcdEFGH1234"),
        ("GEMINI_API_KEY=abcdEFGH1234 set", "abcdEFGH1234"),
        ('{"password": "hunter2secret", "a": 1}', "hunter2secret"),
        ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.payload.sign", "eyJhbGciOiJIUzI1NiJ9"),
        ("posting to https://hooks.slack.com/services/T000/B000/verysecret", "verysecret"),
        ("posting to https://discord.com/api/webhooks/123/verysecret", "verysecret"),
        (f"key {GOOGLE}SyA1234567890abcdefghijklmnopqrstuv", f"{GOOGLE}SyA1234567890"),
        ("AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQ", "1QQQQQQQQ"),
        ("id AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
    ],
)
def test_a_credential_of_a_known_form_is_masked(text: str, secret: str) -> None:
    assert secret not in redacted(text)
    assert "***" in redacted(text)
    assert secret not in json.dumps(line(record("%s", text, extra_field=text)))


@pytest.mark.parametrize(
    "text",
    [
        "CRYPTIQUE_PSEUDONYM_KEY: must have 16 characters",
        "871,781 tokens: 15.69 dollars",
        "http://127.0.0.1:4200/api/flow_runs?limit=200",
        "duplicate key error on documentId",
        "the basic idea; a token is a word",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_concealed_secret_is_masked_wherever_it_stands_and_in_its_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.domain.log_lines._secrets", ())
    conceal("p@ss/wörd?x")
    conceal("ab")  # too short: it would black out words
    found = json.dumps(line(record("one p@ss/wörd?x, two %s", "p%40ss%2Fw%C3%B6rd%3Fx", note="p@ss/wörd?x ab")))
    assert "p@ss" not in found
    assert "p%40ss" not in found
    assert " ab" in found


def test_redaction_takes_no_longer_for_hostile_text() -> None:
    hostile = ["a" * 50_000, "://" * 10_000, "key=" * 10_000, "bearer " * 8_000, '"password":' * 5_000, "=" * 50_000]
    for text in hostile:
        began = time.process_time()
        redacted(text)
        assert time.process_time() - began < 5  # a pattern that ran away would take hours


def test_a_line_that_can_not_be_made_as_meant_is_made_all_the_same() -> None:
    assert line(record("%d", "no number"))["message"].startswith("%d")
    assert line(record("half \ud800 a character", what=object()))["level"] == "info"
    assert len(line(record("x" * 100_000))["message"]) < 21_000


def test_each_record_stands_in_its_streams() -> None:
    assert streams_of(record()) == ("combined",)
    assert streams_of(record(level=logging.ERROR)) == ("combined", "error")
    assert streams_of(record(name=PERFORMANCE)) == ("performance",)
    assert streams_of(record(name=SECURITY)) == ("combined", "security")


def test_files_are_named_by_their_day_and_kept_as_long_as_is_said() -> None:
    assert file_name("error", date(2026, 3, 1)) == "error-2026-03-01.log"
    assert read_file_name("error-2026-03-01.2.log.gz") == ("error", date(2026, 3, 1))
    for name in ("error-2026-13-01.log", "worker.log", "error-2026-03-01.log.partial", "other-2026-03-01.log"):
        assert read_file_name(name) is None
    assert RETENTION_DAYS == {"error": 30, "combined": 30, "performance": 7, "security": 90}
    day = date(2026, 3, 1)
    for stream in STREAMS:
        last = datetime(2026, 3, 1, 23, tzinfo=UTC) + timedelta(days=RETENTION_DAYS[stream])
        assert not may_go(stream, day, now=last)
        assert may_go(stream, day, now=last + timedelta(hours=1))
    assert not is_over(day, now=datetime(2026, 3, 2, 0, 30, tzinfo=UTC), for_s=3_600)
    assert is_over(day, now=datetime(2026, 3, 2, 1, 0, tzinfo=UTC), for_s=3_600)
