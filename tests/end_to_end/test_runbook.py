"""The runbook: each of its commands does what it says, in its order, in a store that really lost something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from tests.end_to_end.pipeline import Pipeline, SourceData, open_pipeline

RUNBOOK = Path(__file__).resolve().parents[2] / "deployments" / "runbook.md"
ROWS = 60
FAILED = 1
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


def sections() -> dict[str, list[str]]:
    """Return the commands of each section that has any, in order."""
    found: dict[str, list[str]] = {}
    for section in RUNBOOK.read_text(encoding="utf-8").split("\n## ")[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        if blocks:
            found[section.partition("\n")[0]] = "".join(blocks).splitlines()
    return found


class Place:
    """A store with vectors, a folder for its backups, and a shell in which commands are given."""

    def __init__(self, pipeline: Pipeline, prefect_api: str, backups: Path) -> None:
        self.pipeline = pipeline
        self.store = pipeline.store
        self.backups = backups
        self.words = {"DATABASE": pipeline.store.name}
        self._folder = pipeline.home.parent
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CRYPTIQUE_", "PREFECT_"))},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREFECT_API_URL": prefect_api,
            "CRYPTIQUE_HOME": str(pipeline.home),
            "CRYPTIQUE_SOURCE_URI": pipeline.uri,
            "CRYPTIQUE_SOURCE_DATABASE": pipeline.source.name,
            "CRYPTIQUE_VECTORS_DATABASE": pipeline.store.name,
            "CRYPTIQUE_EMBEDDER": "local",
            "CRYPTIQUE_BACKUPS": str(backups),
        }

    def give(self, command: str) -> subprocess.CompletedProcess[str]:
        """Give a command as a person does."""
        return subprocess.run(
            ["bash", "-euc", command],
            cwd=self._folder,
            env=self._environment | self.words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def do(self, command: str) -> str:
        """Give a command that must succeed; return what it prints."""
        done = self.give(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def do_all(self, commands: list[str]) -> list[str]:
        """Give commands that must succeed, one after the other; return what each prints."""
        return [self.do(command) for command in commands]

    def backup_ids(self, state: str = "good") -> list[str]:
        """Return the backups of a state, the newest first."""
        found = json.loads(self.do("cryptique-rag backups --json"))["backups"]
        return [one["id"] for one in found if one["state"] == state]

    def vectors(self, collection: str = "vectordocuments") -> list[bytes]:
        """Return the store's vectors, byte for byte, in the order of their ids."""
        found = self.store.get_collection(collection, codec_options=_RAW).find({}, sort=[("_id", 1)])
        return [bytes(one.raw) for one in found]

    def restored_databases(self) -> list[str]:
        """Return the databases that restores of this store left beside it."""
        names = self.store.client.list_database_names()
        return [name for name in names if name.startswith(self.store.name[:20]) and "_restored_" in name]


@pytest.fixture
def place(
    prefect_api: str, mongo_uri: str, mongo_client: MongoClient[dict[str, Any]], tmp_path: Path, source_data: SourceData
) -> Iterator[Place]:
    with open_pipeline(mongo_uri, mongo_client, tmp_path / "home", separate_store=True) as pipeline:
        pipeline.load(source_data, source_data.some(ROWS))
        pipeline.migrate()
        opened = Place(pipeline, prefect_api, tmp_path / "backups")
        yield opened
        for name in opened.restored_databases():
            mongo_client.drop_database(name)


# -- what happens, section by section ---------------------------------------------------------------------------


def keys(place: Place, commands: list[str]) -> None:
    made, checked, registered = place.do_all(commands)
    assert "CRYPTIQUE_BACKUP_IDENTITIES=AGE-SECRET-KEY-1" in made
    assert f"backups: folder {place.backups}" in checked
    assert "registered cryptique-backup-store/backups" in registered


def every_day(place: Place, commands: list[str]) -> None:
    rehearsed, made, listed = place.do_all(commands)
    assert "a dry run" in rehearsed
    (backup,) = place.backup_ids()
    assert backup in made
    assert "restored and compared" in made
    assert backup in listed
    place.words["TIME"] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"


def no_backup(place: Place, commands: list[str]) -> None:
    place.do_all(commands)
    assert len(place.backup_ids()) == 2


def full(place: Place, commands: list[str]) -> None:
    place.words["BACKUP"] = place.backup_ids()[1]
    *_, removed = place.do_all(commands)
    assert f"{place.words['BACKUP']} is gone" in removed
    assert len(place.backup_ids()) == 1


def damaged(place: Place, commands: list[str]) -> None:
    (backup,) = place.backup_ids()
    part = next((place.backups / backup).rglob("vectordocuments/00000*"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    look, make = commands
    told = place.give(look)
    assert told.returncode == FAILED
    assert "vectordocuments/00000" in told.stderr
    assert place.backup_ids("damaged") == [backup]
    assert "all of it restored and compared" in place.do(make)
    assert len(place.backup_ids()) == 1


def lost(place: Place, commands: list[str]) -> None:
    before = place.vectors()
    place.store.client.drop_database(place.store.name)
    *_, found, closed = place.do_all(commands)
    assert place.vectors() == before
    assert "transaction 0x" in found
    assert "nothing was kept" in closed


def spoiled(place: Place, commands: list[str]) -> None:
    before = place.vectors()
    place.words["TIME"] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    place.store.vectordocuments.update_many({}, {"$set": {"content": "nonsense"}})
    nonsense = place.vectors()
    beside, swapped, mended, search, undo, drop = commands
    place.do(beside)
    assert place.vectors() == nonsense
    (database,) = place.restored_databases()
    restored = place.store.client[database].get_collection("vectordocuments", codec_options=_RAW)
    assert [bytes(one.raw) for one in restored.find({}, sort=[("_id", 1)])] == before
    refused = place.give(swapped.replace("--overwrite $DATABASE", ""))
    assert refused.returncode != 0
    assert place.vectors() == nonsense
    place.do_all([swapped, mended, search])
    assert place.vectors() == before
    place.do(undo)
    assert place.vectors() == nonsense
    place.do(drop)
    place.do_all([swapped, drop])
    assert place.vectors() == before
    assert [name for name in place.store.list_collection_names() if name.startswith(("before_", "undone_"))] == []


def team_deleted(place: Place, commands: list[str]) -> None:
    before = place.vectors()
    team = place.store.vectordocuments.distinct("teamId")[0]
    assert isinstance(team, ObjectId)
    place.words["TEAM"] = str(team)
    assert place.store.vectordocuments.delete_many({"teamId": team}).deleted_count > 0
    *_, found, dropped = place.do_all(commands)
    assert place.vectors() == before
    assert "transaction 0x" in found
    assert "before_" in dropped


PLAYED: dict[str, Callable[[Place, list[str]], None]] = {
    "Keys": keys,
    "Every day": every_day,
    "No backup was made": no_backup,
    "The bucket or the disk of backups is full": full,
    "A backup is damaged": damaged,
    "The store is lost": lost,
    "A bad deploy or a wrong command spoiled the store": spoiled,
    "One team was deleted by mistake": team_deleted,
}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_command_of_the_runbook_does_what_it_says(place: Place) -> None:
    commands = sections()
    assert list(commands) == list(PLAYED)
    for title, play in PLAYED.items():
        play(place, commands[title])
