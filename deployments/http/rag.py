"""``/api/rag``: what CQ Intelligence asks, in the application's own contract.

Every answer has its keys under ``data`` and beside it, because one of its clients reads them there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import pymongo
from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from blocks.meters import METER
from blocks.rate_book import RateBook
from deployments.http.parts import HttpParts
from deployments.http.problems import too_many
from deployments.http.sites import TeamSites
from deployments.http.tokens import Caller
from tasks.domain.answers.model import FigureAnswer, Refusal
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.retrieval.understanding import LONGEST_QUESTION
from tasks.retrieve import Hit, Retrieval, explain

_WINDOW_S = 60


def _clean(text: str) -> str:
    if "\0" in text or not text.strip():
        raise ValueError("must hold a word, and no NUL")
    return text.strip()


Query = Annotated[str, Field(max_length=LONGEST_QUESTION), AfterValidator(_clean)]
SiteId = Annotated[str, Field(max_length=200), AfterValidator(_clean)]


class Asked(BaseModel):
    """What clients send more is left alone; what is of another type is refused, and never guessed."""

    model_config = ConfigDict(strict=True, extra="ignore")


class RetrieveRequest(Asked):
    """A question, and the site that it is about."""

    query: Query
    siteId: SiteId  # noqa: N815 - the contract's name
    limit: int = Field(default=5, ge=1, le=50)
    minScore: float = Field(default=0.6, ge=0, le=1, allow_inf_nan=False)  # noqa: N815


class FeedbackRequest(Asked):
    """What a user thinks of an answer; ``requestId`` is that of the answer (header ``X-Request-ID``)."""

    requestId: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{8,64}$")]  # noqa: N815
    siteId: SiteId  # noqa: N815
    rating: int = Field(ge=1, le=5)
    comment: str = Field(default="", max_length=500)


def both_levels(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer of the contract: the keys under ``data``, and at the top."""
    return {**data, "success": True, "data": dict(data)}


def retrieved(found: Retrieval, *, query: str, site_id: str) -> dict[str, Any]:
    """Return what was found as the contract has it; ``results`` and ``understood`` are ours."""
    scores = [hit.score for hit in found.hits]
    return {
        "context": "\n\n".join(hit.content for hit in found.hits),
        "sources": [source_of(hit) for hit in found.hits],
        "metadata": {
            "query": query,
            "siteId": site_id,
            "matchCount": len(found.hits),
            "minScore": min(scores, default=0.0),
            "maxScore": max(scores, default=0.0),
        },
        "results": [result_of(hit) for hit in found.hits],
        "understood": understood_of(found),
    }


def understood_of(found: Retrieval) -> dict[str, Any]:
    """Return how a question was read, and what could not be done as it should."""
    return {
        "conditions": explain(found.understood.readings),
        "wanted": found.understood.wanted,
        "fitting": found.fitting,
        "notes": list(found.notes),
    }


def source_of(hit: Hit) -> str:
    """Return what the application calls a document's source: ``transaction:<id>``."""
    return f"{hit.source_type}:{hit.source_id}"


def result_of(hit: Hit) -> dict[str, Any]:
    """Return one document with what an answer cites."""
    return {
        "documentId": hit.document_id,
        "source": source_of(hit),
        "sourceType": hit.source_type,
        "siteId": hit.site_id,
        "score": hit.score,
        "content": hit.content,
        "summary": hit.summary,
        "metadata": hit.metadata,
        "alsoIn": list(hit.folded),
    }


class Rag:
    """What the routes share: who may ask how often about what."""

    def __init__(self, parts: HttpParts, rates: RateBook) -> None:
        self.parts, self._rates = parts, rates
        self.sites = TeamSites(parts.source)
        self._refused: dict[str, float] = {}

    def admit(self, caller: Caller, site_id: str) -> Tenant:
        """Return whose documents may be seen. Raises ``ProblemError``: 429 beyond the team's rate, 404 for a site."""
        self.count(caller)
        self.sites.require(caller.team_id, site_id)
        return Tenant(caller.team_id, site_id)

    def count(self, caller: Caller) -> None:
        """Count a request of a team. Raises ``ProblemError`` 429 beyond its rate."""
        now = time.monotonic()
        until = self._refused.get(caller.team_id, 0.0)
        wait = until - now
        if wait <= 0:
            limit = self.parts.settings.cryptique_api_rate_limit
            allowance = self._rates.hit(f"team:{caller.team_id}", limit=limit, window_s=_WINDOW_S)
            if allowance.allowed:
                return
            wait = float(allowance.retry_after_s)
            # Who is refused is refused here for a second, without a look into the file.
            self._refused[caller.team_id] = now + min(1.0, wait)
        raise too_many("this team asks too often", max(1, round(wait)))

    def retrieve(self, query: str, tenant: Tenant, *, limit: int, min_score: float) -> Retrieval:
        """Return what is found within the time that a request has."""
        with pymongo.timeout(self.parts.settings.cryptique_api_timeout_seconds):
            return self.parts.retriever.retrieve(query, tenant, limit=limit, min_score=min_score)

    def answer(self, found: Retrieval, tenant: Tenant) -> FigureAnswer | Refusal | None:
        """Return the figures that a question asks for, within the time that a request has."""
        with pymongo.timeout(self.parts.settings.cryptique_api_timeout_seconds):
            return self.parts.answerer.answer(found.understood, tenant)


def make_routes(rag: Rag, who_asks: Callable[[Request], Any]) -> APIRouter:
    """Return the routes under ``/api/rag``."""
    router = APIRouter(prefix="/api/rag", tags=["retrieval"])
    asking = Depends(who_asks)

    @router.post("/retrieve")
    def retrieve(asked: RetrieveRequest, caller: Caller = asking) -> dict[str, Any]:
        """Return the texts that answer a question about a site, with their sources and scores, best first.

        ``minScore`` is compared with half of one plus the cosine, as MongoDB's vector search scores; what is found by
        an identifier, or by conditions alone, has 1.
        """
        tenant = rag.admit(caller, asked.siteId)
        found = rag.retrieve(asked.query, tenant, limit=asked.limit, min_score=asked.minScore)
        return both_levels(retrieved(found, query=asked.query, site_id=asked.siteId))

    @router.post("/feedback")
    def feedback(asked: FeedbackRequest, caller: Caller = asking) -> dict[str, Any]:
        """Keep what a user thinks of an answer, 1 to 5; it counts in embeddingstats (quality)."""
        rag.admit(caller, asked.siteId)
        now = datetime.now(UTC)
        with pymongo.timeout(rag.parts.settings.cryptique_api_timeout_seconds):
            first = rag.parts.vectors.put_feedback(
                request_id=asked.requestId,
                team_id=caller.team_id,
                site_id=asked.siteId,
                rating=asked.rating,
                comment=asked.comment,
                now=now,
            )
        if first:
            METER.rate(asked.rating, at=now)
        return both_levels({"requestId": asked.requestId, "rating": asked.rating})

    return router
