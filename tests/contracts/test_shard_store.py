"""The shard store wherever its files lie: a folder of one machine, one that machines mount, a bucket of a real S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from bson import ObjectId
from bson.timestamp import Timestamp
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import SecretStr, ValidationError

from blocks.object_store import ObjectStore
from blocks.s3 import S3Bucket
from blocks.shards import ShardStore
from blocks.shared_folder import SharedFolder
from deployments.config_check import check_configuration
from deployments.embedded import S3Server
from deployments.settings import Settings
from tasks.domain.errors import ShardDamagedError, TerminalError, TransientError
from tasks.domain.shards import ShardFile, ShardRange
from tests.end_to_end.pipeline import prefect_client

RUN, OTHER_RUN = "20260301T120000-0123abcd", "20260301T120000-0123abce"
TABLE = pa.table({"text": ["one", "two", "three"], "number": [1, 2, 3]})
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
HASHES = [b"a" * 16, b"b" * 16, b"c" * 16]
TOKENS = [10, 20, 30]
PROJECT = Path(__file__).resolve().parents[2]
DAY_S = 86_400

#: Another process: keeps reply after reply until it is killed, and says the number of each that was kept.
KEEP_FOR_EVER = """
import json, sys
import numpy as np
from blocks.shards import ShardStore
settings, run_key = json.loads(sys.stdin.readline())
store = ShardStore.model_validate(settings)
print("scratch", store.run_folder(run_key), flush=True)
with store.paid_texts(run_key, shard=7) as paid:
    for number in range(100_000):
        hashes = [(number * 10 + text).to_bytes(16, "big") for text in range(10)]
        paid.keep(hashes, np.full((10, 1536), number, np.float32), tokens=[1] * 10, shard=7)
        print(number, flush=True)
"""


@dataclass(frozen=True)
class Place:
    """Where the files of a test lie, seen from several machines and from behind."""

    kind: str
    root: Path
    bucket: S3Bucket | None

    def settings(self, machine: str) -> dict[str, Any]:
        """Return what makes the store on a machine, in plain values, its secrets too."""
        if self.kind == "folder":  # there is one machine; its processes share the folder
            return {"folder": str(self.root / "shards")}
        scratch = {"folder": str(self.root / machine)}
        if self.kind == "shared":
            return {**scratch, "shared": str(self.root / "mounted")}
        assert self.bucket is not None
        fields = {name: getattr(self.bucket, name) for name in S3Bucket.model_fields}
        shown = {k: v.get_secret_value() if isinstance(v, SecretStr) else v for k, v in fields.items()}
        return {**scratch, "bucket": shown}

    def store(self, machine: str = "a") -> ShardStore:
        return ShardStore.model_validate(self.settings(machine))

    @property
    def objects(self) -> ObjectStore:
        """The place from behind, past the store."""
        if self.bucket is not None:
            return self.bucket
        return SharedFolder(self.root / ("shards" if self.kind == "folder" else "mounted"))

    def names(self) -> list[str]:
        return [found.name for found in self.objects.list_objects()]

    def change(self, name: str, spoil: Callable[[bytes], bytes]) -> None:
        content = self.objects.get(name)
        assert content is not None
        self.objects.put(name, spoil(content))


@pytest.fixture(params=["folder", "shared", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    (tmp_path / "mounted").mkdir()
    bucket = request.getfixturevalue("bucket") if request.param == "s3" else None
    return Place(request.param, tmp_path, bucket)


@pytest.fixture(params=["shared", "s3"])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Only where machines share: what is kept are objects."""
    (tmp_path / "mounted").mkdir()
    bucket = request.getfixturevalue("bucket") if request.param == "s3" else None
    return Place(request.param, tmp_path, bucket)


def keep(store: ShardStore, some: slice, *, shard: int) -> None:
    with store.paid_texts(RUN, shard=shard) as paid:
        paid.keep(HASHES[some], VECTORS[some], tokens=TOKENS[some], shard=shard)


# tables


def test_a_table_comes_back_as_it_was_written_here_and_on_another_machine(place: Place) -> None:
    file = place.store("a").write_table(RUN, "000001.rows", TABLE)
    assert file.rows == 3
    for machine in ("a", "b", "b"):
        assert place.store(machine).read_table(file).equals(TABLE)


def test_writing_again_replaces_the_file_also_for_a_machine_that_has_read_it(place: Place) -> None:
    first = place.store("a").write_table(RUN, "000001.rows", TABLE)
    assert place.store("b").read_table(first).equals(TABLE)
    second = place.store("a").write_table(RUN, "000001.rows", TABLE.slice(1))
    assert place.store("b").read_table(second).equals(TABLE.slice(1))
    with pytest.raises(ShardDamagedError):
        place.store("c").read_table(first)
    assert place.names() == [f"{RUN}/000001.rows.arrow"]


def test_a_missing_file_is_damaged(place: Place) -> None:
    file = place.store("a").write_table(RUN, "000001.rows", TABLE)
    place.objects.delete_under(f"{RUN}/000001.rows")
    with pytest.raises(ShardDamagedError, match=r"000001\.rows is gone"):
        place.store("b").read_table(file)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: b"", id="emptied"),
        pytest.param(lambda content: content[:100], id="cut-short"),
        pytest.param(lambda content: content[:-1], id="one-byte-short"),
        pytest.param(lambda content: content + b"\0", id="grown"),
        pytest.param(lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:], id="one-bit"),
    ],
)
def test_a_file_that_is_not_the_one_that_was_written_is_damaged(place: Place, spoil: Callable[[bytes], bytes]) -> None:
    file = place.store("a").write_table(RUN, "000001.rows", TABLE)
    place.change(f"{file.name}.arrow", spoil)
    for _ in range(2):
        with pytest.raises(ShardDamagedError):
            place.store("b").read_table(file)


def test_a_spoiled_copy_is_fetched_again(shared_place: Place) -> None:
    store = shared_place.store("a")
    file = store.write_table(RUN, "000001.rows", TABLE)
    [copy] = store.run_folder(RUN).glob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:-3])
    assert store.read_table(file).equals(TABLE)


def test_a_table_is_read_while_its_shard_is_dropped(place: Place) -> None:
    writer, reader = place.store("a"), place.store("b")
    file = writer.write_table(RUN, "000001.rows", TABLE)
    table = reader.read_table(file)
    writer.drop_shard(RUN, 1)
    reader.drop_shard(RUN, 1)
    assert table.equals(TABLE)


# the plan


def test_a_plan_comes_back_on_every_machine_with_ids_of_any_type_and_its_moment(place: Place) -> None:
    plan = [
        ShardRange(0, None, ObjectId("64c000000000000000000001"), 5_000),
        ShardRange(1, ObjectId("64c000000000000000000001"), "text", 17),
        ShardRange(2, "text", None, 0),
    ]
    assert place.store("b").read_plan(RUN) is None
    assert place.store("b").read_operation_time(RUN) is None
    place.store("a").write_plan(RUN, plan, operation_time=Timestamp(7, 1))
    assert place.store("b").read_plan(RUN) == plan
    assert place.store("b").read_operation_time(RUN) == Timestamp(7, 1)
    place.store("b").write_plan(RUN, plan[:1])
    assert place.store("a").read_plan(RUN) == plan[:1]
    assert place.store("a").read_operation_time(RUN) is None


# what was paid for


def test_another_machine_finds_what_was_paid_for_with_its_vectors_and_tokens(place: Place) -> None:
    keep(place.store("a"), slice(0, 2), shard=1)
    keep(place.store("a"), slice(2, 3), shard=1)
    with place.store("b").paid_texts(RUN, shard=1) as paid:
        found = paid.find([*HASHES[::-1], b"x" * 16])
        assert {key: vector.tolist() for key, vector in found.items()} == {
            key: row.tolist() for key, row in zip(HASHES, VECTORS, strict=True)
        }
        assert paid.paid_by(1) == (3, 60)
        assert paid.paid_by(2) == (0, 0)


def test_without_a_shard_what_was_kept_for_any_is_found(place: Place) -> None:
    keep(place.store("a"), slice(0, 1), shard=1)
    keep(place.store("a"), slice(1, 3), shard=2)
    with place.store("b").paid_texts(RUN) as paid:
        assert paid.find(HASHES).keys() == set(HASHES)
        assert (paid.paid_by(1), paid.paid_by(2)) == ((1, 10), (2, 50))


def test_a_shard_is_taken_over_and_handed_on(place: Place) -> None:
    for number, machine in enumerate("abc"):
        keep(place.store(machine), slice(number, number + 1), shard=1)
    with place.store("a").paid_texts(RUN, shard=1) as paid:
        assert paid.find(HASHES).keys() == set(HASHES)
        assert paid.paid_by(1) == (3, 60)


def test_a_text_that_two_shards_paid_for_counts_for_both(place: Place) -> None:
    keep(place.store("a"), slice(0, 1), shard=1)
    keep(place.store("b"), slice(0, 1), shard=2)
    with place.store("c").paid_texts(RUN) as paid:
        assert (paid.paid_by(1), paid.paid_by(2)) == ((1, 10), (1, 10))
        assert paid.find(HASHES)[HASHES[0]].tolist() == VECTORS[0].tolist()


def test_a_text_of_another_run_is_another_text(place: Place) -> None:
    keep(place.store("a"), slice(0, 3), shard=1)
    with place.store("a").paid_texts(OTHER_RUN, shard=1) as paid:
        assert paid.find(HASHES) == {}
        assert paid.paid_by(1) == (0, 0)


def test_many_threads_never_pay_twice_for_the_same_text(place: Place) -> None:
    hashes = [number.to_bytes(16, "big") for number in range(40)]
    paid_for: list[bytes] = []
    store = place.store()

    def embed_all(shard: int) -> None:
        with store.paid_texts(RUN, shard=shard) as texts:
            left = list(hashes)
            while left:
                known = texts.find(left)
                mine, others = texts.claim([key for key in left if key not in known])
                again = texts.find(mine)  # kept by another between the look and the claim
                texts.release(list(again))
                todo = [key for key in mine if key not in again]
                paid_for.extend(todo)
                if todo:
                    texts.keep(todo, np.ones((len(todo), 4), np.float32), tokens=[1] * len(todo), shard=shard)
                texts.wait(others)
                left = others

    threads = [threading.Thread(target=embed_all, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(paid_for) == hashes


@pytest.fixture
def killed_keeper(place: Place) -> tuple[int, Path]:
    """A process that was killed while it kept replies: how many it had said to be kept, and its scratch folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEP_FOR_EVER],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps([place.settings("a"), RUN]) + "\n")
        process.stdin.flush()
        said = [process.stdout.readline().strip() for _ in range(9)]
        process.kill()
        said += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait(60)
    finally:
        process.kill()
        process.wait(60)
        process.stdin.close()
        process.stdout.close()
    return int(said[-1]) + 1, Path(said[0].partition(" ")[2])


def test_what_a_killed_process_had_kept_is_found_elsewhere_and_its_scratch_goes_with_the_next_process_there(
    place: Place, killed_keeper: tuple[int, Path]
) -> None:
    kept, scratch = killed_keeper
    assert kept >= 8
    hashes = [number.to_bytes(16, "big") for number in range((kept + 3) * 10)]
    with place.store("b").paid_texts(RUN, shard=7) as paid:
        found = paid.find(hashes)
        assert found.keys() >= set(hashes[: kept * 10])
        for key, vector in found.items():
            assert (vector == int.from_bytes(key, "big") // 10).all()
            assert len(vector) == 1536
        # At most the one reply that was under way is there unsaid.
        assert len(found) in (kept * 10, kept * 10 + 10)
        assert paid.paid_by(7) == (len(found), len(found))
    if place.kind != "folder":  # a folder of one machine needs no scratch
        assert list(scratch.iterdir())
        place.store("a").run_folder(RUN)
        assert not scratch.exists()


#: What can become of a reply's object.
SPOILED_REPLIES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "no header": lambda content: content[:10],
    "one byte short": lambda content: content[:-1],
    "grown": lambda content: content + b"\0",
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "foreign": lambda content: b"something else entirely, and longer than a header",
}


def test_a_reply_that_is_not_whole_is_paid_for_again_and_the_others_are_not(shared_place: Place) -> None:
    hashes = {how: bytes([number]) * 16 for number, how in enumerate((*SPOILED_REPLIES, "whole"))}
    objects: dict[str, str] = {}
    with shared_place.store("a").paid_texts(RUN, shard=1) as paid:
        for how, key in hashes.items():
            paid.keep([key], VECTORS[:1], tokens=[10], shard=1)
            [objects[how]] = set(shared_place.names()) - set(objects.values())
    for how, spoil in SPOILED_REPLIES.items():
        shared_place.change(objects[how], spoil)
    store = shared_place.store("b")
    with store.paid_texts(RUN, shard=1) as paid:
        assert paid.find(list(hashes.values())).keys() == {hashes["whole"]}
        again = [hashes[how] for how in SPOILED_REPLIES]
        paid.keep(again, VECTORS[[0] * len(again)], tokens=[10] * len(again), shard=1)
    with shared_place.store("c").paid_texts(RUN, shard=1) as paid:
        assert paid.find(list(hashes.values())).keys() == set(hashes.values())
        assert paid.paid_by(1) == (7, 70)


def test_a_reply_that_the_shared_place_did_not_take_is_kept_by_this_process(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    place = Place("shared", tmp_path, None)
    with place.store().paid_texts(RUN, shard=1) as paid:
        (tmp_path / "mounted").rename(tmp_path / "gone")
        with pytest.raises(TerminalError, match="CRYPTIQUE_SHARDS"):
            paid.keep(HASHES, VECTORS, tokens=TOKENS, shard=1)
        (tmp_path / "gone").rename(tmp_path / "mounted")
    with place.store().paid_texts(RUN, shard=1) as paid:
        assert paid.find(HASHES).keys() == set(HASHES)


def test_one_object_a_reply_lies_under_its_shard(shared_place: Place) -> None:
    for shard in (1, 1, 12):
        keep(shared_place.store(), slice(0, 3), shard=shard)
    folders = [name.rpartition("/")[0] for name in shared_place.names()]
    assert folders == [f"{RUN}/paid/000001", f"{RUN}/paid/000001", f"{RUN}/paid/000012"]


# the end of things


def test_a_dropped_shard_leaves_nothing_but_its_texts_in_this_process(place: Place) -> None:
    store = place.store()
    file = store.write_table(RUN, "000001.rows", TABLE)
    keep(store, slice(0, 3), shard=1)
    store.drop_shard(RUN, 1)
    store.drop_shard(RUN, 1)
    with pytest.raises(ShardDamagedError):
        store.read_table(file)
    with store.paid_texts(RUN, shard=2) as paid:
        assert paid.find(HASHES).keys() == set(HASHES)
        assert paid.paid_by(1) == (3, 60)
    if place.kind != "folder":
        assert place.names() == []


def test_dropping_a_shard_leaves_the_others_and_the_plan(place: Place) -> None:
    store = place.store()
    for name in ("000001.rows", "000001.chunks", "000011.rows"):
        store.write_table(RUN, name, TABLE)
    store.write_plan(RUN, [ShardRange(0, None, None, 1)])
    keep(store, slice(0, 1), shard=1)
    keep(store, slice(1, 2), shard=11)
    store.drop_shard(RUN, 1)
    assert {name.split("/")[1] for name in place.names()} >= {"000011.rows.arrow", "plan.bson"}
    assert not any("000001" in name for name in place.names())
    with place.store("b").paid_texts(RUN, shard=11) as paid:
        assert HASHES[1] in paid.find(HASHES)


def test_a_dropped_run_leaves_nothing_and_other_runs_stay(place: Place) -> None:
    store = place.store()
    other = store.write_table(OTHER_RUN, "000001.rows", TABLE)
    longer = store.write_table(f"{RUN}0", "000001.rows", TABLE)
    store.write_table(RUN, "000001.rows", TABLE)
    store.write_plan(RUN, [])
    keep(store, slice(0, 3), shard=1)
    store.drop_run(RUN)
    store.drop_run(RUN)
    assert sorted(name.split("/")[0] for name in place.names()) == sorted([OTHER_RUN, f"{RUN}0"])
    assert not store.run_folder(RUN).exists()
    for file in (other, longer):
        assert place.store("b").read_table(file).equals(TABLE)
    with store.paid_texts(RUN, shard=1) as paid:
        assert paid.find(HASHES) == {}


def test_copies_go_with_their_shard(shared_place: Place) -> None:
    store = shared_place.store("b")
    file = shared_place.store("a").write_table(RUN, "000001.rows", TABLE)
    store.read_table(file)
    assert list(store.run_folder(RUN).glob("*.arrow"))
    store.drop_shard(RUN, 1)
    assert not list(store.run_folder(RUN).glob("*.arrow*"))


def test_a_run_that_was_given_up_is_swept_and_nothing_that_is_no_run(place: Place) -> None:
    store = place.store()
    store.write_table(RUN, "000001.rows", TABLE)
    keep(store, slice(0, 3), shard=1)
    place.objects.put("backups/000001.rows.arrow", b"somebody else's")
    now_s = time.time()
    assert store.sweep(now_s=now_s) == 0
    assert store.sweep(now_s=now_s + 7 * DAY_S) == 0
    assert store.read_plan(RUN) is None
    assert len(place.names()) >= 3
    assert store.sweep(now_s=now_s + 9 * DAY_S) == 1
    assert store.sweep(now_s=now_s + 9 * DAY_S) == 0
    assert place.names() == ["backups/000001.rows.arrow"]


def test_an_empty_place_has_nothing_to_sweep(place: Place) -> None:
    assert place.store().sweep(now_s=time.time()) == 0


# what can't be used


def test_a_shared_folder_that_is_not_mounted_is_a_persons_task_and_no_empty_store(tmp_path: Path) -> None:
    store = ShardStore(folder=tmp_path / "a", shared=tmp_path / "not-mounted")
    for call in (
        lambda: store.read_plan(RUN),
        lambda: store.write_plan(RUN, []),
        lambda: store.write_table(RUN, "000001.rows", TABLE),
        lambda: store.sweep(now_s=time.time()),
        store.check,
    ):
        with pytest.raises(TerminalError, match=r"not-mounted.*CRYPTIQUE_SHARDS"):
            call()
    assert not (tmp_path / "not-mounted").exists()


def test_a_bucket_that_does_not_answer_is_for_the_retry(bucket: S3Bucket, tmp_path: Path) -> None:
    silent = bucket.model_copy(update={"endpoint": "http://127.0.0.1:9", "attempts": 1})
    silent._client = None
    store = ShardStore(folder=tmp_path, bucket=silent)
    with pytest.raises(TransientError):
        store.write_table(RUN, "000001.rows", TABLE)
    with pytest.raises(TransientError):
        store.read_plan(RUN)


def test_files_lie_in_one_place(bucket: S3Bucket, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not in both"):
        ShardStore(folder=tmp_path, shared=tmp_path, bucket=bucket)


# as a registered block


@pytest.fixture
def block_name(prefect_api: str) -> Iterator[str]:
    name = f"shards-{uuid4().hex[:8]}"
    yield name
    ShardStore.delete(name, _sync=True)  # type: ignore[call-arg]


@task(cache_policy=NO_CACHE)
def count_rows(store: ShardStore, file: ShardFile) -> int:
    return int(store.read_table(file).num_rows)


@flow
def read_in_tasks(store: ShardStore, files: list[ShardFile]) -> list[int]:
    return [future.result() for future in [count_rows.submit(store, file) for file in files]]


def test_a_registered_block_finds_its_files_and_the_server_shows_no_key(place: Place, block_name: str) -> None:
    file = place.store("a").write_table(RUN, "000001.rows", TABLE)
    place.store("b").save(block_name, _sync=True)  # type: ignore[call-arg]
    loaded = ShardStore.load(block_name, _sync=True)  # type: ignore[call-arg]
    assert isinstance(loaded, ShardStore)
    assert read_in_tasks(loaded, [file] * 3) == [3, 3, 3]
    with prefect_client() as client:
        answer = client.request("POST", "/block_documents/filter", json={"include_secrets": False})
    assert block_name in answer.text
    if place.bucket is not None:
        for key in (place.bucket.access_key, place.bucket.secret_key):
            assert key is not None
            assert key.get_secret_value() not in answer.text


# as settings


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)

    def set_to(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


def shard_finding() -> tuple[bool, str]:
    [found] = [finding for finding in check_configuration() if finding.what == "shard files"]
    return found.problem, found.says


def test_the_check_tries_the_bucket_of_the_settings(s3: S3Server, settings_of: Callable[..., None]) -> None:
    prefix = f"check-{uuid4().hex[:8]}"
    settings_of(
        CRYPTIQUE_SHARDS=f"s3://{s3.bucket}/{prefix}/",
        CRYPTIQUE_S3_ENDPOINT=s3.endpoint,
        CRYPTIQUE_S3_ACCESS_KEY=s3.access_key,
        CRYPTIQUE_S3_SECRET_KEY=s3.secret_key,
    )
    assert shard_finding() == (False, f"bucket {s3.bucket} at {s3.endpoint}")
    settings_of(CRYPTIQUE_S3_SECRET_KEY="not-the-secret")
    problem, says = shard_finding()
    assert problem
    assert "CRYPTIQUE_S3_SECRET_KEY" in says
    assert "not-the-secret" not in says
    settings_of(CRYPTIQUE_S3_SECRET_KEY="")
    assert any("go together" in finding.says for finding in check_configuration())


def test_the_check_tries_the_shared_folder_of_the_settings(tmp_path: Path, settings_of: Callable[..., None]) -> None:
    shared = tmp_path / "mounted"
    settings_of(CRYPTIQUE_SHARDS=f"shared:{shared}")
    problem, says = shard_finding()
    assert problem
    assert "mount it" in says
    shared.mkdir()
    problem, says = shard_finding()
    assert not problem
    assert str(shared) in says
    assert list(shared.iterdir()) == []
