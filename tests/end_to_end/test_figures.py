"""Figures of generated sources with every class of dirt: what changed is computed again, and nothing else, and what
stands there in the end is what computing everything from nothing gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

import flows.figures
from deployments.sample import load_sample
from deployments.sample_sites.loading import load_visits
from flows.aggregate import aggregate
from flows.migrate import migrate
from flows.reconcile import reconcile
from tasks.domain.aggregates.periods import Period
from tests.end_to_end.pipeline import Pipeline, Record, open_pipeline

ROWS, SESSIONS = 90, 60
OF_FIGURES = ("ragfigureunits", "ragpartials", "ragfigurescopes", "ragaggregates")


def fill(pipeline: Pipeline) -> None:
    load_sample(pipeline.source, rows=ROWS)
    load_visits(pipeline.source, sessions=SESSIONS, events=5, journeys=5)
    template = pipeline.transactions.find_one({"block_time": {"$type": "date"}, "status": "success"})
    assert template is not None
    some = [
        {
            **template,
            "_id": ObjectId(),
            "contract": None,
            "contractId": owned_contracts(pipeline)[0],
            "tx_hash": f"0x{100 + number:064x}",
            "from_address": f"0x{number % 3 + 1:040x}".replace("0x0", "0xa"),
            "block_time": datetime(2024, 2, 27, 12, tzinfo=UTC) + timedelta(days=number),
        }
        for number in range(6)
    ]
    pipeline.transactions.insert_many(some)


@pytest.fixture
def filled(pipeline: Pipeline) -> Pipeline:
    """A pipeline on a small source of every kind, of which nothing was computed yet."""
    fill(pipeline)
    return pipeline


@pytest.fixture(scope="module")
def computed(
    prefect_api: str, mongo_uri: str, mongo_client: MongoClient[Record], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """A pipeline whose figures are up to date: a test leaves them so, whatever it does to the source."""
    home = tmp_path_factory.mktemp("figures") / "home"
    with open_pipeline(mongo_uri, mongo_client, home, separate_store=True) as pipeline:
        fill(pipeline)
        compute(pipeline)
        yield pipeline


def compute(pipeline: Pipeline, **parameters: Any) -> Record:
    """Return the report of a run that computes and embeds nothing."""
    report: Record = pipeline.complete(aggregate, embed=False, **parameters)["figures"]
    return report


def records(pipeline: Pipeline) -> dict[str, Record]:
    """Return all aggregate records by key, but for when they were written."""
    found = pipeline.store["ragaggregates"].find({}, {"updatedAt": 0})
    return {row["key"]: row for row in found}


def figures_of(pipeline: Pipeline, *, holder: str, **facts: str) -> Record:
    """Return the figures of the only document of a holder that has these facts."""
    criteria = {f"metadata.facts.{name}": value for name, value in facts.items()}
    (found,) = pipeline.store["ragaggregates"].find({"holderId": holder, **criteria})
    return dict(found["metadata"]["facts"]["figures"])


def require_as_from_nothing(pipeline: Pipeline) -> dict[str, Record]:
    """Assert that what stands there is what a computation of everything gives, and return it."""
    found = records(pipeline)
    for name in OF_FIGURES:
        pipeline.store[name].delete_many({})
    compute(pipeline)
    assert records(pipeline) == found
    return found


def owned_contracts(pipeline: Pipeline) -> list[str]:
    """Return the contracts of teams with one website, in order."""
    teams = [row["_id"] for row in pipeline.source["teams"].find()]
    sites = Counter(row["team"] for row in pipeline.source["websites"].find({"team": {"$in": teams}}))
    owned = {"team": {"$in": [team for team, count in sites.items() if count == 1]}}
    found = pipeline.source["smartcontracts"].find({"contractId": {"$type": "string"}, **owned})
    return sorted(row["contractId"] for row in found)


def dated(pipeline: Pipeline) -> Record:
    """Return a transaction of a team with one website that has a time, succeeded, and is told by all figures."""
    contract_id = owned_contracts(pipeline)[0]
    found: Record | None = pipeline.transactions.find_one(
        {
            "contractId": contract_id,
            "from_address": {"$regex": "^0xa"},
            "block_time": {"$gte": datetime(2024, 2, 27, tzinfo=UTC)},
        }
    )
    assert found is not None
    return found


def test_a_second_run_computes_and_writes_nothing(computed: Pipeline) -> None:
    before = records(computed)
    report = compute(computed)
    assert (report["computed"], report["written"], report["removed"]) == (0, 0, 0)
    assert report["documents"] == len(before) > 300
    assert records(computed) == before


def test_a_late_row_computes_its_day_alone_and_rewrites_only_the_periods_that_it_changes(computed: Pipeline) -> None:
    before = records(computed)
    row = dated(computed)
    late = {**row, "_id": ObjectId(), "tx_hash": f"0x{7:064x}", "from_address": "0x" + "9" * 40}
    computed.transactions.insert_one(late)
    report = compute(computed)
    assert report["computed"] == 1
    after = records(computed)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert 0 < report["written"] == len(changed) < 40
    day = row["block_time"].date()
    labels = {period.label for level in ("day", "week", "month", "all") for period in [Period.of(level, day)]}  # type: ignore[arg-type]
    assert labels <= {after[key]["metadata"]["facts"]["label"] for key in changed}
    require_as_from_nothing(computed)


def test_a_row_that_moves_to_another_day_changes_both_days_and_one_that_is_deleted_its_own(computed: Pipeline) -> None:
    row = dated(computed)
    moved = row["block_time"] + timedelta(days=3)
    computed.transactions.update_one({"_id": row["_id"]}, {"$set": {"block_time": moved}})
    assert compute(computed)["computed"] == 2
    computed.transactions.delete_one({"_id": row["_id"]})
    assert compute(computed)["computed"] == 1
    require_as_from_nothing(computed)


def test_a_wallet_that_a_website_comes_to_know_makes_its_transactions_conversions(computed: Pipeline) -> None:
    row = dated(computed)
    contract = computed.source["smartcontracts"].find_one({"contractId": row["contractId"]})
    assert contract is not None
    website = computed.source["websites"].find_one({"team": contract["team"]})
    assert website is not None
    template = computed.source["sessions"].find_one({"siteId": {"$type": "string"}, "startTime": {"$type": "date"}})
    assert template is not None
    visit = {
        **template,
        "_id": ObjectId(),
        "siteId": website["siteId"],
        "sessionId": "the one that connected",
        "startTime": row["block_time"] - timedelta(minutes=5),
        "endTime": None,
        "lastActivity": None,
        "wallet": {"walletAddress": row["from_address"], "walletType": "MetaMask", "chainName": "Ethereum"},
    }
    computed.source["sessions"].insert_one(visit)
    report = compute(computed)
    # The visit's day, and the days of the wallet's transactions; no day of transactions themselves.
    assert report["computed"] >= 2
    found = figures_of(
        computed, topic="funnel", scope="site", label=row["block_time"].date().isoformat(), holder=website["siteId"]
    )
    assert (found["transactedWallets"], found["wallets"]) == (1, 1)
    require_as_from_nothing(computed)


@pytest.mark.long
def test_a_contract_that_gets_another_team_takes_its_figures_along(computed: Pipeline) -> None:
    row = dated(computed)
    contract = computed.source["smartcontracts"].find_one({"contractId": row["contractId"]})
    assert contract is not None
    other = computed.source["teams"].find_one({"_id": {"$ne": contract["team"]}})
    assert other is not None
    computed.source["smartcontracts"].update_one({"_id": contract["_id"]}, {"$set": {"team": other["_id"]}})
    compute(computed)
    found = require_as_from_nothing(computed)
    teams = {row["teamId"] for row in found.values() if row["holderId"] == contract["contractId"]}
    assert teams == {other["_id"]}
    # Of a contract that nobody owns any more nothing is left.
    computed.source["smartcontracts"].delete_one({"_id": contract["_id"]})
    compute(computed)
    found = require_as_from_nothing(computed)
    assert [key for key, row in found.items() if row["holderId"] == contract["contractId"]] == []
    computed.source["smartcontracts"].insert_one(contract)
    compute(computed)


def test_a_campaign_with_another_budget_tells_another_cost_and_no_day_is_computed(computed: Pipeline) -> None:
    told = computed.store["ragaggregates"].find_one({"metadata.facts.topic": "campaign"})
    assert told is not None
    campaign_id = ObjectId(told["metadata"]["facts"]["campaignId"])
    budget = {"currency": "EUR", "amount": 4321}
    computed.source["campaigns"].update_one({"_id": campaign_id}, {"$set": {"budget": budget}})
    report = compute(computed)
    assert (report["computed"], report["written"]) == (0, 1)
    found = figures_of(computed, holder=told["holderId"], topic="campaign", period="all", campaignId=str(campaign_id))
    assert (found["cost"]["amount"], found["cost"]["currency"]) == ("4321", "EUR")
    require_as_from_nothing(computed)


def test_what_a_run_computed_before_it_died_is_described_by_the_next(
    computed: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed.transactions.insert_one(
        {**dated(computed), "_id": ObjectId(), "tx_hash": f"0x{8:064x}", "from_address": "0x" + "9" * 40}
    )

    def dies(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the process is gone")

    with monkeypatch.context() as patched:
        patched.setattr(flows.figures, "seal_of", dies)
        assert computed.run(aggregate, embed=False).is_failed()
    report = compute(computed)
    assert report["computed"] == 0
    assert report["written"] > 0
    require_as_from_nothing(computed)


@pytest.mark.long
def test_damaged_figures_are_computed_from_the_rows_again(computed: Pipeline) -> None:
    found = records(computed)
    row = computed.store["ragpartials"].find_one({"scope": "contract"})
    assert row is not None
    computed.store["ragpartials"].update_one({"_id": row["_id"]}, {"$set": {"body": b"nothing of the kind"}})
    computed.store["ragfigurescopes"].update_many({}, {"$set": {"seal": "another"}})
    report = compute(computed)
    assert report["computed"] == report["days"]
    assert records(computed) == found


def test_a_record_that_was_withheld_counts_nowhere_until_it_is_released(computed: Pipeline) -> None:
    found = records(computed)
    row = dated(computed)
    letter = {
        "sourceType": "transaction",
        "sourceId": row["_id"],
        "stage": "validate",
        "reason": "a thousand times what anybody ever moved",
        "code": "quarantined_far",
        "runId": "r",
        "time": datetime.now(UTC),
        "status": "open",
    }
    computed.store["deadletters"].insert_one(letter)
    assert compute(computed)["left_out"] == compute(computed)["left_out"] > 0
    assert records(computed) != found
    require_as_from_nothing(computed)
    computed.store["deadletters"].update_one({"_id": letter["_id"]}, {"$set": {"status": "resolved"}})
    assert compute(computed)["computed"] >= 1
    assert records(computed) == found


def test_a_period_is_told_as_over_once_it_is(computed: Pipeline) -> None:
    store = computed.store["ragaggregates"]
    ended = store.find_one({"metadata.facts.period": "month", "metadata.facts.topic": "transactions"})
    assert ended is not None
    assert ended["metadata"]["facts"]["complete"] is True
    # As it was written by a run in the middle of the month.
    store.update_one({"_id": ended["_id"]}, {"$set": {"metadata.facts.complete": False, "digest": "of then"}})
    assert compute(computed)["written"] == 1
    assert store.find_one({"_id": ended["_id"]}, {"updatedAt": 0}) == {
        name: value for name, value in ended.items() if name != "updatedAt"
    }


@pytest.mark.long
def test_days_on_other_clocks_are_kept_until_they_are_forgotten(computed: Pipeline) -> None:
    found = records(computed)
    report = compute(computed, time_zones=["America/St_Johns"])
    assert report["time_zones"] == ["America/St_Johns", "UTC"]
    both = records(computed)
    assert {key: row for key, row in both.items() if row["zone"] == "UTC"} == found
    assert len(both) > 1.5 * len(found)
    # Asked for once, it is followed.
    computed.transactions.insert_one(
        {**dated(computed), "_id": ObjectId(), "tx_hash": f"0x{9:064x}", "from_address": "0x" + "9" * 40}
    )
    assert compute(computed)["computed"] == 2
    report = compute(computed, forget_time_zones=["America/St_Johns"])
    assert report["time_zones"] == ["UTC"]
    require_as_from_nothing(computed)


def test_a_zone_that_there_is_not_is_refused_before_anything_is_read(computed: Pipeline) -> None:
    assert "is no time zone: write an IANA name" in computed.refusal(flow=aggregate, time_zones=["Mars/Olympus"])


@pytest.mark.long
def test_figures_are_loaded_like_records_and_go_when_their_rows_do(filled: Pipeline) -> None:
    first = filled.complete(aggregate)
    stored = filled.documents("embedding")
    expected = records(filled)
    assert first["written"] == len(stored) == len(expected)
    by_key = {key.rpartition(":")[0]: row for key, row in stored.items()}
    for key, record in expected.items():
        for name in ("teamId", "siteId", "sourceType", "content", "summary"):
            assert by_key[key][name] == record[name], key
        assert by_key[key]["metadata"]["facts"] == record["metadata"]["facts"]
    again = filled.complete(aggregate)
    assert (again["written"], again["unchanged"], again["embedded"]) == (0, len(stored), 0)
    compared = filled.complete(reconcile, sources=["aggregates"])
    assert (compared["compared"], compared["mended"]) == (len(stored), 0)
    row = dated(filled)
    filled.transactions.delete_one({"_id": row["_id"]})
    last = filled.complete(aggregate)
    assert last["embedded"] < 40
    assert {key.rpartition(":")[0] for key in filled.documents("embedding")} == records(filled).keys()


@pytest.mark.long
def test_rows_figures_or_both_are_stored_as_is_chosen_and_a_dry_run_tells_the_cost_of_each(filled: Pipeline) -> None:
    planned = filled.migrate(documents="both", dry_run=True)
    assert filled.documents() == {}
    choices = planned["choices"]
    assert {name: choices["both"][name] for name in ("read", "written", "tokens")} == {
        name: choices["rows"][name] + choices["aggregates"][name] for name in ("read", "written", "tokens")
    }
    figures = filled.migrate(documents="aggregates")
    assert (figures["written"], figures["tokens"]) == (
        choices["aggregates"]["written"],
        choices["aggregates"]["tokens"],
    )
    assert {key.partition(":")[0] for key in filled.documents("embedding")} == {"aggregate"}
    both = filled.migrate(documents="both")
    assert both["by_source"]["aggregate"]["written"] == 0
    assert both["by_source"]["transaction"]["tokens"] == choices["rows"]["tokens"]
    assert "figures are made of transactions and sessions" in filled.refusal(
        flow=migrate, sources=["websites"], documents="aggregates"
    )


@pytest.mark.long
def test_nobody_reads_figures_of_another_team(filled: Pipeline) -> None:
    compute(filled)
    contracts = filled.source["smartcontracts"].find({"contractId": {"$type": "string"}})
    team_of = {row["contractId"]: row.get("team") for row in contracts}
    site_team = {
        row["siteId"]: row.get("team") for row in filled.source["websites"].find({"siteId": {"$type": "string"}})
    }
    checked = 0
    for row in records(filled).values():
        scope, holder = row["metadata"]["facts"]["scope"], row["holderId"]
        if scope == "contract":
            assert row["teamId"] == team_of[holder]
        elif scope in ("team", "chain"):
            assert str(row["teamId"]) == holder
        elif site_team[holder]:
            assert row["teamId"] == site_team[holder]
        checked += 1
    assert checked > 300
