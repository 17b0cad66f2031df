"""Loading the demo source into a real MongoDB: once, again, anew, and never over somebody's data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from uuid import uuid4

import bson
import pytest
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient
from pymongo.database import Database

from deployments import sample
from deployments.sample import SAMPLE_VERSION, load_sample, sample_transactions
from tasks.domain.errors import TerminalError

ROWS = 2_500


@pytest.fixture
def database(mongo_uri: str) -> Iterator[Database[dict[str, Any]]]:
    # Block times after the year 9999 are planted: Python's datetime can't hold them.
    options: CodecOptions[dict[str, Any]] = CodecOptions(
        tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
    )
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        database = client.get_database(f"sample_{uuid4().hex}", codec_options=options)
        yield database
        client.drop_database(database.name)


def test_a_loaded_sample_holds_every_row_and_its_marker(database: Database[dict[str, Any]]) -> None:
    progress: list[int] = []
    counts = load_sample(database, rows=ROWS, on_progress=progress.append)
    assert counts.action == "loaded"
    assert progress == [1_000, 2_000, 2_500]
    for name, number in (
        ("teams", counts.teams),
        ("websites", counts.websites),
        ("smartcontracts", counts.contracts),
        ("transactions", counts.transactions),
    ):
        assert database[name].count_documents({}) == number > 0
    assert list(database["cryptique_sample"].find()) == [
        {"_id": "sample", "rows": ROWS, "seed": 1, "version": SAMPLE_VERSION}
    ]


def test_what_is_read_back_is_what_was_generated(database: Database[dict[str, Any]]) -> None:
    load_sample(database, rows=1_000)
    stored = {record["_id"]: record for record in database["transactions"].find()}
    for record in sample_transactions(1_000):
        # As text: NaN isn't equal to itself.
        assert repr(sorted(stored[record["_id"]].items())) == repr(sorted(read_back(record).items()))


def read_back(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record as a driver reads it, which replaces the classes of some values."""
    return bson.decode(
        bson.encode(record),
        codec_options=CodecOptions(tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO),
    )


def test_the_indexes_of_the_source_are_made(database: Database[dict[str, Any]]) -> None:
    load_sample(database, rows=10)
    keys = {
        tuple(index["key"].items()): index.get("unique", False) for index in database["transactions"].list_indexes()
    }
    assert keys == {
        (("_id", 1),): False,
        (("contractId", 1), ("tx_hash", 1)): False,
        (("contractId", 1), ("block_number", -1)): False,
        (("block_time", 1),): False,
        (("createdAt", 1),): False,
    }


def test_loading_the_same_sample_again_changes_nothing(database: Database[dict[str, Any]]) -> None:
    first = load_sample(database, rows=ROWS)
    database["transactions"].insert_one({"_id": "added by a visitor of the demo"})
    again = load_sample(database, rows=ROWS, on_progress=lambda rows: pytest.fail(f"wrote {rows} rows"))
    assert again.action == "unchanged"
    assert again.transactions == first.transactions
    assert database["transactions"].count_documents({}) == ROWS + 1


@pytest.mark.parametrize(("rows", "seed"), [(300, 1), (500, 2)])
def test_another_sample_replaces_the_one_before(database: Database[dict[str, Any]], rows: int, seed: int) -> None:
    load_sample(database, rows=500)
    assert load_sample(database, rows=rows, seed=seed).action == "replaced"
    stored = {record["_id"] for record in database["transactions"].find({}, {"_id": 1})}
    assert stored == {record["_id"] for record in sample_transactions(rows, seed=seed)}


def test_a_load_that_was_cut_short_is_finished_by_the_next(
    database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(rows: int, *, seed: int) -> Iterator[dict[str, Any]]:
        yield from islice(sample_transactions(rows, seed=seed), 1_200)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample, "sample_transactions", cut_short)
        with pytest.raises(KeyboardInterrupt):
            load_sample(database, rows=ROWS)
    assert 0 < database["transactions"].count_documents({}) < ROWS
    assert load_sample(database, rows=ROWS).action == "replaced"
    assert database["transactions"].count_documents({}) == ROWS


@pytest.mark.parametrize("collection", ["transactions", "teams", "websites", "smartcontracts"])
def test_a_database_with_data_of_its_own_is_never_touched(database: Database[dict[str, Any]], collection: str) -> None:
    database[collection].insert_one({"_id": "somebody's"})
    with pytest.raises(TerminalError, match=collection):
        load_sample(database, rows=10)
    assert database.list_collection_names() == [collection]
    assert database[collection].count_documents({}) == 1
