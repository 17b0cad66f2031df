"""The shard store: a file is the one that was written or it is damaged, and what was paid for is paid once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bson import ObjectId

from blocks.shards import PaidTexts, ShardStore
from tasks.domain.errors import ShardDamagedError, TerminalError
from tasks.domain.shards import ShardRange

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


def test_a_table_comes_back_as_it_was_written(store: ShardStore) -> None:
    file = store.write_table(RUN, "000001.rows", TABLE)
    assert file.rows == 3
    assert file.size_bytes == only_file(store).stat().st_size
    assert store.read_table(file).equals(TABLE)


def test_writing_again_replaces_the_file_and_leaves_nothing_else(store: ShardStore) -> None:
    first = store.write_table(RUN, "000001.rows", TABLE)
    second = store.write_table(RUN, "000001.rows", TABLE.slice(1))
    assert store.read_table(second).equals(TABLE.slice(1))
    assert [path.name for path in store.run_folder(RUN).iterdir()] == ["000001.rows.arrow"]
    with pytest.raises(ShardDamagedError):
        store.read_table(first)


def test_a_missing_file_is_damaged(store: ShardStore) -> None:
    file = store.write_table(RUN, "000001.rows", TABLE)
    only_file(store).unlink()
    with pytest.raises(ShardDamagedError, match=r"000001\.rows is gone"):
        store.read_table(file)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_file_that_was_cut_short_is_damaged(store: ShardStore, kept: int) -> None:
    file = store.write_table(RUN, "000001.rows", TABLE)
    path = only_file(store)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ShardDamagedError):
        store.read_table(file)


def test_a_file_with_one_other_bit_is_damaged(store: ShardStore) -> None:
    file = store.write_table(RUN, "000001.rows", TABLE)
    path = only_file(store)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardDamagedError):
        store.read_table(file)


def test_a_file_that_grew_is_damaged(store: ShardStore) -> None:
    file = store.write_table(RUN, "000001.rows", TABLE)
    with only_file(store).open("ab") as grown:
        grown.write(b"\0")
    with pytest.raises(ShardDamagedError):
        store.read_table(file)


def test_a_disk_that_takes_no_file_is_a_persons_task_and_says_what_to_do(store: ShardStore) -> None:
    blocked = store.run_folder(RUN) / "000001.rows.arrow"
    blocked.mkdir(parents=True)
    with pytest.raises(TerminalError, match=r"000001\.rows\.arrow.*CRYPTIQUE_HOME.*run the same command again"):
        store.write_table(RUN, "000001.rows", TABLE)
    assert list(store.run_folder(RUN).iterdir()) == [blocked]


def test_a_plan_comes_back_with_ids_of_any_type(store: ShardStore) -> None:
    plan = [
        ShardRange(0, None, ObjectId("64c000000000000000000001"), 5_000),
        ShardRange(1, ObjectId("64c000000000000000000001"), "text", 17),
        ShardRange(2, "text", None, 0),
    ]
    assert store.read_plan(RUN) is None
    store.write_plan(RUN, plan)
    assert store.read_plan(RUN) == plan


def test_dropping_a_shard_leaves_the_others(store: ShardStore) -> None:
    for name in ("000001.rows", "000001.chunks", "000002.rows"):
        store.write_table(RUN, name, TABLE)
    store.drop_shard(RUN, 1)
    store.drop_shard(RUN, 1)
    assert only_file(store).name == "000002.rows.arrow"
    store.drop_run(RUN)
    store.drop_run(RUN)
    assert not store.run_folder(RUN).exists()


# what was paid for


def test_a_text_that_was_paid_for_is_found_with_its_vector(paid: PaidTexts) -> None:
    paid.keep(HASHES, VECTORS, tokens=TOKENS, shard=1)
    found = paid.find([*HASHES[::-1], b"x" * 16])
    assert {key: vector.tolist() for key, vector in found.items()} == {
        key: row.tolist() for key, row in zip(HASHES, VECTORS, strict=True)
    }
    assert paid.find([]) == {}


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


def test_a_vector_that_a_crash_cut_short_was_not_paid_for_and_the_ones_before_it_were(store: ShardStore) -> None:
    with store.paid_texts(RUN) as texts:
        texts.keep(HASHES, VECTORS, tokens=TOKENS, shard=1)
    path = only_file(store, "paid-*.f4")
    path.write_bytes(path.read_bytes()[:-3])
    with store.paid_texts(RUN) as texts:
        assert texts.find(HASHES).keys() == set(HASHES[:2])


def test_a_slice_of_a_larger_matrix_is_kept_as_its_own_rows(paid: PaidTexts) -> None:
    wide = np.arange(24, dtype=np.float64).reshape(3, 8)
    paid.keep(HASHES, wide[:, ::2], tokens=TOKENS, shard=1)
    assert paid.find(HASHES)[HASHES[2]].tolist() == [16.0, 18.0, 20.0, 22.0]


def test_a_shard_has_paid_over_all_its_attempts_and_only_for_its_own(store: ShardStore) -> None:
    with store.paid_texts(RUN) as first:
        first.keep(HASHES[:1], VECTORS[:1], tokens=TOKENS[:1], shard=1)
    with store.paid_texts(RUN) as second:
        second.keep(HASHES[1:2], VECTORS[1:2], tokens=TOKENS[1:2], shard=1)
        second.keep(HASHES[2:], VECTORS[2:], tokens=TOKENS[2:], shard=2)
        assert second.paid_by(1) == (2, 30)
        assert second.paid_by(2) == (1, 30)
        assert second.paid_by(3) == (0, 0)


def test_a_text_is_claimed_by_one_caller_at_a_time(store: ShardStore, paid: PaidTexts) -> None:
    assert paid.claim(HASHES[:2]) == (HASHES[:2], [])
    with store.paid_texts(RUN) as other:
        assert other.claim(HASHES) == ([HASHES[2]], HASHES[:2])
        paid.release(HASHES[:2])
        assert other.claim(HASHES[:2]) == (HASHES[:2], [])
        other.release(HASHES)
    paid.release(HASHES)


def test_a_text_of_another_run_is_another_text(store: ShardStore, paid: PaidTexts) -> None:
    paid.claim(HASHES)
    with store.paid_texts("run-2") as other:
        assert other.claim(HASHES) == (HASHES, [])
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


def test_many_threads_never_pay_twice_for_the_same_text(store: ShardStore) -> None:
    hashes = [number.to_bytes(16, "big") for number in range(60)]
    paid_for: list[bytes] = []

    def embed_all() -> None:
        with store.paid_texts(RUN) as texts:
            left = list(hashes)
            while left:
                known = texts.find(left)
                mine, others = texts.claim([key for key in left if key not in known])
                again = texts.find(mine)  # kept by another between the look and the claim
                texts.release(list(again))
                todo = [key for key in mine if key not in again]
                paid_for.extend(todo)
                if todo:
                    texts.keep(todo, np.ones((len(todo), 4), np.float32), tokens=[1] * len(todo), shard=1)
                texts.wait(others)
                left = others

    threads = [threading.Thread(target=embed_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(paid_for) == hashes


def test_a_run_whose_folder_is_gone_starts_with_nothing_paid(store: ShardStore) -> None:
    with store.paid_texts(RUN) as texts:
        texts.keep(HASHES, VECTORS, tokens=TOKENS, shard=1)
    shutil.rmtree(store.folder)
    with store.paid_texts(RUN) as texts:
        assert texts.find(HASHES) == {}
        assert texts.paid_by(1) == (0, 0)
