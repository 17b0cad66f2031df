"""Staging: where a backup is restored to and compared before anybody reads it; and the renames that make it live."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from typing import Any, ClassVar, cast

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo import ReadPreference, ReplaceOne, UpdateOne, WriteConcern
from pymongo import errors as mongo
from pymongo.collection import Collection as MongoCollection
from pymongo.cursor import Cursor

from blocks.backups import BackupStore
from blocks.mongo import MongoDatabase, Record, mongo_errors
from tasks.domain.backups import BackupDamagedError, CollectionBackup, Part
from tasks.domain.batches import batched
from tasks.domain.bson_documents import DocumentSplitter
from tasks.domain.dead_letters import record_key
from tasks.domain.errors import TerminalError

#: A document is decoded as far as its fields where one of them is asked for: dates that Python has no word for, and
#: text that is none, may be among them.
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(
    document_class=RawBSONDocument,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)
_PLAIN: CodecOptions[Mapping[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)
_DURABLE = WriteConcern(w="majority", j=True)
_BATCH_BYTES, _BATCH_DOCUMENTS = 4 << 20, 1_000
_READ_BYTES = 2 << 20
_IDS = 500
_PRIMARY_INDEX = "_id_"
_NAMESPACE_EXISTS, _DUPLICATE_KEY = 48, 11000
#: A writer may make the live collection anew between two renames, but not for ever.
_RENAMES = 5
#: What listIndexes says of an index beyond what createIndexes takes.
_NOT_AN_OPTION = frozenset({"ns"})
_SIMPLE = {"locale": "simple"}
_TIMESTAMP = b"\x11"
_ZEROS = b"\x00" * 9

#: Which documents of a backup are wanted; None: all.
Wanted = Callable[[RawBSONDocument], bool]


class RestoreDiffersError(TerminalError):
    """What was restored is not what was backed up; production was not touched."""


class StagingDatabase(MongoDatabase):
    """A database that restores write to."""

    _block_type_name: ClassVar[str | None] = "Cryptique staging database"
    _block_type_slug: ClassVar[str | None] = "cryptique-staging-database"
    setting: ClassVar[str] = "CRYPTIQUE_VECTORS_URI"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded of a part: how many documents, and the SHA-256 of their BSON in the order of their ``_id``."""

    documents: int
    digest: str


@dataclass(frozen=True, slots=True)
class Staging:
    """Names in a database under which a restore works: those of the backup with ``prefix`` before them."""

    database: MongoDatabase
    prefix: str = ""

    def name_of(self, collection: str) -> str:
        """Return the name under which a collection is staged."""
        return f"{self.prefix}{collection}"

    # -- loading ----------------------------------------------------------------------------------------------

    def create(self, collection: CollectionBackup) -> None:
        """Make the staged collection, with the options of the one that was backed up. Safe to repeat."""
        with self._errors(f"making {self.name_of(collection.name)}"):
            opened = self.database.open_database()
            name = self.name_of(collection.name)
            if name not in opened.list_collection_names(filter={"name": name}):
                opened.command({"create": name, **_creatable(collection.options)})

    def drop(self, collection: str) -> None:
        """Drop a staged collection, if it is there."""
        with self._errors(f"dropping {self.name_of(collection)}"):
            self.database.open_database().drop_collection(self.name_of(collection))

    def load(
        self,
        backup_id: str,
        part: Part,
        backups: BackupStore,
        *,
        without: Collection[bytes] = (),
        wanted: Wanted | None = None,
    ) -> Loaded:
        """Load a part, but for the ids ``without`` (``record_key``) and what is not wanted. Safe to repeat.

        What an attempt that was cut off had loaded of it is removed first. Raises ``BackupDamagedError`` if the part is
        not what was written: nothing of the staged collection counts then.
        """
        with self._errors(f"loading {part.name}"):
            target = self._rows(part.collection)
            self._empty(target, part)
            load = _Load(target, without, wanted)
            backups.read_part(backup_id, part, load.take)
            return load.finish()

    def load_changes(self, backup_id: str, part: Part, backups: BackupStore, *, wanted: Wanted | None = None) -> Loaded:
        """Load what changed while the parts were read: the documents as they were at the end. Safe to repeat."""
        with self._errors(f"loading {part.name}"):
            target = self._rows(part.collection)
            load = _Load(target, (), wanted)

            def take(documents: list[bytes]) -> None:
                rows = [_opened(one) for one in documents]
                target.delete_many({"_id": {"$in": [row["_id"] for row in rows]}})
                for row in rows:
                    if "document" in row:
                        load.add(row["document"].raw)
                load.flush()

            _each_batch(backup_id, part, backups, take)
            return load.finish()

    def _empty(self, target: MongoCollection[RawBSONDocument], part: Part) -> None:
        ids = (row["_id"] for row in _bounded(target.find({}, {"_id": 1}), part))
        for some in batched(ids, _IDS):
            target.delete_many({"_id": {"$in": some}})
        if _ends_before_the_last(part):
            target.delete_one({"_id": bson.MaxKey()})

    def build_indexes(self, collection: CollectionBackup, *, expiring: bool) -> None:
        """Build the indexes that delete by time, or all others. Safe to repeat."""
        name = self.name_of(collection.name)
        specs = [
            _creatable_index(index, collection.options)
            for index in collection.indexes
            if _is_secondary(index) and ("expireAfterSeconds" in index) is expiring
        ]
        with self._errors(f"building the indexes of {name}"):
            if expiring and (seconds := collection.options.get("expireAfterSeconds")) is not None:
                self.database.open_database().command({"collMod": name, "expireAfterSeconds": seconds})
            if specs:
                self.database.open_database().command(
                    {
                        "createIndexes": name,
                        "indexes": specs,
                        "writeConcern": {"w": "majority"},
                    }
                )

    # -- comparing --------------------------------------------------------------------------------------------

    def digest(self, part: Part, *, without: Collection[bytes] = ()) -> Loaded:
        """Return what is staged in the range of a part, but for the ids ``without``."""
        documents, digest = 0, sha256()
        for row in self._read(part):
            if not without or record_key(row["_id"]) not in without:
                documents += 1
                digest.update(row.raw)
        return Loaded(documents, digest.hexdigest())

    def require_same(
        self,
        backup_id: str,
        part: Part,
        loaded: Loaded,
        backups: BackupStore,
        *,
        without: Collection[bytes] = (),
        wanted: Wanted | None = None,
    ) -> None:
        """Raise ``RestoreDiffersError`` if what is staged of a part is not, to the byte, what was loaded."""
        staged = self.digest(part, without=without)
        if staged == loaded:
            return
        found = self.first_difference(backup_id, part, backups, without=without, wanted=wanted)
        raise RestoreDiffersError(
            f"{part.name} was restored otherwise than it was backed up: {staged.documents:,} documents of "
            f"{loaded.documents:,}, the first that differs has the _id {found!r}"
        )

    def require_same_changes(
        self, backup_id: str, part: Part, backups: BackupStore, *, wanted: Wanted | None = None
    ) -> None:
        """Raise ``RestoreDiffersError`` if a changed document is not staged as it was backed up."""
        wrong = self.wrong_changes(backup_id, part, backups, wanted=wanted)
        if wrong:
            raise RestoreDiffersError(
                f"{part.name} was restored otherwise than it was backed up: {len(wrong):,} documents differ, the first "
                f"has the _id {wrong[0]!r}"
            )

    def first_difference(
        self,
        backup_id: str,
        part: Part,
        backups: BackupStore,
        *,
        without: Collection[bytes] = (),
        wanted: Wanted | None = None,
    ) -> Any:
        """Return the ``_id`` of the first document that is staged otherwise than it was backed up, or None."""
        staged = (row for row in self._read(part) if not without or record_key(row["_id"]) not in without)
        found: list[Any] = []

        def take(documents: list[bytes]) -> None:
            for one in documents:
                document = _opened(one)
                if found or not _is_wanted(document, without, wanted):
                    continue
                row = next(staged, None)
                if row is None or row.raw != one:
                    found.append(document["_id"])

        with self._errors(f"comparing {part.name}"):
            _each_batch(backup_id, part, backups, take)
            if not found and (row := next(staged, None)) is not None:
                found.append(row["_id"])
        return found[0] if found else None

    def wrong_changes(
        self, backup_id: str, part: Part, backups: BackupStore, *, wanted: Wanted | None = None
    ) -> list[Any]:
        """Return the ids of changed documents that are staged otherwise than they were backed up."""
        wrong: list[Any] = []

        def take(documents: list[bytes]) -> None:
            rows = [_opened(one) for one in documents]
            found = {
                record_key(row["_id"]): row.raw
                for row in self._rows(part.collection).find({"_id": {"$in": [row["_id"] for row in rows]}})
            }
            for row in rows:
                document = row.get("document")
                if document is not None and wanted is not None and not wanted(document):
                    document = None
                if found.get(record_key(row["_id"])) != (None if document is None else document.raw):
                    wrong.append(row["_id"])

        with self._errors(f"comparing {part.name}"):
            _each_batch(backup_id, part, backups, take)
        return wrong

    def wrong_indexes(self, collection: CollectionBackup) -> list[str]:
        """Return the names of indexes that are not there as they were backed up, or that were not backed up."""
        with self._errors(f"looking at the indexes of {self.name_of(collection.name)}"):
            rows = self.database.open_database()[self.name_of(collection.name)].list_indexes()
            there = {row["name"]: _spec(row) for row in rows}
        wanted = {str(index["name"]): _spec(index) for index in collection.indexes}
        return sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))

    def wrong_options(self, collection: CollectionBackup) -> list[str]:
        """Return the names of options, validator and level among them, that are not as they were backed up."""
        name = self.name_of(collection.name)
        with self._errors(f"looking at the options of {name}"):
            rows = list(self.database.open_database().list_collections(filter={"name": name}))
        there = _comparable(rows[0]["options"]) if rows else {}
        wanted = _comparable(collection.options)
        return sorted(one for one in there.keys() | wanted.keys() if there.get(one) != wanted.get(one))

    def count(self, collection: str) -> int:
        """Return how many documents are staged."""
        with self._errors(f"counting {self.name_of(collection)}"):
            return self._rows(collection).count_documents({}, hint=_PRIMARY_INDEX)

    def _read(self, part: Part) -> Iterator[RawBSONDocument]:
        with self._errors(f"comparing {part.name}"):
            size = max(1, part.raw_bytes // max(1, part.documents))
            yield from _bounded(self._rows(part.collection).find({}), part).batch_size(max(2, _READ_BYTES // size))
            if _ends_before_the_last(part):
                yield from self._rows(part.collection).find({"_id": bson.MaxKey()})

    def _rows(self, collection: str) -> MongoCollection[RawBSONDocument]:
        rows: Any = self.database.open_database().get_collection(
            self.name_of(collection),
            codec_options=_RAW,
            write_concern=_DURABLE,
            # Whatever the URI prefers: what was just written may not be on another member yet.
            read_preference=ReadPreference.PRIMARY,
        )
        return cast("MongoCollection[RawBSONDocument]", rows)

    def _errors(self, doing: str) -> Any:
        return mongo_errors(doing, self.database.setting)


def read_changed_ids(backup_id: str, part: Part, backups: BackupStore) -> frozenset[bytes]:
    """Return the ``record_key`` of every document of a part of changes: some tens of bytes each."""
    found: set[bytes] = set()
    _each_batch(
        backup_id,
        part,
        backups,
        lambda documents: found.update(record_key(_opened(one)["_id"]) for one in documents),
    )
    return frozenset(found)


def _each_batch(backup_id: str, part: Part, backups: BackupStore, take: Callable[[list[bytes]], object]) -> None:
    """Give the documents of a part to ``take``, some hundred at a time."""
    splitter = DocumentSplitter()

    def split(block: bytes) -> None:
        for some in batched(splitter.split(block), _IDS):
            take(some)

    backups.read_part(backup_id, part, split)
    splitter.require_end()


def _is_wanted(document: RawBSONDocument, without: Collection[bytes], wanted: Wanted | None) -> bool:
    if without and record_key(document["_id"]) in without:
        return False
    return wanted is None or wanted(document)


def _bounded(cursor: Cursor[RawBSONDocument], part: Part) -> Cursor[RawBSONDocument]:
    cursor = cursor.hint([("_id", 1)])
    if part.lower is not None:
        cursor = cursor.min([("_id", part.lower)])
    if part.upper is not None:
        cursor = cursor.max([("_id", part.upper)])
    return cursor.sort("_id", 1)


def _ends_before_the_last(part: Part) -> bool:
    """Return whether a read of the part's range misses an end of it: from a bound on, it stops before MaxKey."""
    return part.lower is not None and part.upper is None


def _spec(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return an index as it is compared: the order of its keys counts, that of its options doesn't."""
    plain = {name: value for name, value in index.items() if name not in _NOT_AN_OPTION}
    if "collation" in plain:
        plain["collation"] = _without_version(plain["collation"])
    return plain | {"key": [(name, _number(order)) for name, order in dict(index["key"]).items()]}


def _is_secondary(index: Mapping[str, Any]) -> bool:
    return index["name"] != _PRIMARY_INDEX and not index.get("clustered")


def _creatable_index(index: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return an index in the words that make it; ``options`` are its collection's."""
    spec = {name: value for name, value in index.items() if name not in _NOT_AN_OPTION}
    if "collation" in spec:
        spec["collation"] = _without_version(spec["collation"])
    elif "collation" in options:
        # The server doesn't list the simple one, and gives an index that names none its collection's.
        spec["collation"] = _SIMPLE
    return spec


def _creatable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a collection's options without what deletes documents by time, which comes when they were compared."""
    return {name: value for name, value in _comparable(options).items() if name != "expireAfterSeconds"}


def _comparable(options: Mapping[str, Any]) -> dict[str, Any]:
    wanted = dict(options)
    if "collation" in wanted:
        wanted["collation"] = _without_version(wanted["collation"])
    return wanted


def _without_version(collation: Mapping[str, Any]) -> dict[str, Any]:
    """Return a collation without the version of the library behind it: another server may have another one."""
    return {name: value for name, value in collation.items() if name != "version"}


def _opened(content: bytes) -> RawBSONDocument:
    return RawBSONDocument(content, _RAW)


def _holds_empty_timestamp(content: bytes) -> bool:
    """Return whether a field of the document itself is the empty timestamp: on insert the server makes it its clock's.

    Searched for in the bytes first: what is found there may lie deeper, or in the middle of a vector.
    """
    at = content.find(_ZEROS)  # a regular expression takes twenty-five times as long
    while at >= 0:
        # The end of its name and eight bytes; before them its type and its name, in which no zero is.
        if _TIMESTAMP in content[content.rfind(b"\x00", 0, at) + 1 : at]:
            break
        after = len(content) - len(content[at:].lstrip(b"\x00"))
        at = content.find(_ZEROS, after)
    else:
        return False
    empty = Timestamp(0, 0)
    return any(value == empty for name, value in _opened(content).items() if name != "_id")


def _repeats_names(content: bytes) -> bool:
    """Return whether a field comes twice in the document: decoded and encoded again, it is shorter."""
    return len(bson.encode(bson.decode(content, _PLAIN))) != len(content)


def _number(order: Any) -> Any:
    return int(order) if isinstance(order, float) and order.is_integer() else order


class _Load:
    """Inserts documents in batches, and digests what it inserts."""

    def __init__(
        self, target: MongoCollection[RawBSONDocument], without: Collection[bytes], wanted: Wanted | None
    ) -> None:
        self._target = target
        self._without = without
        self._wanted = wanted
        self._splitter = DocumentSplitter()
        self._batch: list[RawBSONDocument] = []
        self._bytes = 0
        self._documents = 0
        self._digest = sha256()

    def take(self, block: bytes) -> None:
        """Take a block of documents; it may end in the middle of one."""
        try:
            documents = self._splitter.split(block)
        except InvalidBSON as error:
            raise BackupDamagedError(f"what is stored holds other documents than were written: {error}") from error
        for one in documents:
            self.add(one)

    def add(self, content: bytes) -> None:
        document = _opened(content)
        if (self._without or self._wanted) and not _is_wanted(document, self._without, self._wanted):
            return
        self._documents += 1
        self._digest.update(content)
        self._batch.append(document)
        self._bytes += len(content)
        if self._bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        if self._batch:
            # What was stored once may be stored again, also what today's validator would refuse.
            self._target.insert_many(self._batch, ordered=False, bypass_document_validation=True)
            self._keep_empty_timestamps()
            self._batch, self._bytes = [], 0

    def _keep_empty_timestamps(self) -> None:
        """Put back the empty timestamps that the server has filled on insert; a pipeline's literal it leaves alone.

        One that repeats names is left to the comparison: such a literal ends the server itself (6.0.5).
        """
        literals = [
            UpdateOne({"_id": row["_id"]}, [{"$replaceWith": {"$literal": row}}])
            for row in self._batch
            if _holds_empty_timestamp(bytes(row.raw)) and not _repeats_names(bytes(row.raw))
        ]
        if literals:
            self._target.bulk_write(literals, ordered=False, bypass_document_validation=True)

    def finish(self) -> Loaded:
        self._splitter.require_end()
        self.flush()
        return Loaded(self._documents, self._digest.hexdigest())


# -- the book of restores, and the renames ----------------------------------------------------------------------------

#: What restores did and are about: one record each, and one of every part that is loaded.
BOOK = "ragrestores"
_SEPARATOR = "/"
_LOCK = "at work"
#: MongoDB's longest name of a collection, its database's with it.
_LONGEST_NAMESPACE_BYTES = 255


class RestoreBook:
    """What a restore has finished, beside its staging, so that one that was killed goes on."""

    def __init__(self, database: MongoDatabase, key: str) -> None:
        self.database = database
        self.key = key

    def read(self) -> Record | None:
        """Return this restore's record, or None."""
        with self._errors("reading"):
            return self._rows().find_one({"_id": self.key})

    def others(self) -> list[Record]:
        """Return the records of other restores, without those of parts."""
        with self._errors("reading"):
            return list(self._rows().find({"_id": {"$ne": self.key}, "state": {"$exists": True}}))

    def write(self, **fields: Any) -> None:
        """Put down how far it is."""
        with self._errors("writing"):
            self._rows().update_one({"_id": self.key}, {"$set": fields}, upsert=True)

    def finished(self) -> dict[str, Loaded]:
        """Return what was loaded of each finished part, by the part's name."""
        start = f"{self.key}{_SEPARATOR}"
        with self._errors("reading"):
            rows = list(self._rows().find({"part": {"$exists": True}, "restore": self.key}))
        return {str(row["_id"]).removeprefix(start): Loaded(row["documents"], row["digest"]) for row in rows}

    def finish(self, part: Part, loaded: Loaded) -> None:
        """Put down that a part is loaded and compared."""
        row = {"restore": self.key, "part": part.name, "documents": loaded.documents, "digest": loaded.digest}
        with self._errors("writing"):
            self._rows().replace_one({"_id": f"{self.key}{_SEPARATOR}{part.name}"}, row, upsert=True)

    def forget_parts(self) -> None:
        """Forget the parts: they are needed until the restore is done."""
        with self._errors("writing"):
            self._rows().delete_many({"restore": self.key})

    # One restore at a time: of two, one would rename what the other has just put in place.

    def holder(self) -> Record | None:
        """Return who is at work in this database: ``workerId`` and when it last showed that, ``updatedAt``."""
        with self._errors("reading"):
            return self._rows().find_one({"_id": _LOCK, "workerId": {"$ne": None}})

    def take(self, worker: str, *, instead_of: str | None) -> bool:
        """Put down who is at work, if it still is who was seen there (None: nobody); return whether that is so."""
        with self._errors("writing"):
            try:
                done = self._rows().update_one(
                    {"_id": _LOCK, "workerId": instead_of},
                    {"$set": {"workerId": worker}, "$currentDate": {"updatedAt": True}},
                    upsert=True,
                )
            except mongo.DuplicateKeyError:
                return False
        return bool(done.matched_count or done.upserted_id)

    def touch(self, worker: str) -> None:
        """Show that this worker is still at work."""
        with self._errors("writing"):
            self._rows().update_one({"_id": _LOCK, "workerId": worker}, {"$currentDate": {"updatedAt": True}})

    def leave(self, worker: str) -> None:
        """Put down that this worker is no longer at work."""
        with self._errors("writing"):
            self._rows().update_one({"_id": _LOCK, "workerId": worker}, {"$set": {"workerId": None}})

    def _rows(self) -> MongoCollection[Record]:
        return self.database.open_database().get_collection(BOOK, write_concern=_DURABLE)

    def _errors(self, doing: str) -> Any:
        return mongo_errors(f"{doing} the book of restores", self.database.setting)


def list_collections(database: MongoDatabase) -> set[str]:
    """Return the names of all collections."""
    with mongo_errors("listing collections", database.setting):
        return set(database.open_database().list_collection_names())


def holds_documents(database: MongoDatabase, collection: str) -> bool:
    """Return whether the collection is there and not empty."""
    with mongo_errors(f"looking at {collection}", database.setting):
        return database.open_database()[collection].find_one({}, {"_id": 1}) is not None


def fits(database: MongoDatabase, collection: str) -> bool:
    """Return whether MongoDB takes a name of this length."""
    return len(f"{database.database}.{collection}".encode()) <= _LONGEST_NAMESPACE_BYTES


def put_in_place(database: MongoDatabase, *, staged: str, live: str, kept: str) -> None:
    """Give the live collection its kept name and the staged one the live name: two renames, each at once or not at all.

    Safe to repeat after a kill between the two. A writer that made the live collection anew in that moment loses
    nothing: its collection is kept too, under the kept name and a number.
    """
    with mongo_errors(f"putting {live} in place", database.setting):
        opened = database.open_database()
        for attempt in range(_RENAMES):
            there = set(opened.list_collection_names())
            if staged not in there:
                return
            if live in there:
                name = next(one for one in _numbered(kept) if one not in there)
                opened[live].rename(name)
            try:
                opened[staged].rename(live)
                return
            except mongo.OperationFailure as error:
                if error.code != _NAMESPACE_EXISTS or attempt == _RENAMES - 1:
                    raise


def drop_collections(database: MongoDatabase, names: Collection[str]) -> None:
    """Drop collections. Safe to repeat."""
    with mongo_errors("dropping kept collections", database.setting):
        for name in names:
            database.open_database().drop_collection(name)


def _numbered(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}_{number}"


# -- one team ---------------------------------------------------------------------------------------------------------


def keep_team(database: MongoDatabase, team: str, *, live: str, kept: str) -> None:
    """Copy a team's live documents under the kept name; a copy that is there is replaced. Safe to repeat."""
    with mongo_errors(f"keeping the team's documents of {live}", database.setting):
        opened = database.open_database()
        opened[live].aggregate([{"$match": {"teamId": {"$in": _ids_of(team)}}}, {"$out": kept}])


@dataclass(frozen=True, slots=True)
class Merged:
    """What making a team's documents those of a backup did: documents that went, that came or were replaced, and that
    were left out because they belong to another team now."""

    removed: int
    restored: int
    left_out: int


def merge_team(database: MongoDatabase, team: str, *, staged: str, live: str) -> Merged:
    """Make a team's live documents those that are staged. Safe to repeat.

    No document of another team is written: one that was this team's at the backup and is another's now stays with it.
    Where nothing is staged any more, it was merged before a kill: nothing is done, and nothing is taken for gone.
    """
    ours = {"$in": _ids_of(team)}
    removed = restored = left_out = 0
    with mongo_errors(f"restoring the team's documents of {live}", database.setting):
        opened = database.open_database()
        if staged not in opened.list_collection_names(filter={"name": staged}):
            return Merged(0, 0, 0)
        rows: Any = opened.get_collection(live, codec_options=_RAW, write_concern=_DURABLE)
        raw: Any = opened.get_collection(staged, codec_options=_RAW)
        for some in batched(rows.find({"teamId": ours}, {"_id": 1}), _IDS):
            ids = [row["_id"] for row in some]
            stay = {record_key(row["_id"]) for row in raw.find({"_id": {"$in": ids}}, {"_id": 1})}
            gone = [one for one in ids if record_key(one) not in stay]
            if gone:
                removed += rows.delete_many({"_id": {"$in": gone}, "teamId": ours}).deleted_count
        for some in batched(raw.find({}), _IDS):
            taken = _replace(rows, some, ours)
            there = {
                record_key(row["_id"]): row.raw for row in rows.find({"_id": {"$in": [row["_id"] for row in some]}})
            }
            wrong = [row["_id"] for row in some if row not in taken and there.get(record_key(row["_id"])) != row.raw]
            if wrong:
                raise RestoreDiffersError(
                    f"{live}: {len(wrong):,} of the team's documents are not as they were backed up, the first has the "
                    f"_id {wrong[0]!r}: is another run writing them? Give the restore again"
                )
            left_out += len(taken)
            restored += len(some) - len(taken)
    return Merged(removed, restored, left_out)


def _replace(rows: Any, documents: list[RawBSONDocument], ours: Mapping[str, Any]) -> list[RawBSONDocument]:
    """Replace the team's documents or insert them; return those whose ``_id`` or unique keys are another team's now."""
    left = documents
    while left:
        try:
            rows.bulk_write(
                [ReplaceOne({"_id": row["_id"], "teamId": ours}, row, upsert=True) for row in left],
                ordered=False,
                bypass_document_validation=True,
            )
            return []
        except mongo.BulkWriteError as error:
            refused = error.details["writeErrors"]
            if any(one["code"] != _DUPLICATE_KEY for one in refused):
                raise
            # What is in the way of one may itself be replaced in the same batch: until nothing moves any more.
            still = [left[one["index"]] for one in refused]
            if len(still) == len(left):
                return still
            left = still
    return left


def _ids_of(team: str) -> list[Any]:
    return [ObjectId(team), team]
