"""What each address under ``/api`` answers, for those who read its schema: shapes alone, answers are made elsewhere.

A test holds true answers against them. What a path here doesn't name is described as any object.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Result(BaseModel):
    """One document that answers, as an answer cites it."""

    documentId: str = Field(description="Which document it is.")  # noqa: N815 - the contract's names
    source: str = Field(description="Its record: `<sourceType>:<id>`.")
    sourceType: str = Field(description="What its record is: transaction, session, website and so on.")  # noqa: N815
    siteId: str = Field(description="The website that it belongs to, or its team.")  # noqa: N815
    score: float = Field(ge=0, le=1, description="Half of one plus the cosine; 1 where it was found by an identifier.")
    content: str = Field(description="Its text.")
    summary: str = Field(description="The same in short.")
    metadata: dict[str, Any] = Field(description="Its time frame, tags and facts, as they are stored.")
    alsoIn: list[str] = Field(description="Further documents that say the same.")  # noqa: N815


class Citation(Result):
    """A document that an answer cites."""

    number: int = Field(ge=1, description="`[number]` in the answer is this document.")


class Condition(BaseModel):
    """A part of a question that was read as a condition."""

    words: str = Field(description="The question's own words.")
    meaning: str = Field(description="What they were taken for.")


class Understood(BaseModel):
    """How a question was read."""

    conditions: list[Condition] = Field(description="What holds for every document found.")
    wanted: str = Field(description="Whether single records or figures of periods were asked for.")
    fitting: int = Field(ge=0, description="How many documents met the conditions.")
    notes: list[str] = Field(description="What could not be done as it should.")


class RetrieveMetadata(BaseModel):
    """What was asked, and how well it was found."""

    query: str
    siteId: str  # noqa: N815
    matchCount: int = Field(ge=0, description="How many documents there are in the answer.")  # noqa: N815
    minScore: float = Field(description="The lowest of their scores.")  # noqa: N815
    maxScore: float = Field(description="The highest of their scores.")  # noqa: N815


class RetrieveData(BaseModel):
    """The documents that answer a question, best first."""

    context: str = Field(description="Their texts, joined by a blank line.")
    sources: list[str] = Field(description="Their records, in the same order.")
    metadata: RetrieveMetadata
    results: list[Result]
    understood: Understood


class GenerateMetadata(BaseModel):
    """Who wrote an answer, from what."""

    model: str = Field(description="The model, or `extractive` where the answer is sentences of the documents.")
    tokensUsed: int = Field(ge=0, description="Tokens that the model read and wrote.")  # noqa: N815
    contextCount: int = Field(ge=0, description="How many documents it was given.")  # noqa: N815
    note: str | None = Field(description="What went otherwise than it should, or null.")


class GenerateData(BaseModel):
    """An answer in words, each statement cited."""

    content: str = Field(description="The answer; `[n]` in it is the n-th of `sources`.")
    sources: list[str] = Field(description="The records of the documents that it was written from.")
    metadata: GenerateMetadata
    citations: list[Citation] = Field(description="The documents that it cites.")
    understood: Understood


class FeedbackData(BaseModel):
    """What was kept."""

    requestId: str  # noqa: N815
    rating: int = Field(ge=1, le=5)


class DocumentLabels(BaseModel):
    """What is kept of a text's labels, and how it stands."""

    source: str
    type: str
    category: str
    siteId: str  # noqa: N815
    status: Literal["searchable", "waiting"] = Field(description="Whether it is found now, or waits to be embedded.")
    chunks: int = Field(ge=0, description="In how many parts it is found.")
    note: str | None = Field(description="What it waits for, or null.")


class DocumentData(BaseModel):
    """A text that is kept."""

    id: str = Field(description="The same for the same text and site; `retrieve` names it `website:<id>`.")
    metadata: DocumentLabels


class Problem(BaseModel):
    """A refusal, as RFC 9457 has it; `success` and `error` are what the application looks for."""

    success: Literal[False]
    error: str = Field(description="What is wrong, in words.")
    status: int = Field(ge=400, le=599)
    title: str
    detail: str = Field(description="The same as `error`.")
    requestId: str = Field(description="By which the service's log knows the request.")  # noqa: N815
    type: str
    instance: str


#: By path: what an answer holds under ``data``, and beside it.
ANSWERS: dict[str, type[BaseModel]] = {
    "/api/rag/retrieve": RetrieveData,
    "/api/rag/generate": GenerateData,
    "/api/rag/feedback": FeedbackData,
    "/api/rag/documents": DocumentData,
}
#: A request of each, as the page shows it.
EXAMPLES: dict[str, dict[str, Any]] = {
    "/api/rag/retrieve": {"query": "USDT transfers of more than 100 in March", "siteId": "your-site-id", "limit": 5},
    "/api/rag/generate": {"query": "Which page do visitors leave from?", "siteId": "your-site-id"},
    "/api/rag/documents": {
        "text": "Refunds are paid within 14 days of a request.",
        "siteId": "your-site-id",
        "metadata": {"source": "help centre", "type": "policy", "category": "refunds"},
    },
    "/api/rag/feedback": {"requestId": "0123456789abcdef", "siteId": "your-site-id", "rating": 5},
}
