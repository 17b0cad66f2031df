"""The admin token that is made where none is set: random, once, readable by its owner alone."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_TOKEN_BYTES = 24


def admin_token_path(home: Path) -> Path:
    """Return where the token lies that ``up`` made."""
    return home / "http" / "admin_token"


def find_or_make_admin_token(home: Path) -> str:
    """Return the token of this home, made at the first call; of several processes one makes it."""
    path = admin_token_path(home)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    if not path.exists():
        try:
            with open(
                partial, "x", opener=lambda name, flags: os.open(name, flags, stat.S_IRUSR | stat.S_IWUSR)
            ) as file:
                file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
            with suppress(FileExistsError):
                os.link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path.read_text("utf-8").strip()
