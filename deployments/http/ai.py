"""``POST /api/ai/query``: what a dashboard shows for a question: figures, charts, tables and observations.

All of it comes from the documents of figures and from the records. Gemini, where there is a key, adds observations in
words; what it says is checked against the figures, as an answer of ``generate`` is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import pymongo
from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import JSONResponse

from deployments.http.generate import EXTRACTIVE, write_answer
from deployments.http.rag import Asked, Query, Rag, SiteId, both_levels, result_of, source_of
from deployments.http.tokens import Caller
from tasks.domain.answers.model import FigureAnswer, Refusal
from tasks.domain.answers.overviews import Overview, read_time_frame
from tasks.domain.answers.telling import tell, tell_refusal
from tasks.retrieve import explain, hit_of

_LOGGER = logging.getLogger("cryptique.http")
_INSIGHT_TOKENS = 400
_CITATION = re.compile(r" ?\[[0-9, ]{1,40}\]")
_NOTHING = "nothing is recorded that this asks for, at that time"


class AiQueryRequest(Asked):
    """A question about a site; ``teamId``, which clients send, is never looked at: the team is the token's."""

    query: Query
    siteId: SiteId  # noqa: N815 - the contract's name
    timeframe: Annotated[str, Field(max_length=60)] = "30d"


def make_routes(rag: Rag, who_asks: Callable[[Request], Any]) -> APIRouter:
    """Return the route."""
    router = APIRouter(prefix="/api/ai", tags=["retrieval"])
    asking = Depends(who_asks)

    @router.post("/query")
    def query(asked: AiQueryRequest, caller: Caller = asking) -> Any:
        """Return figures, charts, tables and observations for a question, over ``timeframe`` or the time it names.

        ``timeframe``: 24h, 7d, 30d, 1y, today, yesterday, week, month (30 days), quarter (90 days), all,
        before:DATE, after:DATE. Where nothing is recorded, ``success`` is false and ``error`` says so.
        """
        chosen = read_time_frame(asked.timeframe, now=datetime.now(UTC))
        tenant = rag.admit(caller, asked.siteId)
        with pymongo.timeout(rag.parts.settings.cryptique_api_timeout_seconds):
            understood = rag.parts.retriever.understand(asked.query, tenant)
            answer = rag.parts.answerer.answer(understood, tenant, over=chosen)
            overview = rag.parts.answerer.overview(understood, tenant, chosen)
        answered = answer.cited if isinstance(answer, FigureAnswer) else ()
        cited = {row["documentId"]: row for row in (*answered, *overview.cited)}
        hits = [hit_of(row, 1.0) for row in cited.values()]
        insights = _insights(rag, asked.query, answer, overview)
        data = {
            "metrics": list(overview.metrics),
            "visualizations": list(overview.visualizations),
            "tables": list(overview.tables),
            "insights": insights,
            "window": overview.window,
            "sources": [source_of(hit) for hit in hits],
            "citations": [{"number": number, **result_of(hit)} for number, hit in enumerate(hits, 1)],
            "understood": {"conditions": explain(understood.readings)},
        }
        if overview.metrics or overview.visualizations or overview.tables or answered:
            return both_levels(data)
        error = " ".join(insights) or _NOTHING
        return JSONResponse({**both_levels(data), "success": False, "error": error})

    return router


def _insights(rag: Rag, question: str, answer: FigureAnswer | Refusal | None, overview: Overview) -> list[str]:
    """Return what is to be seen: the answer itself, what changed, and what a model adds that holds against both."""
    said: list[str] = []
    if isinstance(answer, FigureAnswer):
        said.append(tell(answer))
    elif isinstance(answer, Refusal):
        said.append(tell_refusal(answer))
    said += overview.insights
    texts = _texts(overview, said)
    if rag.parts.chat is None or not texts:
        return said
    written = write_answer(rag.parts.chat, question, texts, max_tokens=_INSIGHT_TOKENS, temperature=0.2)
    if written.model == EXTRACTIVE:
        _LOGGER.info("observations are those of the figures alone: %s", written.note)
    elif written.text:
        # What it cites are figures of this answer, which have no numbers of their own.
        said.append(_CITATION.sub("", written.text))
    return said


def _texts(overview: Overview, said: Sequence[str]) -> list[str]:
    """Return what a model may rest on: the figures and the observations, as texts."""
    figures = [f"{one['title']}: {one['value']}" for one in overview.metrics]
    tables = [
        f"{table['title']}: " + "; ".join(", ".join(str(value) for value in row.values()) for row in table["data"])
        for table in overview.tables
    ]
    return [*(["; ".join([overview.window, *figures])] if figures else []), *tables, *said]
