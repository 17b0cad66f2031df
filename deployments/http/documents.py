"""``POST /api/rag/documents``: a team's own text about one of its websites, kept, and found from then on.

The text is kept first (``ragtexts``), and embedded at once where the embedder may be asked; else it waits for the next
run, and the answer says so. Only who may edit posts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC
from typing import Annotated, Any

import pymongo
from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, Field
from starlette.responses import JSONResponse

from blocks.quota import EmbeddingGate
from blocks.rate_book import RateBook
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from deployments.http.problems import ProblemError, too_many
from deployments.http.rag import Asked, Rag, SiteId, both_levels
from deployments.http.tokens import Caller
from flows.blocks import Parts, PipelineEmbedder
from flows.posting import Posted, WaitingError, store_text
from tasks.domain.chunks import ChunkSize
from tasks.domain.errors import RecordError
from tasks.domain.posted_texts import MAX_TEXT_CHARS, NAME, PostedText
from tasks.domain.quotas import Quota
from tasks.embed import Slots

#: Each may be a hundred texts to the embedder, whose minute all runs share.
_POSTS_PER_MINUTE = 60
_WINDOW_S = 60
#: A longer label says nothing more; what is kept of it is shorter still.
_LONGEST_LABEL = 200
#: Of the time that a request has, so much is the embedder's; the rest is for writing what it answered.
_EMBEDDERS_SHARE = 0.7
#: Equal texts are stored one after the other: the second finds what the first one paid for.
_LOCKS = 64


def _text(text: str) -> str:
    if "\0" in text or not text.strip():
        raise ValueError("must hold a word, and no NUL")
    return text


def _label(text: str) -> str:
    if "\0" in text:
        raise ValueError("must hold no NUL")
    return text


Label = Annotated[str, Field(max_length=_LONGEST_LABEL), AfterValidator(_label)]


class DocumentLabels(Asked):
    """What its poster says of a text."""

    source: Label = Field(default="", description="Where it comes from.")
    type: Label = Field(default="", description="What it is: a note, an answer, a policy.")
    category: Label = Field(default="", description="What it is about.")


class DocumentRequest(Asked):
    """A text, and the site that it is about."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS), AfterValidator(_text)]
    siteId: SiteId  # noqa: N815 - the contract's name
    metadata: DocumentLabels = Field(default_factory=DocumentLabels)


class Documents:
    """Takes texts. Safe to share between threads."""

    def __init__(self, rag: Rag, rates: RateBook) -> None:
        self._rag, self._rates = rag, rates
        self._files = ShardStore(folder=rag.parts.settings.home / "http" / "texts")
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._slots: Slots | None = None
        self._prepared: set[str] = set()

    def admit(self, caller: Caller, site_id: str) -> None:
        """Raise ``ProblemError``: 429 beyond the team's rate, 403 for who may only read, 404 for a site."""
        self._rag.count(caller)
        if not caller.may_write:
            raise ProblemError(403, "only editors and admins of the team may add documents")
        self._rag.sites.require(caller.team_id, site_id)
        allowance = self._rates.hit(f"documents:{caller.team_id}", limit=_POSTS_PER_MINUTE, window_s=_WINDOW_S)
        if not allowance.allowed:
            raise too_many("this team adds documents too fast", allowance.retry_after_s)

    def post(self, asked: DocumentRequest, caller: Caller) -> tuple[dict[str, Any], bool]:
        """Return what the contract calls ``data``, and whether the text is found already."""
        labels = asked.metadata
        try:
            text = PostedText.of(
                asked.text,
                team_id=caller.team_id,
                site_id=asked.siteId,
                source=labels.source,
                kind=labels.type,
                category=labels.category,
            )
        except RecordError as error:
            raise ProblemError(400, str(error)) from None
        with self._locks[text.text_hash[0] % _LOCKS]:
            record, posted, waiting = self._store(text)
        if posted.refused is not None:
            raise ProblemError(
                400, f"the text is kept, and is not found, because it is refused: {posted.refused.reason}"
            )
        told = {name: record[name] for name in ("source", "type", "category")}
        data = {
            "id": str(record["_id"]),
            "metadata": {
                **told,
                "siteId": record["siteId"],
                "status": "waiting" if waiting else "searchable",
                "chunks": posted.chunks,
                "note": waiting,
            },
        }
        return data, waiting is None

    def _store(self, text: PostedText) -> tuple[dict[str, Any], Posted, str | None]:
        """Return the record, what became of it, and what it waits for."""
        parts, seconds = self._rag.parts, self._rag.parts.settings.cryptique_api_timeout_seconds
        with pymongo.timeout(seconds):
            vectors = parts.vectors.at()
            embedder = parts.embedders.of(vectors)
            assert isinstance(embedder, PipelineEmbedder)
            self._prepare(vectors, embedder)
            now = vectors.read_time()
            record = vectors.put_text(text, now=now)
            made = self._parts(vectors, embedder)
            try:
                posted = store_text(record, made, now=now, within_s=seconds * _EMBEDDERS_SHARE)
            except WaitingError as error:
                return record, Posted(), _in_words(error)
            finally:
                if isinstance(made.gate, EmbeddingGate):
                    made.gate.close()
            return record, posted, None

    def _prepare(self, vectors: VectorStore, embedder: PipelineEmbedder) -> None:
        """Make what the store lacks, once for a generation: the first document of all may be such a text."""
        if vectors.generation_name in self._prepared:
            return
        facts = embedder.facts
        vectors.require_model(facts, replace=False, write=True)
        vectors.initialise(facts.dimensions, loading=True)
        if not vectors.is_loaded(NAME):
            # All texts there are were posted here: what is missing from now on was lost, or waits.
            vectors.note_loaded(NAME, now=vectors.read_time())
        self._prepared.add(vectors.generation_name)

    def _parts(self, vectors: VectorStore, embedder: PipelineEmbedder) -> Parts:
        parts, facts = self._rag.parts, embedder.facts
        self._slots = self._slots or Slots(embedder.concurrency)
        # A minute's limits are the Prefect server's, which this process may not have: where they are passed, Gemini
        # says so, and the text waits.
        quota = Quota(texts_per_day=facts.texts_per_day, usd_per_day=facts.usd_per_day)
        gate = (
            None if quota.unlimited else EmbeddingGate(vectors, quota, facts.usd_per_million_tokens, run_key="posted")
        )
        return Parts(
            source=parts.source,
            vectors=vectors,
            embedder=embedder,
            store=self._files,
            owners=self._rag.sites.owners(),
            facts=facts,
            size=ChunkSize(whole_tokens=min(ChunkSize().whole_tokens, facts.max_tokens_per_text)),
            retries=0,
            slots=self._slots,
            gate=gate,
        )


def _in_words(error: WaitingError) -> str:
    after = "" if error.until is None else f" after {error.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{error}: the text is kept, and is found once the next run{after} has embedded it"


def make_routes(rag: Rag, rates: RateBook, who_asks: Callable[[Request], Any]) -> APIRouter:
    """Return the route."""
    router = APIRouter(prefix="/api/rag", tags=["retrieval"])
    documents = Documents(rag, rates)

    @router.post(
        "/documents",
        responses={202: {"description": "The text is kept, and is found once the next run has embedded it."}, 403: {}},
    )
    def post_document(asked: DocumentRequest, caller: Caller = Depends(who_asks)) -> Any:  # noqa: B008
        """Keep a text about a site, and make it found by `retrieve` within a second or so.

        The same text for the same site has the same `id` and is paid for once; the labels that came last count. What is
        personal or secret in it (e-mails, phone numbers, tokens, queries of addresses) is replaced by `…` before it is
        kept. Long texts are found by their parts. A text is not deleted over HTTP.
        """
        documents.admit(caller, asked.siteId)
        data, found = documents.post(asked, caller)
        return JSONResponse(both_levels(data), status_code=200 if found else 202)

    return router
