"""Figures in a real mongod: whole days, of their unit alone, and never those of a write that was cut off."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from pymongo.database import Database

from blocks.aggregates import AggregateStore, UnitFigures, Written
from blocks.vector_store import VectorStore
from tasks.domain.aggregates.records import from_record
from tasks.domain.aggregates.scopes import PartialKey, Scope, record_id
from tasks.domain.aggregates.storage import OutdatedPartialError
from tasks.domain.aggregates.units import UnitKey
from tests.builders import ESCROW_ID, OTHER_TEAM_ID, TEAM_ID, TOKEN_ID
from tests.unit.aggregates.test_described_aggregates import transactions
from tests.unit.aggregates.test_storage import DAY, MANY

NOW, LATER = datetime(2026, 3, 4, tzinfo=UTC), datetime(2026, 3, 5, tzinfo=UTC)
NEXT_DAY = date(2025, 6, 11)
TOKEN = Scope.contract(TOKEN_ID)
TEAM, OTHER = str(TEAM_ID), str(OTHER_TEAM_ID)
Store = Database[dict[str, Any]]


@pytest.fixture
def aggregates(database: Store, mongo_uri: str) -> AggregateStore:
    """The store of a database that `initialise` made."""
    store = VectorStore(uri=mongo_uri, database=database.name, embedder="local")
    store.initialise(256)
    return AggregateStore(store)


def unit(day: date | None = DAY, team: str = TEAM, zone: str = "UTC") -> UnitKey:
    return UnitKey("transactions", team, day, zone)


def figures(key: UnitKey, *scopes: Scope, digest: str = "d1") -> UnitFigures:
    partials = {PartialKey("transactions", scope, key.day, key.zone): MANY for scope in scopes}
    return UnitFigures(digest, MANY.rows if scopes else 0, 2, partials)


def put(aggregates: AggregateStore, key: UnitKey, *scopes: Scope, digest: str = "d1", **options: Any) -> None:
    before = aggregates.read_units([key.zone])
    aggregates.replace_units({key: figures(key, *scopes, digest=digest)}, before, **options)


def days(aggregates: AggregateStore, scope: Scope = TOKEN, zone: str = "UTC") -> list[date | None]:
    found = list(aggregates.read_partials("transactions", scope, zone))
    assert all(one == MANY for _, one in found)
    return [day for day, _ in found]


def test_days_come_back_whole_in_order_and_of_their_scope_and_zone_alone(aggregates: AggregateStore) -> None:
    put(aggregates, unit(NEXT_DAY), TOKEN, max_bytes=8_000)
    put(aggregates, unit(None), TOKEN)
    put(aggregates, unit(), TOKEN, Scope.contract(ESCROW_ID))
    put(aggregates, unit(zone="Europe/Berlin"), TOKEN)
    assert days(aggregates) == [DAY, NEXT_DAY, None]
    assert days(aggregates, Scope.contract(ESCROW_ID)) == [DAY]
    assert days(aggregates, zone="Europe/Berlin") == [DAY]
    assert aggregates.find_zones() == ["Europe/Berlin", "UTC"]
    aggregates.forget_zone("Europe/Berlin")
    assert aggregates.find_zones() == ["UTC"]
    assert days(aggregates, zone="Europe/Berlin") == []


def test_a_unit_is_replaced_whole_and_remembers_what_is_to_be_told_of_it(
    aggregates: AggregateStore, database: Store
) -> None:
    put(aggregates, unit(), TOKEN, Scope.contract(ESCROW_ID), max_bytes=8_000)
    assert database["ragpartials"].count_documents({}) > 4
    put(aggregates, unit(), TOKEN, digest="d2")
    assert database["ragpartials"].count_documents({}) == 1
    (stored,) = aggregates.read_units(["UTC"]).values()
    assert (stored.digest, stored.rows, stored.refused, stored.described) == ("d2", MANY.rows, 2, False)
    assert set(stored.scopes) == {TOKEN, Scope.contract(ESCROW_ID)}
    aggregates.note_described([unit()])
    (stored,) = aggregates.read_units(["UTC"]).values()
    assert (stored.scopes, stored.described) == ((TOKEN,), True)
    put(aggregates, unit(), digest="")
    assert days(aggregates) == []
    aggregates.note_described([unit()])
    assert aggregates.read_units(["UTC"]) == {}


@pytest.mark.parametrize("new_first", [True, False])
def test_a_contract_that_changed_teams_keeps_its_new_teams_figures(aggregates: AggregateStore, new_first: bool) -> None:
    put(aggregates, unit(), TOKEN)
    changes = [lambda: put(aggregates, unit(team=OTHER), TOKEN), lambda: put(aggregates, unit(), digest="")]
    for change in changes if new_first else reversed(changes):
        change()
    assert days(aggregates) == [DAY]


@pytest.mark.parametrize("lost", [0, 1, "last"])
def test_a_write_that_was_cut_off_is_never_read(aggregates: AggregateStore, database: Store, lost: int | str) -> None:
    put(aggregates, unit(), TOKEN, max_bytes=8_000)
    parts = database["ragpartials"].count_documents({})
    database["ragpartials"].delete_one({"part": parts - 1 if lost == "last" else lost})
    with pytest.raises(OutdatedPartialError, match="2025-06-10 are not of one write"):
        days(aggregates)


def test_a_unit_has_no_digest_before_its_figures_are_there(
    aggregates: AggregateStore, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(aggregates, unit(), TOKEN)
    with monkeypatch.context() as patched:
        patched.setattr("blocks.aggregates._partial_rows", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            put(aggregates, unit(), TOKEN, digest="d2")
    assert aggregates.read_units(["UTC"])[unit()].digest == ""


def test_units_of_an_older_version_are_computed_again(aggregates: AggregateStore, database: Store) -> None:
    put(aggregates, unit(), TOKEN)
    database["ragfigureunits"].update_one({}, {"$set": {"version": 0}})
    assert aggregates.read_units(["UTC"])[unit()].digest == ""


def test_only_changed_documents_are_written_and_those_gone_are_deleted(
    aggregates: AggregateStore, database: Store
) -> None:
    may, april = transactions(), transactions("2022-04")
    records = database["ragaggregates"]
    assert aggregates.save_documents([may, april], "UTC", now=NOW) == Written(written=2)
    assert aggregates.save_documents([april, may], "UTC", now=LATER) == Written(unchanged=2)
    changed = replace(may, content=f"{may.content} More.")
    assert aggregates.save_documents([changed, april], "UTC", now=LATER) == Written(written=1, unchanged=1)
    times = {row["key"]: row["updatedAt"].replace(tzinfo=UTC) for row in records.find()}
    assert times == {may.key: LATER, april.key: NOW}
    assert from_record(records.find_one({"key": april.key}) or {}).content == april.content
    gone = [april.key, "aggregate:never:was"]
    assert aggregates.save_documents([], "UTC", gone=gone, now=LATER) == Written(deleted=1)
    assert [row["_id"] for row in records.find()] == [record_id(may.key)]


def test_a_scope_is_forgotten_with_its_documents_and_no_others(aggregates: AggregateStore, database: Store) -> None:
    may, april = transactions(), transactions("2022-04", zone="Europe/Berlin")
    aggregates.save_documents([may], "UTC", now=NOW)
    aggregates.save_documents([april], "Europe/Berlin", now=NOW)
    for zone in ("UTC", "Europe/Berlin"):
        aggregates.save_scope("transactions", TOKEN, zone, seal="s", newcomers={DAY: 3})
    assert aggregates.read_scopes("UTC") == {("transactions", TOKEN): ("s", {DAY: 3})}
    assert aggregates.forget_scope("transactions", Scope.contract(ESCROW_ID), "UTC", ["transactions"]) == 0
    assert aggregates.forget_scope("transactions", TOKEN, "UTC", ["transactions", "staking"]) == 1
    assert aggregates.read_scopes("UTC") == {}
    assert [row["key"] for row in database["ragaggregates"].find()] == [april.key]
