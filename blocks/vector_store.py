"""The vector store: the generations of ``vectordocuments`` and the collections that keep their books."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from bson import MinKey, ObjectId
from bson.binary import Binary, BinaryVectorDtype
from bson.raw_bson import RawBSONDocument
from pydantic import Field, PrivateAttr
from pymongo import ReplaceOne, ReturnDocument, UpdateOne
from pymongo import errors as mongo
from pymongo.collection import Collection as MongoCollection
from pymongo.cursor import Cursor
from pymongo.operations import IndexModel, SearchIndexModel
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from blocks.generation_book import BOOK_ID, GenerationBook
from blocks.mongo import MongoDatabase, Record, mongo_errors
from tasks.domain import collections as schema
from tasks.domain.batches import batched
from tasks.domain.collections import Collection, Index
from tasks.domain.dead_letters import WITHHELD, DeadLetter, record_key
from tasks.domain.digests import StoredRecord
from tasks.domain.documents import holder_of, make_key
from tasks.domain.errors import ShardDamagedError, TerminalError
from tasks.domain.generations import FIRST, Book, EmbedderName, Generation, own_key, own_name
from tasks.domain.manifests import Manifest, ShardOutcome
from tasks.domain.meters import Measure, measure_row, read_measure
from tasks.domain.posted_texts import NAME as POSTED_TEXT
from tasks.domain.posted_texts import PostedText
from tasks.domain.profiles import Profile
from tasks.domain.quotas import Allowance, Spending, quota_day
from tasks.domain.registry import PLURALS, describer_version
from tasks.domain.rows import RowChange, Stored, VectorForm, read_vector
from tasks.domain.runs import Scope
from tasks.domain.shards import ShardRange
from tasks.domain.vectors import EmbedderFacts, Matrix

_BATCH = 1_000
_DUPLICATE_KEY = 11_000
_FACTS = dict.fromkeys(("documentId", "sourceType", "sourceId", "teamId", "siteId", "metadata"), 1)
_DURABLE = WriteConcern(w="majority", j=True)
#: What servers without search nodes answer to search index commands.
_NO_SEARCH_CODES = frozenset({59, 115, 31082, 40324})
_NAMESPACE_EXISTS = 48
#: What a server answers to a hint at an index that is not there, or not yet.
_BAD_VALUE = 2
#: The record that stands in ``ragstore`` while a first load goes on without the indexes that nothing needs yet.
_INDEXES_TO_COME = "indexes-to-come"
#: How often a change of the book of generations is tried that another one crossed.
_BOOK_TRIES = 5
#: What an index reads of a document.
_INDEXED = (
    *("documentId", "sourceType", "sourceId", "teamId", "siteId", "embedding", "content", "metadata", "status"),
    *("contentHash", "rowHash"),
)
#: Any one of a team's equal texts has the vectors; some may be waiting for theirs.
_EQUAL_TEXTS = 20
#: A run that spent nothing for so long will not go on: its count goes.
_RUN_FORGOTTEN_AFTER = timedelta(days=90)


@dataclass(slots=True)
class Drift:
    """What ``initialise`` made, what it left for the end of a load, and what differs from the design and stays."""

    created: list[str] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class VectorStore(MongoDatabase):
    """The database that holds the vectors, dead letters, checkpoints and jobs.

    Every write is acknowledged by a majority and journaled: what is reported as written survives a crash.
    """

    _block_type_name: ClassVar[str | None] = "Cryptique vector store"
    _block_type_slug: ClassVar[str | None] = "cryptique-vector-store"
    _description: ClassVar[str | None] = "MongoDB with vectordocuments, dead letters, checkpoints and jobs."
    setting: ClassVar[str] = "CRYPTIQUE_VECTORS_URI"

    embedder: EmbedderName = Field(description="Which embedder fills this store and asks it questions.")
    vector_form: VectorForm = Field(
        default="float32",
        description="float32: BSON binary vectors. int8: a quarter of the bytes. bits: a thirty-second, the signs "
        "alone. doubles: arrays, for readers that need them.",
    )
    generation: str | None = Field(
        default=None,
        description="Which of its sets of vectors is meant. None: the live one, looked up once, when it is needed.",
    )

    _live: str | None = PrivateAttr(default=None)
    _entry: Generation | None = PrivateAttr(default=None)

    # -- generations ------------------------------------------------------------------------------------------

    def at(self, generation: str | Generation | None = None) -> VectorStore:
        """Return this store at one of its generations, or at the one that is live now; connections are shared.

        All that it reads and writes of vectors, dead letters and positions is then that generation's, whatever
        becomes live meanwhile; jobs, checkpoints, incidents and spending are the whole store's. A ``Generation`` that
        was not begun is taken as it is given, for a dry run. Raises ``InputError`` if there is none of the name.
        """
        entry: Generation | None
        if isinstance(generation, Generation):
            name, entry = generation.name, generation
        else:
            book = self.read_book()
            name = generation or book.live
            entry = book.find(name) if book.version or name != FIRST else None
        made_by = {} if entry is None else {"embedder": entry.embedder, "vector_form": entry.form}
        bound = self.model_copy(update={"generation": name, **made_by})
        bound._live, bound._entry = None, entry
        return bound

    @property
    def generation_name(self) -> str:
        """Return the generation that it is about: the one that was chosen, or the live one as it was when needed."""
        if self.generation is not None:
            return self.generation
        if self._live is None:
            self._live = self.read_book().live
        return self._live

    @property
    def vectors_name(self) -> str:
        """Return the name of the collection of vector documents."""
        return own_name(schema.VECTORS, self.generation_name)

    @property
    def letters_name(self) -> str:
        """Return the name of the collection of dead letters.

        Each generation has its own: a record that one model or describer refuses may be stored by another.
        """
        return own_name(schema.DEAD_LETTERS, self.generation_name)

    @property
    def full_name(self) -> str:
        """Return where the vector documents are: database and collection."""
        return f"{self.database}.{self.vectors_name}"

    def _key(self, base: str) -> str:
        return own_key(base, self.generation_name)

    def _collections(self) -> tuple[Collection, ...]:
        own = {schema.VECTORS: self.vectors_name, schema.DEAD_LETTERS: self.letters_name}
        return tuple(replace(one, name=own.get(one.name, one.name)) for one in schema.COLLECTIONS)

    def all_collections(self) -> set[str]:
        """Return the names of every collection that is ours, of all standing generations; some may not exist."""
        names = {one.name for one in schema.COLLECTIONS} | {schema.STORE}
        standing = [one.name for one in self.read_book().generations.values() if one.is_standing]
        return names | {own_name(base, name) for base in (schema.VECTORS, schema.DEAD_LETTERS) for name in standing}

    def describe_generation(self) -> Generation | None:
        """Return what this generation is made by, or None in a store that never had another one."""
        if self._entry is None:
            self._entry = self.read_book().generations.get(self.generation_name)
        return self._entry

    def is_live(self) -> bool:
        """Return whether this generation is the live one now."""
        return self.read_book().live == self.generation_name

    def is_standing(self) -> bool:
        """Return whether this generation is there still: what was read of one that was dropped may be a part."""
        found = self.read_book().generations.get(self.generation_name)
        return found is None or found.is_standing

    def read_book(self) -> Book:
        """Return which generations there are, and which of them is live: one small read."""
        with mongo_errors("reading the generations", self.setting):
            return GenerationBook(self.open_database()).read()

    def begin_generation(self, wanted: Generation, *, first: Generation, now: datetime) -> Book:
        """Put down that a generation is being built; one that was begun goes on. Errors as in ``Book.begun``."""
        return self._change_book(lambda book: book.begun(wanted, first=first, now=now))

    def complete_generation(
        self, name: str, *, describers: Mapping[str, int], chunker: int, jobs: Sequence[str], now: datetime
    ) -> Book:
        """Put down that a generation holds the whole of these sources, and which jobs built it."""
        return self._change_book(
            lambda book: book.completed(name, describers=describers, chunker=chunker, jobs=jobs, now=now)
        )

    def switch_generation(self, name: str, *, now: datetime) -> Book:
        """Make a generation the live one: one write, on the condition that the book is as it was seen.

        A reader that looked before it goes on with the old one, one that looks after it has the new one. Raises
        ``InputError`` as ``Book.switched`` does, and ``WorkTakenError`` if the book was changed at the same moment.
        """
        return self._change_book(lambda book: book.switched(name, now=now), tries=1)

    def roll_back_generation(self, *, now: datetime) -> Book:
        """Make the generation live again that was before this one; as ``switch_generation`` does."""
        return self._change_book(lambda book: book.rolled_back(now=now), tries=1)

    def begin_to_drop_generation(self, name: str) -> Book:
        """Let nobody begin to use a generation any more. Raises ``InputError`` for the live one."""
        return self._change_book(lambda book: book.dropping(name))

    def drop_generation(self, name: str, *, now: datetime) -> Book:
        """Delete all that a generation holds, after ``begin_to_drop_generation``. Safe to repeat."""
        own = {"_id": {"$regex": "^(position|loaded):[^@]*$" if name == FIRST else f"@{name}$"}}
        by_id = {"_id": {"$in": [own_name(schema.VECTORS, name), own_key(_INDEXES_TO_COME, name)]}}
        with mongo_errors("dropping a generation", self.setting):
            for base in (schema.VECTORS, schema.DEAD_LETTERS):
                self.open_database().drop_collection(own_name(base, name))
            self._books().delete_many({"$or": [own, by_id]})
        return self._change_book(lambda book: book.dropped(name, now=now))

    def _change_book(self, change: Callable[[Book], Book], *, tries: int = _BOOK_TRIES) -> Book:
        with mongo_errors("writing the generations", self.setting):
            return GenerationBook(self.open_database()).change(change, tries=tries)

    def measure(self) -> tuple[int, int]:
        """Return how many vector documents there are, by the server's own count, and their bytes on disk."""
        with mongo_errors("measuring the store", self.setting):
            stats = self.open_database().command("collStats", self.vectors_name)
            return int(stats.get("count", 0)), int(stats.get("totalSize", 0))

    # -- collections and indexes ------------------------------------------------------------------------------

    def initialise(self, dimensions: int, *, loading: bool = False) -> Drift:
        """Make what is missing and report what differs. Never drops or changes what is there; safe to repeat.

        With ``loading`` an empty store, or one whose first load goes on, gets only the indexes that a load needs:
        making the others afterwards costs half as much. Call it again without, when the load is done.
        """
        drift = Drift()
        with mongo_errors("making collections and indexes", self.setting):
            database = self.open_database()
            existing = {row["name"]: row for row in database.list_collections()}
            vectors, store = database[self.vectors_name], database.get_collection(schema.STORE, write_concern=_DURABLE)
            later: frozenset[str] = frozenset()
            if loading and (
                vectors.find_one({}, {"_id": 1}) is None
                or store.find_one({"_id": self._key(_INDEXES_TO_COME)}) is not None
            ):
                later = frozenset(index.name for index in schema.VECTOR_DOCUMENTS.indexes if not index.early)
                later -= {row["name"] for row in vectors.list_indexes()}
            if later:
                store.replace_one({"_id": self._key(_INDEXES_TO_COME)}, {"since": datetime.now(UTC)}, upsert=True)
                drift.deferred.extend(sorted(later))
            for collection in self._collections():
                self._initialise_collection(collection, existing.get(collection.name), drift, later=later)
            self._initialise_search(dimensions, drift)
            if not later:
                store.delete_one({"_id": self._key(_INDEXES_TO_COME)})
        return drift

    def _initialise_collection(
        self,
        collection: Collection,
        found: Mapping[str, Any] | None,
        drift: Drift,
        *,
        later: frozenset[str] = frozenset(),
    ) -> None:
        database = self.open_database()
        validator = {"$jsonSchema": collection.schema}
        if found is None:
            try:
                self._create_collection(collection.name, drift, validator=validator, validationLevel="moderate")
            except mongo.OperationFailure as error:
                if error.code != _NAMESPACE_EXISTS:  # another initialise was quicker
                    raise
        elif found["options"].get("validator") != validator:
            if "validator" not in found["options"] and database[collection.name].find_one({}, {"_id": 1}) is None:
                database.command("collMod", collection.name, validator=validator, validationLevel="moderate")
                drift.created.append(f"validator of {collection.name}")
            else:
                kind = "has another validator" if "validator" in found["options"] else "has no validator"
                drift.differs.append(
                    f"{collection.name} {kind}: to set ours, run db.runCommand({{collMod: '{collection.name}', ...}})"
                )
        indexes = {row["name"]: row for row in database[collection.name].list_indexes()}
        missing: list[Index] = []
        for index in collection.indexes:
            same_keys = [row for row in indexes.values() if _index_keys(row) == _wanted_keys(index)]
            if not same_keys and index.name not in indexes:
                if collection.name != self.vectors_name or index.name not in later:
                    missing.append(index)
                continue
            row = same_keys[0] if same_keys else indexes[index.name]
            difference = _index_difference(index, row)
            if difference:
                drift.differs.append(f"index {row['name']} of {collection.name} {difference}")
        if missing:
            models = [IndexModel(list(index.keys), name=index.name, **index.options) for index in missing]
            database[collection.name].create_indexes(models)
            drift.created.extend(f"index {index.name} of {collection.name}" for index in missing)
        ours = {_wanted_keys(index) for index in collection.indexes} | {(("_id", 1),)}
        drift.notes.extend(
            f"{collection.name} has the further index {row['name']}, which the design doesn't know"
            for row in indexes.values()
            if _index_keys(row) not in ours
        )

    def _create_collection(self, name: str, drift: Drift, **options: Any) -> None:
        database = self.open_database()
        compressed: Record = {"storageEngine": schema.VECTORS_STORAGE} if name == self.vectors_name else {}
        try:
            # Only the server says whether it is there: the driver would look first, and raise an error of another kind.
            database.create_collection(name, check_exists=False, **options, **compressed)
        except mongo.OperationFailure as error:
            if error.code == _NAMESPACE_EXISTS or not compressed:
                raise
            # Hosted servers may leave the choice of storage to nobody.
            database.create_collection(name, check_exists=False, **options)
            drift.notes.append(f"this server does not let {name} be compressed with zstd: it takes a fifth more disk")
        drift.created.append(f"collection {name}")

    def _initialise_search(self, dimensions: int, drift: Drift) -> None:
        definition = schema.vector_index_definition(dimensions, self.vector_form)
        vectors = self.open_database()[self.vectors_name]
        try:
            found = {row["name"]: row for row in vectors.list_search_indexes()}
            if schema.VECTOR_INDEX not in found:
                vectors.create_search_index(SearchIndexModel(definition, name=schema.VECTOR_INDEX, type="vectorSearch"))
                drift.created.append(f"vector search index {schema.VECTOR_INDEX}")
            elif found[schema.VECTOR_INDEX].get("latestDefinition") != definition:
                drift.differs.append(f"vector search index {schema.VECTOR_INDEX} has another definition")
        except mongo.OperationFailure as error:
            if error.code not in _NO_SEARCH_CODES:
                raise
            drift.notes.append(
                "no vector search index: this server has no search nodes (Atlas, or Community with mongot, has); "
                "search reads the vectors and is exact"
            )

    # -- the model of the store -------------------------------------------------------------------------------

    def require_model(self, facts: EmbedderFacts, *, replace: bool, write: bool) -> None:
        """Raise ``TerminalError`` if the store holds vectors of another model and they are not to be replaced.

        With ``write`` the model is put down as the store's own. A forgotten key must never lead to a store whose
        vectors, paid for, are overwritten by another model's.
        """
        wanted = {"model": facts.model, "dimensions": facts.dimensions, "task": facts.task}
        entry = self.describe_generation()
        if entry is not None and replace:
            raise TerminalError(
                f"the store has generations, and none of them changes its model: {entry.name} is of {entry.made_by}. "
                "Leave out --replace-model and build another one: `cryptique-rag generations build NAME`"
            )
        with mongo_errors("reading the store's model", self.setting):
            store = self.open_database()[schema.STORE].with_options(write_concern=_DURABLE)
            found = store.find_one({"_id": self.vectors_name})
            if found is None:
                row = self.open_database()[self.vectors_name].find_one({}, {"lineage": 1})
                found = (row or {}).get("lineage") if row else None
                if row is not None and not found:
                    raise TerminalError(
                        f"{self.database}.{self.vectors_name} holds documents that this pipeline did not write: "
                        "choose another CRYPTIQUE_VECTORS_DATABASE, or move them away"
                    )
            if found and not replace and any(found.get(name) != value for name, value in wanted.items()):
                raise TerminalError(
                    f"the store's vectors are of {found['model']} ({found['dimensions']} dimensions), this run's of "
                    f"{facts.model} ({facts.dimensions}): set CRYPTIQUE_EMBEDDER (and GEMINI_API_KEY) back, choose "
                    "another CRYPTIQUE_VECTORS_DATABASE, build the other model's vectors beside these (`cryptique-rag "
                    "generations build NAME`), or pass --replace-model to embed everything again"
                )
            if write:
                store.replace_one({"_id": self.vectors_name}, {"_id": self.vectors_name, **wanted}, upsert=True)

    # -- reading what is stored -------------------------------------------------------------------------------

    def is_empty(self, *, of: str | None = None) -> bool:
        """Return whether no vector document is stored; with ``of`` none of this source, whatever others have."""
        return not self.holds({} if of is None else _of_source(of, ()))

    def find_stored(self, document_ids: Sequence[str], *, with_runs: bool = False) -> dict[str, Stored]:
        """Return what is stored under these ids, from the covering index alone; runs and versions are not in it.

        While a first load goes on that index is not there: the documents are read.
        """
        projection = {
            "_id": 0,
            "documentId": 1,
            "contentHash": 1,
            "rowHash": 1,
            "sourceId": 1,
            "lineage.chunks": 1,
        }
        if with_runs:
            projection |= {"runId": 1, "version": 1}
        found: dict[str, Stored] = {}
        with mongo_errors("comparing with the store", self.setting):
            vectors = self.open_database()[self.vectors_name]
            for some in batched(document_ids, _BATCH):
                rows = vectors.find({"documentId": {"$in": some}}, projection)
                for row in _read_by(rows.clone().hint(schema.LOOKUP_INDEX), rows):
                    lineage = row.get("lineage") or {}
                    found[row["documentId"]] = Stored(
                        source_id=row["sourceId"],
                        content_hash=bytes(row.get("contentHash") or b""),
                        row_hash=bytes(row.get("rowHash") or b""),
                        chunks=lineage.get("chunks") or 1,
                        run_id=str(row.get("runId") or ""),
                        version=int(row.get("version") or 0),
                    )
        return found

    def find_stored_records(self, *, within: ShardRange | Sequence[ObjectId]) -> dict[ObjectId, StoredRecord]:
        """Return the records in a range, or of these ids, whose rows are all there and agree on what made them.

        From a covering index alone. The digest holds the source's name: an id of another source matches nothing.
        """
        fields = {"_id": 0, "sourceId": 1, "sourceDigest": 1, "lineage.chunks": 1}
        rows: dict[ObjectId, list[tuple[bytes | None, int]]] = {}
        with mongo_errors("comparing with the store", self.setting):
            vectors = self.open_database()[self.vectors_name]
            if isinstance(within, ShardRange):
                cursors = [_bounded(vectors.find({}, fields), schema.DIGEST_KEYS, within)]
            else:
                cursors = [vectors.find({"sourceId": {"$in": some}}, fields) for some in batched(within, _BATCH)]
            try:
                for cursor in cursors:
                    for row in cursor.hint(schema.DIGEST_INDEX).batch_size(20_000):
                        made = (row.get("sourceDigest"), (row.get("lineage") or {}).get("chunks") or 1)
                        rows.setdefault(row["sourceId"], []).append(made)
            except mongo.OperationFailure as error:
                if error.code != _BAD_VALUE:
                    raise
                return {}  # a store that has no such index yet: every record is looked at
        return {
            record_id: StoredRecord(own[0][0], own[0][1])
            for record_id, own in rows.items()
            if own[0][0] is not None and len(own) == own[0][1] and (len(own) == 1 or len(set(own)) == 1)
        }

    def holds_any(self, shard: ShardRange, *, of: str) -> bool:
        """Return whether a vector document of any of a source's records in a range is stored.

        From an index alone, but for the documents that other sources have in the range.
        """
        if (shard.lower, shard.upper) == (None, None):
            return not self.is_empty(of=of)
        return any(
            self.holds({"sourceId": {"$in": some}, **_of_source(of, ())})
            for some in batched(self.read_source_ids(shard), _BATCH)
        )

    def read_source_ids(self, shard: ShardRange, *, of: str | None = None) -> Iterator[ObjectId]:
        """Yield the record id of each vector document in a range, one per document, in order; from an index alone.

        With ``of`` those of all documents of that source, in no order, whatever the range.
        """
        with mongo_errors("reading the store's record ids", self.setting):
            vectors = self.open_database()[self.vectors_name]
            if of is not None:
                rows = vectors.find(_of_source(of, ()), {"_id": 0, "documentId": 1, "sourceId": 1}).batch_size(20_000)
                for row in _read_by(rows.clone().hint(schema.LOOKUP_INDEX), rows):
                    yield row["sourceId"]
                return
            found = vectors.find({}, {"_id": 0, "sourceId": 1}).batch_size(20_000)
            # One of the two is always there: the second in a store of an older version.
            first = _bounded(found.clone(), schema.DIGEST_KEYS, shard).hint(schema.DIGEST_INDEX)
            second = _bounded(found, ("sourceId",), shard).hint([("sourceId", 1)])
            for row in _read_by(first, second):
                yield row["sourceId"]

    def count_records_by_holder(self, source: str) -> dict[str, int]:
        """Return how many records of a source each holder has in the store: one walk over the index of document ids."""
        counts: dict[str, int] = {}
        with mongo_errors("counting stored records", self.setting):
            cursor = (
                self.open_database()[self.vectors_name]
                .find({}, {"_id": 0, "documentId": 1})
                .hint([("documentId", 1)])
                .min([("documentId", f"{source}:")])
                .max([("documentId", f"{source};")])
                .batch_size(20_000)
            )
            for row in cursor:
                if row["documentId"].endswith(":0"):
                    holder_id = holder_of(row["documentId"])
                    counts[holder_id] = counts.get(holder_id, 0) + 1
        return counts

    def lineage_criteria(self, scope: Scope, *, describer: int | None, model: str | None) -> Record:
        """Return the filter of stored vectors in a scope that this describer and this model made."""
        criteria: Record = _of_source(scope.source, scope.contract_ids)
        if describer is not None:
            criteria["lineage.describer"] = describer
        if model is not None:
            criteria["lineage.model"] = model
        if scope.team_ids:
            criteria["teamId"] = {"$in": [ObjectId(team_id) for team_id in scope.team_ids]}
        bounds = {"$gte": scope.window.start, "$lt": scope.window.end}
        times = {name: moment for name, moment in bounds.items() if moment is not None}
        if times:
            criteria["metadata.timeframe.start"] = times
        return criteria

    def read_record_ids(self, criteria: Mapping[str, Any], *, limit: int = 0) -> Iterator[ObjectId]:
        """Yield the record id of every record with a matching vector document, each once, in order."""
        with mongo_errors("reading the store's record ids", self.setting):
            vectors = self.open_database()[self.vectors_name]
            rows = vectors.find(dict(criteria), {"_id": 0, "sourceId": 1}).sort("sourceId", 1).batch_size(20_000)
            last: ObjectId | None = None
            count = 0
            for row in rows:
                if row["sourceId"] == last:
                    continue
                last = row["sourceId"]
                yield row["sourceId"]
                count += 1
                if count == limit:
                    return

    def count_records(self, criteria: Mapping[str, Any]) -> int:
        """Return how many records have a matching vector document."""
        with mongo_errors("counting stored records", self.setting):
            per_record: list[Record] = [{"$match": dict(criteria)}, {"$group": {"_id": "$sourceId"}}]
            counted = [*per_record, {"$count": "records"}]
            rows = list(self.open_database()[self.vectors_name].aggregate(counted, allowDiskUse=True))
            return int(rows[0]["records"]) if rows else 0

    def find_documents(
        self, source: str, source_ids: Sequence[ObjectId], *, more: Sequence[str] = (), whole: bool = False
    ) -> list[Record]:
        """Return id, record, team and lineage, and ``more``, of these records' vector documents, or all of each."""
        fields = None if whole else dict.fromkeys(("documentId", "sourceId", "teamId", "lineage", *more), 1)
        with mongo_errors("reading vector documents", self.setting):
            rows = self.open_database()[self.vectors_name].find({"sourceId": {"$in": list(source_ids)}}, fields)
            # Another source's record may have the same id.
            return [row for row in rows if row["documentId"].startswith(f"{source}:")]

    def read_vectors(self, criteria: Mapping[str, Any], *, batch_rows: int = 4_000) -> Iterator[list[Record]]:
        """Yield batches of ``_id``, ``documentId`` and ``embedding`` of the matching documents; memory holds one."""
        with mongo_errors("reading vectors", self.setting):
            cursor = self.open_database()[self.vectors_name].find(criteria, {"documentId": 1, "embedding": 1})
            cursor = cursor.batch_size(batch_rows)
            batch: list[Record] = []
            for row in cursor:
                batch.append(row)
                if len(batch) == batch_rows:
                    yield batch
                    batch = []
            if batch:
                yield batch

    def read_index_rows(
        self, ids: Sequence[ObjectId] | None = None, *, batch_rows: int = 1_000
    ) -> Iterator[list[Record]]:
        """Yield the active documents, or those of these ``_id``s, with what an index is made of; in order of ``_id``.

        What a majority has is read, so a change that a change stream told of is in it.
        """
        wanted: Record = {"status": "active"}
        if ids is not None:
            wanted["_id"] = {"$in": list(ids)}
        with mongo_errors("reading vector documents", self.setting):
            vectors = self.open_database().get_collection(self.vectors_name, read_concern=ReadConcern("majority"))
            rows = vectors.find(wanted, dict.fromkeys(_INDEXED, 1)).sort("_id", 1).batch_size(batch_rows)
            yield from batched(rows, batch_rows)

    def read_index_states(self, *, batch_rows: int = 20_000) -> Iterator[list[Record]]:
        """Yield ``_id`` and what tells a changed document from an unchanged one, of all active documents."""
        with mongo_errors("reading vector documents", self.setting):
            vectors = self.open_database().get_collection(self.vectors_name, read_concern=ReadConcern("majority"))
            fields = dict.fromkeys(("contentHash", "rowHash", "teamId", "siteId", "status"), 1)
            rows = vectors.find({"status": "active"}, fields).batch_size(batch_rows)
            yield from batched(rows, batch_rows)

    def read_documents(
        self, ids: Sequence[Any], *, within: Mapping[str, Any] | None = None, with_vectors: bool = False
    ) -> dict[Any, Record]:
        """Return whole vector documents by ``_id``, those that are ``within`` a filter; their vectors if asked for."""
        return self._read_by_id(ids, within, None if with_vectors else {"embedding": 0})

    def read_facts(self, ids: Sequence[Any], *, within: Mapping[str, Any]) -> dict[Any, Record]:
        """Return of vector documents what they are of and their metadata: what is counted, of very many at once."""
        return self._read_by_id(ids, within, _FACTS)

    def _read_by_id(
        self, ids: Sequence[Any], within: Mapping[str, Any] | None, fields: Mapping[str, Any] | None
    ) -> dict[Any, Record]:
        with mongo_errors("reading vector documents", self.setting):
            rows = self.open_database()[self.vectors_name].find({"_id": {"$in": list(ids)}, **(within or {})}, fields)
            return {row["_id"]: row for row in rows}

    def searches_itself(self) -> bool:
        """Return whether the server has a vector search index of this collection, and it can be asked."""
        if self.vector_form not in ("float32", "doubles"):
            return False  # bytes and bits want questions of their own form, and score otherwise
        with mongo_errors("looking for the vector search index", self.setting):
            try:
                found = list(self.open_database()[self.vectors_name].list_search_indexes(schema.VECTOR_INDEX))
            except mongo.OperationFailure as error:
                if error.code not in _NO_SEARCH_CODES:
                    raise
                return False
        return any(row.get("queryable") is True for row in found)

    def find_nearest(
        self, asked: Matrix, criteria: Mapping[str, Any], *, limit: int, candidates: int
    ) -> list[tuple[Any, float]]:
        """Return the ``_id`` and the cosine of the nearest documents that meet criteria, by the server's vector search.

        ``criteria`` may hold the fields of ``VECTOR_FILTERS`` (``tasks/domain/collections.py``) alone.
        """
        stage = {
            "index": schema.VECTOR_INDEX,
            "path": "embedding",
            "queryVector": asked.tolist() if self.vector_form == "doubles" else _as_binary(asked),
            "numCandidates": candidates,
            "limit": limit,
            "filter": dict(criteria),
        }
        shown = {"_id": 1, "score": {"$meta": "vectorSearchScore"}}
        with mongo_errors("asking for the nearest vectors", self.setting):
            vectors = self.open_database()[self.vectors_name]
            rows = vectors.aggregate([{"$vectorSearch": stage}, {"$project": shown}])
            # The server scores half of one plus the cosine.
            return [(row["_id"], 2 * row["score"] - 1) for row in rows]

    def holds(self, criteria: Mapping[str, Any]) -> bool:
        """Return whether any vector document matches."""
        with mongo_errors("looking at the store", self.setting):
            return self.open_database()[self.vectors_name].find_one(dict(criteria), {"_id": 1}) is not None

    def count(self, criteria: Mapping[str, Any]) -> int:
        """Return how many vector documents match."""
        with mongo_errors("counting vector documents", self.setting):
            return self.open_database()[self.vectors_name].count_documents(dict(criteria))

    # -- writing ----------------------------------------------------------------------------------------------

    def insert_rows(self, rows: Sequence[RawBSONDocument]) -> list[int]:
        """Insert rows; return the positions of those whose document id (or ``_id``) is taken already."""
        taken: list[int] = []
        with mongo_errors("writing vector documents", self.setting):
            vectors = self.open_database().get_collection(self.vectors_name, write_concern=_DURABLE)
            for start in range(0, len(rows), _BATCH):
                try:
                    vectors.insert_many(rows[start : start + _BATCH], ordered=False)
                except mongo.BulkWriteError as error:
                    details = error.details or {}
                    others = [e for e in details.get("writeErrors", ()) if e["code"] != _DUPLICATE_KEY]
                    if others:
                        raise TerminalError(
                            f"MongoDB refused a vector document: {str(others[0].get('errmsg'))[:200]}: "
                            "run `cryptique-rag initialise` and look at the drift it reports"
                        ) from None
                    if details.get("writeConcernErrors"):
                        raise mongo.AutoReconnect("the write was not acknowledged by a majority") from None
                    taken.extend(start + e["index"] for e in details.get("writeErrors", ()))
        return taken

    def update_rows(self, changes: Mapping[str, RowChange]) -> None:
        """Set the changed fields of stored rows, by document id, where they still are what was compared.

        Raises ``ShardDamagedError`` if another writer changed or removed one of them meanwhile: which of the two
        read the newer record can't be told, so the record must be read again. Safe to repeat.
        """
        with mongo_errors("updating vector documents", self.setting):
            vectors = self.open_database().get_collection(self.vectors_name, write_concern=_DURABLE)
            for some in batched(changes.items(), _BATCH):
                updates = [
                    UpdateOne(
                        {"documentId": key, "rowHash": {"$in": [_hash(change.seen), _hash(change.becomes)]}},
                        {"$set": change.fields, "$inc": {"version": 1}},
                    )
                    for key, change in some
                ]
                result = vectors.bulk_write(updates, ordered=False)
                if result.matched_count != len(some):
                    raise ShardDamagedError(
                        f"{len(some) - result.matched_count} vector documents were changed by another run meanwhile"
                    )

    def note_digests(self, made: Mapping[str, tuple[bytes, bytes]]) -> None:
        """Put down what stored rows were made from, by document id: row hash and source digest. Safe to repeat.

        A row that another writer changed meanwhile is left alone.
        """
        with mongo_errors("writing what vector documents were made from", self.setting):
            vectors = self.open_database().get_collection(self.vectors_name, write_concern=_DURABLE)
            for some in batched(made.items(), _BATCH):
                notes = [
                    UpdateOne({"documentId": key, "rowHash": _hash(row_hash)}, {"$set": {"sourceDigest": digest}})
                    for key, (row_hash, digest) in some
                ]
                vectors.bulk_write(notes, ordered=False)

    def remove_documents(self, document_ids: Sequence[str]) -> int:
        """Delete vector documents by id; return how many there were."""
        return self._remove("documentId", document_ids)

    def give_documents(self, document_ids: Sequence[str], team_id: str | None, site_id: str | None) -> int:
        """Give vector documents whose records can't be read any more to another team; return how many there were.

        With no team they are archived, which no search sees, until they are given to one. Safe to repeat.
        """
        change: Record = {"$set": {"status": "archived", "ownerLost": True}}
        if team_id is not None:
            change = {
                "$set": {"teamId": ObjectId(team_id), "siteId": site_id, "status": "active"},
                "$unset": {"ownerLost": ""},
            }
        change["$set"]["updatedAt"] = datetime.now(UTC)
        given = 0
        with mongo_errors("giving vector documents to their owners", self.setting):
            vectors = self.open_database().get_collection(self.vectors_name, write_concern=_DURABLE)
            for some in batched(document_ids, _BATCH):
                given += vectors.update_many(
                    {"documentId": {"$in": some}}, change | {"$inc": {"version": 1}}
                ).matched_count
        return given

    def remove_sources(self, source_type: str, source_ids: Sequence[ObjectId]) -> int:
        """Delete all vector documents of these records; return how many there were."""
        return self._remove("sourceId", source_ids, sourceType=source_type)

    def _remove(self, name: str, values: Sequence[Any], **also: Any) -> int:
        removed = 0
        with mongo_errors("removing vector documents", self.setting):
            vectors = self.open_database().get_collection(self.vectors_name, write_concern=_DURABLE)
            for some in batched(values, _BATCH):
                removed += vectors.delete_many({name: {"$in": some}, **also}).deleted_count
        return removed

    # -- dead letters -----------------------------------------------------------------------------------------

    def save_dead_letters(self, letters: Sequence[DeadLetter], *, run_id: str, now: datetime) -> None:
        """Put dead letters down, one per record: a record refused again gets its new reason and one more attempt."""
        if not letters:
            return
        with mongo_errors("writing dead letters", self.setting):
            box = self.open_database().get_collection(self.letters_name, write_concern=_DURABLE)
            box.bulk_write(
                [
                    UpdateOne(
                        {"sourceType": letter.source, "sourceId": letter.record_id},
                        {
                            "$set": {
                                "stage": letter.stage,
                                "code": letter.code,
                                "reason": letter.reason,
                                "runId": run_id,
                                "time": now,
                                "status": "open",
                                "teamId": ObjectId(letter.team_id) if letter.team_id else None,
                                "holderId": letter.holder_id,
                                "record": RawBSONDocument(letter.record),
                            },
                            "$setOnInsert": {"firstSeen": now},
                            "$inc": {"attempts": 1},
                        },
                        upsert=True,
                    )
                    for letter in letters
                ],
                ordered=False,
            )

    def find_dead_letter_keys(self, source_type: str, ids: Iterable[Any]) -> set[bytes]:
        """Return the ``record_key`` of those record ids that have an open dead letter."""
        with mongo_errors("reading dead letters", self.setting):
            box = self.open_database()[self.letters_name]
            criteria = {"sourceType": source_type, "sourceId": {"$in": list(ids)}, "status": "open"}
            return {record_key(row["sourceId"]) for row in box.find(criteria, {"sourceId": 1})}

    def find_withheld(self, source_type: str, ids: Iterable[Any] | None = None) -> set[bytes]:
        """Return the ``record_key`` of records, of these or all, that judging withheld and nobody released since."""
        with mongo_errors("reading dead letters", self.setting):
            box = self.open_database()[self.letters_name]
            criteria: Record = {"sourceType": source_type, "status": "open", "code": {"$regex": f"^{WITHHELD}"}}
            if ids is not None:
                criteria["sourceId"] = {"$in": list(ids)}
            return {record_key(row["sourceId"]) for row in box.find(criteria, {"sourceId": 1})}

    def read_dead_letter_ids(self, source_type: str) -> Iterator[Any]:
        """Yield the record ids of all open dead letters of a source."""
        with mongo_errors("reading dead letters", self.setting):
            box = self.open_database()[self.letters_name]
            for row in box.find({"sourceType": source_type, "status": "open"}, {"sourceId": 1}):
                yield row["sourceId"]

    def has_dead_letters(self) -> bool:
        """Return whether any dead letter is open."""
        with mongo_errors("reading dead letters", self.setting):
            return self.open_database()[self.letters_name].find_one({"status": "open"}, {"_id": 1}) is not None

    def resolve_dead_letters(self, source_type: str, ids: Sequence[Any], *, run_id: str, now: datetime) -> int:
        """Close the dead letters of records that are stored now, or gone from the source; return how many."""
        with mongo_errors("closing dead letters", self.setting):
            box = self.open_database().get_collection(self.letters_name, write_concern=_DURABLE)
            criteria = {"sourceType": source_type, "sourceId": {"$in": list(ids)}, "status": "open"}
            change = {"$set": {"status": "resolved", "resolvedBy": run_id, "resolvedAt": now}}
            return box.update_many(criteria, change).modified_count

    def letter_criteria(
        self,
        source_type: str,
        *,
        codes: Sequence[str] = (),
        team_ids: Sequence[str] = (),
        before: datetime | None = None,
        since: datetime | None = None,
    ) -> Record:
        """Return the filter of open dead letters by reason code, team and the time of their last refusal."""
        criteria: Record = {"sourceType": source_type, "status": "open"}
        if codes:
            criteria["code"] = {"$in": list(codes)}
        if team_ids:
            criteria["teamId"] = {"$in": [ObjectId(team_id) for team_id in team_ids]}
        bounds = {"$lt": before, "$gte": since}
        times = {name: moment for name, moment in bounds.items() if moment is not None}
        if times:
            criteria["time"] = times
        return criteria

    def read_open_letters(self, criteria: Mapping[str, Any], *, limit: int = 0) -> Iterator[Any]:
        """Yield the record ids of the open dead letters that match, the oldest first; a ``limit`` of 0 means all.

        The ids are read before the first is yielded, because what is done with them changes the letters.
        """
        with mongo_errors("reading dead letters", self.setting):
            box = self.open_database()[self.letters_name]
            rows = box.find({**criteria, "status": "open"}, {"sourceId": 1}).sort("time", 1).limit(limit)
            ids = [row["sourceId"] for row in rows]
        yield from ids

    def count_open_letters(self, criteria: Mapping[str, Any]) -> int:
        """Return how many open dead letters match."""
        with mongo_errors("counting dead letters", self.setting):
            return self.open_database()[self.letters_name].count_documents({**criteria, "status": "open"})

    def count_letters_by_code(self) -> dict[str, int]:
        """Return the number of open dead letters by reason code, the most frequent first."""
        with mongo_errors("counting dead letters", self.setting):
            rows = self.open_database()[self.letters_name].aggregate(
                [{"$match": {"status": "open"}}, {"$sortByCount": "$code"}]
            )
            return {row["_id"]: row["count"] for row in rows}

    def count_dead_letters(self, run_id: str) -> dict[str, int]:
        """Return a run's open dead letters by reason code."""
        with mongo_errors("counting dead letters", self.setting):
            rows = self.open_database()[self.letters_name].aggregate(
                [{"$match": {"runId": run_id, "status": "open"}}, {"$sortByCount": "$code"}]
            )
            return {row["_id"]: row["count"] for row in rows}

    def find_dead_letter_examples(self, run_ids: Iterable[str]) -> dict[str, Record]:
        """Return these flow runs' open dead letters by reason code: ``count``, one ``sourceId`` and its ``reason``."""
        group = {
            "_id": "$code",
            "count": {"$sum": 1},
            "sourceId": {"$first": "$sourceId"},
            "reason": {"$first": "$reason"},
        }
        with mongo_errors("reading dead letters", self.setting):
            rows = self.open_database()[self.letters_name].aggregate(
                [
                    {"$match": {"runId": {"$in": list(run_ids)}, "status": "open"}},
                    {"$sort": {"sourceId": 1}},
                    {"$group": group},
                    {"$sort": {"count": -1, "_id": 1}},
                ]
            )
            return {row.pop("_id"): row for row in rows}

    # -- the position in the source's changes --------------------------------------------------------------------------

    def load_position(self, source_type: str) -> Record | None:
        """Return from where to follow the source's changes, or None if nobody has said so yet."""
        with mongo_errors("reading the position", self.setting):
            store = self.open_database().get_collection(schema.STORE, read_concern=ReadConcern("majority"))
            return store.find_one({"_id": self._key(f"position:{source_type}")})

    def save_position(self, source_type: str, position: Mapping[str, Any], *, source: str, now: datetime) -> None:
        """Put down that all changes before a position are stored. Call it when they are, never before."""
        with mongo_errors("writing the position", self.setting):
            store = self.open_database().get_collection(schema.STORE, write_concern=_DURABLE)
            row = {"_id": self._key(f"position:{source_type}"), **position, "source": source, "updatedAt": now}
            store.replace_one({"_id": row["_id"]}, row, upsert=True)

    # -- what embedding may spend -----------------------------------------------------------------------------

    def reserve_spending(
        self,
        name: str,
        run_key: str,
        *,
        texts: int,
        tokens: int,
        nano_usd: int,
        allowance: Allowance,
        now: datetime,
    ) -> tuple[bool, Spending]:
        """Count a request before it is sent, if the day, the run and the service leave room for it.

        Return whether it was counted, and what stands in the record then; if not, ``wait_before`` says why. One
        operation where there is room, so that of many processes none passes a limit. Counts never expire with a
        process; a new day begins when the first request of it is counted. A run has a count of its own only if it
        has a budget: the record stays small, and a reply brings no other run's count.
        """
        day, run = quota_day(now).name, _run_field(run_key)
        room: Record = {"_id": _spending_id(name), "day": {"$gte": day}}
        room |= {f"{held}Until": {"$not": {"$gt": now}} for held in ("closed", "spent")}
        for field_name, limit, wanted in (
            ("texts", allowance.day_texts, texts),
            ("nanoUsd", allowance.day_nano_usd, nano_usd),
            (f"{run}.nanoUsd", allowance.run_nano_usd, nano_usd),
        ):
            if limit is not None:
                room[field_name] = {"$not": {"$gt": limit - wanted}}
        amounts = {"texts": texts, "tokens": tokens, "nanoUsd": nano_usd}
        change: Record = {"$inc": amounts, "$set": {"updatedAt": now}}
        if allowance.run_nano_usd is not None:
            change = {"$inc": amounts | _of_run(run, amounts), "$set": {"updatedAt": now, f"{run}.at": now}}
        seen = _seen_by(run)
        with mongo_errors("counting what embedding spends", self.setting):
            box = self._books()
            while True:
                row = box.find_one_and_update(room, change, seen, return_document=ReturnDocument.AFTER)
                if row is not None:
                    return True, _spending_of(row, run_key)
                row = box.find_one({"_id": room["_id"]}, seen)
                if row is not None and row["day"] >= day:
                    return False, _spending_of(row, run_key)
                _begin_day(box, row, room["_id"], day, now)

    def give_back_spending(
        self, name: str, run_key: str | None, *, day: str, texts: int, tokens: int, nano_usd: int, now: datetime
    ) -> None:
        """Take back what was counted on a day for a request that was refused without cost.

        ``run_key`` is None for a run without a budget, which has no count of its own.
        """
        amounts = {"texts": -texts, "tokens": -tokens, "nanoUsd": -nano_usd}
        of_run = {} if run_key is None else _of_run(_run_field(run_key), amounts)
        with mongo_errors("counting what embedding spends", self.setting):
            box = self._books()
            both = {"$inc": amounts | of_run, "$set": {"updatedAt": now}}
            if box.update_one({"_id": _spending_id(name), "day": day}, both).matched_count == 0 and of_run:
                # That day is over; the run's own count goes on.
                box.update_one({"_id": _spending_id(name)}, {"$inc": of_run})

    def close_spending(self, name: str, *, until: datetime, now: datetime, reason: str | None = None) -> None:
        """Let no request of any process pass before ``until``. With a ``reason`` they are to stop, not to wait."""
        change: Record = {"$max": {"spentUntil" if reason else "closedUntil": until}}
        if reason:
            change["$set"] = {"spentReason": reason}
        begins = {"day": quota_day(now).name, "texts": 0, "tokens": 0, "nanoUsd": 0, "updatedAt": now}
        with mongo_errors("writing that embedding must wait", self.setting):
            self._books().update_one({"_id": _spending_id(name)}, change | {"$setOnInsert": begins}, upsert=True)

    def load_spending(self, name: str, run_key: str, *, now: datetime) -> Spending:
        """Return what was spent today, and on all days by a run that has a budget."""
        day = quota_day(now).name
        with mongo_errors("reading what embedding spent", self.setting):
            row = self._books().find_one({"_id": _spending_id(name)}, _seen_by(_run_field(run_key))) or {"day": day}
        found = _spending_of(row, run_key)
        return found if found.day >= day else replace(found, day=day, texts=0, tokens=0, nano_usd=0)

    def _books(self) -> MongoCollection[Record]:
        return self.open_database().get_collection(
            schema.STORE, write_concern=_DURABLE, read_concern=ReadConcern("majority")
        )

    def note_loaded(self, source_type: str, *, now: datetime) -> None:
        """Put down that the whole source was loaded once."""
        with mongo_errors("writing that a source is loaded", self.setting):
            store = self.open_database().get_collection(schema.STORE, write_concern=_DURABLE)
            row = {"_id": self._key(f"loaded:{source_type}"), "at": now}
            store.replace_one({"_id": row["_id"]}, row, upsert=True)
            entry = f"generations.{self.generation_name}"
            described = {f"{entry}.describers.{source_type}": describer_version(source_type)}
            store.update_one({"_id": BOOK_ID, entry: {"$exists": True}}, {"$set": described, "$inc": {"version": 1}})

    def read_loaded_sources(self) -> list[str]:
        """Return the sources that were loaded whole once, in order of their names."""
        names = {self._key(f"loaded:{name}"): name for name in PLURALS.values()}
        with mongo_errors("reading which sources are loaded", self.setting):
            rows = self.open_database()[schema.STORE].find({"_id": {"$in": list(names)}}, {"_id": 1})
            return sorted(names[row["_id"]] for row in rows)

    def is_loaded(self, source_type: str) -> bool:
        """Return whether the whole source was loaded once, so that what is missing now was lost."""
        with mongo_errors("reading whether a source is loaded", self.setting):
            ids = [self._key(f"loaded:{source_type}"), self._key(f"position:{source_type}")]
            return self.open_database()[schema.STORE].find_one({"_id": {"$in": ids}}, {"_id": 1}) is not None

    # -- what sources are like --------------------------------------------------------------------------------

    def load_profile(self, source: str) -> Profile | None:
        """Return what the last good run found a source to be like, or None before there was one.

        It is the whole store's, but for its number of documents, which is that of one generation.
        """
        with mongo_errors("reading what a source is like", self.setting):
            box = self.open_database().get_collection(schema.PROFILES, read_concern=ReadConcern("majority"))
            row = box.find_one({"_id": source})
        profile = Profile.from_bytes(row["profile"]) if row else None
        if profile is not None and row is not None and row["generation"] != self.generation_name:
            profile.documents = 0
        return profile

    def save_profile(self, profile: Profile, *, run_id: str, now: datetime) -> None:
        """Put down what a good run found its source to be like: later ones are held against it."""
        row = {
            "_id": profile.source,
            "runId": run_id,
            "generation": self.generation_name,
            "read": profile.read,
            "profile": profile.to_bytes(),
            "updatedAt": now,
        }
        with mongo_errors("writing what a source is like", self.setting):
            box = self.open_database().get_collection(schema.PROFILES, write_concern=_DURABLE)
            box.replace_one({"_id": row["_id"]}, row, upsert=True)

    # -- checkpoints and jobs ---------------------------------------------------------------------------------

    def save_checkpoint(
        self, run_key: str, shard: int, outcome: ShardOutcome, *, owners: str = "", now: datetime
    ) -> None:
        """Put down that a shard is finished, with its counts and the ids of its stored records.

        ``owners`` stands for the contracts and teams by which its records were given away. Call it when all else of
        the shard is written.
        """
        with mongo_errors("writing a checkpoint", self.setting):
            box = self.open_database().get_collection(schema.CHECKPOINTS, write_concern=_DURABLE)
            row = {
                "runKey": run_key,
                "shard": shard,
                "createdAt": now,
                "recordIds": outcome.stored_ids,
                "owners": owners,
                **outcome.manifest.to_record(),
            }
            box.replace_one({"runKey": run_key, "shard": shard}, row, upsert=True)

    def load_checkpoints(
        self, run_key: str, *, known: Iterable[int] = (), owners: str | None = None, since: datetime | None = None
    ) -> dict[int, Manifest]:
        """Return the manifests of a run's finished shards, by shard number, without those that are ``known``.

        With ``owners`` only those that gave their records to the same owners; with ``since`` also those from then on.
        """
        wanted: list[Record] = []
        if owners is not None:
            wanted.append({"owners": owners})
        if since is not None:
            wanted.append({"createdAt": {"$gte": since}})
        with mongo_errors("reading checkpoints", self.setting):
            box = self.open_database().get_collection(schema.CHECKPOINTS, read_concern=ReadConcern("majority"))
            criteria = {"runKey": run_key, "shard": {"$nin": list(known)}, **({"$or": wanted} if wanted else {})}
            return {row["shard"]: Manifest.from_record(row) for row in box.find(criteria, {"recordIds": 0})}

    def load_stored_ids(self, run_key: str, shard: int) -> set[bytes]:
        """Return the records of a finished shard that have vectors, as its checkpoint says: 12 bytes of id each."""
        with mongo_errors("reading a checkpoint", self.setting):
            box = self.open_database().get_collection(schema.CHECKPOINTS, read_concern=ReadConcern("majority"))
            row = box.find_one({"runKey": run_key, "shard": shard}, {"recordIds": 1})
        ids = row["recordIds"] if row else b""
        return {ids[at : at + 12] for at in range(0, len(ids), 12)}

    def drop_checkpoints(self, run_key: str) -> None:
        """Delete a run's checkpoints, after it is complete."""
        with mongo_errors("deleting checkpoints", self.setting):
            self.open_database()[schema.CHECKPOINTS].delete_many({"runKey": run_key})

    def find_job(self, criteria: Mapping[str, Any]) -> Record | None:
        """Return the newest job that matches."""
        with mongo_errors("reading jobs", self.setting):
            return self.open_database()[schema.JOBS].find_one(dict(criteria), sort=[("createdAt", -1)])

    def find_jobs(self, criteria: Mapping[str, Any], *, limit: int = 0) -> list[Record]:
        """Return the jobs that match, newest first; a ``limit`` of 0 means all."""
        with mongo_errors("reading jobs", self.setting):
            return list(self.open_database()[schema.JOBS].find(dict(criteria)).sort("createdAt", -1).limit(limit))

    def claim_job(self, job: Mapping[str, Any], *, instead_of: Mapping[str, Any] | None = None) -> bool:
        """Write a job that is processing, new or in the place of one as it was read; False if another was quicker.

        An index lets only one job per piece of work be processing, so of two callers one gets it.
        """
        with mongo_errors("claiming a job", self.setting):
            jobs = self.open_database().get_collection(schema.JOBS, write_concern=_DURABLE)
            try:
                row = {**job, "updatedAt": self.read_time()}
                if instead_of is None:
                    jobs.insert_one(row)
                    return True
                as_read = {name: instead_of[name] for name in ("jobId", "status", "updatedAt")}
                return jobs.replace_one(as_read, row).matched_count == 1
            except mongo.DuplicateKeyError:
                return False

    def give_up_job(self, job: Mapping[str, Any], *, error: str, now: datetime) -> None:
        """Mark a job as failed whose process is gone, unless it changed since it was read."""
        with mongo_errors("closing a job", self.setting):
            jobs = self.open_database().get_collection(schema.JOBS, write_concern=_DURABLE)
            as_read = {name: job[name] for name in ("jobId", "status", "updatedAt")}
            entry = {"timestamp": now, "sourceId": None, "error": error, "errorCode": "run", "retryCount": 0}
            change = {"status": "failed", "completedAt": now, "updatedAt": now}
            jobs.update_one(as_read, {"$set": change, "$push": {"errors": entry}})

    def read_time(self) -> datetime:
        """Return the moment by the server's clock, the one that all processes share: jobs' signs of life are by it."""
        with mongo_errors("reading the time", self.setting):
            database = self.open_database()
            moment: datetime = database.command("hello", codec_options=database.codec_options)["localTime"]
            return moment

    def touch_job(self, job_id: str, *, run_id: str | None = None) -> bool:
        """Show that a job's process is alive; False if the job is no longer being processed, or by another run."""
        whose = {} if run_id is None else {"metadata.runId": run_id}
        with mongo_errors("writing a job", self.setting):
            found = self.open_database()[schema.JOBS].update_one(
                {"jobId": job_id, "status": "processing", **whose}, {"$currentDate": {"updatedAt": True}}
            )
            return found.matched_count == 1

    def save_job(self, job: Mapping[str, Any]) -> None:
        """Write a job whole, by ``jobId``."""
        with mongo_errors("writing a job", self.setting):
            jobs = self.open_database().get_collection(schema.JOBS, write_concern=_DURABLE)
            jobs.bulk_write([ReplaceOne({"jobId": job["jobId"]}, dict(job), upsert=True)])

    def keep_job(self, job: Mapping[str, Any]) -> bool:
        """Write a claimed job whole, unless another run has claimed it since: then nothing is written, and False."""
        with mongo_errors("writing a job", self.setting):
            jobs = self.open_database().get_collection(schema.JOBS, write_concern=_DURABLE)
            mine = {"jobId": job["jobId"], "metadata.runId": job["metadata"]["runId"]}
            return jobs.replace_one(mine, {**job, "updatedAt": self.read_time()}).matched_count == 1

    def drop_job(self, job_id: str, *, run_id: str) -> None:
        """Delete a job that did nothing, if it is still this run's."""
        with mongo_errors("deleting a job", self.setting):
            self.open_database()[schema.JOBS].delete_one({"jobId": job_id, "metadata.runId": run_id})

    # -- incidents --------------------------------------------------------------------------------------------

    def find_incident(self, cause: str) -> Record | None:
        """Return what is remembered of a cause."""
        with mongo_errors("reading incidents", self.setting):
            book = self.open_database().get_collection(schema.INCIDENTS, read_concern=ReadConcern("majority"))
            return book.find_one({"_id": cause})

    def find_incidents(self) -> list[Record]:
        """Return what is remembered of every cause that something may still be said of."""
        with mongo_errors("reading incidents", self.setting):
            book = self.open_database().get_collection(schema.INCIDENTS, read_concern=ReadConcern("majority"))
            names = ("failing", "told_failing", "held", "unconfirmed")
            return list(book.find({"$or": [{name: {"$nin": [False, 0]}} for name in names]}).sort("_id", 1))

    def save_incident(self, row: Mapping[str, Any], *, instead_of: Mapping[str, Any] | None) -> bool:
        """Write what is remembered of a cause in the place of what was read; False if another was quicker."""
        with mongo_errors("writing incidents", self.setting):
            version = 1 if instead_of is None else instead_of["version"] + 1
            row = {**row, "version": version, "updatedAt": datetime.now(UTC)}
            if instead_of is None:
                self._initialise_incidents()
            book = self.open_database().get_collection(schema.INCIDENTS, write_concern=_DURABLE)
            try:
                if instead_of is None:
                    book.insert_one(row)
                    return True
                as_read = {"_id": instead_of["_id"], "version": instead_of["version"]}
                return book.replace_one(as_read, row).matched_count == 1
            except mongo.DuplicateKeyError:
                return False

    # -- what requests did ------------------------------------------------------------------------------------

    def add_measures(self, measures: Mapping[str, Measure]) -> None:
        """Write measures down by their ids; one whose id is known is written already."""
        now = datetime.now(UTC)
        with mongo_errors("writing measures", self.setting):
            book = self.open_database().get_collection(schema.MEASURES, write_concern=_DURABLE)
            try:
                book.insert_many([measure_row(key, one, now=now) for key, one in measures.items()], ordered=False)
            except mongo.BulkWriteError as error:
                if any(one["code"] != _DUPLICATE_KEY for one in (error.details or {}).get("writeErrors", ())):
                    raise

    def read_measures(self, since: datetime, until: datetime | None = None) -> list[Measure]:
        """Return what all processes wrote of the minutes from that of ``since`` to ``until``, the oldest first."""
        wanted: dict[str, Any] = {"$gte": since.replace(second=0, microsecond=0)}
        if until is not None:
            wanted["$lt"] = until
        with mongo_errors("reading measures", self.setting):
            rows = self.open_database()[schema.MEASURES].find({"minute": wanted}, {"_id": 0}).sort("minute", 1)
            return [read_measure(row) for row in rows]

    def put_feedback(
        self, *, request_id: str, team_id: str, site_id: str, rating: int, comment: str, now: datetime
    ) -> bool:
        """Keep what a user thought of an answer; a second opinion takes the first one's place. Return if it is new."""
        row = {
            "teamId": ObjectId(team_id),
            "siteId": site_id,
            "requestId": request_id,
            "rating": rating,
            "comment": comment,
            "createdAt": now,
        }
        with mongo_errors("keeping feedback", self.setting):
            box = self.open_database().get_collection(schema.FEEDBACK, write_concern=_DURABLE)
            return box.replace_one({"_id": f"{team_id}:{request_id}"}, row, upsert=True).matched_count == 0

    # -- posted texts -----------------------------------------------------------------------------------------

    def put_text(self, text: PostedText, *, now: datetime) -> Record:
        """Keep a text, and return its record; the same text for the same website is kept once, with its last labels."""
        own = {"teamId": ObjectId(text.team_id), "siteId": text.site_id, "text": text.text, "textHash": text.text_hash}
        change = {
            "$setOnInsert": {**own, "addresses": list(text.addresses), "createdAt": now},
            "$set": {**text.labels(), "updatedAt": now},
        }
        with mongo_errors("keeping a text", self.setting):
            box = self.open_database().get_collection(schema.TEXTS, write_concern=_DURABLE)
            # A document that is there, or was made here, is what comes back.
            found: Any = box.find_one_and_update(
                {"_id": text.record_id}, change, upsert=True, return_document=ReturnDocument.AFTER
            )
            return dict(found)

    def find_vectors_of_equal_texts(self, record: Mapping[str, Any]) -> dict[bytes, Matrix]:
        """Return content hash -> vector of the documents that this generation has of the team's equal texts."""
        equal = {"teamId": record["teamId"], "textHash": record["textHash"], "_id": {"$ne": record["_id"]}}
        with mongo_errors("looking for equal texts", self.setting):
            rows = self.open_database()[schema.TEXTS].find(equal, {"_id": 1}).limit(_EQUAL_TEXTS)
            ids = [row["_id"] for row in rows]
        found = self.find_documents(POSTED_TEXT, ids, more=("contentHash", "embedding")) if ids else []
        return {row["contentHash"]: read_vector(row["embedding"]) for row in found}

    def _initialise_incidents(self) -> None:
        """Make the collection as ``initialise`` would: the first failure may come before its first run."""
        rows = list(self.open_database().list_collections(filter={"name": schema.INCIDENTS}))
        if not rows:
            self._initialise_collection(schema.INCIDENT_BOOK, None, Drift())


def _hash(value: bytes) -> bytes | None:
    """Return a row's hash as a filter takes it: a row that has none matches None."""
    return value or None


def _wanted_keys(index: Index) -> tuple[tuple[str, Any], ...]:
    """Return the keys as the server reports them: a text index hides its fields behind ``_fts``."""
    if any(order == "text" for _, order in index.keys):
        return (("_fts", "text"), ("_ftsx", 1))
    return index.keys


def _of_source(source: str, holder_ids: Sequence[str]) -> Record:
    """Return the filter of a source's documents, or of those of these holders: ranges of the unique index."""
    beginnings = [make_key(source, holder_id) for holder_id in holder_ids] or [source]
    ranges = [{"documentId": {"$gte": f"{beginning}:", "$lt": f"{beginning};"}} for beginning in beginnings]
    return ranges[0] if len(ranges) == 1 else {"$or": ranges}


def _index_keys(row: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, int(order) if isinstance(order, int | float) else order) for name, order in row["key"].items())


def _index_difference(index: Index, row: Mapping[str, Any]) -> str:
    if _index_keys(row) != _wanted_keys(index):
        return f"has the keys {dict(row['key'])}, not {dict(index.keys)}"
    if any(order == "text" for _, order in index.keys):
        found = set(row.get("weights", {}))
        wanted = {name for name, _ in index.keys}
        return "" if found == wanted else f"covers {sorted(found)}, not {sorted(wanted)}"
    for option in ("unique", "expireAfterSeconds", "partialFilterExpression"):
        wanted_value = index.options.get(option, False if option == "unique" else None)
        found_value = row.get(option, False if option == "unique" else None)
        if wanted_value != found_value:
            return f"has {option} {found_value}, not {wanted_value}"
    return ""


# -- the record of what embedding spends: the day's counts of all runs, and the own ones of runs with a budget --------


def _spending_id(name: str) -> str:
    return f"spending:{name}"


def _run_field(run_key: str) -> str:
    return "runs." + run_key.replace(".", "_").replace("$", "_")


def _seen_by(run: str) -> list[str]:
    """Return the fields that a request is answered with: no other run's count."""
    return ["day", "texts", "tokens", "nanoUsd", "closedUntil", "spentUntil", "spentReason", f"{run}.nanoUsd"]


def _of_run(run: str, amounts: Mapping[str, int]) -> dict[str, int]:
    return {f"{run}.{name}": amount for name, amount in amounts.items()}


def _begin_day(box: MongoCollection[Record], row: Record | None, key: str, day: str, now: datetime) -> None:
    """Set the day's counts to zero, unless another process did, and forget runs of long ago."""
    counts = {"day": day, "texts": 0, "tokens": 0, "nanoUsd": 0, "updatedAt": now}
    if row is None:
        with suppress(mongo.DuplicateKeyError):
            box.insert_one({"_id": key, **counts, "runs": {}})
        return
    # Once a day all counts of runs are read. What has no time was given back after its run was forgotten.
    runs = (box.find_one({"_id": key}, {"runs": 1}) or {}).get("runs", {})
    old = [name for name, run in runs.items() if "at" not in run or run["at"] < now - _RUN_FORGOTTEN_AFTER]
    change: Record = {"$set": counts}
    if old:
        change["$unset"] = {f"runs.{name}": "" for name in old}
    box.update_one({"_id": key, "day": row["day"]}, change)


def _spending_of(row: Record, run_key: str) -> Spending:
    return Spending(
        day=row["day"],
        texts=row.get("texts", 0),
        tokens=row.get("tokens", 0),
        nano_usd=row.get("nanoUsd", 0),
        run_nano_usd=row.get("runs", {}).get(_run_field(run_key).removeprefix("runs."), {}).get("nanoUsd", 0),
        closed_until=row.get("closedUntil"),
        spent_until=row.get("spentUntil"),
        spent_reason=row.get("spentReason", ""),
    )


def _bounded(cursor: Cursor[Record], keys: Sequence[str], shard: ShardRange) -> Cursor[Record]:
    """Return the cursor bounded to a range of the first of an index's keys. MongoDB wants a hint at the index too."""
    first, *others = keys
    rest: list[Any] = [(name, MinKey()) for name in others]
    if shard.lower is not None:
        cursor = cursor.min([(first, shard.lower), *rest])
    if shard.upper is not None:
        cursor = cursor.max([(first, shard.upper), *rest])
    return cursor


def _read_by(first: Cursor[Record], second: Cursor[Record]) -> Iterator[Record]:
    """Yield the rows of the first cursor or, where the index that it hints at is not there, of the second."""
    begun = False
    try:
        for row in first:
            begun = True
            yield row
    except mongo.OperationFailure as error:
        if begun or error.code != _BAD_VALUE:
            raise
        yield from second


def _as_binary(vector: Matrix) -> Binary:
    return Binary.from_vector(vector.tolist(), BinaryVectorDtype.FLOAT32)
