"""The audits: a planted secret is found, examples are known as such, and silence is no audit."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments import audit


def test_a_planted_secret_is_found_and_none_stands_in_the_settings_that_are_shipped(tmp_path: Path) -> None:
    planted = tmp_path / "settings.py"
    planted.write_text('KEY = "AKIA' + 'IOSFODNN7REALKEY"\n')
    code, said = audit.scan([str(planted)])
    assert code == audit.FOUND
    assert "AWS Access Key" in said
    shipped = [str(path) for path in (audit.ROOT / "deployments").glob("*.example")]
    assert audit.scan([".env.example", *shipped])[0] == audit.CLEAN


def test_where_no_advisory_service_answers_it_says_that_nothing_was_audited(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("certifi==2026.1.1 --hash=sha256:" + "0" * 64 + "\n")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert audit.audit_dependencies(lock) == audit.NOT_ASKED
    assert "NOT AUDITED" in capsys.readouterr().out
