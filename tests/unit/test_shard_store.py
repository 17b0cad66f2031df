"""The shard store's parts: the folder of one machine, the index of paid texts, replies, scratch, a shared folder.

What is the same wherever files lie is told in tests/contracts/test_shard_store.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.paid_texts import PaidTexts, Reply
from blocks.scratch import process_folder, sweep
from blocks.shards import ShardStore
from blocks.shared_folder import SharedFolder
from tasks.domain.errors import TerminalError, TransientError

PROJECT = Path(__file__).resolve().parents[2]
RUN = "run-1"
TABLE = pa.table({"text": ["one", "two", "three"], "number": [1, 2, 3]})
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
HASHES = [b"a" * 16, b"b" * 16, b"c" * 16]
TOKENS = [10, 20, 30]


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore(folder=tmp_path / "shards")


@pytest.fixture
def paid(store: ShardStore) -> Iterator[PaidTexts]:
    with store.paid_texts(RUN) as texts:
        yield texts


def only_file(store: ShardStore, pattern: str = "*.arrow") -> Path:
    [path] = store.run_folder(RUN).glob(pattern)
    return path


def test_a_disk_that_takes_no_file_is_a_persons_task_and_says_what_to_do(store: ShardStore) -> None:
    blocked = store.run_folder(RUN) / "000001.rows.arrow"
    blocked.mkdir(parents=True)
    with pytest.raises(TerminalError, match=r"000001\.rows\.arrow.*CRYPTIQUE_HOME.*run the same command again"):
        store.write_table(RUN, "000001.rows", TABLE)
    assert list(store.run_folder(RUN).iterdir()) == [blocked]


# what was paid for


def test_a_thousand_texts_are_found_in_one_question(paid: PaidTexts) -> None:
    hashes = [number.to_bytes(16, "big") for number in range(1_234)]
    vectors = np.arange(1_234 * 4, dtype=np.float32).reshape(-1, 4)
    for start in range(0, 1_234, 100):
        some = slice(start, start + 100)
        paid.keep(hashes[some], vectors[some], tokens=[1] * len(hashes[some]), shard=1)
    found = paid.find(hashes)
    assert all((found[key] == row).all() for key, row in zip(hashes, vectors, strict=True))


def test_another_process_finds_what_this_one_paid_for(store: ShardStore) -> None:
    with store.paid_texts(RUN) as one:
        one.keep(HASHES[:1], VECTORS[:1], tokens=TOKENS[:1], shard=1)
        with store.paid_texts(RUN) as two:
            assert two.find(HASHES)[HASHES[0]].tolist() == VECTORS[0].tolist()
            two.keep(HASHES[1:2], VECTORS[1:2], tokens=TOKENS[1:2], shard=2)
        assert one.find(HASHES).keys() == set(HASHES[:2])


@pytest.mark.parametrize("spoil", [lambda content: content[:-3], lambda content: content[:-9] + b"\xff" + content[-8:]])
def test_a_reply_that_a_crash_cut_short_or_damaged_was_not_paid_for_and_the_ones_before_it_were(
    store: ShardStore, spoil: Callable[[bytes], bytes]
) -> None:
    with store.paid_texts(RUN) as texts:
        texts.keep(HASHES[:2], VECTORS[:2], tokens=TOKENS[:2], shard=1)
        texts.keep(HASHES[2:], VECTORS[2:], tokens=TOKENS[2:], shard=1)
    path = only_file(store, "paid-*.replies")
    path.write_bytes(spoil(path.read_bytes()))
    with store.paid_texts(RUN) as texts:
        assert texts.find(HASHES).keys() == set(HASHES[:2])
        assert [list(reply.hashes) for reply in texts.replies_of(1)] == [HASHES[:2]]


def test_a_slice_of_a_larger_matrix_is_kept_as_its_own_rows(paid: PaidTexts) -> None:
    wide = np.arange(24, dtype=np.float64).reshape(3, 8)
    paid.keep(HASHES, wide[:, ::2], tokens=TOKENS, shard=1)
    assert paid.find(HASHES)[HASHES[2]].tolist() == [16.0, 18.0, 20.0, 22.0]


def test_a_text_is_claimed_by_one_caller_at_a_time(store: ShardStore, paid: PaidTexts) -> None:
    assert paid.claim(HASHES[:2]) == (HASHES[:2], [])
    with store.paid_texts(RUN) as other:
        assert other.claim(HASHES) == ([HASHES[2]], HASHES[:2])
        paid.release(HASHES[:2])
        assert other.claim(HASHES[:2]) == (HASHES[:2], [])
        other.release(HASHES)
    paid.release(HASHES)


def test_whoever_waits_finds_the_vector_as_soon_as_it_is_kept(store: ShardStore, paid: PaidTexts) -> None:
    found: dict[bytes, list[float]] = {}
    waiting = threading.Event()

    def wait_and_look() -> None:
        with store.paid_texts(RUN) as other:
            assert other.claim(HASHES[:1]) == ([], HASHES[:1])
            waiting.set()
            other.wait(HASHES[:1])
            found.update({key: vector.tolist() for key, vector in other.find(HASHES[:1]).items()})

    paid.claim(HASHES[:1])
    thread = threading.Thread(target=wait_and_look)
    thread.start()
    assert waiting.wait(30)
    assert found == {}
    paid.keep(HASHES[:1], VECTORS[:1], tokens=TOKENS[:1], shard=1)
    thread.join(30)
    assert found == {HASHES[0]: VECTORS[0].tolist()}


def test_whoever_waits_goes_on_when_the_claim_is_given_up(paid: PaidTexts) -> None:
    paid.claim(HASHES)
    thread = threading.Thread(target=paid.wait, args=(HASHES,))
    thread.start()
    paid.release(HASHES)
    thread.join(30)
    assert not thread.is_alive()
    assert paid.find(HASHES) == {}


def test_a_run_whose_folder_is_gone_starts_with_nothing_paid(store: ShardStore) -> None:
    with store.paid_texts(RUN) as texts:
        texts.keep(HASHES, VECTORS, tokens=TOKENS, shard=1)
    shutil.rmtree(store.folder)
    with store.paid_texts(RUN) as texts:
        assert texts.find(HASHES) == {}
        assert texts.paid_by(1) == (0, 0)


def test_a_block_that_was_registered_with_a_folder_alone_is_the_store_it_was(tmp_path: Path) -> None:
    store = ShardStore.model_validate({"folder": str(tmp_path / "shards")})
    assert not store.serves_several_machines
    assert store.run_folder(RUN) == tmp_path / "shards" / RUN
    file = store.write_table(RUN, "000001.rows", TABLE)
    assert file.size_bytes == only_file(store).stat().st_size


# a reply as bytes

REPLY = Reply(HASHES, TOKENS, VECTORS, 7)


def test_a_reply_comes_back_as_it_was() -> None:
    reply = Reply.from_bytes(REPLY.to_bytes())
    assert reply is not None
    assert (list(reply.hashes), list(reply.tokens), reply.shard) == (HASHES, TOKENS, 7)
    assert reply.vectors.tolist() == VECTORS.tolist()


@given(st.data())
def test_a_reply_with_any_part_missing_or_changed_is_none(data: st.DataObject) -> None:
    content = REPLY.to_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    assert Reply.from_bytes(content[:cut]) is None
    spoiled = bytearray(content)
    spoiled[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert Reply.from_bytes(bytes(spoiled)) is None
    assert Reply.from_bytes(content + data.draw(st.binary(min_size=1, max_size=9))) is None


@given(st.binary(max_size=200))
def test_bytes_that_are_no_reply_are_none(content: bytes) -> None:
    assert Reply.from_bytes(content) is None


# scratch


def test_a_process_has_one_folder_under_a_root_and_another_under_another(tmp_path: Path) -> None:
    first = process_folder(tmp_path / "one")
    assert process_folder(tmp_path / "one") == first
    assert process_folder(tmp_path / "two") != first
    assert first.is_dir()


def test_the_folder_of_a_process_goes_with_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from blocks.scratch import process_folder\n"
        "folder = process_folder(Path(sys.argv[1])); (folder / 'file').write_text('x'); print(folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_sweeping_leaves_living_processes_other_machines_and_strangers_alone(tmp_path: Path) -> None:
    mine = process_folder(tmp_path)
    (tmp_path / "elsewhere-17-0123abcd").mkdir()
    (tmp_path / "elsewhere-17-0123abcd.lock").touch()
    (tmp_path / "notes").mkdir()
    dead = tmp_path / mine.name.replace(str(os.getpid()), "1")
    dead.mkdir()
    dead.with_suffix(".lock").touch()
    assert sweep(tmp_path) == 1
    assert not dead.exists()
    assert not dead.with_suffix(".lock").exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        mine.name,
        f"{mine.name}.lock",
        "elsewhere-17-0123abcd",
        "elsewhere-17-0123abcd.lock",
        "notes",
    }


def test_a_machine_where_the_scratch_folder_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TerminalError, match=r"Each machine with a worker.*CRYPTIQUE_HOME"):
        process_folder(tmp_path / "file" / "scratch")


# a folder that machines share


@pytest.fixture
def shared(tmp_path: Path) -> SharedFolder:
    (tmp_path / "mounted").mkdir()
    return SharedFolder(tmp_path / "mounted")


def test_a_shared_object_comes_back_and_is_replaced_whole(shared: SharedFolder, tmp_path: Path) -> None:
    assert shared.get("a/b") is None
    assert shared.download("a/b", tmp_path / "down") is None
    shared.put("a/b", b"first")
    (tmp_path / "up").write_bytes(b"second")
    shared.put("a/b", tmp_path / "up")
    assert shared.get("a/b") == b"second"
    assert shared.download("a/b", tmp_path / "down") == (6, zlib.crc32(b"second"))
    assert (tmp_path / "down").read_bytes() == b"second"
    assert [path.name for path in (shared.root / "a").iterdir()] == ["b"]


def test_names_that_begin_so_are_listed_and_deleted_and_no_others(shared: SharedFolder) -> None:
    for name in ("run/000001.rows", "run/000001.chunks", "run/000011.rows", "run/paid/000001/x", "run2/000001.rows"):
        shared.put(name, b"12")
    (shared.root / "run" / "000001.rows.0123.partial").touch()  # whoever wrote it was killed
    assert [found.name for found in shared.list_objects("run/000001.")] == ["run/000001.chunks", "run/000001.rows"]
    assert [found.size_bytes for found in shared.list_objects("run/paid/000001/")] == [2]
    assert shared.list_folders() == ["run", "run2"]
    shared.delete_under("run/000001.")
    shared.delete_under("run/paid/000001/")
    assert sorted(path.name for path in (shared.root / "run").iterdir()) == ["000011.rows"]
    shared.delete_under("run/")
    assert shared.list_folders() == ["run2"]
    shared.delete_under("nothing/")


def test_writers_and_deleters_at_once_do_not_trip_over_each_other(shared: SharedFolder) -> None:
    stop = threading.Event()

    def delete() -> None:
        # Without a moment between two deletes a busy machine may let the writer never get a word in.
        while not stop.wait(0.001):
            shared.delete_under("run/paid/000001/")

    deleter = threading.Thread(target=delete)
    deleter.start()
    try:
        for number in range(200):
            shared.put(f"run/paid/{number % 2:06d}/{number}", b"x")
    finally:
        stop.set()
        deleter.join(60)
    assert len(list(shared.list_objects("run/paid/000000/"))) == 100


@pytest.mark.parametrize("passing", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT], ids=errno.errorcode.get)
def test_a_server_that_is_away_for_a_moment_is_for_the_retry(
    shared: SharedFolder, monkeypatch: pytest.MonkeyPatch, passing: int
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(passing, os.strerror(passing))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(TransientError, match=os.strerror(passing)):
        shared.put("name", b"x")
    assert list(shared.root.iterdir()) == []


def test_a_full_shared_folder_is_a_persons_task(shared: SharedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(TerminalError, match=r"No space left.*Free space"):
        shared.put("name", b"x")


def test_a_shared_folder_that_serves_keeps_nothing_of_the_check(shared: SharedFolder) -> None:
    assert str(shared.root) in shared.check()
    assert list(shared.root.iterdir()) == []
