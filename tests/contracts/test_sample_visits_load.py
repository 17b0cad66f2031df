"""Loading the visits of the demo source into a real MongoDB: once, again, anew, and never over somebody's data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import MongoClient
from pymongo.database import Database

from deployments.sample import load_sample, sample_contracts, sample_teams, sample_websites
from deployments.sample_sites.loading import COLLECTIONS, load_visits
from deployments.sample_sites.sessions import sample_sessions
from deployments.sample_sites.sites import sample_site_contracts, sample_site_teams, sample_site_websites
from deployments.sample_sites.visits import sample_visits
from tasks.domain.errors import TerminalError

SMALL = {"sessions": 500, "events": 100, "journeys": 60}


@pytest.fixture
def database(mongo_uri: str) -> Iterator[Database[dict[str, Any]]]:
    options: CodecOptions[dict[str, Any]] = CodecOptions(
        tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
    )
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        database = client.get_database(f"visits_{uuid4().hex}", codec_options=options)
        yield database
        client.drop_database(database.name)


def test_visits_need_the_transactions_that_visitors_sign(database: Database[dict[str, Any]]) -> None:
    with pytest.raises(TerminalError, match="load the transactions before the visits"):
        load_visits(database, **SMALL)
    assert database.list_collection_names() == []


def test_loaded_visits_stand_beside_the_sample(database: Database[dict[str, Any]]) -> None:
    load_sample(database, rows=300)
    progress: dict[str, int] = {}
    counts = load_visits(database, **SMALL, on_progress=progress.__setitem__)
    assert counts.action == "loaded"
    assert counts.records == progress == {name: database[name].count_documents({}) for name in COLLECTIONS}
    assert counts.records["sessions"] == 500
    assert counts.records["granularevents"] == 100
    assert sum(counts.records[f"{period}stats"] for period in ("hourly", "daily", "weekly", "monthly")) == 187
    assert sum(len(row.get("userJourneys", ())) for row in database["analytics"].find()) == 60
    for name, records in (
        ("teams", [*sample_teams(), *sample_site_teams()]),
        ("websites", [*sample_websites(), *sample_site_websites()]),
        ("smartcontracts", [*sample_contracts(), *sample_site_contracts()]),
    ):
        assert {row["_id"] for row in database[name].find({}, {"_id": 1})} == {record["_id"] for record in records}
    expected = [record["_id"] for record in sample_sessions(sample_visits(500, transactions=300))]
    assert {row["_id"] for row in database["sessions"].find({}, {"_id": 1})} == set(expected)


def test_the_same_visits_are_written_once(database: Database[dict[str, Any]]) -> None:
    load_sample(database, rows=300)
    load_visits(database, **SMALL)
    database["sessions"].insert_one({"_id": "later"})
    assert load_visits(database, **SMALL).action == "unchanged"
    assert database["sessions"].count_documents({"_id": "later"}) == 1


def test_other_visits_and_a_load_that_was_cut_short_are_written_anew(database: Database[dict[str, Any]]) -> None:
    load_sample(database, rows=300)
    load_visits(database, **SMALL)
    assert load_visits(database, **SMALL | {"sessions": 450}).action == "replaced"
    assert database["sessions"].count_documents({}) == 450
    database["cryptique_sample"].replace_one({"_id": "visits"}, {"_id": "visits"})
    assert load_visits(database, **SMALL | {"sessions": 450}).action == "replaced"
    assert database["sessions"].count_documents({}) == 450


def test_a_replaced_sample_gets_its_teams_and_visits_again(database: Database[dict[str, Any]]) -> None:
    load_sample(database, rows=300)
    load_visits(database, **SMALL)
    load_sample(database, rows=400)
    assert load_visits(database, **SMALL).action == "replaced"
    assert database["teams"].count_documents({}) == len(sample_teams()) + len(sample_site_teams())


def test_somebodys_own_sessions_are_never_touched(database: Database[dict[str, Any]]) -> None:
    load_sample(database, rows=300)
    database["sessions"].insert_one({"sessionId": "mine"})
    with pytest.raises(TerminalError, match="holds sessions that are not the sample's"):
        load_visits(database, **SMALL)
    assert database["analytics"].count_documents({}) == 0
    assert database["teams"].count_documents({}) == len(sample_teams())
