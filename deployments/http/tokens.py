"""Who asks: a bearer JWT of the application, whose team says what may be seen. Nothing else in a request does.

Tokens are signed with a secret (HS256) or a private key of which we have the public one (RS256, ES256). Which of the
two is decided by our settings and never by the token: a public key is no secret, and ``none`` is no signature.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from bson import ObjectId
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from blocks.rate_book import RateBook
from deployments.http.problems import ProblemError, too_many
from deployments.settings import Settings

#: Roles of the application (``teams.user.role``) that may add documents.
WRITERS = frozenset({"admin", "editor"})
_ROLES = WRITERS | {"viewer", "user"}
_LEEWAY_S = 30
_LONGEST_TOKEN = 8_192
#: A token that was found good is not read again for so long; a token that ends earlier ends then.
_KEPT_S = 60.0
_KEPT_TOKENS = 2_000
FAILURES_PER_HOUR = 60
_HOUR_S = 3_600
_SECURITY = logging.getLogger("cryptique.security")
_ASK = {"WWW-Authenticate": 'Bearer realm="cryptique-rag"'}


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever has the token: a user of one team, in a role of the application."""

    team_id: str
    user: str
    role: str

    @property
    def may_write(self) -> bool:
        """Return whether documents may be added."""
        return self.role in WRITERS


class BadTokenError(Exception):
    """A token that is not taken, with why, in words that help its owner and nobody else."""


class TokenReader:
    """Reads tokens by the settings. ``is_open`` is False where neither a secret nor a key is set."""

    def __init__(self, settings: Settings) -> None:
        self._keys: list[tuple[Any, list[str]]] = [(secret, ["HS256"]) for secret in settings.jwt_secrets]
        if settings.cryptique_jwt_public_keys is not None:
            self._keys += read_public_keys(settings.cryptique_jwt_public_keys)
        self._issuer, self._audience = settings.cryptique_jwt_issuer, settings.cryptique_jwt_audience
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, Caller]] = {}

    @property
    def is_open(self) -> bool:
        """Return whether any token can be good."""
        return bool(self._keys)

    def read(self, token: str) -> Caller:
        """Return who has the token. Raises ``BadTokenError``."""
        now = time.time()
        with self._lock:
            kept = self._kept.get(token)
        if kept is not None and now < kept[0]:
            return kept[1]
        claims = self._claims(token)
        caller = _caller(claims)
        with self._lock:
            if len(self._kept) >= _KEPT_TOKENS:
                self._kept.clear()
            self._kept[token] = (min(now + _KEPT_S, float(claims["exp"])), caller)
        return caller

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _LONGEST_TOKEN:
            raise BadTokenError("the token is too long")
        problem: Exception = jwt.InvalidSignatureError()
        for key, algorithms in self._keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=algorithms,
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=_LEEWAY_S,
                    options={"require": ["exp"], "verify_aud": self._audience is not None},
                )
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidKeyError) as error:
                problem = error  # of another key, perhaps
            except jwt.ExpiredSignatureError:
                raise BadTokenError("the token has expired: log in again") from None
            except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError, OverflowError):
                raise BadTokenError("the token is no valid JWT with an exp of this issuer") from None
            else:
                return claims
        raise BadTokenError("the token's signature is not ours") from problem


def _caller(claims: dict[str, Any]) -> Caller:
    team, user, role = (claims.get(name) for name in ("teamId", "sub", "role"))
    if not isinstance(team, str) or not ObjectId.is_valid(team) or len(team) != 24:
        raise BadTokenError("the token names no team (teamId, 24 hexadecimal digits)")
    return Caller(
        team.lower(),
        user[:100] if isinstance(user, str) else "",
        role if isinstance(role, str) and role in _ROLES else "",
    )


def read_public_keys(path: Path) -> list[tuple[Any, list[str]]]:
    """Return the public keys of a PEM file, each with what it may sign. Raises ``OSError`` and ``ValueError``."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    end = b"-----END PUBLIC KEY-----"
    parts = [part + end for part in path.read_bytes().split(end) if b"BEGIN PUBLIC KEY" in part]
    found: list[tuple[Any, list[str]]] = []
    for part in parts:
        key = load_pem_public_key(part.strip())
        if isinstance(key, RSAPublicKey):
            found.append((key, ["RS256"]))
        elif isinstance(key, EllipticCurvePublicKey):
            found.append((key, ["ES256"]))
        else:
            raise ValueError(f"{path.name} holds a key that is neither RSA nor of an elliptic curve")
    if not found:
        raise ValueError(f"{path.name} holds no public key in PEM (-----BEGIN PUBLIC KEY-----)")
    return found


def make_caller_check(reader: TokenReader, rates: RateBook) -> Callable[[Request], Any]:
    """Return the dependency that says who asks, or raises ``ProblemError``: 401, or 429 after too many bad tokens."""

    async def who_asks(request: Request) -> Caller:
        if not reader.is_open:
            raise ProblemError(503, "retrieval is closed: set CRYPTIQUE_JWT_SECRET and start the service again")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            if scheme.lower() != "bearer" or not token.strip():
                raise BadTokenError("give a bearer token: Authorization: Bearer ...")
            return reader.read(token.strip())
        except BadTokenError as error:
            client = request.state.client
            allowed = await run_in_threadpool(rates.hit, f"token:{client}", limit=FAILURES_PER_HOUR, window_s=_HOUR_S)
            _SECURITY.warning(
                "token_refused of %s for %s: %s",
                client,
                request.url.path[:200],
                error,
                extra={"event": "token_refused", "client": client, "request_id": request.state.request_id},
            )
            if not allowed.allowed:
                raise too_many("too many bad tokens", allowed.retry_after_s) from None
            raise ProblemError(401, str(error), headers=_ASK) from None

    return who_asks


def make_token(secret: str, *, team_id: str, user: str, role: str, hours: float, settings: Settings) -> str:
    """Return a token signed with a secret of ours."""
    now = int(time.time())
    claims: dict[str, Any] = {"teamId": team_id, "sub": user, "role": role, "iat": now, "exp": now + int(hours * 3_600)}
    if settings.cryptique_jwt_issuer:
        claims["iss"] = settings.cryptique_jwt_issuer
    if settings.cryptique_jwt_audience:
        claims["aud"] = settings.cryptique_jwt_audience
    return jwt.encode(claims, secret, algorithm="HS256")
