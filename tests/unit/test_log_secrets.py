"""Secrets as libraries, drivers and people spell them: none stands in a line."""

from __future__ import annotations

import json
import logging

import pytest

from tasks.domain.log_lines import bound, conceal, line_of, redacted


def spelled(message: str, *args: object, **extra: object) -> str:
    record = logging.LogRecord("x", logging.INFO, "", 0, message, args, None)
    record.__dict__.update(extra)
    return line_of(record).decode()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("mongodb+srv://admin:p@ss:w0rd@cluster0.example.net/db", "w0rd"),
        ("cloning https://9f8e7d6c5b4a@git.example/repo.git", "9f8e7d6c5b4a"),
        ("HTTPSConnectionPool(host='hooks.slack.com', port=443): url: /services/T0AAA/B0BBB/XyZabc123", "XyZabc123"),
        ("POST discord.com/api/v10/webhooks/1234567890/abc-DEF_ghi", "abc-DEF_ghi"),
        ("aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
        ("{'aws_secret_access_key': 'wJalrXUtnFEMI/K7MDENG'}", "wJalrXUtnFEMI"),
        ('{"client_secret": "s3cr3t value with spaces"}', "with spaces"),
        ("password: hunter2secret", "hunter2secret"),
        ("headers={'Authorization': 'Basic YWRtaW46c2VjcmV0'}", "YWRtaW46c2VjcmV0"),
        ("Authorization: Token 0123456789abcdef", "0123456789abcdef"),
        ("sent Basic YWRtaW46c2VjcmV0", "YWRtaW46c2VjcmV0"),
        ("key=AbCdEf0123456789xyz", "AbCdEf0123456789xyz"),
        ("https://bucket.s3.example/a?X-Amz-Signature=deadbeef00&X-Amz-Date=1", "deadbeef00"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJzdWIiOiIxMjM0In0"),
        ("age-secret-key-1qqqqqqqqqqqqqqqqqqqqqqqqqqqq", "qqqqqqqq"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----", "MIIEow"),
        ("slack xoxb-1234567890-abcdefghij", "1234567890-abcdefghij"),
        ("prefect pnu_0123456789abcdefghijklmn", "0123456789abcdefghijklmn"),
    ],
)
def test_a_secret_is_masked_however_it_is_spelled(text: str, secret: str) -> None:
    assert secret in text
    for line in (redacted(text), spelled(text), spelled("%s", text), spelled("x", note={"inner": [text]})):
        assert secret not in line


@pytest.mark.parametrize(
    "text",
    [
        "GEMINI_API_KEY: Field required",
        "basic authentication and a bearer of news",
        "E11000 duplicate key error collection: rag.vectordocuments dup key: { documentId: 5 }",
        "read 871,781 records at 2,300 a second; tokens: 15",
        "http://127.0.0.1:4200/runs/flow-run/0b8f3a6e",
        "s3://backups/2026-03-01/manifest.json",
        "key=documentId",
    ],
)
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text


def test_a_field_that_is_named_for_a_secret_is_masked_whatever_it_holds() -> None:
    found = json.loads(spelled("x", gemini_api_key="plain", token="abc", tokens=12, password=None, stage="embed"))
    assert (found["gemini_api_key"], found["token"]) == ("***", "***")
    assert (found["tokens"], found["password"], found["stage"]) == (12, None, "embed")


def test_parts_of_a_concealed_address_are_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.domain.log_lines._secrets", ())
    conceal("mongodb://reader:corr%40ct-horse@db.example/?replicaSet=rs0 https://alerts.example/hook/Zx81-abc")
    conceal('quo"ted\\secret')
    with bound(source="corr@ct-horse"):
        found = spelled("got corr@ct-horse, url: /hook/Zx81-abc, %r", 'quo"ted\\secret', rest={"a": 'quo"ted\\secret'})
    for secret in ("corr@ct-horse", "Zx81-abc", "ted\\\\secret", "ted\\\\\\\\secret"):
        assert secret not in found
