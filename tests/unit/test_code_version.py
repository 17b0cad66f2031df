"""The code version: the release with a revision, as real git repositories have them, or with a digest of the files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from blocks.code_version import digest_files, find_revision, read_code_version

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Git in a folder of the test's own, without anybody's configuration."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }

    def run(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    run("init", "--quiet")
    return run


@pytest.fixture
def checkout(git: Git, tmp_path: Path) -> Path:
    """A checkout with some code and a README."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "chunk.py").write_text("SIZE = 1\n")
    (tmp_path / "README.md").write_text("one\n")
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_clean_checkout_has_its_revision(checkout: Path, git: Git) -> None:
    assert find_revision(checkout) == git("rev-parse", "HEAD")[:12]


def test_changed_and_new_code_marks_the_revision_and_nothing_else_does(checkout: Path, git: Git) -> None:
    clean = git("rev-parse", "HEAD")[:12]
    (checkout / "README.md").write_text("two\n")
    (checkout / "tasks" / "chunk.pyc").write_text("compiled")
    (checkout / "notes.txt").write_text("new")
    assert find_revision(checkout) == clean
    (checkout / "tasks" / "explain.py").write_text("")
    assert find_revision(checkout) == f"{clean}.dirty"
    (checkout / "tasks" / "explain.py").unlink()
    (checkout / "tasks" / "chunk.py").write_text("SIZE = 2\n")
    assert find_revision(checkout) == f"{clean}.dirty"
    git("commit", "--quiet", "-am", "second")
    assert find_revision(checkout) == git("rev-parse", "HEAD")[:12] != clean


def test_a_folder_within_a_checkout_is_none_of_its_own(checkout: Path) -> None:
    assert find_revision(checkout / "tasks") is None


def test_git_may_have_nothing_to_tell(git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_revision(tmp_path) is None  # nothing was committed
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_revision(tmp_path) is None  # no git


def test_the_same_files_elsewhere_have_the_same_digest_and_other_code_has_another(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = tmp_path_factory.mktemp("site-packages")
    (installed / "tasks" / "__pycache__").mkdir(parents=True)
    (installed / "tasks" / "__pycache__" / "chunk.cpython-311.pyc").write_bytes(b"compiled")
    (installed / "other_package").mkdir()
    (installed / "other_package" / "chunk.py").write_text("SIZE = 3\n")
    (installed / "tasks" / "chunk.py").write_text("SIZE = 1\n")
    digest = digest_files(installed)
    assert digest == digest_files(checkout)
    (installed / "tasks" / "chunk.py").rename(installed / "tasks" / "split.py")
    renamed = digest_files(installed)
    (installed / "tasks" / "split.py").write_text("SIZE = 2\n")
    assert len({digest, renamed, digest_files(installed)}) == 3


def test_another_checkout_that_the_environment_names_is_not_asked(
    checkout: Path, git: Git, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("elsewhere")))
    assert find_revision(checkout) == git("rev-parse", "HEAD")[:12]


def test_looking_changes_nothing_in_the_checkout(checkout: Path) -> None:
    # Older than its entry in the index says, but the same: an ordinary `git status` would write the index anew.
    os.utime(checkout / "tasks" / "chunk.py", (1_700_000_000, 1_700_000_000))
    index = checkout / ".git" / "index"
    before = index.read_bytes(), index.stat().st_mtime_ns
    find_revision(checkout)
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before


def test_this_process_has_one_version_that_begins_with_the_release() -> None:
    assert read_code_version().startswith(f"{version('cryptique-rag')}+")
    assert read_code_version() is read_code_version()
