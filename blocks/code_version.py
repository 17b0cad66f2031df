"""The code version: which release runs, and which code of it; written into every row that a run stores."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = "cryptique-rag"
_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("flows", "tasks", "blocks", "deployments")
#: What decides what is written. A changed README makes no other rows.
_CODE = (*_PACKAGES, "pyproject.toml", "requirements.lock")
_DIGITS = 12
_PATIENCE_S = 10


@cache
def read_code_version() -> str:
    """Return the release and what tells its code from that of any other build. Never raises.

    In a git checkout that is the revision: ``0.1.0+5ce6359a1b2c``, with ``.dirty`` behind it where the code was changed
    since. In a wheel, a container or wherever git can't tell it is the digest of the code's files:
    ``0.1.0+files.3f9a1c2b4d5e``. Asked once per process: what was imported does not change with the files.
    """
    try:
        release = version(_PACKAGE)
    except PackageNotFoundError:
        release = "unknown"
    try:
        return f"{release}+{find_revision(_ROOT) or f'files.{digest_files(_ROOT)}'}"
    except OSError:  # files that this user may not read, or that go while they are read
        return f"{release}+unknown"


def find_revision(folder: Path) -> str | None:
    """Return the revision that is checked out in this folder, or None where it is no checkout's top or git can't tell.

    Files that git does not know count as changes of the code, and files that it ignores don't.
    """
    if not (folder / ".git").exists():
        return None  # installed; a checkout around the environment says nothing of it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # It only looks: it writes no index, and starts no program that the checkout's configuration names.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch"]
    try:
        answer = subprocess.run(
            [*command, "--untracked-files=all", "--", *_CODE],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    revision, changed = "(", False
    for line in answer.stdout.splitlines():
        if line.startswith("# branch.oid "):
            revision = line.removeprefix("# branch.oid ")[:_DIGITS]
        elif not line.startswith("#"):
            changed = True
    if revision.startswith("("):  # "(initial)": nothing was committed yet
        return None
    return f"{revision}.dirty" if changed else revision


def digest_files(folder: Path) -> str:
    """Return what stands for the Python files of this project's packages in a folder: the same code, the same digits.

    Wherever they lie, and whoever wrote them when.
    """
    whole = blake2b(digest_size=_DIGITS // 2)
    for path in sorted(_python_files(folder)):
        with_name = blake2b(path.read_bytes(), key=blake2b(path.relative_to(folder).as_posix().encode()).digest())
        whole.update(with_name.digest())
    return whole.hexdigest()


def _python_files(folder: Path) -> Iterable[Path]:
    for package in _PACKAGES:
        yield from filter(Path.is_file, (folder / package).rglob("*.py"))
