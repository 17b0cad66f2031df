"""All sources of the application beside each other in one store: whole, accounted for, and nobody's name in it."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId, json_util

from deployments.sample import load_sample
from deployments.sample_sites.loading import load_visits
from deployments.sample_sites.visits import PERSONAL_MARKS, sample_user_ids, sample_visits
from flows.ingest import ingest
from flows.parameters import SourceName
from flows.reconcile import reconcile
from tasks.domain.registry import OF_THE_STORE, PLURALS
from tasks.domain.sources import derived_id
from tests.end_to_end.pipeline import Pipeline, Record

ROWS, SESSIONS, EVENTS, JOURNEYS = 1_100, 400, 200, 60
#: All that lies in the application's database.
EVERYTHING: list[SourceName] = [name for name, kind in PLURALS.items() if kind not in OF_THE_STORE]  # type: ignore[misc]


@pytest.fixture
def filled(pipeline: Pipeline) -> Pipeline:
    """A pipeline whose source has every collection, with every class of dirt."""
    load_sample(pipeline.source, rows=ROWS)
    load_visits(pipeline.source, sessions=SESSIONS, events=EVENTS, journeys=JOURNEYS)
    return pipeline


def stored_by_source(pipeline: Pipeline) -> Counter[str]:
    """Return how many records of each source are stored."""
    return Counter(
        document_id.partition(":")[0]
        for document_id, row in pipeline.documents("embedding").items()
        if row["lineage"]["ordinal"] == 0
    )


def require_nothing_to_do(pipeline: Pipeline) -> None:
    """Assert that another run over all sources embeds and writes nothing."""
    before = pipeline.documents("embedding")
    again = pipeline.migrate(sources=EVERYTHING)
    assert (again["written"], again["removed"], again["embedded"]) == (0, 0, 0)
    assert pipeline.documents("embedding") == before


def test_every_record_of_every_source_is_written_or_refused_and_a_second_run_does_nothing(filled: Pipeline) -> None:
    report = filled.migrate(sources=EVERYTHING)
    assert list(report["by_source"]) == [PLURALS[name] for name in EVERYTHING]
    # What the sources before it stored makes no source's first load look for what can't be there.
    assert all(job["metadata"]["choices"]["targetWasEmpty"] for job in filled.jobs())
    stored = stored_by_source(filled)
    assert stored.keys() == {PLURALS[name] for name in EVERYTHING}
    for source, one in report["by_source"].items():
        assert one["read"] == one["written"] + one["dead_lettered"], source
        assert one["written"] == stored[source], source
    letters = Counter(row["sourceType"] for row in filled.store["deadletters"].find({"status": "open"}))
    assert letters == {name: one["dead_lettered"] for name, one in report["by_source"].items() if one["dead_lettered"]}
    assert report["read"] == sum(one["read"] for one in report["by_source"].values())
    for name in ("websites", "smartcontracts", "campaigns", "sessions", "granularevents", "transactions"):
        source = {"granularevents": "granular_event", "smartcontracts": "smart_contract"}.get(
            name, name.removesuffix("s")
        )
        assert report["by_source"][source]["read"] == filled.source[name].count_documents({}), name
    require_nothing_to_do(filled)
    compared = filled.complete(reconcile, sources=EVERYTHING)
    assert (compared["compared"], compared["mended"]) == (report["read"], 0)


def require_owners(filled: Pipeline) -> None:
    """Assert that a document of any source belongs to the team of its website."""
    teams = {row["siteId"]: row.get("team") for row in filled.source["websites"].find({"siteId": {"$type": "string"}})}
    listed = {oid: team["_id"] for team in filled.source["teams"].find() for oid in (team.get("websites") or []) if oid}
    by_oid = {row["_id"]: row.get("siteId") for row in filled.source["websites"].find()}
    for oid, team in listed.items():
        if by_oid.get(oid) is not None and not teams.get(by_oid[oid]):
            teams[by_oid[oid]] = team
    of_sites = [row for key, row in filled.documents("embedding").items() if not key.startswith(("trans", "smart"))]
    assert len(of_sites) > SESSIONS
    assert [row["documentId"] for row in of_sites if str(row["teamId"]) != str(teams[row["siteId"]])] == []


def test_documents_belong_to_their_websites_team_and_name_no_user_nor_do_dead_letters(filled: Pipeline) -> None:
    filled.migrate(sources=EVERYTHING)
    require_owners(filled)
    visits = tuple(sample_visits(SESSIONS, seed=1, transactions=ROWS))
    hidden = {*sample_user_ids(visits), *PERSONAL_MARKS, *(visit.visitor.name for visit in visits)}
    assert len(hidden) > 100
    kept: list[Record] = [*filled.documents("embedding").values(), *filled.store["deadletters"].find()]
    text = json_util.dumps(kept)
    assert [mark for mark in sorted(hidden) if mark in text] == []


@pytest.mark.long
def test_another_pseudonym_key_gives_every_visitor_another_name_and_nothing_else_changes(filled: Pipeline) -> None:
    filled.use(cryptique_embedder="local", cryptique_pseudonym_key="the first key, long enough")
    filled.migrate(sources=EVERYTHING)
    named = [row for row in filled.documents("embedding").values() if "visitor" in row["metadata"]["facts"]]
    of_users = Counter(row["documentId"].partition(":")[0] for row in named if row["lineage"]["ordinal"] == 0)
    filled.use(cryptique_embedder="local", cryptique_pseudonym_key="another key, long enough")
    second = filled.migrate(sources=EVERYTHING)
    assert of_users.keys() == {"session", "granular_event", "user_journey"}
    # A journey is known by its visitor: under another name it is another document.
    assert {name: one["written"] for name, one in second["by_source"].items() if one["written"]} == of_users
    require_nothing_to_do(filled)


def test_what_changes_beside_transactions_is_taken_over_by_the_next_run_of_ingest(filled: Pipeline) -> None:
    filled.migrate(sources=EVERYTHING)
    stored = [row["sourceId"] for key, row in filled.documents("embedding").items() if key.startswith("session:")]
    changed, deleted = stored[:2]
    filled.source["sessions"].update_one({"_id": changed}, {"$set": {"pagesViewed": 77}})
    filled.source["sessions"].delete_one({"_id": deleted})
    website = filled.source["websites"].find_one({"isVerified": True})
    assert website is not None
    filled.source["websites"].update_one({"_id": website["_id"]}, {"$set": {"isVerified": False}})
    report = filled.complete(ingest, sources=[name for name in EVERYTHING if name != "transactions"])
    by_source: Record = report["others"]["by_source"]
    done = {
        name: (one["written"], one["removed"]) for name, one in by_source.items() if one["written"] + one["removed"]
    }
    assert done["session"] == (1, 1)
    assert done["website"] == (1, 0)
    rows = {row["sourceId"]: row for row in filled.documents("embedding").values()}
    assert rows[changed]["metadata"]["facts"]["pagesViewed"] == 77
    assert deleted not in rows
    require_nothing_to_do(filled)


@pytest.mark.long
def test_a_statistic_that_its_ring_forgets_stays_and_a_new_one_is_added(filled: Pipeline) -> None:
    """A day's figures can't be had again once the ring of the last days has moved on."""
    filled.migrate(sources=["daily_stats"])
    before = filled.documents("embedding")
    row = max(filled.source["dailystats"].find(), key=lambda row: len(row.get("analyticsSnapshot") or []))
    snapshots: list[Record] = [one for one in row["analyticsSnapshot"] if one.get("timestamp")]
    newest = max(snapshots, key=lambda one: one["timestamp"])
    oldest = min(snapshots, key=lambda one: one["timestamp"])
    added: dict[str, Any] = {
        **newest,
        "_id": ObjectId(),
        "timestamp": newest["timestamp"] + timedelta(days=1),
        "visitors": newest["visitors"] + 5,
    }
    ring = [added, *(one for one in row["analyticsSnapshot"] if one is not oldest)]
    filled.source["dailystats"].update_one({"_id": row["_id"]}, {"$set": {"analyticsSnapshot": ring}})
    report = filled.migrate(sources=["daily_stats"])
    after = filled.documents("embedding")
    assert report["removed"] == 0
    assert before.keys() <= after.keys()
    assert len(after) == len(before) + 1
    assert filled.complete(reconcile, sources=["daily_stats"])["orphaned"] == 0


@pytest.mark.long
def test_two_websites_that_hold_the_same_journey_have_one_each(filled: Pipeline) -> None:
    with_journeys = [row for row in filled.source["analytics"].find() if row.get("userJourneys")]
    stored_first = filled.migrate(sources=["user_journeys"])
    one, other = with_journeys[:2]
    twin = next(journey for journey in one["userJourneys"] if isinstance(journey.get("_id"), ObjectId))
    filled.source["analytics"].update_one({"_id": other["_id"]}, {"$push": {"userJourneys": twin}})
    report = filled.migrate(sources=["user_journeys"])
    assert report["read"] == stored_first["read"] + 1
    assert report["read"] == report["written"] + report["unchanged"] + report["dead_lettered"]
    ids = {row["sourceId"] for row in filled.documents("embedding").values()}
    assert twin["_id"] in ids
    assert (
        derived_id("user_journey", other["siteId"], twin["_id"]) in ids
        or derived_id("user_journey", one["siteId"], twin["_id"]) in ids
    )
