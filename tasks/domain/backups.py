"""Backup: what one holds, part by part, and what proves it; the manifest that is written last, and its verification.

A part is one object in the backup store: whole BSON documents of one collection, one behind the other in the order of
their ``_id``, compressed with zstd and, where there are recipients, encrypted with age. Without our code too it can be
read: ``age --decrypt -i KEY PART | zstd -d | bsondump``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal

import bson
from bson.codec_options import DatetimeConversion
from bson.json_util import JSONMode, JSONOptions, dumps, loads
from bson.timestamp import Timestamp

from tasks.domain.errors import TerminalError

#: ``daily``, ``weekly`` and ``monthly`` are rotated, each by its own rule; ``manual`` ones stay until a person acts.
BackupClass = Literal["daily", "weekly", "monthly", "manual"]
#: ``unfinished``: no manifest yet. ``unverified``: nothing was read back. ``damaged``: not what was written.
BackupState = Literal["good", "unverified", "damaged", "unfinished"]
FORMAT = 1
MANIFEST, VERIFICATION = "manifest.json", "verification.json"
#: Bytes of documents in a part: some seconds of work, which a retry does again.
PART_BYTES = 128 << 20
_TIME = "%Y%m%dT%H%M%SZ"
_EXACT: bson.CodecOptions[dict[str, Any]] = bson.CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
#: What JSON would change: in a validator, ``{"$regex": ...}`` is an operator and no regular expression. It is told in
#: words for who reads the manifest, and as BSON for who restores.
_SERVERS_WORDS = ("options", "indexes")
#: A part may begin with an id that is a date beyond the year 9999.
_JSON = JSONOptions(json_mode=JSONMode.CANONICAL, tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class BackupDamagedError(TerminalError):
    """What lies in the backup store is not what was written there; nothing of it may be restored as it is."""


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a backup. ``lower`` and ``upper`` bound its ``_id``, half-open; None: unbounded.

    ``name`` is that of the object below the backup. ``sha256`` is of the object's bytes as they are stored,
    ``content_sha256`` of the BSON in it. ``taken_at`` is the moment of the database at which it was read. In a part of
    changes each document is ``{_id}`` of one that is gone, or ``{_id, document}``.
    """

    name: str
    collection: str
    number: int
    lower: Any
    upper: Any
    documents: int
    raw_bytes: int
    stored_bytes: int
    sha256: str
    content_sha256: str
    taken_at: Timestamp


@dataclass(frozen=True, slots=True)
class CollectionBackup:
    """A collection as it was at the backup's moment: the ``parts``, with the ``changes`` laid over them.

    Most backups are read at one moment and have no changes. Where reading took longer than the server remembers, later
    parts are of a later moment, and ``changes`` holds each document that was written between the first moment and the
    last as it was at the last: of such a document nothing in the parts counts. ``documents`` is how many the
    collection held at the last moment. ``options`` and ``indexes`` are the server's own words.
    """

    name: str
    options: dict[str, Any]
    indexes: list[dict[str, Any]]
    documents: int
    parts: tuple[Part, ...]
    changes: Part | None = None

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """Return every object that belongs to it."""
        return self.parts if self.changes is None else (*self.parts, self.changes)


@dataclass(frozen=True, slots=True)
class DatabaseBackup:
    """One database at one moment. ``role`` says which: the store of vectors, or the application's source.

    ``left_out`` names what is no collection: views and time series.
    """

    role: Literal["store", "source"]
    database: str
    server_version: str
    moment: Timestamp
    collections: tuple[CollectionBackup, ...]
    left_out: tuple[str, ...] = ()

    def find(self, collection: str) -> CollectionBackup | None:
        """Return a collection by its name, or None."""
        return next((one for one in self.collections if one.name == collection), None)


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """All that a backup is. ``taken`` is its moment by the database's clock.

    ``settings`` are the pipeline's, secrets left out, ``packages`` the versions of what wrote it. ``recipients`` are
    the public keys that it is encrypted for; their private ones open it.
    """

    id: str
    classes: tuple[BackupClass, ...]
    began: datetime
    taken: datetime
    databases: tuple[DatabaseBackup, ...]
    code_version: str
    packages: dict[str, str]
    settings: dict[str, Any]
    recipients: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return every part of every collection."""
        return tuple(
            part for database in self.databases for collection in database.collections for part in collection.all_parts
        )

    @property
    def documents(self) -> int:
        """Return how many documents a full restore gives."""
        return sum(collection.documents for database in self.databases for collection in database.collections)

    @property
    def stored_bytes(self) -> int:
        """Return what all parts take in the backup store."""
        return sum(part.stored_bytes for part in self.parts)

    @property
    def store(self) -> DatabaseBackup:
        """Return the database of the vectors, which every backup holds."""
        return next(database for database in self.databases if database.role == "store")

    def to_bytes(self) -> bytes:
        """Return the manifest as JSON, BSON's types kept, sealed with its own SHA-256."""
        record = asdict(self)
        for database in record["databases"]:
            for collection in database["collections"]:
                collection["exact"] = bson.encode({name: collection[name] for name in _SERVERS_WORDS})
        body = dumps(record, json_options=_JSON)  # not sorted: the order of an index's keys means something
        return f'{{"sha256": "{sha256(body.encode()).hexdigest()}",\n"manifest": {body}}}\n'.encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> BackupManifest:
        """Return the manifest. Raises ``BackupDamagedError`` where it is not, to the byte, what was written."""
        try:
            head, _, rest = content.partition(b',\n"manifest": ')
            body = rest.removesuffix(b"}\n")
            seal = json.loads(head + b"}")["sha256"]
        except (ValueError, KeyError, TypeError):
            raise BackupDamagedError("the manifest can't be read") from None
        if not rest.endswith(b"}\n") or sha256(body).hexdigest() != seal:
            raise BackupDamagedError("the manifest is not the one that was written: its SHA-256 differs")
        found = loads(body.decode(), json_options=_JSON)
        if found["format"] != FORMAT:
            raise TerminalError(
                f"the backup is of format {found['format']}, this release reads {FORMAT}: use the release that wrote "
                f"it, {found.get('code_version')}"
            )
        databases = tuple(_database(one) for one in found.pop("databases"))
        return cls(
            databases=databases,
            classes=tuple(found.pop("classes")),
            recipients=tuple(found.pop("recipients")),
            **found,
        )


def _database(found: dict[str, Any]) -> DatabaseBackup:
    return DatabaseBackup(
        **found
        | {
            "collections": tuple(_collection(one) for one in found["collections"]),
            "left_out": tuple(found["left_out"]),
        }
    )


def _collection(found: dict[str, Any]) -> CollectionBackup:
    changes = found["changes"]
    found |= bson.decode(found.pop("exact"), _EXACT)
    return CollectionBackup(
        **found
        | {
            "parts": tuple(Part(**one) for one in found["parts"]),
            "changes": None if changes is None else Part(**changes),
        }
    )


@dataclass(frozen=True, slots=True)
class Verification:
    """What reading a backup back found; the newest one counts.

    ``manifest_sha256`` is of the manifest's whole object: one of another manifest proves nothing. ``restored`` is how
    many documents were restored into a scratch database and compared, byte for byte; ``drill``: these were all.
    """

    manifest_sha256: str
    checked_at: datetime
    parts: int
    documents: int
    restored: int
    drill: bool
    problems: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Return whether everything was as it was written."""
        return not self.problems

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        record = asdict(self) | {"checked_at": self.checked_at.isoformat(), "ok": self.ok}
        return json.dumps(record, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Verification | None:
        """Return it, or None where it can't be read: such a one proves nothing."""
        try:
            found = json.loads(content)
            del found["ok"]
            found["checked_at"] = datetime.fromisoformat(found["checked_at"])
            return cls(**found | {"problems": tuple(found["problems"])})
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class StoredBackup:
    """A backup as the catalogue lists it. Without a manifest only its name and when it was last written are known."""

    id: str
    state: BackupState
    modified: datetime
    manifest: BackupManifest | None = None
    verification: Verification | None = None
    why: str = ""


def state_of(content: bytes, verification: Verification | None) -> BackupState:
    """Return what a manifest's bytes and the newest verification make of a backup."""
    if verification is None or verification.manifest_sha256 != sha256(content).hexdigest():
        return "unverified"
    return "good" if verification.ok else "damaged"


def newest_good(stored: Iterable[StoredBackup], *, until: datetime | None = None) -> StoredBackup | None:
    """Return the good backup of the latest moment, or of the latest one not after ``until``; None: there is none."""
    good = [
        (one.manifest.taken, one.id, one)
        for one in stored
        if one.state == "good" and one.manifest is not None and (until is None or one.manifest.taken <= until)
    ]
    return max(good, key=lambda found: found[:2])[2] if good else None


def new_id(now: datetime) -> str:
    """Return a name for a backup that begins now; names sort by time, and no two are the same."""
    return f"{now.astimezone(UTC).strftime(_TIME)}-{secrets.token_hex(2)}"


def began_at(backup_id: str) -> datetime | None:
    """Return when a backup of this name began, or None for a name that is not of ours."""
    stem, _, tail = backup_id.partition("-")
    try:
        moment = datetime.strptime(stem, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return moment if len(tail) == 4 and all(char in "0123456789abcdef" for char in tail) else None


def part_name(collection: str, number: int, *, role: str = "store", encrypted: bool = False) -> str:
    """Return the name of a part's object below its backup."""
    return f"{role}/{collection}/{number:05}.bson.zst{'.age' if encrypted else ''}"


def changes_name(collection: str, *, role: str = "store", encrypted: bool = False) -> str:
    """Return the name of the object with a collection's changes."""
    return f"{role}/{collection}/changes.bson.zst{'.age' if encrypted else ''}"
