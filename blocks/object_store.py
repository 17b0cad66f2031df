"""Where machines share files: whole objects under names, in a bucket or in a folder that all of them mount."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tasks.domain.errors import PipelineError, TerminalError

#: How much of a file is in memory while it is copied.
COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing shows it; ``modified_s`` is in seconds since 1970, by the store's own clock."""

    name: str
    size_bytes: int
    modified_s: float


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """An object on its way, or what a killed process left of one: not listed, but it takes space.

    ``written_s`` is when the last of it came, in seconds since 1970 by the store's own clock. ``key`` is the store's.
    """

    name: str
    written_s: float
    key: str


class ObjectDamagedError(PipelineError):
    """The object that came is not the one that was stored."""


class ObjectsLockedError(TerminalError):
    """Objects are locked against deletion, and nothing was touched.

    ``until`` is when the last of the locks ends by itself; None: a person must end one, a legal hold.
    """

    def __init__(self, message: str, until: datetime | None = None) -> None:
        super().__init__(message)
        self.until = until

    def __reduce__(self) -> tuple[type[ObjectsLockedError], tuple[str, datetime | None]]:
        return (type(self), (str(self), self.until))


class Sink(Protocol):
    """What takes bytes as they come."""

    def write(self, block: bytes, /) -> object:
        """Take some bytes."""


class ObjectStore(Protocol):
    """What S3 and a mounted folder have in common. Names are relative, with ``/`` between their parts.

    Objects appear whole or not at all. Failures are ``TransientError`` or ``TerminalError``; what isn't there is None.
    """

    def put(self, name: str, content: bytes | Path) -> None:
        """Store an object, or the content of a file; one of the same name is replaced."""

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store an object unless there is one of this name; return whether this call stored it."""

    def writing(self, name: str) -> AbstractContextManager[Sink]:
        """Give a sink whose bytes are the object when the block ends; when it fails, there is none."""

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Yield an object piece by piece, or return None if there is none. A cut connection is taken up again."""

    def get(self, name: str) -> bytes | None:
        """Return an object whole, or None. Raises ``ObjectDamagedError`` where the store can tell."""

    def download(self, name: str, path: Path) -> tuple[int, int] | None:
        """Write an object to a file and return its size and CRC32 as they came, or None. Memory stays flat."""

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose name begins so."""

    def list_folders(self) -> list[str]:
        """Return the first parts of all names that have several."""

    def delete_under(self, prefix: str) -> None:
        """Delete all objects whose name begins so. Safe to repeat."""

    def erase_under(self, prefix: str, *, first: Sequence[str] = ()) -> None:
        """Delete all objects whose name begins so, in all their versions, those named ``first`` before the others.

        Raises ``ObjectsLockedError``, nothing touched, where one is locked. Safe to repeat.
        """

    def require_unlocked(self, prefix: str) -> None:
        """Raise ``ObjectsLockedError`` if an object whose name begins so is locked against deletion."""

    def is_hidden(self, name: str) -> bool:
        """Return whether an object was deleted and the store keeps it all the same, as an older version."""

    def unfinished_uploads(self, prefix: str = "") -> list[UnfinishedUpload]:
        """Return what is on its way to names that begin so, by whomever."""

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Take away what came of an upload; whoever is at it fails. Safe to repeat."""

    def now(self) -> datetime:
        """Return the time by the store's own clock."""
