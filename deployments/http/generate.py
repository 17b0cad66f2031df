"""``POST /api/rag/generate``: an answer in words, from retrieved documents alone, each statement cited.

Gemini writes it where there is a key. What it writes is checked against the documents: an answer that cites what
wasn't given, or holds a number that isn't there, is never shown. Then, and without a key, sentences of the documents
are the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import JSONResponse

from blocks.gemini_chat import GeminiChat
from deployments.http.rag import Asked, Query, Rag, SiteId, both_levels, result_of, source_of, understood_of
from deployments.http.tokens import Caller
from tasks.domain.answers.model import FigureAnswer, Refusal
from tasks.domain.answers.telling import figures_of, tell, tell_refusal
from tasks.domain.errors import PipelineError
from tasks.domain.retrieval.grounding import NOT_KNOWN, cited_in, extract_answer, find_fault, make_prompt
from tasks.retrieve import Retrieval, hit_of

#: What the contract calls a model where none wrote.
EXTRACTIVE = "extractive"
#: And where figures are the answer.
FIGURES = "figures"
_LOGGER = logging.getLogger("cryptique.http")
_MIN_SCORE = 0.6
_NOTHING_FOUND = "nothing is known about this: no document of this site answers"


class GenerateRequest(Asked):
    """A question about a site, and how its answer is written."""

    query: Query
    siteId: SiteId  # noqa: N815 - the contract's name
    contextLimit: int = Field(default=3, ge=1, le=20)  # noqa: N815
    maxTokens: int = Field(default=1_000, ge=1, le=8_192)  # noqa: N815
    temperature: float = Field(default=0.7, ge=0, le=2, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Written:
    """An answer and who wrote it; no ``text`` where the documents don't answer. ``note`` says what went otherwise."""

    text: str
    model: str
    tokens: int = 0
    note: str | None = None


def write_answer(
    chat: GeminiChat | None, question: str, texts: Sequence[str], *, max_tokens: int, temperature: float
) -> Written:
    """Return an answer that rests on the texts: the model's where it does, else sentences of them."""
    if chat is None:
        return Written(extract_answer(question, texts), EXTRACTIVE)
    prompt = make_prompt(question, texts)
    try:
        said = chat.write(rules=prompt.rules, message=prompt.message, max_tokens=max_tokens, temperature=temperature)
    except PipelineError as error:
        _LOGGER.warning("an answer was made of its documents' sentences: %s", error)
        note = f"{chat.model} did not answer: these are sentences of the documents"
        return Written(extract_answer(question, texts), EXTRACTIVE, note=note)
    answer = said.text.strip()
    if answer.rstrip(".") == NOT_KNOWN:
        return Written("", chat.model, said.tokens)
    fault = find_fault(answer, texts)
    if fault is None:
        return Written(answer, chat.model, said.tokens)
    _LOGGER.warning("an answer of %s does not rest on its documents", chat.model)
    note = f"the answer of {chat.model} was not shown, because {fault}: these are sentences of the documents"
    return Written(extract_answer(question, texts), EXTRACTIVE, said.tokens, note)


def make_routes(rag: Rag, who_asks: Callable[[Request], Any]) -> APIRouter:
    """Return the route."""
    router = APIRouter(prefix="/api/rag", tags=["retrieval"])
    asking = Depends(who_asks)

    @router.post("/generate")
    def generate(asked: GenerateRequest, caller: Caller = asking) -> Any:
        """Return an answer from at most ``contextLimit`` documents; ``[n]`` in it is the n-th of ``sources``.

        A question for figures is answered by documents of figures, or by counting records, and never by a model.
        Without a document that answers, and where the store can't support an answer, ``success`` is false and
        ``error`` says so.
        """
        tenant = rag.admit(caller, asked.siteId)
        found = rag.retrieve(asked.query, tenant, limit=asked.contextLimit, min_score=_MIN_SCORE)
        counted = rag.answer(found, tenant)
        texts = [hit.content for hit in found.hits]
        if isinstance(counted, Refusal) and not _is_told(counted, texts):
            return _refused(counted, found)
        if isinstance(counted, FigureAnswer):
            return both_levels(_with_figures(counted, found))
        chat = rag.parts.chat if texts else None
        written = write_answer(chat, asked.query, texts, max_tokens=asked.maxTokens, temperature=asked.temperature)
        cited = [number for number in cited_in(written.text) if number <= len(texts)]
        data = {
            "content": written.text,
            "sources": [source_of(hit) for hit in found.hits],
            "metadata": {
                "model": written.model,
                "tokensUsed": written.tokens,
                "contextCount": len(texts),
                "note": written.note,
            },
            "citations": [{"number": number, **result_of(found.hits[number - 1])} for number in cited],
            "understood": understood_of(found),
        }
        if written.text:
            return both_levels(data)
        return JSONResponse({**both_levels(data), "success": False, "error": _NOTHING_FOUND})

    return router


def _is_told(refusal: Refusal, texts: Sequence[str]) -> bool:
    """Return whether a text speaks of what is no website, contract or campaign."""
    return refusal.about is not None and any(refusal.about.lower() in text.lower() for text in texts)


def _with_figures(answer: FigureAnswer, found: Retrieval) -> dict[str, Any]:
    hits = [hit_of(row, 1.0) for row in answer.cited]
    return {
        "content": tell(answer),
        "sources": [source_of(hit) for hit in hits],
        "metadata": {
            "model": FIGURES,
            "tokensUsed": 0,
            "contextCount": len(hits),
            "note": "; ".join(answer.notes) or None,
            "recordsCounted": answer.counted,
        },
        "figures": figures_of(answer),
        "citations": [{"number": number, **result_of(hit)} for number, hit in enumerate(hits, 1)],
        "understood": understood_of(found),
    }


def _refused(refusal: Refusal, found: Retrieval) -> JSONResponse:
    data = {
        "content": "",
        "sources": [],
        "metadata": {"model": FIGURES, "tokensUsed": 0, "contextCount": 0, "note": None},
        "refused": {"reason": refusal.reason, "needed": refusal.needed},
        "citations": [],
        "understood": understood_of(found),
    }
    return JSONResponse({**both_levels(data), "success": False, "error": tell_refusal(refusal)})
