"""Environments: what staging and production must have set before anything starts, and what must not be set there.

Development refuses nothing. Each problem names the setting and what to do, and never a value.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

if TYPE_CHECKING:
    from deployments.settings import Settings

_OTHERS = {
    "production": {"staging", "stage", "dev", "development", "test", "tests", "demo", "local"},
    "staging": {"prod", "production", "live", "dev", "development", "test", "tests", "demo", "local"},
}
#: What people leave in place of a secret.
_NO_SECRETS = re.compile(
    r"(?:change[-_ ]?me|password|passwd|secret|admin|root|default|example|test|demo|token|letmein|qwerty|your[-_ ].*|"
    r"[0-9]{1,12}|<.*>|x+|\*+)\d{0,4}",
    re.IGNORECASE,
)
_SHORTEST = 12


def environment_problems(settings: Settings) -> list[str]:
    """Return why these settings may not be used in their environment; nothing for development."""
    if settings.cryptique_environment == "development":
        return []
    found = [*_servers(settings), *_databases(settings), *_secrets(settings)]
    if settings.is_production:
        found += _what_production_needs(settings)
    return found


def _servers(settings: Settings) -> list[str]:
    where, found = settings.cryptique_environment, []
    if settings.embedded:
        found.append(f"CRYPTIQUE_SOURCE_URI: must be set in {where}: the embedded mongod is for development alone")
    url = settings.prefect_api_url
    if url is None:
        found.append(f"PREFECT_API_URL: must be set in {where}: the local server on SQLite is for development alone")
    elif url.startswith("http://") and not _is_inside(urlsplit(url).hostname or ""):
        found.append(f"PREFECT_API_URL: must be https in {where}, or an address inside your own network")
    return found


def _databases(settings: Settings) -> list[str]:
    where, found = settings.cryptique_environment, []
    names = {"CRYPTIQUE_SOURCE_DATABASE": settings.cryptique_source_database}
    if settings.cryptique_vectors_database is not None:
        names["CRYPTIQUE_VECTORS_DATABASE"] = settings.cryptique_vectors_database
    for setting, name in names.items():
        wrong = sorted(_words(name) & _OTHERS[where])
        if wrong:
            others = ", ".join(wrong)
            found.append(f"{setting}: names a database of another environment ({others}), and this is {where}")
    if where == "staging" and "staging" not in _words(settings.vectors_database):
        found.append(
            "CRYPTIQUE_VECTORS_DATABASE: must hold the word staging in staging, such as cryptique_staging: then none "
            "can take it for production's"
        )
    return found


def _words(name: str) -> set[str]:
    return {word for word in re.split(r"[^a-z]+", name.lower()) if word}


def _secrets(settings: Settings) -> list[str]:
    where, found = settings.cryptique_environment, []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if not isinstance(value, SecretStr):
            continue
        secret = value.get_secret_value()
        if "://" in secret:
            password = unquote(urlsplit(secret).password or "") if secret.startswith("mongodb") else ""
            weak = bool(password) and is_weak(password)
        else:
            weak = is_weak(secret) or secret in (field.examples or ())
        if weak:
            found.append(
                f"{name.upper()}: is a default, an example or too short: set a random one of your own in {where}"
            )
    return found


def is_weak(secret: str) -> bool:
    """Return whether a secret is short, a well-known word, or one character again and again."""
    return len(secret) < _SHORTEST or len(set(secret)) < 4 or _NO_SECRETS.fullmatch(secret) is not None


def _what_production_needs(settings: Settings) -> list[str]:
    found = []
    if settings.cryptique_admin_token is None:
        found.append("CRYPTIQUE_ADMIN_TOKEN: must be set in production: a random one, 16 characters at least")
    if settings.cryptique_pseudonym_key is None:
        found.append("CRYPTIQUE_PSEUDONYM_KEY: must be set in production: another machine would make another one")
    if settings.slack_webhook_url is None:
        found.append("SLACK_WEBHOOK_URL: must be set in production: else nobody is told of what fails")
    elif not settings.slack_webhook_url.get_secret_value().startswith("https://"):
        found.append("SLACK_WEBHOOK_URL: must be https in production")
    if settings.cryptique_backups is None:
        found.append(
            "CRYPTIQUE_BACKUPS: must be set in production: under CRYPTIQUE_HOME a lost disk takes them with it"
        )
    return found


def _is_inside(host: str) -> bool:
    """Return whether a host is of one's own network: a private address, or a name without a dot."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".internal", ".local", ".svc"))
    return address.is_private
