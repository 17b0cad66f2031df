"""S3, or what speaks its protocol: one bucket, the smallest verbs, checksums verified, errors translated once."""

from __future__ import annotations

import base64
import io
import random
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from blocks.object_store import (
    COPY_BYTES,
    ObjectDamagedError,
    ObjectsLockedError,
    Sink,
    StoredObject,
    UnfinishedUpload,
)
from tasks.domain.batches import batched
from tasks.domain.errors import PipelineError, TerminalError, TransientError

_MAX_KEYS_PER_DELETE = 1_000
#: S3 takes pieces from 5 MiB, and 10,000 of them. They double every thousand: 120 GB in the first 4,000, 888 GB in all.
_PIECE_BYTES, _PIECES_OF_A_SIZE, _DOUBLINGS = 8 << 20, 1_000, 4
#: Threads share the client; each request under way holds a connection.
_CONNECTIONS = 32
_LOOKS_AT_ONCE = 16
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _NOT_ALLOWED = 400, 401, 403, 404, 405
_PRECONDITION_FAILED, _RANGE_NOT_SATISFIABLE = 412, 416
_TOO_MANY_REQUESTS, _SERVER_ERRORS = 429, range(500, 600)
_NOT_IMPLEMENTED, _INSUFFICIENT_STORAGE = 501, 507
_CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_REGION_CODES = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"}
)
_FULL_CODES = frozenset({"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"})
#: What a server says that can't encrypt, or not with that key. Those of the key management service begin with KMS.
_ENCRYPTION_CODES = frozenset(
    {"InvalidEncryptionAlgorithmError", "InvalidEncryptionMethod", "InvalidEncryptionRequest", "KMSNotConfigured"}
)
#: Damaged on its way, too slow, too much at once, or at odds with another write: the same request may work.
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "XAmzContentChecksumMismatch",
        "IncompleteBody",
        "InternalError",
        "InvalidPart",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "OperationAborted",
        "ConditionalRequestConflict",
    }
)
_DENIALS = frozenset({"AccessDenied", "MethodNotAllowed", "NotImplemented"})
_KEYS = "CRYPTIQUE_S3_ACCESS_KEY and CRYPTIQUE_S3_SECRET_KEY"
#: How the server encrypts: with its own key, with one of the key management service, or twice with that.
Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]
#: Such objects must be asked for hours before they can be read, and what was written is read back.
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


class _DeniedError(Exception):
    """The keys may not do this, or the server can't; the caller knows another way."""


class _GoneError(TransientError):
    """The upload is no more: it was completed, or given up. The same object may be sent again."""


@dataclass(frozen=True, slots=True)
class ObjectLock:
    """A version of an object that can't be deleted ``until`` then; None: until a person ends its legal hold."""

    name: str
    until: datetime | None


@dataclass(frozen=True, slots=True)
class _Version:
    """A version of an object, or the marker that hides it; without an id: the newest."""

    name: str
    id: str | None = None
    is_marker: bool = False

    def key(self, bucket: S3Bucket) -> dict[str, str]:
        """Return how S3 names it."""
        return {"Key": bucket._key(self.name)} | ({} if self.id is None else {"VersionId": self.id})


def _made_again(block_type: type[S3Bucket], fields: dict[str, Any]) -> S3Bucket:
    return block_type(**fields)


class S3Bucket(Block):
    """A bucket, or the part of it below a prefix. Names are relative to the prefix."""

    _block_type_name: ClassVar[str | None] = "S3 bucket"
    _block_type_slug: ClassVar[str | None] = "cryptique-s3-bucket"
    _description: ClassVar[str | None] = "A bucket of S3 or of a server that speaks its protocol."

    bucket: str = Field(min_length=3, max_length=63, description="Name of the bucket; it must be there.")
    prefix: str = Field(default="", description="What all names begin with, without a slash at either end.")
    endpoint: str | None = Field(default=None, description="Address of an S3-compatible server. Unset: AWS.")
    region: str | None = Field(default=None, description="Region of the bucket. Unset: boto3's own choice.")
    access_key: SecretStr | None = Field(default=None, description="Unset, with the secret: boto3's own chain.")
    secret_key: SecretStr | None = Field(default=None, description="The secret of the access key; never shown.")
    path_style: bool | None = Field(
        default=None, description="Whether the bucket stands in the path, not in the host. Unset: with an endpoint."
    )
    storage_class: str | None = Field(
        default=None, description="Storage class of what is written, such as STANDARD_IA. Unset: the bucket's own."
    )
    encryption: Encryption | None = Field(
        default=None, description="How the server encrypts what is written. Unset: as the bucket says."
    )
    kms_key_id: str | None = Field(
        default=None, description="Key of the key management service. Unset, with aws:kms: the account's own."
    )
    connect_timeout_seconds: float = Field(default=5.0, gt=0, description="How long a connection may take.")
    read_timeout_seconds: float = Field(default=60.0, gt=0, description="How long an answer may be silent.")
    attempts: int = Field(default=5, ge=1, le=10, description="How often boto3 makes a request before it fails.")

    _client: Any = PrivateAttr(default=None)
    _client_lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Leave the connections behind: a copy in another process opens its own."""
        return (_made_again, (type(self), {name: getattr(self, name) for name in type(self).model_fields}))

    @field_validator("prefix")
    @classmethod
    def _strip_prefix(cls, prefix: str) -> str:
        return prefix.strip("/")

    @model_validator(mode="after")
    def _require_both_keys(self) -> S3Bucket:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key go together: set both, or neither")
        return self

    @model_validator(mode="after")
    def _require_a_key_service(self) -> S3Bucket:
        if self.kms_key_id is not None and self.encryption in (None, "AES256"):
            raise ValueError("kms_key_id goes with an encryption of aws:kms or aws:kms:dsse")
        return self

    @field_validator("storage_class")
    @classmethod
    def _refuse_archives(cls, storage_class: str | None) -> str | None:
        if storage_class in _ARCHIVES:
            raise ValueError(
                f"an object of class {storage_class} can't be read back at once, and all that is written is: choose "
                "another class, such as GLACIER_IR"
            )
        return storage_class

    def put(self, name: str, content: bytes | Path) -> None:
        """Store an object, or the content of a file; one of the same name is replaced. The server checks its CRC32."""
        self._put(name, content)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store an object unless there is one of this name; return whether this call stored it.

        When an answer was lost, the object of an earlier try counts as somebody else's: compare the content.
        """
        return self._put(name, content, IfNoneMatch="*")

    @contextmanager
    def writing(self, name: str) -> Iterator[Sink]:
        """Give a sink whose bytes are the object when the block ends; when it fails, there is none.

        Goes up in pieces of 8 MiB, of which one is in memory; the server checks the CRC32 of each, and what it says of
        the whole is compared. Pieces of very large objects grow, to 128 MiB.
        """
        upload = _Upload(self, name)
        try:
            yield upload
            upload.complete()
        except BaseException:
            upload.abort()
            raise

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Yield an object piece by piece, or return None if there is none. A cut connection is taken up again.

        What comes is not verified: compare its digest. Memory stays flat.
        """
        with self._errors(f"reading {name}"):
            answer = self._get(name, {})
        return None if answer is None else self._pieces(name, answer)

    def _pieces(self, name: str, answer: Any) -> Iterator[bytes]:
        """Yield the rest of an object, again and again from where the connection was cut."""
        at, size, etag, cut = 0, int(answer["ContentLength"]), str(answer["ETag"]), 0
        while True:
            try:
                with self._errors(f"reading {name}"):
                    if answer is None:
                        answer = self._resumed(name, at, etag)
                    with closing(answer["Body"]) as body:  # also where the reader stops early
                        while block := body.read(COPY_BYTES):
                            at += len(block)
                            cut = 0
                            yield block
                    return
            except TransientError:
                cut += 1
                if at == size:
                    return
                if cut >= self.attempts:
                    raise
            answer = None
            time.sleep(min(2.0**cut / 4, 10.0) * random.uniform(0.5, 1.0))

    def _resumed(self, name: str, at: int, etag: str) -> Any:
        """Return the answer with the rest of the very object that was begun."""
        answer = self._get(name, {"Range": f"bytes={at}-", "IfMatch": etag})
        if answer is None:
            raise ObjectDamagedError(f"{name} was deleted while it was read")
        if at and not str(answer.get("ContentRange", "")).startswith(f"bytes {at}-"):
            answer["Body"].close()
            raise TerminalError(
                f"{self._where} sends {name} from its beginning where the rest is asked for: is a proxy in between?"
            )
        return answer

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """Return an object, or ``length`` bytes of it (at least one) from ``start``; None if there is none.

        Read whole, it is verified: raises ``ObjectDamagedError``. A part has no checksum in S3.
        """
        last = "" if length is None else start + length - 1
        part = {"Range": f"bytes={start}-{last}"}
        extra = {"ChecksumMode": "ENABLED"} if start == 0 and length is None else part
        with self._errors(f"reading {name}"):
            answer = self._get(name, extra)
            if answer is None:
                return None
            with closing(answer["Body"]) as body:  # entered itself, it gives the stream below, unverified
                content: bytes = body.read()
        return content

    def download(self, name: str, path: Path) -> tuple[int, int] | None:
        """Write an object to a file, verified, and return its size and CRC32, or None. Memory stays flat."""
        size = checksum = 0
        with self._errors(f"reading {name}"):
            answer = self._get(name, {"ChecksumMode": "ENABLED"})
            if answer is None:
                return None
            with closing(answer["Body"]) as body, path.open("wb") as sink:
                while block := body.read(COPY_BYTES):
                    sink.write(block)
                    checksum = zlib.crc32(block, checksum)
                    size += len(block)
        return size, checksum

    def head(self, name: str) -> StoredObject | None:
        """Return what is known of an object without reading it, or None; None too where the bucket is missing."""
        answer = self._head(name)
        if answer is None:
            return None
        return StoredObject(name, int(answer["ContentLength"]), answer["LastModified"].timestamp())

    def _head(self, name: str, **extra: str) -> Mapping[str, Any] | None:
        client = self._open()
        with self._errors(f"looking for {name}"):
            try:
                answer: Mapping[str, Any] = client.head_object(Bucket=self.bucket, Key=self._key(name), **extra)
            except client.exceptions.ClientError as error:
                if _status(error) == _NOT_FOUND:
                    return None
                raise
        return answer

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose name begins so, in order of their names, a thousand a request."""
        skipped = len(self._key(""))
        with self._errors("listing"):
            pages = self._open().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            for page in pages:
                for found in page.get("Contents", ()):
                    yield StoredObject(found["Key"][skipped:], int(found["Size"]), found["LastModified"].timestamp())

    def list_folders(self) -> list[str]:
        """Return the first parts of all names that have several."""
        start = self._key("")
        with self._errors("listing"):
            pages = (
                self._open().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start, Delimiter="/")
            )
            return [found["Prefix"][len(start) : -1] for page in pages for found in page.get("CommonPrefixes", ())]

    def delete_objects(self, names: Iterable[str]) -> None:
        """Delete objects, a thousand a request. Safe to repeat. A bucket with versions hides them and keeps them."""
        self._delete({"Key": self._key(name)} for name in names)

    def _delete(self, keys: Iterable[Mapping[str, str]], *, else_denied: bool = False) -> None:
        with self._errors("deleting", else_denied=else_denied):
            for some in batched(keys, _MAX_KEYS_PER_DELETE):
                answer = self._open().delete_objects(Bucket=self.bucket, Delete={"Objects": some, "Quiet": True})
                refused = answer.get("Errors", ())
                if refused:
                    code = str(refused[0].get("Code"))
                    if else_denied and code in _DENIALS:
                        raise _DeniedError
                    raise self._refusal(code, 0, str(refused[0].get("Message")), "deleting")

    def delete_under(self, prefix: str) -> None:
        """Delete all objects whose name begins so. Safe to repeat."""
        self.delete_objects(found.name for found in self.list_objects(prefix))

    # versions and locks: a bucket without versions pays one request for the question

    def erase_under(self, prefix: str, *, first: Sequence[str] = ()) -> None:
        """Delete all objects whose name begins so, in all their versions, those named ``first`` before the others.

        Raises ``ObjectsLockedError``, nothing touched, where one is locked. Where the keys may not delete versions the
        objects are hidden, for a lifecycle rule to take away. Safe to repeat.
        """
        names = [found.name for found in self.list_objects(prefix)]
        if not names:
            return
        if self._has_versions(names):
            versions = self._versions(prefix)
            self._require_unlocked(prefix, versions or [_Version(name) for name in names])
            try:
                self._delete_in_turn(versions, first)
            except _DeniedError:
                # What was locked only now is told so; else these keys may hide, and others may delete.
                self._require_unlocked(prefix, self._versions(prefix))
            else:
                return
        self._delete_in_turn([_Version(name) for name in names], first)

    def _delete_in_turn(self, versions: Sequence[_Version], first: Sequence[str]) -> None:
        for now in (True, False):
            keys = [version.key(self) for version in versions if (version.name in first) is now]
            self._delete(keys, else_denied=any("VersionId" in key for key in keys))

    def require_unlocked(self, prefix: str) -> None:
        """Raise ``ObjectsLockedError`` if an object whose name begins so, or an older version of one, is locked.

        Raises ``TerminalError`` where the keys may not ask.
        """
        names = [found.name for found in self.list_objects(prefix)]
        if self._has_versions(names):
            self._require_unlocked(prefix, self._versions(prefix) or [_Version(name) for name in names])

    def is_hidden(self, name: str) -> bool:
        """Return whether an object was deleted and the bucket keeps it as an older version, as far as one may look."""
        versions = [found for found in self._versions(name) if found.name == name and not found.is_marker]
        return bool(versions) and self._head(name) is None

    def locks_under(self, prefix: str = "") -> list[ObjectLock]:
        """Return which versions of the objects whose name begins so are locked now, by the server's clock.

        One request for each object, several at once. Raises ``TerminalError`` where the keys may not ask.
        """
        names = [found.name for found in self.list_objects(prefix)]
        if not self._has_versions(names):
            return []
        return self._locks(self._versions(prefix) or [_Version(name) for name in names])

    def _has_versions(self, names: Iterable[str]) -> bool:
        """Return whether the bucket keeps versions: asked of an object, which needs no right to ask the bucket."""
        heads = (self._head(name) for name in names)
        return "VersionId" in next((head for head in heads if head is not None), ())

    def _versions(self, prefix: str) -> list[_Version]:
        """Return every version of the objects whose name begins so; nothing where the keys may not list them."""
        skipped = len(self._key(""))
        try:
            with self._errors("listing versions", else_denied=True):
                pages = self._open().get_paginator("list_object_versions")
                return [
                    _Version(one["Key"][skipped:], one["VersionId"], kind == "DeleteMarkers")
                    for page in pages.paginate(Bucket=self.bucket, Prefix=self._key(prefix))
                    for kind in ("Versions", "DeleteMarkers")
                    for one in page.get(kind, ())
                ]
        except _DeniedError:
            return []

    def _require_unlocked(self, prefix: str, versions: Sequence[_Version]) -> None:
        locks = self._locks(versions)
        if not locks:
            return
        held = next((lock for lock in locks if lock.until is None), None)
        until = None if held else max(lock.until for lock in locks if lock.until is not None)
        why = (
            f"{held.name} is under a legal hold, which a person must end"
            if held is not None
            else f"{len(locks):,} of them are locked until {until:%Y-%m-%d %H:%M} UTC"
        )
        raise ObjectsLockedError(
            f"the objects below {prefix.rstrip('/')} in bucket {self.bucket} can't be deleted: {why} (object lock). "
            "Nothing was touched",
            until,
        )

    def _locks(self, versions: Sequence[_Version]) -> list[ObjectLock]:
        kept = [version for version in versions if not version.is_marker]
        if not kept or not self._may_have_locks():
            return []
        self._require_right_to_ask(kept[0])
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            return [lock for lock in pool.map(self._lock, kept) if lock is not None]

    def _lock(self, version: _Version) -> ObjectLock | None:
        answer = self._head(version.name, **({} if version.id is None else {"VersionId": version.id}))
        if answer is None:
            return None
        if answer.get("ObjectLockLegalHoldStatus") == "ON":
            return ObjectLock(version.name, None)
        until = answer.get("ObjectLockRetainUntilDate")
        if until is None or until <= _date(answer):
            return None
        return ObjectLock(version.name, until.astimezone(UTC))

    def _may_have_locks(self) -> bool:
        """Return False where the bucket surely has no object lock."""
        client = self._open()
        with self._errors("asking for the bucket's object lock"):
            try:
                answer = client.get_object_lock_configuration(Bucket=self.bucket)
            except client.exceptions.ClientError as error:
                if _status(error) in (_BAD_REQUEST, _NOT_FOUND, _NOT_ALLOWED, _NOT_IMPLEMENTED):
                    return False
                if _status(error) == _FORBIDDEN:
                    return True
                raise
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def _require_right_to_ask(self, version: _Version) -> None:
        """Raise ``TerminalError`` where the keys may not ask for locks: a look at an object leaves them out then."""
        client = self._open()
        for ask in (client.get_object_retention, client.get_object_legal_hold):
            with self._errors(f"asking whether {version.name} is locked"):
                try:
                    ask(Bucket=self.bucket, **version.key(self))
                except client.exceptions.ClientError as error:
                    if _status(error) == _FORBIDDEN:
                        raise TerminalError(
                            f"bucket {self.bucket} at {self._where} may lock objects, and these keys may not ask "
                            "which: nothing was deleted. Allow them s3:GetBucketObjectLockConfiguration, "
                            "s3:GetObjectRetention and s3:GetObjectLegalHold"
                        ) from None
                    if _status(error) not in (_BAD_REQUEST, _NOT_FOUND):
                        raise

    # uploads that were begun and neither completed nor given up

    def unfinished_uploads(self, prefix: str = "") -> list[UnfinishedUpload]:
        """Return the uploads under way to names that begin so, by whomever; one more request for each.

        Nothing where the keys may not list them, or the server can't: a lifecycle rule takes them away then.
        """
        client, skipped = self._open(), len(self._key(""))
        try:
            with self._errors("listing uploads", else_denied=True):
                pages = client.get_paginator("list_multipart_uploads").paginate(
                    Bucket=self.bucket, Prefix=self._key(prefix)
                )
                begun = [one for page in pages for one in page.get("Uploads", ())]
        except _DeniedError:
            return []
        found = []
        for one in begun:
            written = one["Initiated"].timestamp()
            try:
                with self._errors("listing pieces", else_denied=True):
                    for page in client.get_paginator("list_parts").paginate(
                        Bucket=self.bucket, Key=one["Key"], UploadId=one["UploadId"]
                    ):
                        written = max([written, *(part["LastModified"].timestamp() for part in page.get("Parts", ()))])
            except _GoneError:
                continue  # just completed, or given up
            except _DeniedError:
                pass
            found.append(UnfinishedUpload(one["Key"][skipped:], written, one["UploadId"]))
        return found

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Take away what came of an upload; whoever is at it fails. Safe to repeat."""
        with suppress(_GoneError), self._errors(f"giving up {upload.name}"):
            self._open().abort_multipart_upload(Bucket=self.bucket, Key=self._key(upload.name), UploadId=upload.key)

    def now(self) -> datetime:
        """Return the time by the server's clock."""
        with self._errors("asking for the time"):
            return _date(self._open().list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1))

    def check(self) -> str:
        """Return where the bucket is, proved by a small object that is written, read and removed.

        Raises ``TerminalError`` with what to do, or ``TransientError`` where the server doesn't answer.
        """
        name = f"check-{uuid4().hex}"
        self.put(name, name.encode())
        try:
            if self.get(name) != name.encode() or [found.name for found in self.list_objects(name)] != [name]:
                raise TerminalError(f"bucket {self.bucket} at {self._where} does not give back what was written to it")
        finally:
            self.delete_objects([name])
        return f"bucket {self.bucket} at {self._where}"

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        with self._client_lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    @property
    def _where(self) -> str:
        return self.endpoint or "AWS"

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _open(self) -> Any:
        """Return the client; it is made once and shared by threads. No call leaves the process yet."""
        # Half a second of imports that a run on local folders doesn't need.
        import boto3
        from botocore.config import Config

        with self._client_lock:
            if self._client is None:
                path_style = self.endpoint is not None if self.path_style is None else self.path_style
                config = Config(
                    connect_timeout=self.connect_timeout_seconds,
                    read_timeout=self.read_timeout_seconds,
                    retries={"mode": "standard", "total_max_attempts": self.attempts},
                    max_pool_connections=_CONNECTIONS,
                    s3={"addressing_style": "path" if path_style else "virtual"},
                    # Servers that know no trailing checksums: ours goes with each object, in its header.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                with self._errors("connecting"):
                    try:
                        self._client = boto3.session.Session().client(
                            "s3",
                            endpoint_url=self.endpoint,
                            region_name=self.region or ("us-east-1" if self.endpoint else None),
                            aws_access_key_id=self.access_key and self.access_key.get_secret_value(),
                            aws_secret_access_key=self.secret_key and self.secret_key.get_secret_value(),
                            config=config,
                        )
                    except ValueError as error:
                        raise TerminalError(
                            f"{self._where} is no address of an S3 server ({type(error).__name__}): correct "
                            "CRYPTIQUE_S3_ENDPOINT, such as https://s3.example:9000"
                        ) from None
            return self._client

    def _put(self, name: str, content: bytes | Path, **condition: str) -> bool:
        client = self._open()
        with self._errors(f"writing {name}"):
            try:
                if isinstance(content, bytes):
                    answer = client.put_object(
                        Bucket=self.bucket,
                        Key=self._key(name),
                        Body=content,
                        ChecksumCRC32=_encoded(zlib.crc32(content)),
                        **self._manner,
                        **condition,
                    )
                else:
                    with content.open("rb") as body:
                        checksum = 0
                        while block := body.read(COPY_BYTES):
                            checksum = zlib.crc32(block, checksum)
                        body.seek(0)
                        answer = client.put_object(
                            Bucket=self.bucket,
                            Key=self._key(name),
                            Body=body,
                            ChecksumCRC32=_encoded(checksum),
                            **self._manner,
                        )
            except client.exceptions.ClientError as error:
                if condition and _status(error) == _PRECONDITION_FAILED:
                    return False
                raise
        self._require_encryption(name, answer)
        return True

    @property
    def _manner(self) -> dict[str, str]:
        """Return how the server is to keep what is written."""
        asked = {
            "StorageClass": self.storage_class,
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def _require_encryption(self, name: str, answer: Mapping[str, Any]) -> None:
        """Raise ``TerminalError`` unless what was just written is encrypted as asked for; some servers just don't."""
        if self.encryption is None:
            return
        told = answer.get("ServerSideEncryption")
        if told is None:
            told = (self._head(name) or {}).get("ServerSideEncryption")
        if told != self.encryption:
            with suppress(PipelineError):
                self.delete_objects([name])
            raise TerminalError(
                f"bucket {self.bucket} at {self._where} did not encrypt {name} with {self.encryption}, but with "
                f"{told or 'nothing'}; it was deleted. Correct CRYPTIQUE_BACKUP_ENCRYPTION, or what that server can do"
            )

    def _get(self, name: str, extra: Mapping[str, str]) -> Any:
        """Return the answer, or None if there is no such object; a range beyond the end has an empty body."""
        client = self._open()
        try:
            return client.get_object(Bucket=self.bucket, Key=self._key(name), **extra)
        except client.exceptions.NoSuchKey:
            return None
        except client.exceptions.ClientError as error:
            if _status(error) == _RANGE_NOT_SATISFIABLE:
                return {"Body": io.BytesIO()}
            if _status(error) == _PRECONDITION_FAILED:
                raise ObjectDamagedError(f"{name} was replaced while it was read") from None
            raise

    @contextmanager
    def _errors(self, doing: str, *, else_denied: bool = False) -> Iterator[None]:
        """Turn boto3's errors into ours; none of them says a key. With ``else_denied`` a denial is ``_DeniedError``."""
        import botocore.exceptions as boto

        try:
            yield
        except boto.ClientError as error:
            detail = error.response.get("Error", {})
            if else_denied and _status(error) in (_FORBIDDEN, _NOT_ALLOWED, _NOT_IMPLEMENTED):
                raise _DeniedError from None
            raise self._refusal(
                str(detail.get("Code")), _status(error), str(detail.get("Message", "")), doing
            ) from None
        except boto.FlexibleChecksumError:
            raise ObjectDamagedError(f"S3 gave other bytes than were stored while {doing}") from None
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError):
            raise TerminalError(
                f"there are no keys for bucket {self.bucket}: set {_KEYS}, or give this machine a role or a profile"
            ) from None
        except boto.SSLError as error:
            raise TerminalError(
                f"no safe connection to {self._where} while {doing} ({_cause(error)}): is CRYPTIQUE_S3_ENDPOINT http "
                "instead of https, and is the server's certificate known to this machine?"
            ) from None
        except boto.EndpointConnectionError as error:
            if _is_unknown_host(error):
                raise TerminalError(
                    f"there is no host of the name in {self._where}: correct CRYPTIQUE_S3_ENDPOINT or "
                    "CRYPTIQUE_S3_REGION"
                ) from None
            raise self._silence(doing, error) from None
        except (boto.HTTPClientError, boto.IncompleteReadError, boto.ConnectionError) as error:
            raise self._silence(doing, error) from None
        except RecursionError:
            # boto3 asks for the bucket's region, is sent on again, asks again.
            raise TerminalError(
                f"{self._where} sends every request elsewhere: is CRYPTIQUE_S3_ENDPOINT http instead of https?"
            ) from None
        except boto.ParamValidationError:
            raise TerminalError(f"{self.bucket!r} is no name of a bucket: correct it") from None
        except boto.BotoCoreError as error:
            # Among them what can't be parsed: a web page where S3 should be.
            raise TerminalError(
                f"{self._where} does not speak S3 while {doing} ({type(error).__name__}): correct CRYPTIQUE_S3_ENDPOINT"
            ) from None

    def _silence(self, doing: str, error: Exception) -> TransientError:
        return TransientError(
            f"{self._where} does not answer while {doing} ({_cause(error)}); if it stays so, look at "
            "CRYPTIQUE_S3_ENDPOINT"
        )

    def _refusal(self, code: str, status: int, message: str, doing: str) -> PipelineError:
        """Return what a refusal means to whom. The server's own words are passed on only where no key is in play."""
        place = f"bucket {self.bucket} at {self._where}"
        if code in _CLOCK_CODES:
            return TerminalError(f"{place} refuses requests while {doing}: this machine's clock is wrong, set it")
        if code in _REGION_CODES:
            return TerminalError(f"{place} lies in another region ({code}): correct CRYPTIQUE_S3_REGION")
        if code == "InvalidObjectState":
            return TerminalError(f"{place} holds it in an archive while {doing}: restore it from the archive first")
        if code in _ENCRYPTION_CODES or code.startswith("KMS"):
            return TerminalError(
                f"{place} does not encrypt with {self.encryption} while {doing} ({code}): correct "
                "CRYPTIQUE_BACKUP_ENCRYPTION and CRYPTIQUE_BACKUP_KMS_KEY"
            )
        if code == "InvalidStorageClass":
            return TerminalError(
                f"{place} has no storage class {self.storage_class}: correct CRYPTIQUE_BACKUP_STORAGE_CLASS"
            )
        if status in (_UNAUTHORIZED, _FORBIDDEN) or code == "AccessDenied":
            key = ", and use the key that encrypts" if self.encryption not in (None, "AES256") else ""
            return TerminalError(
                f"{place} refuses {doing} ({code}): check {_KEYS}, and that they may list, read, write and delete "
                f"there{key}"
            )
        if code == "NoSuchBucket":
            return TerminalError(f"there is no {place}: make it, or correct the bucket's name or CRYPTIQUE_S3_ENDPOINT")
        if code in _FULL_CODES or status == _INSUFFICIENT_STORAGE:
            return TerminalError(f"{place} has no space left while {doing}: free some and run it again")
        fails = status == _TOO_MANY_REQUESTS or (status in _SERVER_ERRORS and status != _NOT_IMPLEMENTED)
        if code == "NoSuchUpload":
            return _GoneError(f"{place} knows no such upload while {doing}: it was given up")
        if code in _PASSING_CODES or fails:
            # There are servers to which a key service that isn't set up is a failure of their own.
            hint = f"; if it stays so, can it encrypt with {self.encryption}?" if self.encryption else ""
            return TransientError(f"{place} failed while {doing}: {code}{hint}")
        return TerminalError(f"{place} refused {doing}: {code} {message[:200]}".rstrip())


class _Upload:
    """An object on its way: small ones in one request, others piece by piece, visible when all is there."""

    def __init__(self, bucket: S3Bucket, name: str) -> None:
        self._bucket = bucket
        self._name = name
        self._buffer = bytearray()
        self._id: str | None = None
        self._pieces: list[dict[str, Any]] = []
        self._checksums = self._etags = b""
        self._bytes = 0

    def write(self, block: bytes, /) -> int:
        self._buffer += block
        while len(self._buffer) >= (size := _piece_bytes(len(self._pieces))):
            piece = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
            self._send(piece)
        return len(block)

    def complete(self) -> None:
        if self._id is None:
            self._bucket.put(self._name, bytes(self._buffer))
            return
        if self._buffer:
            self._send(bytes(self._buffer))
            self._buffer.clear()
        answer: Mapping[str, Any] | None
        try:
            with self._bucket._errors(f"writing {self._name}"):
                answer = self._bucket._open().complete_multipart_upload(
                    **self._where, UploadId=self._id, MultipartUpload={"Parts": self._pieces}
                )
        except TransientError:
            # It may be done, and only the answer lost: then a second request finds no such upload.
            answer = self._bucket._head(self._name, ChecksumMode="ENABLED")
            if answer is None or not self._is_proved_by(answer):
                raise
        told = str(answer.get("ChecksumCRC32", ""))
        if "-" in told and told != self._checksum:
            with suppress(PipelineError):
                self._bucket.delete_objects([self._name])
            raise TransientError(f"{self._bucket._where} put {self._name} together from other pieces than were sent")
        self._bucket._require_encryption(self._name, answer)

    def abort(self) -> None:
        """Take away what went up; what can't be now goes with the sweep of unfinished uploads."""
        if self._id is not None:
            with suppress(PipelineError):
                self._bucket.abort_upload(UnfinishedUpload(self._name, 0.0, self._id))

    @property
    def _where(self) -> dict[str, str]:
        return {"Bucket": self._bucket.bucket, "Key": self._bucket._key(self._name)}

    @property
    def _checksum(self) -> str:
        """Return the CRC32 of the pieces' CRC32s, as S3 writes it."""
        return f"{_encoded(zlib.crc32(self._checksums))}-{len(self._pieces)}"

    def _is_proved_by(self, answer: Mapping[str, Any]) -> bool:
        """Return whether an object is, by what a look at it says, the one that was sent."""
        if int(answer["ContentLength"]) != self._bytes:
            return False
        if "ChecksumCRC32" in answer:
            return bool(answer["ChecksumCRC32"] == self._checksum)
        of_etags = f"{md5(self._etags, usedforsecurity=False).hexdigest()}-{len(self._pieces)}"
        return str(answer["ETag"]).strip('"') == of_etags

    def _send(self, piece: bytes) -> None:
        client = self._bucket._open()
        with self._bucket._errors(f"writing {self._name}"):
            if self._id is None:
                self._id = client.create_multipart_upload(
                    **self._where, **self._bucket._manner, ChecksumAlgorithm="CRC32"
                )["UploadId"]
            checksum = zlib.crc32(piece)
            piece_of = {"PartNumber": len(self._pieces) + 1, "ChecksumCRC32": _encoded(checksum)}
            etag = client.upload_part(**self._where, UploadId=self._id, Body=piece, **piece_of)["ETag"]
            self._pieces.append(piece_of | {"ETag": etag})
            self._checksums += checksum.to_bytes(4, "big")
            with suppress(ValueError):  # not every server's is an MD5
                self._etags += bytes.fromhex(etag.strip('"'))
            self._bytes += len(piece)


def _piece_bytes(number: int) -> int:
    """Return how large a piece is, counted from 0: 10,000 of them hold any object, and small ones little memory."""
    return _PIECE_BYTES << min(number // _PIECES_OF_A_SIZE, _DOUBLINGS)


def _date(answer: Mapping[str, Any]) -> datetime:
    """Return when the server gave an answer, by its own clock."""
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if told is None:
        raise TerminalError("the S3 server does not say what time it is: is there a proxy that takes it away?")
    return parsedate_to_datetime(told)


def _encoded(checksum: int) -> str:
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield what boto3 wrapped, outermost first."""
    inner = getattr(error, "kwargs", {}).get("error") or error.__cause__
    while isinstance(inner, BaseException):
        yield inner
        inner = inner.__cause__


def _cause(error: BaseException) -> str:
    """Return what went wrong in a word or two: boto3's own words hold the whole address, with query and key id."""
    for inner in _chain(error):
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
    return type(error).__name__


def _is_unknown_host(error: BaseException) -> bool:
    return any(isinstance(inner, socket.gaierror) and inner.errno == socket.EAI_NONAME for inner in _chain(error))
