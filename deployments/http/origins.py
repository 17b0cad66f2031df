"""Other origins: whose pages may ask ``/api`` from a browser (CORS). None, unless CRYPTIQUE_CORS_ORIGINS names some.

What a browser asks before it asks (a preflight) has no token, and is answered inside the guard, which counts it by
client. The headers that let a page read an answer are put on outside of it, so that a page reads refusals too. No
cookies are taken: a page sends its token itself.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

_UNDER = "/api/"
#: How long a browser need not ask again.
_KEPT_S = 600


def cors_options(origins: list[str]) -> dict[str, Any]:
    """Return what both layers are made with."""
    return {
        "allow_origins": tuple(origins),
        "allow_methods": ("GET", "POST"),
        "allow_headers": ("Authorization", "Content-Type", "X-Request-ID"),
        "allow_credentials": False,
        "expose_headers": ("X-Request-ID", "Retry-After"),
        "max_age": _KEPT_S,
    }


def is_preflight(scope: Scope) -> bool:
    """Return whether a browser asks if a page may ask."""
    headers = Headers(scope=scope)
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


class Preflights(CORSMiddleware):
    """The layer inside the guard: answers preflights of ``/api``, and lets everything else pass as it is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].startswith(_UNDER) and is_preflight(scope):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class ReadableAnswers(CORSMiddleware):
    """The layer outside the guard: says on every answer of ``/api`` whose pages may read it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(_UNDER) or is_preflight(scope):
            await self.app(scope, receive, send)
        else:
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
