"""Scratch: a folder of this machine that belongs to one process and doesn't outlive it by much."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import threading
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from tasks.domain.errors import TerminalError

#: Folder, lock and owner by the root they are under. A forked child is another process and gets its own.
_made: dict[tuple[Path, int], Path] = {}
_locks: list[int] = []
_making = threading.Lock()


def process_folder(root: Path) -> Path:
    """Return this process's own folder under ``root``, made at the first call and removed at the process's end.

    What killed processes of this machine left is removed by the next one that makes its own. Raises
    ``TerminalError`` when nothing can be written there.
    """
    with _making:
        owner = (root, os.getpid())
        folder = _made.get(owner)
        if folder is None or not folder.is_dir():
            try:
                root.mkdir(parents=True, exist_ok=True)
                sweep(root)
                folder = _make(root)
            except OSError as error:
                raise TerminalError(
                    f"can't write to {root}: {error.strerror or error}. Each machine with a worker needs this folder "
                    "for its own files: free space there, or set CRYPTIQUE_HOME to a folder that all can make, and "
                    "register again"
                ) from error
            _made[owner] = folder
        return folder


def sweep(root: Path) -> int:
    """Remove the folders of processes of this machine that are gone; return how many. Safe beside those at work."""
    removed = 0
    for lock in root.glob("*.lock"):
        ours = lock.stem.rsplit("-", 2)[0] == _host()
        descriptor = _hold(lock, os.O_RDWR) if ours else None
        if descriptor is not None:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            removed += 1
    return removed


def _make(root: Path) -> Path:
    """Make the folder, with a lock beside it that the system frees when the process dies."""
    while True:
        lock = root / f"{_host()}-{os.getpid()}-{uuid4().hex[:8]}.lock"
        descriptor = _hold(lock, os.O_RDWR | os.O_CREAT)
        # Whoever sweeps may have taken it between its making and its locking.
        if descriptor is not None and lock.exists():
            break
        if descriptor is not None:
            os.close(descriptor)
    folder = lock.with_suffix("")
    folder.mkdir(mode=0o700)
    _locks.append(descriptor)
    atexit.register(_remove, folder, lock, os.getpid())
    return folder


def _hold(lock: Path, flags: int) -> int | None:
    """Return the descriptor of a lock that is now ours, or None if another process holds it or it is gone."""
    import fcntl  # not on Windows

    try:
        descriptor = os.open(lock, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(folder: Path, lock: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            lock.unlink(missing_ok=True)


def _host() -> str:
    return socket.gethostname().partition(".")[0]
