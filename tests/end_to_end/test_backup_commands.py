"""The commands about backups as people and programs use them: what they print, what they refuse, how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest
from pymongo import MongoClient
from typer.testing import CliRunner

from blocks.backups import BackupStore
from deployments.cli import app
from deployments.sample import load_sample
from tests.end_to_end.pipeline import Pipeline, open_pipeline
from tests.end_to_end.test_cli import DONE, FAILED, WRONG_INPUT

ROWS = 120
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def key() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the backups lie."""
    return tmp_path_factory.mktemp("backups") / "all"


@pytest.fixture(scope="module")
def command(
    folder: Path,
    mongo_uri: str,
    prefect_api: str,
    mongo_client: MongoClient[dict[str, Any]],
    key: pyrage.x25519.Identity,
) -> Iterator[Command]:
    """Give commands, in this process, about a store that holds vectors and an empty folder of encrypted backups."""
    home = folder.with_name("home")
    with open_pipeline(mongo_uri, mongo_client, home) as pipeline, pytest.MonkeyPatch.context() as patch:
        load_sample(pipeline.source, rows=ROWS)
        pipeline.migrate()
        patch.chdir(folder.parent)
        settings = {
            "CRYPTIQUE_HOME": str(home),
            "CRYPTIQUE_SOURCE_URI": mongo_uri,
            "CRYPTIQUE_SOURCE_DATABASE": pipeline.source.name,
            "CRYPTIQUE_EMBEDDER": "local",
            "CRYPTIQUE_BACKUPS": str(folder),
            "CRYPTIQUE_BACKUP_RECIPIENTS": str(key.to_public()),
            "CRYPTIQUE_BACKUP_IDENTITIES": str(key),
            "PREFECT_API_URL": prefect_api,
        }
        yield lambda *arguments: CliRunner().invoke(app, arguments, env=settings)
        Pipeline._registered = None


@pytest.fixture(scope="module")
def report(command: Command) -> dict[str, Any]:
    """The report of a first backup."""
    done = command("backup", "--kind", "daily", "--json")
    assert done.exit_code == DONE, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_backup_is_listed_with_its_proof_and_how_long_it_is_kept(
    command: Command, report: dict[str, Any], key: pyrage.x25519.Identity
) -> None:
    listed = json.loads(command("backups", "--json").stdout)
    (one,) = listed["backups"]
    assert (one["id"], one["state"], one["encrypted"]) == (report["backup"], "good", True)
    assert one["classes"] == ["daily", "monthly"]
    assert one["documents"] == report["documents"] > 0
    assert one["restored"] == report["verification"]["restored"] > 0
    assert (one["kept"], one["keptWhy"]) == (True, "the newest daily one; the newest monthly one")
    shown = command("backups")
    row = next(line for line in shown.stdout.splitlines() if line.startswith(report["backup"]))
    assert "daily, monthly" in row
    assert "good" in row
    assert f"{report['documents']:,}" in row
    assert str(key) not in shown.stdout + shown.stderr


def test_it_is_read_back_again_and_a_damaged_one_fails_and_counts_for_nothing(
    command: Command, report: dict[str, Any], folder: Path
) -> None:
    where = folder / report["backup"]
    part = next(path for path in sorted(where.rglob("vectordocuments/*.age")))
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        damaged = command("verify", report["backup"])
        assert damaged.exit_code == FAILED
        assert part.name in damaged.stderr
        assert "No good backup is left" in damaged.stderr
        (one,) = BackupStore(folder=folder).list_backups()
        assert one.state == "damaged"
    finally:
        part.write_bytes(content)
    done = command("verify")
    assert done.exit_code == DONE, done.stderr
    assert done.stdout.startswith(f"{report['backup']}: good; {report['documents']:,} documents")


def test_the_only_good_one_is_removed_by_an_explicit_word_alone(
    command: Command, report: dict[str, Any], folder: Path
) -> None:
    told = command("backups", "rotate", "--dry-run")
    assert told.stdout.splitlines()[-1] == "1 kept, 0 removed"
    refused = command("backups", "remove", report["backup"], "--yes")
    assert refused.exit_code == WRONG_INPUT
    assert "--even-the-last" in refused.stderr
    asked = command("backups", "remove", report["backup"], "--even-the-last")
    assert asked.exit_code == WRONG_INPUT
    assert "nothing was removed" in asked.stderr
    assert len(BackupStore(folder=folder).list_backups()) == 1


def test_a_new_key_is_two_settings_that_work_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["backups", "new-key"])
    assert made.exit_code == DONE
    assert "elsewhere" in made.stderr
    settings = dict(line.split("=", 1) for line in made.stdout.splitlines())
    assert set(settings) == {"CRYPTIQUE_BACKUP_RECIPIENTS", "CRYPTIQUE_BACKUP_IDENTITIES"}
    home = tmp_path / "work"
    checked = CliRunner().invoke(app, ["config", "check", "--json"], env=settings | {"CRYPTIQUE_HOME": str(home)})
    (found,) = [one for one in json.loads(checked.stdout)["findings"] if one["what"] == "backups"]
    assert found["says"] == f"folder {home / 'backups'} of this machine alone; encrypted with age"
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["backup", "--kind", "hourly"], "hourly"),
        (["restore", "--swap", "--into", "other"], "give one of them"),
        (["restore", "--swap", "--source-collections"], "never in place"),
        (["restore", "--overwrite", "live"], "--overwrite goes with --swap"),
        (["restore", "--undo", "--drop-kept"], "give one of them"),
        (["restore", "--undo", "--collection", "vectordocuments"], "only --backup goes with them"),
        (["restore", "--team", "abc"], "24 hexadecimal digits"),
        (["backups", "remove", "yesterday", "--yes"], "there is no backup yesterday"),
    ],
)
def test_wrong_words_end_with_two_before_any_server_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, arguments, env={"CRYPTIQUE_HOME": str(tmp_path / "work")})
    assert refused.exit_code == WRONG_INPUT
    assert says in " ".join(refused.stderr.split())
    assert not (tmp_path / "work" / "mongod").exists()
