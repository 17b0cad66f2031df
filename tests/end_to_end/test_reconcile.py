"""Reconcile: what differs between source and store is found record by record, and mended without touching the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from bson import ObjectId
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

from blocks.mongo import MongoSource
from deployments.sample import load_sample
from deployments.sample_sites.loading import load_visits
from flows.ingest import ingest
from flows.reconcile import reconcile
from tasks.domain.differences import KINDS
from tasks.domain.documents import holder_of
from tasks.domain.owners import Owners
from tests.end_to_end.pipeline import (
    HeldRequest,
    Pipeline,
    Record,
    SourceData,
    beside,
    comparable,
    prefect_client,
    repeated,
)
from tests.loopback.gemini import LoopbackGemini

ROWS = 300


@pytest.fixture
def migrated(pipeline: Pipeline, source_data: SourceData) -> Pipeline:
    """A migrated source with three records that are refused and one of several chunks."""
    rows = source_data.some(ROWS)
    rows = [{**row, "value_eth": "NaN"} if at in (1, 101, 201) else row for at, row in enumerate(rows)]
    pipeline.load(source_data, rows)
    story = "A long story about a token and its holders. " * 400
    pipeline.transactions.insert_one(repeated(rows[0], 1, token_name=story))
    assert pipeline.migrate(shard_rows=100)["dead_lettered"] == 3
    return pipeline


class Damages:
    """Differences made behind the pipeline's back: the records of each kind, none in two."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.vectors = pipeline.store["vectordocuments"]
        self.by_kind: dict[str, set[Any]] = {kind: set() for kind in KINDS}
        stored = self.vectors.find({"lineage.chunks": 1}, {"sourceId": 1}).sort("sourceId", 1)
        self._left = [row["sourceId"] for row in stored]

    @property
    def counts(self) -> dict[str, int]:
        return {kind: len(records) for kind, records in self.by_kind.items()}

    @property
    def records(self) -> set[Any]:
        return set().union(*self.by_kind.values())

    def take(self, count: int) -> list[Any]:
        """Return stored records of one chunk that are as they should be."""
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def move_contract(self) -> None:
        """A change of an owner is none of the records that ingest follows."""
        rows = list(self.vectors.find({"lineage.chunks": 1}))
        contract, _ = Counter(row["metadata"]["facts"]["contractId"] for row in rows).most_common()[-1]
        moved = {row["sourceId"] for row in rows if row["metadata"]["facts"]["contractId"] == contract}
        source = self.pipeline.source
        old = source["smartcontracts"].find_one({"contractId": contract})["team"]  # type: ignore[index]
        new = source["teams"].find_one({"_id": {"$ne": old}})["_id"]  # type: ignore[index]
        source["smartcontracts"].update_one({"contractId": contract}, {"$set": {"team": new}})
        assert self.pipeline.complete(ingest, until_idle=True)["written"] == 0
        self._left = [record for record in self._left if record not in moved]
        self.by_kind["moved"] |= moved

    def lose_documents(self) -> None:
        lost = self.take(4)
        self.vectors.delete_many({"sourceId": {"$in": lost}})
        # One chunk of many, which no count of records tells.
        self.vectors.delete_one({"lineage.ordinal": 3})
        self.by_kind["missing"] |= {*lost, ObjectId(f"{1:024x}")}

    def change_documents(self) -> None:
        changed = self.take(3)
        other = {"content": "not what the source says", "rowHash": b"\1" * 16}
        self.vectors.update_many({"sourceId": {"$in": changed}}, {"$set": other})
        self.by_kind["stale"] |= set(changed)

    def delete_records(self, count: int = 5) -> None:
        gone = self.take(count)
        self.pipeline.transactions.delete_many({"_id": {"$in": gone}})
        self.by_kind["orphaned"] |= set(gone)

    def double_documents(self) -> None:
        doubled = self.take(2)
        for record in doubled:
            row: Record = self.vectors.find_one({"sourceId": record})  # type: ignore[assignment]
            old = {"_id": ObjectId(), "documentId": f"transaction:contract_of_old:{record}:0"}
            self.vectors.insert_one({**row, **old})
        # A refused record has no document at all.
        letter = self.pipeline.letters()[1]
        refused = letter["sourceId"]
        other = {"_id": ObjectId(), "sourceId": refused, "teamId": letter["teamId"]}
        other["documentId"] = f"transaction:{letter['holderId']}:{refused}:0"
        self.vectors.insert_one({**row, **other})
        self.by_kind["doubled"] |= {*doubled, refused}

    def lose_dead_letters(self) -> None:
        letter = self.pipeline.letters()[0]
        self.pipeline.store["deadletters"].delete_one({"_id": letter["_id"]})
        # And one that stayed open though its record is stored.
        (stored,) = self.take(1)
        self.pipeline.store["deadletters"].insert_one({**letter, "_id": ObjectId(), "sourceId": stored})
        self.by_kind["unaccounted"] |= {letter["sourceId"], stored}


def expected_documents(pipeline: Pipeline) -> dict[str, Record]:
    """Return what a migration of the source as it stands makes in an empty store."""
    kept = pipeline.documents()
    letters = pipeline.letters()
    pipeline.empty_store()
    pipeline.migrate(shard_rows=100)
    made = comparable(pipeline.documents(), "version")
    vectors, box = pipeline.store["vectordocuments"], pipeline.store["deadletters"]
    vectors.delete_many({})
    vectors.insert_many(kept.values())
    box.delete_many({})
    box.insert_many(letters)
    return made


def shown(pipeline: Pipeline) -> dict[str, set[str]]:
    """Return the records that the last run's list of differences names under each kind."""
    assert pipeline.last_run_id is not None
    with prefect_client() as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[pipeline.last_run_id]),
                key=ArtifactFilterKey(any_=["reconcile-differences-transaction"]),
            )
        )
    sections = [section.splitlines() for section in str(artifact.data).split("## ")[1:]]
    found = {kind: {line.removeprefix("- ") for line in lines if line.startswith("- ")} for kind, *lines in sections}
    return {kind: found[kind] for kind in KINDS if kind in found}


def places_of(documents: Iterable[Record]) -> Counter[tuple[str, str, str, str | None]]:
    """Return how many of these documents have each source, team, holder and day."""
    return Counter(
        (row["documentId"].partition(":")[0], str(row["teamId"]), holder_of(row["documentId"]), day_told_by(row))
        for row in documents
    )


def day_told_by(document: Record) -> str | None:
    timeframe = document["metadata"].get("timeframe")
    return None if timeframe is None else f"{timeframe['start']:%Y-%m-%d}"


def told_places(report: Record, kind: str) -> Counter[tuple[str, str, str, str | None]]:
    """Return the places that a report counts records of a kind at."""
    return Counter(
        {(row["source"], row["team"], row["holder"], row["day"]): row[kind] for row in report["places"] if row[kind]}
    )


def test_what_differs_is_told_by_kind_and_place_and_mended_and_nothing_else_is_touched(migrated: Pipeline) -> None:
    damages = Damages(migrated)
    whole = {row["sourceId"]: row for row in migrated.documents().values() if row["lineage"]["ordinal"] == 0}
    damages.move_contract()
    damages.lose_documents()
    damages.change_documents()
    damages.delete_records()
    damages.double_documents()
    damages.lose_dead_letters()
    assert all(damages.counts.values())
    before, expected = migrated.documents(), expected_documents(migrated)
    letters = migrated.letters()
    told = migrated.refusal(flow=reconcile, heal=False, shard_rows=100)
    in_words = ", ".join(f"{count} {kind}" for kind, count in damages.counts.items())
    assert f"source and store differ: {in_words}." in told
    assert shown(migrated) == {kind: set(map(str, records)) for kind, records in damages.by_kind.items()}
    assert migrated.documents() == before
    assert migrated.letters() == letters

    report = migrated.complete(reconcile, shard_rows=100)
    assert {name: report[name] for name in KINDS} == damages.counts
    assert report["compared"] == migrated.transactions.count_documents({})
    assert report["mended"] == len(damages.records)
    for kind in ("missing", "stale", "orphaned"):
        assert told_places(report, kind) == places_of(whole[record] for record in damages.by_kind[kind])
    refusals = told_places(report, "dead_lettered")
    assert sum(refusals.values()) == report["dead_lettered"] == 3
    assert {place[1:3] for place in refusals} == {(str(row["teamId"]), row["holderId"]) for row in letters}
    after = migrated.documents()
    assert comparable(after, "version") == expected
    untouched = {key: row for key, row in before.items() if row["sourceId"] not in damages.records}
    assert {key: row for key, row in after.items() if row["sourceId"] not in damages.records} == untouched
    refused = {row["_id"] for row in migrated.transactions.find({"value_eth": "NaN"})}
    assert {letter["sourceId"] for letter in migrated.letters(status="open")} == refused

    again = migrated.complete(reconcile, shard_rows=100)
    assert {name: again[name] for name in (*KINDS, "mended", "written", "removed")} == dict.fromkeys(
        (*KINDS, "mended", "written", "removed"), 0
    )
    assert migrated.documents() == after


def test_only_what_differs_is_embedded_and_where_nothing_does_nothing_is_written(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(50))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        before, embedded = pipeline.documents(), server.embedded.copy()
        # Without mending nobody is asked anything.
        assert pipeline.complete(reconcile, heal=False)["compared"] == 50
        assert server.embedded == embedded
        report = pipeline.complete(reconcile)
        assert (report["compared"], report["mended"], report["written"]) == (50, 0, 0)
        # Asked for one word, to see that it answers.
        assert (server.embedded - embedded).keys() == {"transaction"}
        assert pipeline.documents() == before
        assert [job["status"] for job in pipeline.jobs()] == ["completed"] * 3
        assert {job["jobType"] for job in pipeline.jobs()[1:]} == {"batch_update"}

        lost = list(before.values())[7]
        pipeline.store["vectordocuments"].delete_one({"_id": lost["_id"]})
        embedded = server.embedded.copy()
        assert pipeline.complete(reconcile)["written"] == 1
        assert (server.embedded - embedded).keys() == {"transaction", lost["content"]}


def test_documents_of_another_source_are_neither_compared_nor_touched(migrated: Pipeline) -> None:
    vectors = migrated.store["vectordocuments"]
    row: Record = vectors.find_one({"lineage.chunks": 1})  # type: ignore[assignment]
    for number, record in enumerate((row["sourceId"], ObjectId())):
        other = {"_id": ObjectId(), "documentId": f"session:s:{number}:0", "sourceType": "session", "sourceId": record}
        vectors.insert_one({**row, **other})
    before = migrated.documents()
    assert migrated.complete(reconcile, heal=False)["orphaned"] == 0
    assert migrated.complete(reconcile)["mended"] == 0
    assert migrated.documents() == before


def test_many_orphans_at_once_are_doubted_and_nothing_is_touched_until_somebody_says_so(migrated: Pipeline) -> None:
    damages = Damages(migrated)
    damages.delete_records(150)
    damages.change_documents()
    letter = migrated.letters()[0]["sourceId"]
    migrated.transactions.delete_one({"_id": letter})
    before, letters = migrated.documents(), migrated.letters()
    message = migrated.refusal(flow=reconcile)
    assert "150 of 300 stored records are not in the source" in message
    assert "--remove-orphans" in message
    assert "orphaned" in shown(migrated)
    assert (migrated.documents(), migrated.letters()) == (before, letters)
    job = migrated.jobs()[-1]
    assert (job["status"], "--remove-orphans" in job["errors"][-1]["error"]) == ("failed", True)

    report = migrated.complete(reconcile, remove_orphans=True)
    assert (report["orphaned"], report["removed"], report["stale"]) == (150, 150, 3)
    assert not damages.by_kind["orphaned"] & migrated.stored_source_ids()
    # The dead letter of a record that is gone is closed.
    assert [one["status"] for one in migrated.letters(sourceId=letter)] == ["resolved"]


# -- owners ------------------------------------------------------------------------------------------------

SOURCES = ["websites", "daily_stats", "sessions", "transactions"]


class Tenants:
    """A migrated source with websites, and what becomes of those who own its records."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.before = pipeline.documents()
        by_source: dict[str, Counter[str]] = {}
        for key in self.before:
            by_source.setdefault(key.partition(":")[0], Counter())[holder_of(key)] += 1
        known = by_source["session"].keys() & by_source["daily_stats"].keys()
        sites = [site for site, _ in by_source["session"].most_common() if site in known]
        contracts = [contract for contract, _ in by_source["transaction"].most_common()]
        self.moved, self.lost = (sites[1], contracts[1]), (sites[2], contracts[2])
        self._gone: dict[str, Record] = {}

    def owners(self) -> Owners:
        """Return who owns what now, read from the source."""
        settings = self.pipeline.settings
        source = MongoSource(uri=settings.cryptique_source_uri, database=self.pipeline.source.name)
        try:
            return source.load_owners()
        finally:
            source.close()

    def change(self) -> None:
        """Give a website and a contract to another team, delete another two, and let rings of statistics move on."""
        site, contract = self.moved
        source = self.pipeline.source
        old = source["smartcontracts"].find_one({"contractId": contract})["team"]  # type: ignore[index]
        team = source["teams"].find_one({"_id": {"$ne": old}})["_id"]  # type: ignore[index]
        source["smartcontracts"].update_one({"contractId": contract}, {"$set": {"team": team}})
        source["websites"].update_one({"siteId": site}, {"$set": {"team": team}})
        for one in (self.moved[0], self.lost[0]):
            ring = source["dailystats"].find_one({"siteId": one})["analyticsSnapshot"]  # type: ignore[index]
            oldest = sorted((row for row in ring if row.get("timestamp")), key=lambda row: row["timestamp"])[:2]
            kept = [row for row in ring if row not in oldest]
            source["dailystats"].update_one({"siteId": one}, {"$set": {"analyticsSnapshot": kept}})
        for name, key, value in (("websites", "siteId", self.lost[0]), ("smartcontracts", "contractId", self.lost[1])):
            self._gone[name] = source[name].find_one_and_delete({key: value})

    def return_home(self) -> None:
        """Bring back what was deleted."""
        for name, record in self._gone.items():
            self.pipeline.source[name].insert_one(record)

    def expected_moves(self, owners: Owners) -> list[Record]:
        """Return the first document of each record that is stored for others than it belongs to now."""
        first = [row for row in self.before.values() if row["lineage"]["ordinal"] == 0]
        found = []
        for row in first:
            holder = owners.find_holder(holder_of(row["documentId"]))
            gone = row["sourceType"] == "website" and holder is None
            if not gone and (holder is None or (holder.team_id, holder.site_id) != (str(row["teamId"]), row["siteId"])):
                found.append(row)
        return found


def require_whose(pipeline: Pipeline, owners: Owners) -> None:
    """Assert that every document that a search may see belongs to its owner of now."""
    for key, row in pipeline.documents("embedding").items():
        holder = owners.find_holder(holder_of(key))
        if row["status"] == "active":
            assert holder is not None, key
            assert (str(row["teamId"]), row["siteId"]) == (holder.team_id, holder.site_id), key
        else:
            assert (row["status"], holder) == ("archived", None), key


@pytest.mark.long
def test_vectors_follow_their_owners_go_with_a_lost_tenant_and_return_with_it(pipeline: Pipeline) -> None:
    load_sample(pipeline.source, rows=500)
    load_visits(pipeline.source, sessions=150, events=5, journeys=5)
    pipeline.migrate(sources=SOURCES)
    tenants = Tenants(pipeline)
    # Where all owners are gone at once, they are in doubt and not the records; other sources are gone through.
    pipeline.source["smartcontracts"].rename("elsewhere")
    told = pipeline.refusal(flow=reconcile, sources=SOURCES)
    assert "TerminalError: transactions: " in told
    assert "stored records belong to nobody now" in told
    assert pipeline.documents() == tenants.before
    pipeline.source["elsewhere"].rename("smartcontracts")

    tenants.change()
    owners = tenants.owners()
    moves = tenants.expected_moves(owners)
    report = pipeline.complete(reconcile, sources=SOURCES)
    after = pipeline.documents()
    by_source = Counter(row["documentId"].partition(":")[0] for row in moves)
    assert {name: one["moved"] for name, one in report["by_source"].items() if one["moved"]} == by_source
    assert min(by_source[name] for name in ("transaction", "session", "daily_stats")) > 5
    assert (report["stale"], report["doubled"], report["orphaned"]) == (0, 0, 1)
    # Told at the place where they are to be: nobody's are told at the contract or website that they name.
    days = Counter((row["documentId"].partition(":")[0], day_told_by(row)) for row in moves)
    told_days: Counter[tuple[str, str | None]] = Counter()
    for (source, _, _, day), count in told_places(report, "moved").items():
        told_days[source, day] += count
    assert told_days == days
    require_whose(pipeline, owners)
    kept = after.keys() & tenants.before.keys()
    assert all(after[key]["embedding"] == tenants.before[key]["embedding"] for key in kept)
    assert {holder_of(key) for key in tenants.before.keys() - after.keys()} == set(tenants.lost)
    forgotten = {key for key, row in after.items() if row["status"] == "archived"}
    assert {key.split(":")[:2] == ["daily_stats", tenants.lost[0]] for key in forgotten} == {True}
    refused = {
        row["sourceId"] for row in pipeline.letters(status="open", code={"$in": ["site_unknown", "contract_unknown"]})
    }
    lost = {row["sourceId"] for key, row in tenants.before.items() if holder_of(key) in tenants.lost}
    stayed = {after[key]["sourceId"] for key in forgotten}
    website = {row["sourceId"] for key, row in tenants.before.items() if key.startswith("website:")}
    assert lost - stayed - website <= refused

    tenants.return_home()
    assert pipeline.complete(reconcile, sources=SOURCES)["mended"] > 5
    require_whose(pipeline, tenants.owners())
    assert pipeline.documents().keys() == tenants.before.keys()
    assert {row["status"] for row in pipeline.documents("embedding").values()} == {"active"}
    assert pipeline.complete(reconcile, sources=SOURCES, heal=False)["moved"] == 0


# -- writers at work meanwhile -----------------------------------------------------------------------------


def test_what_a_live_writer_stored_between_comparing_and_mending_is_not_undone(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    story = "A long story about a token and its holders. "
    rows = [repeated(row, 1 + at) for at, row in enumerate(source_data.some(20))]
    pipeline.load(source_data, rows)
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        vectors, transactions = pipeline.store["vectordocuments"], pipeline.transactions
        lost, stale, doubled, refused = (row["_id"] for row in rows[:4])
        vectors.delete_one({"sourceId": lost})
        vectors.update_one({"sourceId": stale}, {"$set": {"rowHash": b"\1" * 16, "contentHash": b"\1" * 16}})
        row: Record = vectors.find_one({"sourceId": doubled})  # type: ignore[assignment]
        vectors.insert_one({**row, "_id": ObjectId(), "documentId": f"transaction:old:{doubled}:0"})
        transactions.update_one({"_id": refused}, {"$set": {"value_eth": "NaN"}})
        held.hold(server.request_count + 1)  # after the check: what differs is known, read and described
        with beside(lambda: pipeline.complete(reconcile)) as reconciling:
            held.wait(reconciling)
            try:
                # Each changes once more: longer, shorter, readable again; and all of it is stored by ingest.
                transactions.update_one({"_id": lost}, {"$set": {"status": "Failed", "method_name": "newer"}})
                transactions.update_one({"_id": stale}, {"$set": {"status": "Failed", "method_name": "newer"}})
                transactions.update_one({"_id": doubled}, {"$set": {"token_name": story * 400}})
                transactions.update_one({"_id": refused}, {"$set": {"value_eth": "7.25"}})
                assert pipeline.complete(ingest, until_idle=True)["written"] == 4
                newer = pipeline.documents()
            finally:
                held.release()
            report = reconciling.result()
        after = pipeline.documents()
        assert comparable(after) == comparable(
            {k: row for k, row in newer.items() if not k.startswith("transaction:old")}
        )
        assert {row["metadata"]["facts"]["method"] for row in after.values() if row["sourceId"] in (lost, stale)} == {
            "newer"
        }
        assert sum(row["sourceId"] == doubled for row in after.values()) > 3
        assert refused in {row["sourceId"] for row in after.values()}
        assert pipeline.letters(status="open") == []
        assert (report["written"], report["missing"]) == (0, 1)
        assert pipeline.complete(reconcile)["mended"] == 0


def test_a_second_reconcile_at_once_is_refused(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(20))
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        pipeline.store["vectordocuments"].delete_one({})
        held.hold(server.request_count + 1)  # after the check
        with beside(lambda: pipeline.complete(reconcile)) as first:
            held.wait(first)
            try:
                assert "is at this work right now" in pipeline.refusal(flow=reconcile)
            finally:
                held.release()
            assert first.result()["written"] == 1
