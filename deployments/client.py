"""Client: the retrieval service for Python programs, over one pool of connections.

    with RagClient("https://rag.example", token) as rag:
        found = rag.retrieve("failed swaps in March", site_id="site-a")
        print(found["context"], found["sources"])

It needs httpx alone, and can be copied as it is. What each answer holds is told by ``docs/retrieval.md``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

#: 429 and 503 come before anything was done; what else goes wrong is not asked again.
_COME_AGAIN = frozenset({429, 503})
#: 202: a text is kept, and found later.
_GOOD = frozenset({200, 202})
_LONGEST_WAIT_S = 30.0


class RagError(Exception):
    """The service refused, or didn't answer.

    ``status`` is 0 without an answer; ``request_id`` is what its log knows the request by.
    """

    def __init__(self, status: int, message: str, request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class RagClient:
    """Asks for one team, the token's. Safe to share between threads; ``close`` it, or use ``with``.

    A request that is told to come again (429, 503) or finds no connection is sent ``retries`` more times, after the
    seconds that the service names.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        timeout_s: float = 40.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._retries, self._sleep = retries, sleep
        self._client = httpx.Client(
            base_url=base_url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            transport=transport,
        )

    def retrieve(self, query: str, *, site_id: str, limit: int = 5, min_score: float = 0.6) -> dict[str, Any]:
        """Return ``context``, ``sources``, ``metadata``, ``results`` and what was ``understood``."""
        return self._ask("/api/rag/retrieve", query=query, siteId=site_id, limit=limit, minScore=min_score)

    def generate(
        self,
        query: str,
        *,
        site_id: str,
        context_limit: int = 3,
        max_tokens: int = 1_000,
        temperature: float = 0.7,
    ) -> dict[str, Any] | None:
        """Return ``content`` with its ``sources``, ``citations`` and ``metadata``; None where nothing is known.

        A question for figures has ``figures``, or ``refused`` with ``reason`` and ``needed`` and no ``content``.
        """
        answer = self._send(
            "/api/rag/generate",
            {
                "query": query,
                "siteId": site_id,
                "contextLimit": context_limit,
                "maxTokens": max_tokens,
                "temperature": temperature,
            },
        )
        data = answer.get("data") or {}
        return dict(data) if answer.get("success") or data.get("refused") else None

    def overview(self, query: str, *, site_id: str, timeframe: str = "30d") -> dict[str, Any] | None:
        """Return ``metrics``, ``visualizations``, ``tables`` and ``insights``; None where nothing is recorded."""
        answer = self._send("/api/ai/query", {"query": query, "siteId": site_id, "timeframe": timeframe})
        return dict(answer["data"]) if answer.get("success") else None

    def add_document(
        self, text: str, *, site_id: str, source: str = "", type: str = "", category: str = ""
    ) -> dict[str, Any]:
        """Keep a text about a site (editors and admins); return its ``id`` and ``metadata``.

        ``metadata["status"]`` is ``searchable``, or ``waiting`` with a ``note`` that says for what. The same text again
        has the same id and costs nothing.
        """
        metadata = {"source": source, "type": type, "category": category}
        return self._ask("/api/rag/documents", text=text, siteId=site_id, metadata=metadata)

    def rate(self, request_id: str, *, site_id: str, rating: int, comment: str = "") -> None:
        """Say what an answer was worth, 1 to 5; ``request_id`` is its ``requestId``. The last word counts."""
        self._ask("/api/rag/feedback", requestId=request_id, siteId=site_id, rating=rating, comment=comment)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self._send(path, body)
        if not answer.get("success"):
            raise RagError(200, str(answer.get("error", "no reason given")), str(answer.get("requestId", "")))
        return dict(answer["data"])

    def _send(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a good answer, with the ``requestId`` in its ``data``. Raises ``RagError``."""
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                response = self._client.post(path, json=dict(body))
            except httpx.ConnectError as error:
                if last:
                    raise RagError(0, f"no connection: {error}") from error
                self._sleep(2.0**attempt)
                continue
            except httpx.HTTPError as error:
                # It may have been answered: asking again is the caller's choice.
                raise RagError(0, f"no answer: {type(error).__name__}") from error
            if response.status_code in _COME_AGAIN and not last:
                self._sleep(_seconds_to_wait(response, attempt))
                continue
            return _read(response)
        raise AssertionError("the last attempt returns or raises")


def _read(response: httpx.Response) -> dict[str, Any]:
    request_id = response.headers.get("X-Request-ID", "")
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RagError(response.status_code, f"no JSON, but HTTP {response.status_code}", request_id)
    if response.status_code not in _GOOD:
        raise RagError(response.status_code, str(answer.get("error", response.reason_phrase)), request_id)
    if isinstance(answer.get("data"), dict):
        answer["data"]["requestId"] = request_id
    return answer


def _seconds_to_wait(response: httpx.Response, attempt: int) -> float:
    named = response.headers.get("Retry-After", "")
    return min(_LONGEST_WAIT_S, float(named) if named.isdigit() else 2.0**attempt)
