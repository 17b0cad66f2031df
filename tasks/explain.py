"""Explain: where a vector document comes from, and all that a record became, from both databases as they are now.

A row says what made it. Whether it is current is told by describing its record again, with the code and the owners of
this moment, exactly as a run would. Reads only, and pays for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

import bson
from bson import ObjectId
from bson.codec_options import DatetimeConversion

from blocks.aggregates import StoredRecords
from blocks.embedders import Embedders
from blocks.lineage import find_ids, read_letters, read_rows
from blocks.mongo import MongoSource
from blocks.records import Records, open_records
from blocks.tokens import count_tokens
from blocks.vector_store import VectorStore
from tasks.domain.aggregates.records import AGGREGATES
from tasks.domain.chunks import ChunkSize, content_hash, split_text
from tasks.domain.dead_letters import excerpt, record_key
from tasks.domain.digests import SourceDigests
from tasks.domain.documents import Document, holder_of
from tasks.domain.errors import PipelineError, RecordError
from tasks.domain.lineage import (
    AskedId,
    Standing,
    computed_from,
    find_differences,
    parse_asked,
    source_of,
    what_to_do,
)
from tasks.domain.owners import Holder, Owners
from tasks.domain.registry import OF_THE_STORE, PLURALS
from tasks.domain.rows import Bodies, Stored, Verdict, document_id, encode_head, judge, row_hash
from tasks.domain.vectors import EmbedderFacts

#: One transaction may stand in many contracts; nobody reads more than this.
MOST_RECORDS = 50
_MOST_ROWS = 1_000
_TRANSACTION = "transaction"
#: Public data of a chain. Of other records nothing is shown but what their vectors say, which is nobody's name.
_PUBLIC = frozenset({_TRANSACTION, "smart_contract"})
_AWARE: bson.CodecOptions[Mapping[str, Any]] = bson.CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)


@dataclass(frozen=True, slots=True)
class ExplainedRow:
    """A vector document: ``row`` is all of it but its vector, ``job`` that of the run that wrote it.

    ``job`` is None where it expired, or where something else than a run of this pipeline wrote the row.
    ``computed_from`` is what an aggregate's figures were computed from.
    """

    row: Mapping[str, Any]
    standing: Standing
    job: Mapping[str, Any] | None
    computed_from: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ExplainedLetter:
    """A dead letter as it is stored, and what to do about it."""

    letter: Mapping[str, Any]
    to_do: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What another generation holds of a record: so many vector documents, and why it refuses the record if it does."""

    generation: str
    state: str
    documents: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class ExplainedRecord:
    """A record with all that it became in one generation, and what other generations hold of it.

    ``in_source`` is None where nobody can tell, and ``unread`` says why; ``place`` is its database and collection, and
    with ``is_part`` a record of that collection holds several such. ``fields`` is an excerpt of a
    record of a chain, empty of any other. Owner and website are those of this moment; of a record that is gone, those
    that its rows were stored with. ``refused`` is why describing refuses it now. ``missing`` are the ids of documents
    that it makes now and that are not stored, ``held_by`` those that another record holds: id -> that record's id.
    """

    source: str
    record_id: Any
    place: str | None
    is_part: bool
    in_source: bool | None
    unread: str
    fields: Mapping[str, Any]
    holder_id: str | None
    holder_name: str | None
    team_id: str | None
    site_id: str | None
    refused: RecordError | None
    letters: tuple[ExplainedLetter, ...]
    rows: tuple[ExplainedRow, ...]
    missing: tuple[str, ...]
    held_by: Mapping[str, str]
    elsewhere: tuple[Elsewhere, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of an id: nothing where ``records`` is empty. ``notes`` say what could not be looked at."""

    generation: str
    is_live: bool
    records: tuple[ExplainedRecord, ...]
    notes: tuple[str, ...]


def explain(
    asked: str,
    *,
    source: MongoSource,
    vectors: VectorStore,
    embedders: Embedders,
    now: datetime,
    generation: str | None = None,
) -> Explanation:
    """Return every record that an id leads to, with its vectors in one generation, and what made them.

    ``asked`` is a document id with or without its ordinal, the ``_id`` of a vector document or of a record, a
    transaction's hash, or ``<source>:<record id>``. Without ``generation`` the live one is meant. ``now`` is the "now"
    of every rule about time. Raises ``InputError`` for a generation that is not there, and what the databases raise.
    """
    reading = _Reading.open(source, vectors, embedders, now, generation)
    try:
        # By a key, because ids of any type may be asked for, also of one that no set holds.
        subjects = {(one.source, record_key(one.record_id)): one for one in _find_subjects(parse_asked(asked), reading)}
        if len(subjects) > MOST_RECORDS:
            reading.notes.append(f"more than {MOST_RECORDS} records have this id: the first {MOST_RECORDS} are shown")
        records = tuple(_explain(subject, reading) for subject in islice(subjects.values(), MOST_RECORDS))
    finally:
        reading.beside.close()
    return Explanation(reading.store.generation_name, reading.is_live, records, tuple(reading.notes))


@dataclass(frozen=True, slots=True)
class _Subject:
    source: str
    record_id: Any


@dataclass(frozen=True, slots=True)
class _Maker:
    """What makes rows for the generation now."""

    facts: EmbedderFacts
    size: ChunkSize


@dataclass(slots=True)
class _Reading:
    """Both databases, open at one generation; ``others`` are those beside it, and ``maker`` may say why there is none.

    ``beside`` is the store's database, in which the records of aggregates lie.
    """

    source: MongoSource
    beside: MongoSource
    store: VectorStore
    is_live: bool
    others: list[tuple[VectorStore, str]]
    maker: _Maker | PipelineError
    records: dict[str, Records]
    owners: Owners
    now_ms: int
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, source: MongoSource, vectors: VectorStore, embedders: Embedders, now: datetime, generation: str | None
    ) -> _Reading:
        book = vectors.read_book()
        store = vectors.at(generation or book.live)
        others = [one for one in book.generations.values() if one.is_standing and one.name != store.generation_name]
        others.sort(key=lambda one: (one.name != book.live, one.name))
        reading = cls(
            source=source,
            beside=StoredRecords(uri=vectors.uri, database=vectors.database, application=source),
            store=store,
            is_live=store.generation_name == book.live,
            others=[(vectors.at(one.name), one.state) for one in others],
            maker=_find_maker(store, embedders),
            records={},
            owners=source.load_owners(),
            now_ms=round(now.timestamp() * 1000),
        )
        closed: list[str] = []
        for plural, name in PLURALS.items():
            try:
                reading.records[name] = open_records(reading.beside if name in OF_THE_STORE else source, name)
            except PipelineError as error:
                closed.append(f"{plural.replace('_', ' ')} ({error})")
        if closed:
            reading.notes.append(f"not looked at in the source: {'; '.join(closed)}")
        return reading


def _find_maker(store: VectorStore, embedders: Embedders) -> _Maker | PipelineError:
    try:
        facts = embedders.of(store).facts
    except PipelineError as error:
        return error
    return _Maker(facts, ChunkSize(whole_tokens=min(ChunkSize().whole_tokens, facts.max_tokens_per_text)))


# -- from an id to records --------------------------------------------------------------------------------------------


def _find_subjects(asked: AskedId, reading: _Reading) -> Iterator[_Subject]:
    """Yield the records that an id may mean, those of the generation first; one may come twice."""
    sources = _sources_of(asked.source, reading)
    ways: list[dict[str, Any]] = [{"documentId": {"$in": list(asked.document_ids)}}]
    for record_id in asked.record_ids:
        if isinstance(record_id, ObjectId):
            ways += [{"_id": record_id}, {"sourceId": record_id}]
    for store in (reading.store, *(other for other, _ in reading.others)):
        for way in ways:
            for row in read_rows(store, way, limit=_MOST_ROWS):
                if "documentId" in way or asked.source is None or source_of(row) in sources:
                    yield _Subject(source_of(row), row["sourceId"])
        for letter in read_letters(store, sources, asked.record_ids):
            yield _Subject(letter["sourceType"], letter["sourceId"])
    for name in sources:
        if asked.record_ids and name in reading.records:
            found = reading.records[name].find_existing(asked.record_ids)
            yield from (_Subject(name, record_id) for record_id in asked.record_ids if record_key(record_id) in found)
    if asked.tx_hash is not None:
        yield from _find_transactions(asked, reading)


def _find_transactions(asked: AskedId, reading: _Reading) -> Iterator[_Subject]:
    """Yield the records of a transaction's hash, also one that is gone from the source and is stored yet."""
    spelt = {"tx_hash": {"$in": list(asked.hash_spellings)}}
    collection = reading.records[_TRANSACTION].kind.collection
    for record_id in find_ids(reading.source, collection, spelt, limit=MOST_RECORDS + 1):
        yield _Subject(_TRANSACTION, record_id)
    if not asked.record_ids:
        return  # a document id, which was looked up as it is
    # One range of the index, of which only the keys are looked at: some three seconds in a million.
    stored = {"documentId": {"$regex": f"^{_TRANSACTION}:[^:]*:{asked.tx_hash}:"}}
    for row in read_rows(reading.store, stored, limit=_MOST_ROWS):
        yield _Subject(_TRANSACTION, row["sourceId"])


def _sources_of(word: str | None, reading: _Reading) -> list[str]:
    """Return the sources that a word before a colon may mean: by name, as people call them, or by type of document."""
    if word is None:
        return [*PLURALS.values()]
    return [
        name
        for plural, name in PLURALS.items()
        if word in (name, plural) or (name in reading.records and reading.records[name].kind.source_type == word)
    ]


# -- from a record to all that it became ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Now:
    """A record as it is now, and what it is described as. ``unread`` says why nobody can tell."""

    records: Records | None
    unread: str = ""
    raw: bytes = b""
    record: Mapping[str, Any] | None = None
    holder: Holder | None = None
    document: Document | None = None
    refused: RecordError | None = None

    @property
    def in_source(self) -> bool | None:
        return None if self.records is None else self.record is not None


@dataclass(frozen=True, slots=True)
class _Made:
    """A row that a record makes now. ``digest`` is what it is made from."""

    content_hash: bytes
    row_hash: bytes
    body: bytes
    digest: bytes


def _explain(subject: _Subject, reading: _Reading) -> ExplainedRecord:
    now = _describe_now(subject, reading)
    made = _make_rows(now, reading.maker)
    rows = _rows_of(subject, reading.store)
    jobs = _find_jobs({row["runId"] for row in rows if row.get("runId")}, subject.source, reading.store)
    lacking = [key for key in made if key not in {row["documentId"] for row in rows}]
    others = read_rows(reading.store, {"documentId": {"$in": lacking}}, limit=_MOST_ROWS) if lacking else []
    held_by = {row["documentId"]: str(row["sourceId"]) for row in others}
    holder_id, team_id, site_id = _find_owner(now, rows)
    records = now.records
    return ExplainedRecord(
        source=subject.source,
        record_id=subject.record_id,
        place=None if records is None else f"{records.source.database}.{records.kind.collection}",
        is_part=records is not None and records.kind.split is not None,
        in_source=now.in_source,
        unread=now.unread,
        fields=excerpt(now.record) if now.record is not None and subject.source in _PUBLIC else {},
        holder_id=holder_id,
        holder_name=None if now.holder is None else now.holder.name,
        team_id=team_id,
        site_id=site_id,
        refused=now.refused,
        letters=tuple(_explain_letters(subject, now, reading, held=bool(held_by))),
        rows=tuple(
            ExplainedRow(
                row, _compare(row, made, now, reading.maker), jobs.get(row.get("runId", "")), computed_from(row)
            )
            for row in rows
        ),
        missing=tuple(key for key in lacking if key not in held_by),
        held_by=held_by,
        elsewhere=tuple(_look_elsewhere(subject, store, state) for store, state in reading.others),
    )


def _rows_of(subject: _Subject, store: VectorStore) -> list[dict[str, Any]]:
    """Return a record's vector documents in the order of their ordinals."""
    if not isinstance(subject.record_id, ObjectId):
        return []
    rows = read_rows(store, {"sourceId": subject.record_id}, limit=_MOST_ROWS)
    # Another source's record may have the same id.
    own = [row for row in rows if source_of(row) == subject.source]
    return sorted(own, key=lambda row: (row.get("lineage") or {}).get("ordinal", 0))


def _find_jobs(run_ids: Iterable[str], source: str, store: VectorStore) -> dict[str, Mapping[str, Any]]:
    """Return the job of each run: a run over several sources has one for each."""
    wanted = sorted(run_ids)
    found: dict[str, Mapping[str, Any]] = {}
    for job in store.find_jobs({"metadata.runIds": {"$in": wanted}, "sourceType": source}) if wanted else ():
        for run_id in job["metadata"]["runIds"]:
            found.setdefault(run_id, job)
    return found


def _explain_letters(subject: _Subject, now: _Now, reading: _Reading, *, held: bool) -> Iterator[ExplainedLetter]:
    plural = next((plural for plural, name in PLURALS.items() if name == subject.source), subject.source)
    refused = None if now.refused is None else now.refused.code
    for letter in read_letters(reading.store, [subject.source], [subject.record_id]):
        to_do = what_to_do(letter, plural, in_source=now.in_source, refused=refused, held=held)
        yield ExplainedLetter(letter, to_do)


def _look_elsewhere(subject: _Subject, store: VectorStore, state: str) -> Elsewhere:
    is_object_id = isinstance(subject.record_id, ObjectId)
    documents = store.find_documents(subject.source, [subject.record_id]) if is_object_id else []
    letters = read_letters(store, [subject.source], [subject.record_id])
    refused = next((str(letter["code"]) for letter in letters if letter["status"] == "open"), None)
    return Elsewhere(store.generation_name, state, len(documents), refused)


def _find_owner(now: _Now, rows: list[dict[str, Any]]) -> tuple[str | None, str | None, str | None]:
    """Return contract or website, team and site of a record: by what it says now, else as its rows were stored."""
    if now.document is not None:
        return now.document.holder_id, now.document.team_id, now.document.site_id
    if now.holder is not None:
        return now.holder.holder_id, now.holder.team_id, now.holder.site_id
    for row in rows:
        holder = holder_of(row["documentId"]) if row["documentId"].count(":") > 1 else None
        return holder, str(row["teamId"]), str(row["siteId"])
    return None, None, None


def _describe_now(subject: _Subject, reading: _Reading) -> _Now:
    """Return the record as it is, described as a run would describe it now."""
    records = reading.records.get(subject.source)
    if records is None:
        known = subject.source in PLURALS.values()
        why = "its source can't be read" if known else f"this pipeline has no source called {subject.source}"
        return _Now(None, unread=why)
    now = _Now(records)
    now.raw, now.record = next(iter(records.read_raw_some([subject.record_id])), (b"", None))
    if now.record is None:
        return now
    kind = records.kind
    try:
        now.holder = kind.find_holder(now.record, reading.owners)
        now.document = kind.describe(now.record, reading.owners, reading.now_ms)
    except RecordError as error:
        now.refused = error
    except Exception as error:  # noqa: BLE001 - a run takes it for a dead letter too, whatever it is
        # Without its message, which may quote the record.
        now.refused = RecordError("unreadable", f"the record can't be read: {type(error).__name__}")
    return now


def _make_rows(now: _Now, maker: _Maker | PipelineError) -> dict[str, _Made]:
    """Return the rows that a record makes now for the generation, by document id, in order."""
    if now.document is None or now.records is None or now.holder is None or isinstance(maker, PipelineError):
        return {}
    kind, document = now.records.kind, now.document
    head, bodies = encode_head(document), Bodies(kind, maker.facts)
    digest = SourceDigests(kind, maker.facts, maker.size).digest(now.raw, now.holder)
    chunks = split_text(document.content, maker.size, count_tokens)
    made: dict[str, _Made] = {}
    for chunk in chunks:
        body = bodies.encode(document.key, head, chunk, len(chunks))
        made[document_id(document.key, chunk.ordinal)] = _Made(
            content_hash(chunk.text, maker.facts), row_hash(body), body, digest
        )
    return made


def _compare(row: Mapping[str, Any], made: Mapping[str, _Made], now: _Now, maker: _Maker | PipelineError) -> Standing:
    """Return how a stored row compares with what its record makes now."""
    if now.records is None:
        return Standing("unknown", f"nobody can tell: {now.unread}")
    kind = now.records.kind
    if now.record is None and kind.forgets:
        return Standing("kept", f"{kind.collection} keeps its records for a while only, and this one stays stored")
    if now.record is None:
        return Standing("gone", f"its record is no longer in {kind.collection}: the next `reconcile` removes it")
    if now.refused is not None:
        return Standing("refused", f"its record is refused now ({now.refused.code}): the next run removes it")
    if isinstance(maker, PipelineError):
        return Standing("unknown", f"nobody can tell: {maker}")
    new = made.get(row["documentId"])
    if new is None:
        return Standing("not made", "its record makes other documents now: the next run that looks at it removes it")
    stored = Stored(row["sourceId"], bytes(row.get("contentHash") or b""), bytes(row.get("rowHash") or b""), 1)
    verdict = judge(stored, content_hash=new.content_hash, row_hash=new.row_hash)
    differences = tuple(find_differences(row, bson.decode(new.body, _AWARE)))
    if verdict is Verdict.UNCHANGED and differences:
        # Its hash still says what was written, and runs go by the hash.
        why = "something else than this pipeline changed it in the store: delete it, and `reconcile` writes it again"
        return Standing("edited", why, differences)
    if verdict is Verdict.UNCHANGED:
        # Figures are not computed again here: what is compared is their record.
        more = "; `cryptique-rag aggregate` looks whether its rows changed" if kind.name == AGGREGATES.name else ""
        return Standing("current", f"its record makes the same row now{more}")
    if new.digest == row.get("sourceDigest"):
        # A run takes equal digests for equal rows, and skips the record.
        why = (
            "it was made from the same record by the same versions, which describe it differently now: `reconcile` "
            f"writes it again; the version of the describer of {kind.name} must be raised"
        )
    elif verdict is Verdict.TEXT_CHANGED:
        why = "the next run that looks at it embeds it again"
    else:
        why = "the next run that looks at it writes it again, without embedding"
    return Standing("text changed" if verdict is Verdict.TEXT_CHANGED else "fields changed", why, differences)
