"""The lock files: each package at one version with its digests, and none that Prefect is known to fail with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-server.lock", "requirements-uv.lock")


def packages(name: str) -> list[tuple[str, str]]:
    """Return each entry of a lock file: its first line, and the digests below it."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [(line.split(" --hash")[0].strip(), line) for line in text.splitlines() if line and line[0] not in "# "]


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_is_one_version_with_a_sha256_and_comes_from_no_named_place(name: str) -> None:
    found = packages(name)
    assert found
    for what, line in found:
        assert re.fullmatch(r"[A-Za-z0-9_.\[\],-]+==[A-Za-z0-9.+!]+( *;.+)?", what), what
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), what
        assert "://" not in line, what


@pytest.mark.parametrize("name", LOCKS[:2])
def test_no_locked_version_is_one_that_the_prefect_server_fails_with(name: str) -> None:
    versions = dict(re.split(r"==", what.split(";")[0].strip(), maxsplit=1) for what, _ in packages(name))
    assert tuple(map(int, versions["fastapi"].split(".")[:2])) < (0, 150)
    assert tuple(map(int, versions["sqlalchemy"].split(".")[:2])) < (2, 1)
