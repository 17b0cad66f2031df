"""Guard: what every request passes, and every answer carries. Plain ASGI, so nothing inside can come before it.

In order: a request id, the rate limit, the size of the body, the answer's headers, its time in the meter, and a problem
instead of whatever broke. Who asked is the peer, or whom a trusted proxy names.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from uuid import uuid4

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blocks.meters import METER
from blocks.rate_book import Allowance, RateBook
from deployments.http.origins import is_preflight
from deployments.http.problems import problem_response

LOGGER = logging.getLogger("cryptique.http")
#: A given request id is taken over where it can do no harm in a log.
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
MAX_BODY_BYTES = 1_000_000
#: What has a token is counted by its team, and is bounded by how many are worked on at once.
_COUNTED_BY_TEAM = "/api/"
#: So many for each core are worked on: more threads would keep the interpreter from the one that talks to clients, so
#: that refusing a request took as long as answering it. Others wait.
_WORKED_ON_EACH = 3
#: What is open to everybody there is counted by client.
OPEN_UNDER_API = frozenset({"/api/docs", "/api/docs.css", "/api/openapi.json"})
#: Preflights cost next to nothing, and all browsers of an office come from one address.
_PREFLIGHTS_PER_REQUEST = 10
#: Who asks whether we live asks every few seconds.
_UNLIMITED = frozenset({"/health/live", "/health/ready"})
HEADERS = {
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
}
_NOT_KEPT = "no-store"
_REFUSED = frozenset({401, 404, 405, 413, 429})

Network = IPv4Network | IPv6Network


def read_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a setting, separated by commas. Raises ``ValueError`` for what is none."""
    return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def client_of(scope: Scope, trusted: Sequence[Network]) -> str:
    """Return who asks, as rates are counted: an address, of IPv6 the /64 that one customer has.

    ``X-Forwarded-For`` counts only from a trusted proxy, and of it the last address that is no such proxy.
    """
    peer = (scope.get("client") or ("unknown", 0))[0]
    found = peer
    if _is_trusted(peer, trusted):
        named = [part.strip() for part in ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")]
        for part in reversed([part for part in named if part]):
            found = part
            if not _is_trusted(part, trusted):
                break
    try:
        address = ip_address(found)
    except ValueError:
        return peer
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped is not None else str(ip_network((address, 64), strict=False))
    return str(address)


def _is_trusted(text: str, trusted: Sequence[Network]) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in trusted)


class Guard:
    """The outermost layer of the service."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        rates: RateBook,
        limit: int,
        window_s: int,
        trusted: Sequence[Network],
        at_once: int,
    ) -> None:
        self._app, self._rates = app, rates
        self._at_once, self._under_way = at_once, 0
        self._working = CapacityLimiter(_WORKED_ON_EACH * (os.cpu_count() or 1))
        self._limit, self._window_s, self._trusted = limit, window_s, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid4().hex
        client = client_of(scope, self._trusted)
        scope.setdefault("state", {}).update(request_id=request_id, client=client)
        status, started = 500, False
        allowance: Allowance | None = None
        who, limit = f"http:{client}", self._limit

        async def answer(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out[name] = value
                out["X-Request-ID"] = request_id
                out.setdefault("Cache-Control", _NOT_KEPT)
                if allowance is not None:
                    out["RateLimit-Limit"] = str(limit)
                    out["RateLimit-Remaining"] = str(allowance.left)
                    out["RateLimit-Reset"] = str(allowance.retry_after_s or self._window_s)
            await send(message)

        async def refuse(code: int, detail: str, **more: str) -> None:
            response = problem_response(code, detail, path=scope["path"], request_id=request_id, headers=more)
            await response(scope, receive, answer)

        preflight = is_preflight(scope)
        counted_by_team = scope["path"].startswith(_COUNTED_BY_TEAM) and not (
            preflight or scope["path"] in OPEN_UNDER_API
        )
        self._under_way += counted_by_team
        try:
            if counted_by_team:
                if self._under_way > self._at_once:
                    await refuse(429, "too many requests at once: try again in 1 s", **{"Retry-After": "1"})
                    return
            elif scope["path"] not in _UNLIMITED:
                if preflight:
                    # Pages that ask a lot must not close the pages of operations for whoever sits beside them.
                    who, limit = f"preflight:{client}", self._limit * _PREFLIGHTS_PER_REQUEST
                allowance = await to_thread.run_sync(self._hit, who, limit)
                if not allowance.allowed:
                    LOGGER.info("too many requests of %s", client, extra={"request_id": request_id})
                    after = str(allowance.retry_after_s)
                    await refuse(429, f"too many requests: try again in {after} s", **{"Retry-After": after})
                    return
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > MAX_BODY_BYTES:
                await refuse(413, f"a body may hold {MAX_BODY_BYTES:,} bytes")
                return
            if counted_by_team:
                async with self._working:
                    await self._app(scope, _bounded(receive), answer)
            else:
                await self._app(scope, _bounded(receive), answer)
        except _TooLargeError:
            if not started:
                await refuse(413, f"a body may hold {MAX_BODY_BYTES:,} bytes")
        except Exception:
            # What broke is for the log alone, under the id that the client has.
            LOGGER.exception("a request broke", extra={"request_id": request_id, "path": scope["path"][:200]})
            if not started:
                await refuse(500, "something broke here; the log has it under the request id")
        finally:
            self._under_way -= counted_by_team
            # That a part isn't ready is an answer about the part, and told of there.
            # Nor is a refusal an answer that was worked for: a flood of them must not hide what fails.
            if not scope["path"].startswith("/health/") and status not in _REFUSED:
                error = str(status) if status >= 500 else None
                METER.count("http", at=datetime.now(UTC), seconds=time.monotonic() - began, error=error)

    def _hit(self, who: str, limit: int) -> Allowance:
        return self._rates.hit(who, limit=limit, window_s=self._window_s)


class _TooLargeError(Exception):
    """More came than a body may hold."""


def _bounded(receive: Receive) -> Receive:
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise _TooLargeError
        return message

    return bounded
