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

    model: str = Field(
        description="The model; `extractive` where the answer is sentences of the documents, `figures` where it is "
        "figures of documents or counted from records."
    )
    tokensUsed: int = Field(ge=0, description="Tokens that the model read and wrote.")  # noqa: N815
    contextCount: int = Field(ge=0, description="How many documents it was given.")  # noqa: N815
    note: str | None = Field(description="What went otherwise than it should, or null.")
    recordsCounted: int | None = Field(  # noqa: N815
        default=None, description="How many records were counted; null where documents of figures say it all."
    )


class Figure(BaseModel):
    """A figure that was asked for, exactly."""

    name: str
    value: Any = Field(description="Exact: a number, the text of a decimal, or a list of such under their names.")
    unit: str | None
    path: str = Field(description="Where the facts of a cited document have it, or of those that were counted.")
    subject: str = Field(description="What it is the figure of.")
    window: str = Field(description="Over which time.")
    citations: list[int] = Field(description="The numbers of the documents that have it.")


class Refused(BaseModel):
    """Why the store can't support an answer."""

    reason: str
    needed: str = Field(description="What would be needed.")


class GenerateData(BaseModel):
    """An answer in words, each statement cited."""

    content: str = Field(description="The answer; `[n]` in it is the n-th of `sources`.")
    sources: list[str] = Field(description="The records of the documents that it was written from.")
    metadata: GenerateMetadata
    citations: list[Citation] = Field(description="The documents that it cites.")
    understood: Understood
    figures: list[Figure] = Field(default=[], description="Where figures were asked for.")
    refused: Refused | None = Field(default=None, description="Where the store can't support an answer.")


class Metric(BaseModel):
    """One figure of a dashboard."""

    title: str
    value: Any = Field(description="Exact: a number, or a decimal number as text.")
    change: Any = Field(description="Per cent against the time before of the same length, or null.")


class Visualization(BaseModel):
    """A chart."""

    type: Literal["multiLine", "multiBar", "pie", "scatter", "composed", "area"]
    title: str
    description: str
    data: list[dict[str, Any]] = Field(description="Its points: `name` and the values of its lines, or `x` and `y`.")


class Column(BaseModel):
    """A column of a table."""

    key: str
    label: str


class Table(BaseModel):
    """A table; its rows have the keys of its columns."""

    title: str
    description: str
    columns: list[Column]
    data: list[dict[str, Any]]


class Conditions(BaseModel):
    """How a question was read."""

    conditions: list[Condition]


class AiQueryData(BaseModel):
    """What a dashboard shows for a question."""

    metrics: list[Metric]
    visualizations: list[Visualization]
    tables: list[Table]
    insights: list[str] = Field(description="What is to be seen, in sentences.")
    window: str = Field(description="Over which time.")
    sources: list[str] = Field(description="The records of the documents that it rests on.")
    citations: list[Citation] = Field(description="Those documents.")
    understood: Conditions


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
    "/api/ai/query": AiQueryData,
    "/api/rag/feedback": FeedbackData,
    "/api/rag/documents": DocumentData,
}
#: A request of each, as the page shows it.
EXAMPLES: dict[str, dict[str, Any]] = {
    "/api/rag/retrieve": {"query": "USDT transfers of more than 100 in March", "siteId": "your-site-id", "limit": 5},
    "/api/ai/query": {"query": "How did my site do?", "siteId": "your-site-id", "timeframe": "30d"},
    "/api/rag/generate": {"query": "Which page do visitors leave from?", "siteId": "your-site-id"},
    "/api/rag/documents": {
        "text": "Refunds are paid within 14 days of a request.",
        "siteId": "your-site-id",
        "metadata": {"source": "help centre", "type": "policy", "category": "refunds"},
    },
    "/api/rag/feedback": {"requestId": "0123456789abcdef", "siteId": "your-site-id", "rating": 5},
}
