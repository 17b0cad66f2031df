"""Who may see the operations pages: whoever has CRYPTIQUE_ADMIN_TOKEN, as a bearer or as the password of ``admin``.

Ten wrong tokens in an hour, and the client waits, with a right one too: else the tenth guess would cost nothing.
"""

from __future__ import annotations

import base64
import hmac
import logging
from collections.abc import Callable
from hashlib import sha256

from fastapi import Request
from pydantic import SecretStr

from blocks.rate_book import RateBook
from deployments.http.problems import ProblemError, too_many

USER = "admin"
FAILED_LOGINS_PER_HOUR = 10
_HOUR_S = 3_600
_LONGEST_HEADER = 1_000
_SECURITY = logging.getLogger("cryptique.security")
_ASK = {"WWW-Authenticate": 'Basic realm="cryptique-rag", charset="UTF-8"'}


def make_admin_check(token: SecretStr | None, rates: RateBook) -> Callable[[Request], None]:
    """Return the dependency that lets an admin pass, and raises ``ProblemError`` for anybody else."""

    def require_admin(request: Request) -> None:
        if token is None:
            raise ProblemError(
                503, "the operations pages are closed: set CRYPTIQUE_ADMIN_TOKEN and start the service again"
            )
        client = request.state.client
        who = f"login:{client}"
        standing = rates.check(who, limit=FAILED_LOGINS_PER_HOUR, window_s=_HOUR_S)
        if not standing.allowed:
            _note(request, "auth_blocked")
            raise too_many("too many failed logins", standing.retry_after_s)
        header = request.headers.get("authorization")
        if header is None:
            raise ProblemError(401, "log in as admin, with CRYPTIQUE_ADMIN_TOKEN as the password", headers=_ASK)
        given = _given(header)
        # Digests are of one length, so neither the time nor an error tells anything of the token.
        wanted = sha256(token.get_secret_value().encode()).digest()
        if given is None or not hmac.compare_digest(sha256(given).digest(), wanted):
            rates.hit(who, limit=FAILED_LOGINS_PER_HOUR, window_s=_HOUR_S)
            _note(request, "auth_failed")
            raise ProblemError(401, "wrong user or token", headers=_ASK)

    return require_admin


def _note(request: Request, event: str) -> None:
    _SECURITY.warning(
        "%s by %s for %s",
        event,
        request.state.client,
        request.url.path[:200],
        extra={"event": event, "client": request.state.client, "request_id": request.state.request_id},
    )


def _given(header: str) -> bytes | None:
    """Return the token of an Authorization header, or None where it is no such header."""
    scheme, _, word = header.partition(" ")
    if len(header) > _LONGEST_HEADER:
        return None
    if scheme.lower() == "bearer":
        return word.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(word.strip(), validate=True).partition(b":")
    except ValueError:
        return None
    return password if colon and user == USER.encode() else None
