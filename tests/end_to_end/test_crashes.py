"""Crashes other than a kill: a full disk, files that are cut short, a source that changes meanwhile, a wrong clock.

``test_resume.py`` kills runs, ``test_chaos.py`` kills everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from blocks.vector_store import VectorStore
from deployments.register_blocks import make_blocks
from flows.ingest import ingest
from tasks.domain.quotas import quota_day
from tests.chaos.disk import UNSHARE, may_mount
from tests.chaos.proof import files_in
from tests.end_to_end.pipeline import (
    HeldRequest,
    Pipeline,
    Record,
    SourceData,
    beside,
    comparable,
    open_pipeline,
    repeated,
    wait_for,
)
from tests.loopback.gemini import LoopbackGemini

CHECK = "transaction"
ROOT = Path(__file__).resolve().parents[2]
MIGRATE = ("-c", "import json, sys; from flows.migrate import migrate; migrate(**json.loads(sys.argv[1]))")
#: Three shards of one request each, one after the other: requests are counted from 0, the first is the check.
ROWS, BY_SHARD = 300, {"shard_rows": 100, "shards_in_flight": 1}
FIRST, SECOND, THIRD = 1, 2, 3
A_DAY_S = 86_400
DURABLE = {"w": "majority", "j": True}


def paid(server: LoopbackGemini) -> Counter[str]:
    return Counter({text: times for text, times in server.embedded.items() if text != CHECK})


@contextmanager
def elsewhere(
    pipeline: Pipeline, api_url: str, *command: str, name: str = "elsewhere"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python in a process of its own, which talks to the same servers; it is killed if it still runs in the end."""
    pipeline.register()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(pipeline.home / name / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(pipeline.home / name / "results"),
    }
    log = log_of(pipeline, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def log_of(pipeline: Pipeline, name: str = "elsewhere") -> Path:
    return pipeline.home / name / "log"


def migrating(**parameters: Any) -> tuple[str, ...]:
    return (sys.executable, *MIGRATE, json.dumps(parameters))


def by_clock(file: Path, *machine: str, **parameters: Any) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.chaos.clock", str(file), json.dumps(parameters), *machine)


class Held(HeldRequest):
    """A held request that can be looked for without waiting."""

    @property
    def has_arrived(self) -> bool:
        return self._arrived.is_set()


def happens(
    process: subprocess.Popen[bytes], pipeline: Pipeline, look: Callable[[], bool], name: str = "elsewhere"
) -> Callable[[], bool | None]:
    """Return a look at whether it happened, which fails with the log once the process has ended without."""

    def found() -> bool | None:
        if look():
            return True
        if process.poll() is not None:
            pytest.fail(f"it ended: {log_of(pipeline, name).read_text()[-3_000:]}")
        return None

    return found


def reach(held: Held, process: subprocess.Popen[bytes], pipeline: Pipeline) -> None:
    """Return when the held request is there; fail with the log if the process ends without it."""
    wait_for(happens(process, pipeline, lambda: held.has_arrived), what="the held request", seconds=240)


def complete(process: subprocess.Popen[bytes], pipeline: Pipeline, name: str = "elsewhere") -> str:
    """Return what a process said that must end well."""
    code = process.wait(timeout=240)
    said = log_of(pipeline, name).read_text()
    assert code == 0, said[-3_000:]
    return said


@pytest.fixture(scope="module")
def undisturbed(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Record]:
    """What a run without any trouble stores of the rows of most tests here."""
    home = tmp_path_factory.mktemp("undisturbed")
    with open_pipeline(mongo_uri, mongo_client, home) as pipeline, LoopbackGemini() as server:
        pipeline.load(source_data, source_data.some(ROWS))
        pipeline.use_gemini(server)
        pipeline.migrate(**BY_SHARD)
        return comparable(pipeline.documents())


def as_if_migrated_now(pipeline: Pipeline) -> dict[str, Record]:
    """Return what a migration of the source as it stands stores in an empty store."""
    name = f"{pipeline.store.name}_now"
    now = Pipeline(
        pipeline.uri, pipeline.store.client, pipeline.home / "now", source=pipeline.source.name, vectors=name
    )
    with LoopbackGemini() as server:
        now.use_gemini(server)
        now.migrate()
    documents = comparable(now.documents(), "version")
    now.empty_store()
    return documents


def assert_nothing_is_left(pipeline: Pipeline) -> None:
    assert files_in(pipeline.home / "shards") == []
    assert pipeline.store["ragcheckpoints"].count_documents({}) == 0
    assert {job["status"] for job in pipeline.jobs()} == {"completed"}


# -- what a checkpoint promises ----------------------------------------------------------------------------


@pytest.mark.long
def test_a_checkpoint_is_asked_for_when_all_its_data_is_acknowledged_by_a_majority_and_journaled(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str, tmp_path: Path
) -> None:
    rows = source_data.some(ROWS)
    pipeline.load(source_data, [{**row, "value_eth": "NaN"} if at % 50 == 0 else row for at, row in enumerate(rows)])
    told = tmp_path / "writes"
    parameters = json.dumps({"shard_rows": 50, "shards_in_flight": 4})
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        command = (sys.executable, "-m", "tests.chaos.writes", str(told), parameters)
        with elsewhere(pipeline, prefect_api, *command) as process:
            complete(process, pipeline)
    writes = [json.loads(line) for line in told.read_text().splitlines()]
    kept = ("vectordocuments", "deadletters", "ragcheckpoints")
    assert {write["collection"] for write in writes} >= set(kept)
    assert [write for write in writes if write["concern"] != DURABLE and write["collection"] in kept] == []
    acknowledged: set[str] = set()
    promised: set[str] = set()
    for write in writes:
        if write["collection"] == "vectordocuments":
            acknowledged.update(write["records"])
        elif write["collection"] == "ragcheckpoints":
            assert set(write["records"]) <= acknowledged
            promised.update(write["records"])
    assert promised == {str(record) for record in pipeline.stored_source_ids()}


# -- a full disk -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_full_disk_is_told_with_what_to_do_and_once_there_is_room_the_run_goes_on(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], prefect_api: str, tmp_path: Path
) -> None:
    shards, signs = pipeline.home / "shards", tmp_path / "signs"
    for folder in (shards, signs):
        folder.mkdir(parents=True)
    if not may_mount(shards):
        pytest.skip("this machine lets nobody mount a disk of his own")
    pipeline.load(source_data, source_data.some(ROWS))
    held = Held()
    held.hold(1 + SECOND)  # the first run asks only whether the embedder answers
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        command = ("-m", "tests.chaos.disk", str(shards), str(signs), json.dumps(BY_SHARD))
        with elsewhere(pipeline, prefect_api, *UNSHARE, sys.executable, *command) as process:
            reach(held, process, pipeline)
            (signs / "fill").touch()
            wait_for(lambda: True if (signs / "filled").exists() else None, what="the full disk")
            held.release()
            said = complete(process, pipeline)
        full, filling, with_room = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
        payments = Counter(paid(server).values())
    for run in (full, filling):
        assert not run["completed"]
        assert "TerminalError: can't write to" in run["message"]
        assert "Free space there, or point CRYPTIQUE_HOME" in run["message"]
    assert (with_room["completed"], with_room["left"]) == (True, [])
    # The one reply that came when there was no room for it is paid for again.
    assert payments.keys() == {1, 2}
    assert payments[2] <= BY_SHARD["shard_rows"]
    assert comparable(pipeline.documents()) == undisturbed
    assert [job["status"] for job in pipeline.jobs()] == ["failed", "completed"]


# -- files that are cut short ------------------------------------------------------------------------------


@pytest.mark.long
def test_a_shard_file_that_is_cut_short_under_a_running_migration_is_made_again_and_nothing_is_paid_again(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], prefect_api: str
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    held = Held()
    held.hold(SECOND)
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        with elsewhere(pipeline, prefect_api, *migrating(**BY_SHARD)) as process:
            reach(held, process, pipeline)
            (file,) = (pipeline.home / "shards").rglob("000001.chunks.arrow")
            os.truncate(file, file.stat().st_size // 2)
            held.release()
            said = complete(process, pipeline)
        assert "shard 1 runs again: the shard file" in said
        assert set(paid(server).values()) == {1}
    assert comparable(pipeline.documents()) == undisturbed
    assert_nothing_is_left(pipeline)


@pytest.mark.parametrize("kept_share", [0.0, 0.5])
@pytest.mark.long
def test_a_plan_that_is_cut_short_is_made_again(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], kept_share: float
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini(faults=lambda index: "403" if index >= SECOND else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.refusal(**BY_SHARD)
        (plan,) = (pipeline.home / "shards").rglob("plan.bson")
        os.truncate(plan, int(plan.stat().st_size * kept_share))
        server.faults = ()
        report = pipeline.migrate(**BY_SHARD)
        assert (report["read"], report["written"], report["unchanged"]) == (ROWS, 200, 100)
        again = {text for text, times in paid(server).items() if times > 1}
    # What was stored is found. Paid again is only a text that records of the first shard and of later ones have.
    contents = Counter(row["content"] for row in pipeline.documents().values())
    assert all(contents[text] > 1 for text in again)
    assert comparable(pipeline.documents()) == undisturbed


@pytest.mark.long
def test_an_index_of_paid_texts_that_a_crash_spoiled_costs_those_texts_and_no_more(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record]
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    # The third request of the second shard fails: two of its replies are kept by then.
    with LoopbackGemini(faults=lambda index: "403" if index >= 4 else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.refusal(shard_rows=150, shards_in_flight=1)
        kept = len(paid(server))
        for path in (pipeline.home / "shards").rglob("paid_replies.sqlite*"):
            path.write_bytes(b"not an index" * 1_000)
        server.faults = ()
        report = pipeline.migrate(shard_rows=150, shards_in_flight=1)
        assert report["resumed_shards"] == 1
        again = [text for text, times in paid(server).items() if times == 2]
        assert 0 < len(again) < kept
        assert not [text for text, times in paid(server).items() if times > 2]
    assert comparable(pipeline.documents()) == undisturbed
    assert_nothing_is_left(pipeline)


@pytest.mark.long
def test_what_a_run_left_that_was_killed_in_its_forecast_goes_with_the_run(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    shards = pipeline.home / "shards"
    parameters = {"shard_rows": 10}
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        with elsewhere(pipeline, prefect_api, *migrating(**parameters)) as process:
            look = happens(process, pipeline, lambda: any(shards.rglob("*.arrow")))
            wait_for(look, what="the first shard file", seconds=120)  # of the thirty that the forecast samples
            process.kill()
            process.wait()
        pipeline.migrate(**parameters)
    assert_nothing_is_left(pipeline)


# -- a source that changes while it is read ----------------------------------------------------------------


def change(pipeline: Pipeline, rows: Sequence[Record], number: int) -> dict[str, Any]:
    """Insert a record among these, change one and delete one; return their ids."""
    fresh = repeated(rows[4], number)
    pipeline.transactions.insert_one(fresh)
    pipeline.transactions.update_one({"_id": rows[5]["_id"]}, {"$set": {"method_name": "changedMeanwhile"}})
    pipeline.transactions.delete_one({"_id": rows[6]["_id"]})
    return {"fresh": fresh["_id"], "changed": rows[5]["_id"], "deleted": rows[6]["_id"]}


def spaced(rows: list[Record]) -> list[Record]:
    """Return the rows with ids that leave room between them."""
    return [repeated(row, 10 * (1 + at)) for at, row in enumerate(rows)]


def changed_rows(pipeline: Pipeline) -> set[ObjectId]:
    found = pipeline.store["vectordocuments"].find({"metadata.facts.method": "changedMeanwhile"})
    return {row["sourceId"] for row in found}


@pytest.mark.long
def test_each_shard_is_as_it_was_when_it_was_read_and_what_changed_behind_it_is_left_to_ingest(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = spaced(source_data.some(30))
    pipeline.load(source_data, rows)
    held = Held()
    held.hold(SECOND)
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        with beside(lambda: pipeline.migrate(shard_rows=10, shards_in_flight=1)) as running:
            held.wait(running)
            try:
                # The first shard is finished, the second is read, the third is not.
                changes = [change(pipeline, rows[at : at + 10], 10 * at + 55) for at in (0, 10, 20)]
            finally:
                held.release()
            report = running.result()
        behind, ahead = changes[:2], changes[2]
        assert changed_rows(pipeline) == {ahead["changed"]}
        stored = pipeline.stored_source_ids()
        assert ahead["fresh"] in stored
        assert not stored & {each["fresh"] for each in behind}
        assert not stored & {each["deleted"] for each in changes}
        # The third shard lost a record and got one; the two that came behind were told and left.
        assert (report["read"], report["arrived"]) == (30, 2)
        followed = pipeline.complete(ingest, until_idle=True)
        assert followed["caught_up"] is None
        assert changed_rows(pipeline) == {each["changed"] for each in changes}
    assert comparable(pipeline.documents(), "version") == as_if_migrated_now(pipeline)


@pytest.mark.long
def test_what_changes_while_a_killed_run_lies_still_is_taken_by_it_or_by_ingest_and_is_no_difference(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str
) -> None:
    rows = spaced(source_data.some(30))
    pipeline.load(source_data, rows)
    arrived = {number: threading.Event() for number in (FIRST, SECOND)}
    let_go = {number: threading.Event() for number in (FIRST, SECOND)}

    def hold(index: int) -> str | None:
        if index not in arrived:
            return None
        arrived[index].set()
        let_go[index].wait(240)
        return "drop" if index == FIRST else None

    parameters = {"shard_rows": 10, "shards_in_flight": 2}
    with LoopbackGemini(faults=hold) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=2)
        with elsewhere(pipeline, prefect_api, *migrating(**parameters)) as process:
            both = happens(process, pipeline, lambda: all(event.is_set() for event in arrived.values()))
            wait_for(both, what="both requests", seconds=240)
            # Two shards are read; the third loses a record before it is, and gets one after it is finished.
            pipeline.transactions.delete_one({"_id": rows[25]["_id"]})
            let_go[SECOND].set()
            checkpoints = pipeline.store["ragcheckpoints"]
            third = happens(process, pipeline, lambda: checkpoints.find_one({"shard": 2}) is not None)
            wait_for(third, what="the third shard", seconds=240)
            process.kill()
            process.wait()
        late = {**repeated(rows[0], 1), "_id": ObjectId()}
        pipeline.transactions.insert_one(late)
        changes = [change(pipeline, rows[at : at + 10], 10 * at + 55) for at in (0, 10)]
        let_go[FIRST].set()
        report = pipeline.migrate(**parameters)
        assert report["resumed_shards"] == 2
        assert late["_id"] not in pipeline.stored_source_ids()
        assert pipeline.complete(ingest, until_idle=True)["caught_up"] is None
        assert changed_rows(pipeline) == {each["changed"] for each in changes}
    assert comparable(pipeline.documents(), "version") == as_if_migrated_now(pipeline)


# -- two at once -------------------------------------------------------------------------------------------


class HoldsTexts(LoopbackGemini):
    """Answers the check of every process at once and all else only when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def _answer_texts(self, wanted: Any, texts: Sequence[str], **more: Any) -> Any:
        if set(texts) != {CHECK}:
            self.let_go.wait(240)
        return super()._answer_texts(wanted, texts, **more)


@pytest.mark.long
def test_many_that_make_a_new_store_at_once_do_not_trip_over_each_other(pipeline: Pipeline) -> None:
    stores = [make_blocks(pipeline.settings).vectors for _ in range(6)]
    together = threading.Barrier(len(stores))

    def initialise(store: VectorStore) -> None:
        store.check()
        together.wait()
        store.initialise(64)

    with ThreadPoolExecutor(len(stores)) as pool:
        for _ in range(5):  # who comes when is chance
            pipeline.empty_store()
            for made in [pool.submit(initialise, store) for store in stores]:
                made.result()
            assert stores[0].initialise(64).created == []


def test_of_two_migrations_that_are_started_at_once_one_does_the_work_and_the_other_refuses(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], prefect_api: str
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with HoldsTexts() as server:
        pipeline.use_gemini(server)
        command = migrating(**BY_SHARD)
        with (
            elsewhere(pipeline, prefect_api, *command, name="one") as one,
            elsewhere(pipeline, prefect_api, *command, name="two") as two,
        ):
            both = {"one": one, "two": two}

            def refused() -> str | None:
                return next((name for name, process in both.items() if process.poll() is not None), None)

            loser = wait_for(refused, what="one of the two to end", seconds=240)
            assert paid(server) == {}
            server.let_go.set()
            winner = "one" if loser == "two" else "two"
            complete(both[winner], pipeline, winner)
        assert both[loser].returncode == 1
        said = log_of(pipeline, loser).read_text()
        assert "is at this work right now" in said or "another run took up this work just now" in said
        assert set(paid(server).values()) == {1}
    (job,) = pipeline.jobs()
    assert (job["status"], job["retryConfig"]["retryCount"]) == ("completed", 0)
    assert comparable(pipeline.documents()) == undisturbed
    assert_nothing_is_left(pipeline)


# -- a clock that is wrong ---------------------------------------------------------------------------------


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """The clock of processes elsewhere: by how many seconds it is ahead."""
    file = tmp_path / "clock"
    file.write_text(str(A_DAY_S))
    return file


def spending(pipeline: Pipeline) -> Record:
    (row,) = pipeline.store["ragstore"].find({"_id": {"$regex": "^spending:"}})
    return row


@pytest.mark.long
def test_a_run_whose_clock_is_set_back_lives_on_and_counts_into_the_right_day(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], prefect_api: str, clock: Path
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    days = {quota_day(datetime.now(UTC)).name}
    held = Held()
    held.hold(SECOND)
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1, cryptique_gemini_texts_per_day=100_000)
        with elsewhere(pipeline, prefect_api, *by_clock(clock, **BY_SHARD)) as process:
            reach(held, process, pipeline)
            (first, *_) = pipeline.documents().values()
            assert first["createdAt"] > datetime.now(UTC) + timedelta(hours=23)  # it really was ahead
            clock.write_text("0")
            assert "is at this work right now" in pipeline.refusal(**BY_SHARD)
            held.release()
            complete(process, pipeline)
        assert set(paid(server).values()) == {1}
        counted = spending(pipeline)
        assert counted["day"] in days | {quota_day(datetime.now(UTC)).name}
        assert counted["texts"] == len(paid(server))
    (job,) = pipeline.jobs()
    assert job["completedAt"] < datetime.now(UTC) + timedelta(hours=1)
    assert comparable(pipeline.documents()) == undisturbed
    assert_nothing_is_left(pipeline)


@pytest.mark.long
def test_a_run_that_died_with_its_clock_ahead_is_taken_up_and_its_spending_stays_counted(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], prefect_api: str, clock: Path
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    held = Held(faults=lambda index: "drop" if index == SECOND else None)
    held.hold(SECOND)
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1, cryptique_gemini_texts_per_day=100_000)
        with elsewhere(pipeline, prefect_api, *by_clock(clock, **BY_SHARD)) as process:
            reach(held, process, pipeline)
            process.kill()
            process.wait()
        held.release()
        before, first = spending(pipeline), paid(server)
        assert before["texts"] > first.total()  # what was asked for and never answered stays counted
        report = pipeline.migrate(**BY_SHARD)
        assert report["resumed_shards"] == 1
        assert set(paid(server).values()) == {1}
        after = spending(pipeline)
        assert after["day"] == before["day"]
        assert after["texts"] == before["texts"] + paid(server).total() - first.total()
    assert comparable(pipeline.documents()) == undisturbed
    assert_nothing_is_left(pipeline)


@pytest.mark.long
def test_a_run_that_was_killed_is_taken_up_though_an_earlier_one_ended_when_the_clock_was_ahead(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], prefect_api: str, clock: Path
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    fault: dict[int, str] = {}
    held = Held(faults=fault.get)
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        with elsewhere(pipeline, prefect_api, *by_clock(clock, **BY_SHARD)) as process:
            complete(process, pipeline)
        pipeline.store["vectordocuments"].delete_many({})
        server.embedded.clear()
        second = server.request_count + SECOND
        fault[second] = "drop"
        held.hold(second)
        with elsewhere(pipeline, prefect_api, *migrating(**BY_SHARD)) as process:
            reach(held, process, pipeline)
            process.kill()
            process.wait()
        held.release()
        report = pipeline.migrate(**BY_SHARD)
        assert report["resumed_shards"] == 1
        assert set(paid(server).values()) == {1}
    assert comparable(pipeline.documents()) == undisturbed
    assert_nothing_is_left(pipeline)


@pytest.mark.long
def test_a_clock_that_is_behind_refuses_no_record(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str, clock: Path
) -> None:
    yesterday = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    pipeline.load(source_data, [{**row, "block_time": yesterday} for row in source_data.some(10)])
    clock.write_text(str(-30 * A_DAY_S))
    with elsewhere(pipeline, prefect_api, *by_clock(clock)) as process:
        complete(process, pipeline)
    assert pipeline.letters() == []
    assert len(pipeline.stored_source_ids()) == 10


@pytest.mark.long
def test_a_clock_that_is_behind_lets_no_checkpoint_expire(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str, clock: Path
) -> None:
    began = datetime.now(UTC) - timedelta(minutes=1)
    pipeline.load(source_data, source_data.some(ROWS))
    clock.write_text(str(-40 * A_DAY_S))
    held = Held()
    held.hold(SECOND)
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        with elsewhere(pipeline, prefect_api, *by_clock(clock, **BY_SHARD)) as process:
            reach(held, process, pipeline)
            (checkpoint,) = pipeline.store["ragcheckpoints"].find({})
            held.release()
            complete(process, pipeline)
    # MongoDB deletes them thirty days after this.
    assert checkpoint["createdAt"] > began


@pytest.mark.long
def test_a_clock_that_is_ahead_sweeps_no_run_that_can_be_taken_up(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str, clock: Path
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini(faults=lambda index: "403" if index >= SECOND else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.refusal(**BY_SHARD)
        server.faults = ()
        clock.write_text(str(30 * A_DAY_S))
        with elsewhere(pipeline, prefect_api, *by_clock(clock, limit=1)) as process:  # other work
            complete(process, pipeline)
        assert pipeline.migrate(**BY_SHARD)["resumed_shards"] == 1


@pytest.mark.long
def test_a_dead_run_of_another_machine_whose_clock_was_ahead_is_not_alive_for_ever(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record]
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini(faults=lambda index: "403" if index >= SECOND else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.refusal(**BY_SHARD)
        server.faults = ()
        # As that machine left it when it lost its power.
        left: Record = {
            "status": "processing",
            "workerId": "other:1:1:another-machine",
            "workerHost": "other",
            "updatedAt": datetime.now(UTC) + timedelta(days=30),
        }
        pipeline.store["embeddingjobs"].update_one({}, {"$set": left})
        assert pipeline.migrate(**BY_SHARD)["resumed_shards"] == 1
    assert comparable(pipeline.documents()) == undisturbed


@pytest.mark.long
@pytest.mark.parametrize("ahead_s", [-3_600, A_DAY_S])
def test_a_live_run_of_another_machine_is_left_alone_whatever_its_clock_says(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str, clock: Path, ahead_s: int
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    clock.write_text(str(ahead_s))
    held = Held()
    held.hold(SECOND)
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        with elsewhere(pipeline, prefect_api, *by_clock(clock, "another machine", **BY_SHARD)) as process:
            reach(held, process, pipeline)
            assert "is at this work right now" in pipeline.refusal(**BY_SHARD)
            held.release()
            complete(process, pipeline)
        assert set(paid(server).values()) == {1}
    (job,) = pipeline.jobs()
    assert (job["status"], job["retryConfig"]["retryCount"]) == ("completed", 0)
