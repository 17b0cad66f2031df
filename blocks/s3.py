"""S3, or what speaks its protocol: one bucket, the smallest verbs, checksums verified, errors translated once."""

from __future__ import annotations

import base64
import io
import random
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from blocks.object_store import COPY_BYTES, ObjectDamagedError, Sink, StoredObject
from tasks.domain.batches import batched
from tasks.domain.errors import PipelineError, TerminalError, TransientError

_MAX_KEYS_PER_DELETE = 1_000
#: S3 takes pieces from 5 MiB, and 10,000 of them.
_PIECE_BYTES = 8 << 20
#: Threads share the client; each request under way holds a connection.
_CONNECTIONS = 32
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _PRECONDITION_FAILED, _RANGE_NOT_SATISFIABLE = 401, 403, 404, 412, 416
_TOO_MANY_REQUESTS, _SERVER_ERRORS = 429, range(500, 600)
_NOT_IMPLEMENTED, _INSUFFICIENT_STORAGE = 501, 507
_CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_REGION_CODES = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"}
)
_FULL_CODES = frozenset({"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"})
#: Damaged on its way, too slow, too much at once, or at odds with another write: the same request may work.
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "XAmzContentChecksumMismatch",
        "IncompleteBody",
        "RequestTimeout",
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
_KEYS = "CRYPTIQUE_S3_ACCESS_KEY and CRYPTIQUE_S3_SECRET_KEY"
#: How the server encrypts: with its own key, with one of the key management service, or twice with that.
Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]
#: Such objects must be asked for hours before they can be read, and what was written is read back.
_ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})


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

        Goes up in pieces of 8 MiB, of which one is in memory; the server checks the CRC32 of each.
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
        at, etag, cut = 0, str(answer["ETag"]), 0
        while True:
            try:
                with self._errors(f"reading {name}"), closing(answer["Body"]) as body:
                    while block := body.read(COPY_BYTES):
                        at += len(block)
                        cut = 0
                        yield block
                    return
            except TransientError:
                cut += 1
                if cut >= self.attempts:
                    raise
            time.sleep(min(2.0**cut / 4, 10.0) * random.uniform(0.5, 1.0))
            with self._errors(f"reading {name}"):
                answer = self._get(name, {"Range": f"bytes={at}-", "IfMatch": etag})
            if answer is None:
                raise ObjectDamagedError(f"{name} was deleted while it was read")

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
        """Delete objects, a thousand a request. Safe to repeat."""
        with self._errors("deleting"):
            for some in batched(names, _MAX_KEYS_PER_DELETE):
                answer = self._open().delete_objects(
                    Bucket=self.bucket,
                    Delete={"Objects": [{"Key": self._key(name)} for name in some], "Quiet": True},
                )
                refused = answer.get("Errors", ())
                if refused:
                    raise self._refusal(str(refused[0].get("Code")), 0, str(refused[0].get("Message")), "deleting")

    def delete_under(self, prefix: str) -> None:
        """Delete all objects whose name begins so. Safe to repeat."""
        self.delete_objects(found.name for found in self.list_objects(prefix))

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
            raise

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn boto3's errors into ours; none of them says a key."""
        import botocore.exceptions as boto

        try:
            yield
        except boto.ClientError as error:
            detail = error.response.get("Error", {})
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
        if status in (_UNAUTHORIZED, _FORBIDDEN) or code == "AccessDenied":
            return TerminalError(
                f"{place} refuses {doing} ({code}): check {_KEYS}, and that they may list, read, write and delete there"
            )
        if code == "NoSuchBucket":
            return TerminalError(f"there is no {place}: make it, or correct the bucket's name or CRYPTIQUE_S3_ENDPOINT")
        if code in _FULL_CODES or status == _INSUFFICIENT_STORAGE:
            return TerminalError(f"{place} has no space left while {doing}: free some and run it again")
        fails = status == _TOO_MANY_REQUESTS or (status in _SERVER_ERRORS and status != _NOT_IMPLEMENTED)
        if code in _PASSING_CODES or fails:
            return TransientError(f"{place} failed while {doing}: {code}")
        return TerminalError(f"{place} refused {doing}: {code} {message[:200]}".rstrip())


class _Upload:
    """An object on its way: small ones in one request, others piece by piece, visible when all is there."""

    def __init__(self, bucket: S3Bucket, name: str) -> None:
        self._bucket = bucket
        self._name = name
        self._buffer = bytearray()
        self._id: str | None = None
        self._pieces: list[dict[str, Any]] = []

    def write(self, block: bytes, /) -> int:
        self._buffer += block
        while len(self._buffer) >= _PIECE_BYTES:
            piece = bytes(memoryview(self._buffer)[:_PIECE_BYTES])
            del self._buffer[:_PIECE_BYTES]
            self._send(piece)
        return len(block)

    def complete(self) -> None:
        if self._id is None:
            self._bucket.put(self._name, bytes(self._buffer))
            return
        if self._buffer:
            self._send(bytes(self._buffer))
        with self._bucket._errors(f"writing {self._name}"):
            self._bucket._open().complete_multipart_upload(
                **self._where, UploadId=self._id, MultipartUpload={"Parts": self._pieces}
            )
        self._bucket._require_encryption(self._name, {})

    def abort(self) -> None:
        """Take away what went up; what can't be now goes with the sweep of unfinished uploads."""
        if self._id is not None:
            with suppress(PipelineError), self._bucket._errors(f"giving up {self._name}"):
                self._bucket._open().abort_multipart_upload(**self._where, UploadId=self._id)

    @property
    def _where(self) -> dict[str, str]:
        return {"Bucket": self._bucket.bucket, "Key": self._bucket._key(self._name)}

    def _send(self, piece: bytes) -> None:
        client = self._bucket._open()
        with self._bucket._errors(f"writing {self._name}"):
            if self._id is None:
                self._id = client.create_multipart_upload(
                    **self._where, **self._bucket._manner, ChecksumAlgorithm="CRC32"
                )["UploadId"]
            number, checksum = len(self._pieces) + 1, _encoded(zlib.crc32(piece))
            answer = client.upload_part(
                **self._where, UploadId=self._id, PartNumber=number, Body=piece, ChecksumCRC32=checksum
            )
            self._pieces.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum})


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
