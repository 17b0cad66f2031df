"""The backup store: a bucket or a folder of backups, each under its own name, its manifest written last."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, cast

import pyrage
import zstandard
from prefect.blocks.core import Block
from pydantic import Field, SecretStr, model_validator

from blocks.object_store import (
    ObjectDamagedError,
    ObjectsLockedError,
    ObjectStore,
    Sink,
    StoredObject,
    UnfinishedUpload,
)
from blocks.s3 import S3Bucket
from blocks.shared_folder import SharedFolder
from tasks.domain.backups import (
    MANIFEST,
    VERIFICATION,
    BackupDamagedError,
    BackupManifest,
    Part,
    StoredBackup,
    Verification,
    began_at,
    state_of,
)
from tasks.domain.errors import InputError, TerminalError

#: What was measured on vectors: level 3 takes twice the time of level 1 and saves nothing more.
_ZSTD_LEVEL = 1
_UNPACK_BYTES = 128 << 10
_AGE = ".age"
_LOOKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a part's documents: sizes before and after, and the SHA-256 of both."""

    raw_bytes: int
    stored_bytes: int
    sha256: str
    content_sha256: str


class BackupStore(Block):
    """Where backups lie: a bucket, or a folder. What is written is compressed, and encrypted for ``recipients``."""

    _block_type_name: ClassVar[str | None] = "Cryptique backup store"
    _block_type_slug: ClassVar[str | None] = "cryptique-backup-store"
    _description: ClassVar[str | None] = "A bucket or a folder that holds backups."

    bucket: S3Bucket | None = Field(default=None, description="The bucket, below its prefix.")
    folder: Path | None = Field(default=None, description="The folder, where there is no bucket.")
    recipients: list[str] = Field(
        default_factory=list, description="Public keys (age1...) that backups are encrypted for. None: not encrypted."
    )
    identities: SecretStr | None = Field(
        default=None, description="Private keys of age, one a line, that open what was encrypted; never shown."
    )
    mounted: bool = Field(
        default=False, description="Whether several machines mount the folder; it is then never made here."
    )
    keep_daily: int = Field(default=7, ge=1, description="How many daily backups rotation keeps.")
    keep_weekly_days: int = Field(default=30, ge=1, description="How many days rotation keeps weekly backups.")
    keep_monthly: int = Field(default=12, ge=1, description="How many monthly backups rotation keeps.")
    drill_uri: SecretStr | None = Field(
        default=None, description="MongoDB in which backups are restored to prove them. Unset: the vector store's."
    )

    @model_validator(mode="after")
    def _require_one_place(self) -> BackupStore:
        if (self.bucket is None) == (self.folder is None):
            raise ValueError("a backup store is a bucket or a folder")
        return self

    @property
    def place(self) -> ObjectStore:
        """Return the bucket, or the folder, made where it isn't there, unless it is one that is mounted."""
        if self.bucket is not None:
            return self.bucket
        return self._make_folder()

    def check(self) -> str:
        """Return where backups lie, proved by a small object that is written, read and removed.

        Raises ``TerminalError`` with what to do, or ``TransientError`` where a server doesn't answer. A folder of this
        machine that was not there is not there afterwards.
        """
        if self.bucket is not None:
            where = self.bucket.check()
        else:
            assert self.folder is not None
            missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
            self._make_folder().check()
            where = f"folder {self.folder}" + (", shared by machines" if self.mounted else " of this machine alone")
            if not self.mounted:
                with suppress(OSError):  # somebody put something there meanwhile
                    for folder in missing:
                        folder.rmdir()
        return f"{where}; {'encrypted with age' if self.recipients else 'not encrypted by us'}"

    def _make_folder(self) -> SharedFolder:
        assert self.folder is not None
        if not self.mounted:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TerminalError(
                    f"the folder for backups {self.folder} can't be made: {error.strerror or error}. Correct its "
                    "permissions or CRYPTIQUE_BACKUPS"
                ) from error
        return SharedFolder(self.folder, setting="CRYPTIQUE_BACKUPS")

    def write_part(self, backup_id: str, name: str, documents: Iterable[bytes]) -> Written:
        """Store whole BSON documents, joined as they come in blocks, as one object; return what was written.

        Compressed and encrypted on the way; some megabytes are in memory. Safe to repeat: the object is replaced.
        """
        if name.endswith(_AGE) != bool(self.recipients):
            raise InputError(f"{name}: the name of a part ends with {_AGE} where it is encrypted, and only there")
        content, stored = _Tally(), _Tally()
        with self.place.writing(f"{backup_id}/{name}") as upload:
            sink = _Through(stored, upload)
            compressed = _compressed(content.passing(documents))
            if self.recipients:
                _encrypt(compressed, sink, self._recipients())
            else:
                for block in compressed:
                    sink.write(block)
        return Written(content.bytes, stored.bytes, stored.hexdigest, content.hexdigest)

    def read_part(self, backup_id: str, part: Part, take: Callable[[bytes], object]) -> None:
        """Give the BSON of a part to ``take``, block after block; documents may span blocks.

        Raises ``BackupDamagedError`` if the object is missing or not, to the byte, what was written. That is known at
        the end only: nothing that was taken counts before this returns.
        """
        blocks = self.place.stream(f"{backup_id}/{part.name}")
        if blocks is None:
            raise BackupDamagedError(f"{part.name} is missing")
        stored, content = _Tally(), _Tally()

        def took(block: bytes) -> None:
            content.add(block)
            take(block)

        with closing(cast(Any, blocks)):
            try:
                self._open_blocks(stored.passing(blocks), part, took)
                for _ in stored.passing(blocks):
                    pass  # what was put behind it
            except ObjectDamagedError as error:
                raise BackupDamagedError(str(error)) from error
            except (zstandard.ZstdError, _AgeError) as error:
                for _ in stored.passing(blocks):
                    pass
                if isinstance(error, _AgeError) and (stored.bytes, stored.hexdigest) == (
                    part.stored_bytes,
                    part.sha256,
                ):
                    raise TerminalError(
                        f"none of the keys in CRYPTIQUE_BACKUP_IDENTITIES opens {part.name}: add the private key that "
                        "belongs to a recipient in its manifest"
                    ) from error
                raise BackupDamagedError(f"{part.name} can't be unpacked: {_difference(stored, part)}") from error
        if (stored.bytes, stored.hexdigest) != (part.stored_bytes, part.sha256):
            raise BackupDamagedError(f"{part.name} is not what was written: {_difference(stored, part)}")
        if (content.bytes, content.hexdigest) != (part.raw_bytes, part.content_sha256):
            raise BackupDamagedError(f"{part.name} holds other documents than were written")

    def _open_blocks(self, blocks: Iterator[bytes], part: Part, take: Callable[[bytes], object]) -> None:
        unpacked = zstandard.ZstdDecompressor().decompressobj()

        def unpack(block: bytes) -> None:
            # Some at a time: a little that is packed may be much that comes out.
            for start in range(0, len(block), _UNPACK_BYTES):
                if raw := unpacked.decompress(block[start : start + _UNPACK_BYTES]):
                    take(raw)

        if part.name.endswith(_AGE):
            _decrypt(blocks, unpack, self._identities())
        else:
            for block in blocks:
                unpack(block)
        if not unpacked.eof:
            raise zstandard.ZstdError("it ends too early")

    def save_manifest(self, manifest: BackupManifest) -> None:
        """Make a backup of the parts that were written. Raises ``TerminalError`` if another one has its name."""
        content = manifest.to_bytes()
        name = f"{manifest.id}/{MANIFEST}"
        if not self.place.put_if_absent(name, content) and self.place.get(name) != content:
            raise TerminalError(f"there is a backup {manifest.id} already: run it again")

    def save_verification(self, backup_id: str, verification: Verification) -> None:
        """Put down what reading a backup back found; it replaces an earlier one."""
        self.place.put(f"{backup_id}/{VERIFICATION}", verification.to_bytes())

    def find(self, backup_id: str) -> StoredBackup | None:
        """Return one backup as it stands, or None."""
        if began_at(backup_id) is None:
            return None
        objects = list(self.place.list_objects(f"{backup_id}/"))
        return self._look_at(backup_id, objects) if objects else None

    def list_backups(self) -> list[StoredBackup]:
        """Return all backups, the newest first, half-written and damaged ones too; three requests for each at most."""
        names = sorted((name for name in self.place.list_folders() if began_at(name) is not None), reverse=True)
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            return [found for found in pool.map(self.find, names) if found is not None]

    def remove(self, backup_id: str) -> None:
        """Delete a backup, its manifest first: what is half deleted is no backup. Safe to repeat.

        In a bucket with versions all of them go, as far as the keys may. Raises ``ObjectsLockedError`` where one of its
        objects is locked, and leaves all as it was.
        """
        _require_id(backup_id)
        self.place.erase_under(f"{backup_id}/", first=(f"{backup_id}/{MANIFEST}",))

    def require_removable(self, backup_id: str) -> None:
        """Raise ``ObjectsLockedError`` if an object of a backup is locked against deletion. Nothing is changed."""
        _require_id(backup_id)
        self.place.require_unlocked(f"{backup_id}/")

    def sweep_unfinished(self, older_than: timedelta) -> list[str]:
        """Delete what killed backups left, and return the ids of those of which something was deleted.

        That is: backups without a manifest to which nothing was written for so long, and uploads of that age to any
        backup, by the store's own clock. Left alone: what is locked, and a backup whose manifest somebody deleted in a
        bucket that keeps versions, as that may have been a mistake.
        """
        place = self.place
        before_s = (place.now() - older_than).timestamp()
        uploads: dict[str, list[UnfinishedUpload]] = {}
        for upload in place.unfinished_uploads():
            uploads.setdefault(upload.name.partition("/")[0], []).append(upload)
        ids = sorted(name for name in {*uploads, *place.list_folders()} if began_at(name) is not None)

        def sweep(backup_id: str) -> bool:
            objects = list(place.list_objects(f"{backup_id}/"))
            mine = uploads.get(backup_id, [])
            old = [upload for upload in mine if upload.written_s <= before_s]
            finished = any(found.name == f"{backup_id}/{MANIFEST}" for found in objects)
            is_old = len(old) == len(mine) and all(found.modified_s <= before_s for found in objects)
            if not finished and not is_old:
                return False  # its writer is at it
            for upload in old:
                place.abort_upload(upload)
            if finished or not objects or place.is_hidden(f"{backup_id}/{MANIFEST}"):
                return bool(old)
            try:
                place.erase_under(f"{backup_id}/")
            except ObjectsLockedError:
                return bool(old)
            return True

        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            return [backup_id for backup_id, swept in zip(ids, pool.map(sweep, ids), strict=True) if swept]

    def manifest_sha256(self, backup_id: str) -> str:
        """Return the SHA-256 of a backup's manifest as it is stored, for its verification."""
        return sha256(self.place.get(f"{backup_id}/{MANIFEST}") or b"").hexdigest()

    def _look_at(self, backup_id: str, objects: Sequence[StoredObject]) -> StoredBackup:
        modified = datetime.fromtimestamp(max(found.modified_s for found in objects), UTC)
        sizes = {found.name.removeprefix(f"{backup_id}/"): found.size_bytes for found in objects}
        verification = self._verification(backup_id) if VERIFICATION in sizes else None
        try:
            content = self.place.get(f"{backup_id}/{MANIFEST}") if MANIFEST in sizes else None
        except ObjectDamagedError as error:
            return StoredBackup(backup_id, "damaged", modified, verification=verification, why=str(error))
        if content is None:
            return StoredBackup(backup_id, "unfinished", modified)
        try:
            manifest = BackupManifest.from_bytes(content)
            if manifest.id != backup_id:
                # Its parts would be looked for elsewhere.
                raise BackupDamagedError(f"its manifest is that of the backup {manifest.id}")
        except TerminalError as error:
            return StoredBackup(backup_id, "damaged", modified, verification=verification, why=str(error))
        wrong = [part.name for part in manifest.parts if sizes.get(part.name) != part.stored_bytes]
        if wrong:
            why = f"{wrong[0]} is missing or of another size" + (f", and {len(wrong) - 1} others" if wrong[1:] else "")
            return StoredBackup(backup_id, "damaged", modified, manifest, verification, why)
        state = state_of(content, verification)
        why = "; ".join(verification.problems) if state == "damaged" and verification is not None else ""
        return StoredBackup(backup_id, state, modified, manifest, verification, why)

    def _verification(self, backup_id: str) -> Verification | None:
        """Return the newest one, or None: one that can't be read proves nothing."""
        try:
            told = self.place.get(f"{backup_id}/{VERIFICATION}")
        except ObjectDamagedError:
            return None
        return None if told is None else Verification.from_bytes(told)

    def _recipients(self) -> list[Any]:
        try:
            return [pyrage.x25519.Recipient.from_str(one) for one in self.recipients]
        except pyrage.RecipientError:
            raise TerminalError("CRYPTIQUE_BACKUP_RECIPIENTS: a public key of age begins with age1") from None

    def _identities(self) -> list[Any]:
        lines = "" if self.identities is None else self.identities.get_secret_value()
        keys = [line.strip() for line in lines.splitlines() if line.strip() and not line.startswith("#")]
        if not keys:
            raise TerminalError("the backup is encrypted: set CRYPTIQUE_BACKUP_IDENTITIES to the private key of age")
        try:
            return [pyrage.x25519.Identity.from_str(key) for key in keys]
        except pyrage.IdentityError:
            raise TerminalError(
                "CRYPTIQUE_BACKUP_IDENTITIES: a private key of age begins with AGE-SECRET-KEY-1"
            ) from None


def _require_id(backup_id: str) -> None:
    if began_at(backup_id) is None:
        raise InputError(f"{backup_id} is no name of a backup: `cryptique-rag backups` lists them")


class _Tally:
    """How many bytes passed, and their SHA-256."""

    def __init__(self) -> None:
        self.bytes = 0
        self._digest = sha256()

    def add(self, block: bytes) -> None:
        self.bytes += len(block)
        self._digest.update(block)

    def passing(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self.add(block)
            yield block

    @property
    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _Through:
    """A sink that tallies what it passes on."""

    def __init__(self, tally: _Tally, sink: Sink) -> None:
        self._tally = tally
        self._sink = sink

    def write(self, block: bytes, /) -> int:
        self._tally.add(block)
        self._sink.write(block)
        return len(block)


def _difference(stored: _Tally, part: Part) -> str:
    if stored.bytes != part.stored_bytes:
        return f"{stored.bytes:,} bytes of {part.stored_bytes:,}"
    return "its SHA-256 differs"


def _compressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
    for block in blocks:
        if packed := packer.compress(block):
            yield packed
    yield packer.flush()


# -- age: its library pulls from a file and pushes to one, and hides what either raises -------------------------------


class _AgeError(Exception):
    """What age refuses: damaged bytes, or none of the keys."""


class _Pulled(io.RawIOBase):
    """Blocks as a file that is read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")
        self.failed: BaseException | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            while not self._rest:
                block = next(self._blocks, None)
                if block is None:
                    return b""
                self._rest = memoryview(block)
        except BaseException as error:
            self.failed = error
            raise
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


class _Pushed(io.RawIOBase):
    """A function as a file that is written."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take
        self.failed: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        try:
            self._take(bytes(block))
        except BaseException as error:
            self.failed = error
            raise
        return len(block)


@contextmanager
def _own_errors(source: _Pulled, sink: _Pushed) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for end in (source, sink):
            if end.failed is not None:
                raise end.failed from None
        # Damage is told as an OSError.
        raise _AgeError(str(error)) from error


def _encrypt(blocks: Iterator[bytes], sink: Sink, recipients: list[Any]) -> None:
    source, target = _Pulled(blocks), _Pushed(sink.write)
    with _own_errors(source, target):
        pyrage.encrypt_io(cast(Any, source), cast(Any, target), recipients)


def _decrypt(blocks: Iterator[bytes], take: Callable[[bytes], object], identities: list[Any]) -> None:
    source, target = _Pulled(blocks), _Pushed(take)
    with _own_errors(source, target):
        pyrage.decrypt_io(cast(Any, source), cast(Any, target), identities)
