"""What staging and production refuse to start with, told all at once and without a value."""

from __future__ import annotations

from typing import Any

import pytest

from blocks.slack import SlackNotifier, inside_address
from deployments.environments import is_weak
from deployments.settings import Settings, inspect_settings

#: How a key of Google begins; apart from the rest, so that nobody takes this file to hold one.
GOOGLE = "AIza"
GOOD: dict[str, Any] = {
    "cryptique_environment": "production",
    "cryptique_source_uri": "mongodb://reader:kT7%23vQ2mZ9pL4x@db.example/",
    "cryptique_source_database": "cryptique",
    "cryptique_vectors_database": "cryptique_rag",
    "cryptique_pseudonym_key": "nW3kT7vQ2mZ9pL4xBd",
    "cryptique_admin_token": "hR8sY5cJ1gF6uE0aKq",
    "slack_webhook_url": "https://hooks.example.com/services/T0/B0/kT7vQ2mZ9pL4",
    "cryptique_backups": "s3://cryptique-backups/prod",
    "cryptique_s3_access_key": "kT7vQ2mZ9pL4xWs",
    "cryptique_s3_secret_key": "kT7vQ2mZ9pL4xWskT7vQ2mZ9pL4xWs",
    "prefect_api_url": "https://prefect.example/api",
    "gemini_api_key": GOOGLE + "SyA-kT7vQ2mZ9pL4xBdhR8sY5cJ1gF6uE0a",
    "cryptique_embedder": "gemini",
}


@pytest.fixture(autouse=True)
def authenticated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:kT7vQ2mZ9pL4xWs")


def problems(**chosen: Any) -> list[str]:
    return inspect_settings(_env_file=None, **{**GOOD, **chosen})[1]


def test_production_with_all_it_needs_starts() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("chosen", "setting"),
    [
        ({"cryptique_source_uri": None}, "CRYPTIQUE_SOURCE_URI"),
        ({"prefect_api_url": None}, "PREFECT_API_URL"),
        ({"prefect_api_url": "http://prefect.example/api"}, "PREFECT_API_URL"),
        ({"cryptique_source_database": "cryptique_staging"}, "CRYPTIQUE_SOURCE_DATABASE"),
        ({"cryptique_vectors_database": "rag-test"}, "CRYPTIQUE_VECTORS_DATABASE"),
        ({"cryptique_admin_token": None}, "CRYPTIQUE_ADMIN_TOKEN"),
        ({"cryptique_admin_token": "aaaaaaaaaaaaaaaaaaaa"}, "CRYPTIQUE_ADMIN_TOKEN"),
        ({"cryptique_admin_token": "32-random-characters"}, "CRYPTIQUE_ADMIN_TOKEN"),
        ({"cryptique_pseudonym_key": None}, "CRYPTIQUE_PSEUDONYM_KEY"),
        ({"gemini_api_key": "your-key"}, "GEMINI_API_KEY"),
        ({"cryptique_source_uri": "mongodb://reader:password@db.example/"}, "CRYPTIQUE_SOURCE_URI"),
        ({"slack_webhook_url": None}, "SLACK_WEBHOOK_URL"),
        ({"slack_webhook_url": "http://hooks.example.com/services/x"}, "SLACK_WEBHOOK_URL"),
        ({"cryptique_backups": None}, "CRYPTIQUE_BACKUPS"),
        ({"cryptique_backups": "/srv/home/backups", "cryptique_home": "/srv/home"}, "CRYPTIQUE_BACKUPS"),
        ({"cryptique_source_database": "cryptiquestaging"}, "CRYPTIQUE_SOURCE_DATABASE"),
        ({"slack_webhook_url": "https://hooks.slack.com/services/T000/B000/your-token"}, "SLACK_WEBHOOK_URL"),
    ],
)
def test_each_thing_that_must_not_be_is_refused_by_its_name(chosen: dict[str, Any], setting: str) -> None:
    (found,) = problems(**chosen)
    assert found.startswith(f"{setting}: ")
    for value in chosen.values():
        assert value is None or "://" not in found
        assert value is None or value not in found.partition(": ")[2] or setting.endswith("DATABASE")


def test_production_wants_credentials_for_a_server_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    assert [one.partition(":")[0] for one in problems()] == ["PREFECT_API_AUTH_STRING"]
    assert problems(prefect_api_url="http://127.0.0.1:4200/api") == []


def test_everything_wrong_is_told_at_once() -> None:
    found = inspect_settings(_env_file=None, cryptique_environment="production")[1]
    assert len(found) >= 6


def test_staging_has_a_store_that_none_takes_for_productions() -> None:
    staging = {"cryptique_environment": "staging", "cryptique_backups": None, "slack_webhook_url": None}
    assert problems(**staging, cryptique_vectors_database="cryptique_staging") == []
    assert [one.partition(":")[0] for one in problems(**staging)] == ["CRYPTIQUE_VECTORS_DATABASE"]
    wrong = problems(**staging, cryptique_vectors_database="staging_of_production")
    assert "another environment (production)" in wrong[0]


def test_development_refuses_nothing() -> None:
    assert inspect_settings(_env_file=None, cryptique_environment="development")[1] == []


@pytest.mark.parametrize(
    "secret", ["", "changeme", "Change-Me", "password1", "your-access-key", "000000000000", "abababababab"]
)
def test_a_default_is_no_secret(secret: str) -> None:
    assert is_weak(secret)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/x",
        "http://localhost/x",
        "http://10.1.2.3/x",
        "http://192.168.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/x",
        "http://[::1]/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://[fd00::1]/x",
        "http://0.0.0.0/x",
        "http://2130706433/x",
        "http://224.0.0.1/x",
        "http://nobody.invalid/x",
    ],
)
def test_a_webhook_that_leads_inside_is_not_asked(url: str) -> None:
    assert inside_address(url) is not None
    delivery = SlackNotifier(url=url, allow_private=False).send({"text": "x"})  # type: ignore[arg-type]
    assert not delivery.delivered
    assert url not in delivery.says


def test_a_public_address_is_asked() -> None:
    assert inside_address("https://93.184.215.14/hook") is None
    assert inside_address("https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/hook") is None


def test_only_development_lets_a_webhook_lead_inside_unless_it_is_said() -> None:
    assert Settings(_env_file=None).allows_private_webhook
    assert not Settings(_env_file=None, cryptique_environment="production").allows_private_webhook
    assert Settings(
        _env_file=None, cryptique_environment="staging", cryptique_alert_allow_private=True
    ).allows_private_webhook
