"""The target's collections: validators and indexes, as ``initialise`` makes them and checks them for drift.

``vectordocuments``, ``embeddingjobs`` and ``embeddingstats`` belong to the application as much as to us: their
fields and indexes are its schema. The rest is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who looks up a name need not wait for numpy
    from tasks.domain.rows import VectorForm

VECTORS, JOBS, STATS = "vectordocuments", "embeddingjobs", "embeddingstats"
DEAD_LETTERS, CHECKPOINTS, STORE = "deadletters", "ragcheckpoints", "ragstore"
INCIDENTS = "ragincidents"
PARTIALS, AGGREGATES = "ragpartials", "ragaggregates"
UNITS, SCOPES = "ragfigureunits", "ragfigurescopes"
PROFILES = "ragprofiles"
MEASURES = "ragmeasures"
FEEDBACK = "ragfeedback"
TEXTS = "ragtexts"

#: Answers "is this record stored as it is?" from the index alone, without touching a 7 kB document.
LOOKUP_INDEX = "documentId_stored_as"
#: Answers "what was this record made from, and is it whole?" in the source's own order.
DIGEST_INDEX, DIGEST_KEYS = "sourceId_made_from", ("sourceId", "sourceDigest", "lineage.chunks")
SOURCE_TYPES = (
    "analytics",
    "transaction",
    "session",
    "campaign",
    "website",
    "user_journey",
    "smart_contract",
)

_DAY_S = 86_400
_NUMBER = {"bsonType": ["int", "long", "double", "decimal"]}
_TEXT = {"bsonType": "string"}
_DATE = {"bsonType": "date"}
_OPTIONAL_DATE = {"bsonType": ["date", "null"]}
_OPTIONAL_TEXT = {"bsonType": ["string", "null"]}
_OBJECT_ID = {"bsonType": "objectId"}
_OPTIONAL_OBJECT_ID = {"bsonType": ["objectId", "null"]}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _between(low: float, high: float) -> dict[str, Any]:
    return {**_NUMBER, "minimum": low, "maximum": high}


def _strings() -> dict[str, Any]:
    return {"bsonType": "array", "items": _TEXT}


def _document(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"bsonType": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema


@dataclass(frozen=True, slots=True)
class Index:
    """``keys`` as pymongo takes them; ``options`` beyond the name. A first load needs the ``early`` ones."""

    name: str
    keys: tuple[tuple[str, int | str], ...]
    options: dict[str, Any] = field(default_factory=dict)
    early: bool = False


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection with its validator (a JSON schema) and its indexes, beside ``_id``."""

    name: str
    schema: dict[str, Any]
    indexes: tuple[Index, ...]


def _index(*keys: str, early: bool = False, **options: Any) -> Index:
    """Return an index named as MongoDB would name it; ``-field`` means descending."""
    parsed = tuple((key.removeprefix("-"), -1 if key.startswith("-") else 1) for key in keys)
    return Index("_".join(f"{name}_{order}" for name, order in parsed), parsed, options, early)


VECTOR_DOCUMENTS = Collection(
    VECTORS,
    _document(
        [
            "documentId",
            "sourceType",
            "sourceId",
            "teamId",
            "siteId",
            "embedding",
            "content",
            "source",
            "metadata",
            "status",
        ],
        documentId=_TEXT,
        sourceType=_one_of(*SOURCE_TYPES),
        sourceId=_OBJECT_ID,
        teamId=_OBJECT_ID,
        siteId=_TEXT,
        embedding={"bsonType": ["binData", "array"]},
        content={**_TEXT, "maxLength": 8_000},
        source=_TEXT,
        summary={**_OPTIONAL_TEXT, "maxLength": 500},
        metadata=_document(
            timeframe=_document(start=_DATE, end=_DATE),
            dataType=_one_of("metric", "event", "journey", "transaction", "campaign", "insight"),
            tags=_strings(),
            category=_TEXT,
            chainId=_TEXT,
            contractAddress=_TEXT,
            metricType=_TEXT,
            userSegment=_TEXT,
            deviceType=_TEXT,
            importance=_between(1, 10),
            aggregationLevel=_one_of("raw", "hourly", "daily", "weekly", "monthly"),
            processingTime=_NUMBER,
            confidence=_between(0, 1),
        ),
        version=_NUMBER,
        status=_one_of("active", "archived", "deprecated"),
        createdAt=_DATE,
        updatedAt=_DATE,
        expiresAt=_OPTIONAL_DATE,
    ),
    (
        # Without it two writers would make doubles; what would be a double is found by it.
        _index("documentId", unique=True, early=True),
        # Rows come in the order of their records: this one grows at its end, and costs next to nothing.
        Index(DIGEST_INDEX, tuple((key, 1) for key in DIGEST_KEYS), early=True),
        Index(
            LOOKUP_INDEX,
            (("documentId", 1), ("contentHash", 1), ("rowHash", 1), ("sourceId", 1), ("lineage.chunks", 1)),
        ),
        _index("sourceType"),
        _index("sourceId"),
        _index("siteId"),
        _index("teamId"),
        _index("status"),
        _index("createdAt"),
        _index("teamId", "siteId", "sourceType"),
        _index("teamId", "-createdAt"),
        _index("sourceType", "metadata.dataType"),
        _index("metadata.timeframe.start", "metadata.timeframe.end"),
        _index("metadata.tags"),
        _index("status", "-createdAt"),
        Index(
            "content_text_summary_text_metadata.tags_text",
            (("content", "text"), ("summary", "text"), ("metadata.tags", "text")),
        ),
        _index("expiresAt", expireAfterSeconds=0),
    ),
)

EMBEDDING_JOBS = Collection(
    JOBS,
    _document(
        ["jobId", "jobType", "status", "createdAt"],
        jobId=_TEXT,
        jobType=_one_of("initial_processing", "reprocessing", "batch_update", "migration"),
        priority=_between(1, 10),
        sourceType=_TEXT,
        sourceIds={"bsonType": "array", "items": _OBJECT_ID},
        teamId=_OPTIONAL_OBJECT_ID,
        siteId=_OPTIONAL_TEXT,
        status=_one_of("pending", "processing", "completed", "failed", "cancelled", "retrying"),
        progress=_document(total=_NUMBER, processed=_NUMBER, failed=_NUMBER, percentage=_NUMBER),
        startedAt=_OPTIONAL_DATE,
        completedAt=_OPTIONAL_DATE,
        estimatedCompletionAt=_OPTIONAL_DATE,
        config=_document(
            batchSize=_between(1, 100),
            chunkSize=_between(100, 8_000),
            overlapSize=_between(0, 1_000),
            embeddingModel=_TEXT,
        ),
        results=_document(
            documentsCreated=_NUMBER,
            documentsUpdated=_NUMBER,
            documentsSkipped=_NUMBER,
            totalTokensUsed=_NUMBER,
            totalCost=_NUMBER,
            averageProcessingTime=_NUMBER,
        ),
        errors={"bsonType": "array"},
        retryConfig=_document(
            maxRetries=_between(0, 10),
            retryCount=_NUMBER,
            nextRetryAt=_OPTIONAL_DATE,
            backoffMultiplier=_between(1, 10),
        ),
        createdAt=_DATE,
        updatedAt=_DATE,
    ),
    (
        _index("jobId", unique=True),
        _index("status", "-priority", "scheduledFor"),
        _index("teamId", "status", "-createdAt"),
        _index("sourceType", "status"),
        _index("workerId", "status"),
        _index("retryConfig.nextRetryAt"),
        # Ours: of two runs at the same work only one is processing. Jobs of others have no fingerprint.
        _index(
            "metadata.fingerprint",
            unique=True,
            partialFilterExpression={"status": "processing", "metadata.fingerprint": {"$exists": True}},
        ),
        _index(
            "completedAt",
            expireAfterSeconds=30 * _DAY_S,
            partialFilterExpression={"status": {"$in": ["completed", "cancelled"]}},
        ),
    ),
)

EMBEDDING_STATS = Collection(
    STATS,
    _document(
        ["period", "startDate"],
        period=_one_of("hourly", "daily", "weekly", "monthly"),
        startDate=_DATE,
        endDate=_DATE,
        teamId=_OPTIONAL_OBJECT_ID,
    ),
    (
        _index("period", "startDate", "teamId", unique=True),
        _index("teamId", "period", "-startDate"),
        _index("startDate", "endDate"),
        _index("createdAt", expireAfterSeconds=365 * _DAY_S),
    ),
)

DEAD_LETTER_BOX = Collection(
    DEAD_LETTERS,
    _document(
        ["sourceType", "sourceId", "stage", "reason", "code", "runId", "time", "status"],
        sourceType=_TEXT,
        stage=_TEXT,
        reason=_TEXT,
        code=_TEXT,
        runId=_TEXT,
        time=_DATE,
        status=_one_of("open", "resolved"),
        attempts=_NUMBER,
    ),
    (
        _index("sourceType", "sourceId", unique=True),
        _index("status", "code", "time"),
        _index("teamId", "status"),
    ),
)

RUN_CHECKPOINTS = Collection(
    CHECKPOINTS,
    _document(["runKey", "shard", "counts", "createdAt"], runKey=_TEXT, shard=_NUMBER, createdAt=_DATE),
    (
        _index("runKey", "shard", unique=True),
        _index("createdAt", expireAfterSeconds=30 * _DAY_S),
    ),
)

INCIDENT_BOOK = Collection(
    INCIDENTS,
    _document(
        ["flow", "failing", "quiet_until", "held", "version", "updatedAt"],
        flow=_TEXT,
        failing={"bsonType": "bool"},
        quiet_until=_DATE,
        held=_NUMBER,
        version=_NUMBER,
        updatedAt=_DATE,
    ),
    (
        _index("flow", "failing"),
        _index("updatedAt", expireAfterSeconds=90 * _DAY_S),
    ),
)

_TOPICS = _one_of("transactions", "visits", "moves")

#: What a team's or a website's rows of one day added up to, and whether documents tell it yet.
FIGURE_UNITS = Collection(
    UNITS,
    _document(
        ["topic", "ownerId", "day", "zone", "digest", "rows", "refused", "scopes", "described", "version"],
        topic=_TOPICS,
        ownerId=_TEXT,
        day=_TEXT,
        zone=_TEXT,
        digest=_TEXT,
        rows=_NUMBER,
        refused=_NUMBER,
        scopes={"bsonType": "array"},
        described={"bsonType": "bool"},
        version=_NUMBER,
    ),
    (),
)

#: Figures of one day of one scope, in parts that a document holds.
PARTIAL_FIGURES = Collection(
    PARTIALS,
    _document(
        ["unit", "topic", "holderId", "scope", "scopePart", "zone", "day", "part", "parts", "seal", "body"],
        unit=_OBJECT_ID,
        topic=_TOPICS,
        holderId=_TEXT,
        scope=_one_of("contract", "chain", "team", "site", "campaign"),
        scopePart=_TEXT,
        zone=_TEXT,
        day=_TEXT,
        part=_NUMBER,
        parts=_NUMBER,
        seal=_TEXT,
        body={"bsonType": "binData"},
    ),
    (
        _index("topic", "holderId", "scope", "scopePart", "zone", "day", "part", unique=True),
        _index("unit"),
    ),
)

#: What the documents of a scope were made with beside its figures, so that a change of it makes them again.
FIGURE_SCOPES = Collection(
    SCOPES,
    _document(
        ["family", "holderId", "scope", "scopePart", "zone", "seal", "newcomers"],
        family=_one_of("transactions", "visits"),
        holderId=_TEXT,
        scope=_TEXT,
        scopePart=_TEXT,
        zone=_TEXT,
        seal=_TEXT,
        newcomers={"bsonType": "array"},
    ),
    (),
)

#: What whole periods are described as; loaded from here like any record.
AGGREGATE_RECORDS = Collection(
    AGGREGATES,
    _document(
        [
            "key",
            "sourceType",
            "holderId",
            "teamId",
            "siteId",
            "content",
            "summary",
            "metadata",
            "zone",
            "digest",
            "updatedAt",
        ],
        key=_TEXT,
        sourceType=_one_of(*SOURCE_TYPES),
        holderId=_TEXT,
        teamId=_OBJECT_ID,
        siteId=_TEXT,
        content=_TEXT,
        summary=_TEXT,
        metadata={"bsonType": "object"},
        zone=_TEXT,
        digest=_TEXT,
        updatedAt=_DATE,
    ),
    (
        _index("key", unique=True),
        _index("zone", "holderId", "metadata.facts.scope"),
        _index("zone", "metadata.facts.complete", "metadata.facts.window.end"),
    ),
)

#: What the last good run of each source found it to be like; its ``_id`` is the source's name.
PROFILE_BOOK = Collection(
    PROFILES,
    _document(
        ["runId", "generation", "read", "profile", "updatedAt"],
        runId=_TEXT,
        generation=_TEXT,
        read=_NUMBER,
        profile={"bsonType": "binData"},
        updatedAt=_DATE,
    ),
    (),
)

#: What requests did, minute by minute: one row for each process and kind whenever it writes.
MEASURE_ROWS = Collection(
    MEASURES,
    _document(
        ["minute", "kind", "calls", "failed", "seconds", "buckets", "errors", "createdAt"],
        minute=_DATE,
        kind=_one_of("embed", "search", "http"),
        calls=_NUMBER,
        failed=_NUMBER,
        seconds=_NUMBER,
        buckets={"bsonType": "array", "items": _NUMBER},
        errors={"bsonType": "array"},
        createdAt=_DATE,
    ),
    (
        _index("minute"),
        _index("createdAt", expireAfterSeconds=35 * _DAY_S),
    ),
)

#: What users thought of answers; its ``_id`` is the team's and the answer's request id. No user is named.
FEEDBACK_BOX = Collection(
    FEEDBACK,
    _document(
        ["teamId", "siteId", "requestId", "rating", "createdAt"],
        teamId=_OBJECT_ID,
        siteId=_TEXT,
        requestId=_TEXT,
        rating=_between(1, 5),
        comment=_TEXT,
        createdAt=_DATE,
    ),
    (
        _index("teamId", "-createdAt"),
        _index("createdAt", expireAfterSeconds=365 * _DAY_S),
    ),
)

#: Texts that teams posted; loaded from here like any record, and in no other place.
TEXT_BOX = Collection(
    TEXTS,
    _document(
        ["teamId", "siteId", "text", "textHash", "source", "type", "category", "addresses", "createdAt", "updatedAt"],
        teamId=_OBJECT_ID,
        siteId=_TEXT,
        text={**_TEXT, "minLength": 1},
        textHash={"bsonType": "binData"},
        source=_TEXT,
        type=_TEXT,
        category=_TEXT,
        addresses=_strings(),
        createdAt=_DATE,
        updatedAt=_DATE,
    ),
    (
        # Equal texts of a team have one vector.
        _index("teamId", "textHash"),
        _index("siteId"),
    ),
)

COLLECTIONS = (
    VECTOR_DOCUMENTS,
    EMBEDDING_JOBS,
    EMBEDDING_STATS,
    DEAD_LETTER_BOX,
    RUN_CHECKPOINTS,
    INCIDENT_BOOK,
    FIGURE_UNITS,
    PARTIAL_FIGURES,
    FIGURE_SCOPES,
    AGGREGATE_RECORDS,
    PROFILE_BOOK,
    MEASURE_ROWS,
    FEEDBACK_BOX,
    TEXT_BOX,
)

VECTOR_INDEX = "vector_index"
VECTOR_FILTERS = (
    "siteId",
    "teamId",
    "sourceType",
    "status",
    "metadata.timeframe.start",
    "metadata.timeframe.end",
)


#: Vectors are most of the store, and random in all but their exponents: zstd takes a tenth off, the default nothing.
VECTORS_STORAGE = {"wiredTiger": {"configString": "block_compressor=zstd"}}


def vector_index_definition(dimensions: int, form: VectorForm) -> dict[str, Any]:
    """Return the definition of the vector search index, for servers that have search nodes.

    They compare bits by their distance only, which ranks them as the cosine does.
    """
    similarity = "euclidean" if form == "bits" else "cosine"
    return {
        "fields": [
            {"type": "vector", "path": "embedding", "numDimensions": dimensions, "similarity": similarity},
            *({"type": "filter", "path": path} for path in VECTOR_FILTERS),
        ]
    }
