"""The backup store on a real S3 server and in a folder: whole parts or none, damage told, locks respected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import bson
import pyrage
import pytest
import zstandard
from bson.timestamp import Timestamp
from pydantic import SecretStr

from blocks.backups import BackupStore
from blocks.object_store import ObjectsLockedError
from blocks.s3 import S3Bucket
from tasks.domain.backups import (
    BackupDamagedError,
    BackupManifest,
    CollectionBackup,
    DatabaseBackup,
    Part,
    Verification,
)
from tasks.domain.errors import InputError, TerminalError, TransientError
from tests.contracts.test_s3 import changed, spoiled

ID, OTHER = "20260102T030405Z-abcd", "20260103T030405Z-abcd"
MOMENT = Timestamp(1_767_323_045, 1)
DOCUMENTS = [bson.encode({"_id": n, "text": f"the secret words of {n}", "noise": os.urandom(3_000)}) for n in range(50)]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
#: Of more than one piece: it goes up as a multipart upload.
LARGE = [os.urandom(1 << 20) for _ in range(18)]


@pytest.fixture(params=["s3", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BackupStore:
    if request.param == "folder":
        return BackupStore(folder=tmp_path / "backups")
    return BackupStore(bucket=request.getfixturevalue("bucket"))


def keyed(store: BackupStore, *identities: Any, recipients: tuple[Any, ...] = ()) -> BackupStore:
    return BackupStore(
        bucket=store.bucket,
        folder=store.folder,
        recipients=[str(one.to_public()) for one in recipients],
        identities=SecretStr("# of ours\n" + "\n".join(map(str, identities))) if identities else None,
    )


def written(store: BackupStore, documents: list[bytes] = DOCUMENTS, *, backup_id: str = ID, number: int = 0) -> Part:
    name = f"store/things/{number:05}.bson.zst{'.age' if store.recipients else ''}"
    put = store.write_part(backup_id, name, iter(documents))
    return Part(
        name, "things", number, None, None, len(documents), put.raw_bytes, put.stored_bytes, put.sha256,
        put.content_sha256, MOMENT,
    )  # fmt: skip


def saved(store: BackupStore, *parts: Part, backup_id: str = ID) -> BackupManifest:
    things = CollectionBackup("things", {}, [], sum(part.documents for part in parts), parts)
    database = DatabaseBackup("store", "vectors", "8.0", MOMENT, (things,))
    manifest = BackupManifest(backup_id, ("daily",), NOW, NOW, (database,), "version", {}, {})
    store.save_manifest(manifest)
    return manifest


def read(store: BackupStore, part: Part, *, backup_id: str = ID) -> bytes:
    blocks: list[bytes] = []
    store.read_part(backup_id, part, blocks.append)
    return b"".join(blocks)


def names(store: BackupStore) -> list[str]:
    return [found.name for found in store.place.list_objects()]


def stored(store: BackupStore, part: Part) -> bytes:
    content = store.place.get(f"{ID}/{part.name}")
    assert content is not None
    return content


def test_a_backup_comes_back_and_is_good_when_it_is_verified(store: BackupStore) -> None:
    part = written(store)
    found = store.find(ID)
    assert found is not None
    assert found.state == "unfinished"
    saved(store, part)
    assert read(store, part) == b"".join(DOCUMENTS)
    assert [one.state for one in store.list_backups()] == ["unverified"]
    store.save_verification(ID, Verification(store.manifest_sha256(ID), NOW, 1, 50, 50, False))
    assert [one.state for one in store.list_backups()] == ["good"]
    store.remove(ID)
    assert names(store) == []
    assert store.list_backups() == []


def test_a_large_part_comes_back(store: BackupStore) -> None:
    assert read(store, written(store, LARGE)) == b"".join(LARGE)


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
def test_damage_of_every_kind_is_told(store: BackupStore, is_encrypted: bool) -> None:
    key = pyrage.x25519.Identity.generate()
    if is_encrypted:
        store = keyed(store, key, recipients=(key,))
    part = written(store)
    saved(store, part)
    good, name = stored(store, part), f"{ID}/{part.name}"
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (bytes(flipped), good[:-1], good[: len(good) // 2], b"", good + b"x"):
        store.place.put(name, bad)
        with pytest.raises(BackupDamagedError):
            read(store, part)
    assert [one.state for one in store.list_backups()] == ["damaged"]
    store.place.delete_under(name)
    with pytest.raises(BackupDamagedError, match="missing"):
        read(store, part)
    assert [one.state for one in store.list_backups()] == ["damaged"]
    store.place.put(name, good)
    assert read(store, part) == b"".join(DOCUMENTS)


def test_what_is_encrypted_shows_nothing_and_opens_with_any_of_its_keys(store: BackupStore) -> None:
    old, new, strange = (pyrage.x25519.Identity.generate() for _ in range(3))
    part = written(keyed(store, recipients=(old, new)))
    content = stored(store, part)
    assert b"secret words" not in content
    assert content.startswith(b"age-encryption.org/v1\n")
    # Without our code: age, zstd, BSON.
    raw = zstandard.ZstdDecompressor().decompressobj().decompress(pyrage.decrypt(content, [new]))
    assert [bson.encode(one) for one in bson.decode_all(raw)] == DOCUMENTS
    for keys in ((old,), (new,), (strange, new)):
        assert read(keyed(store, *keys), part) == b"".join(DOCUMENTS)
    wrong = keyed(store, strange)
    with pytest.raises(TerminalError, match="none of the keys") as failed:
        read(wrong, part)
    assert not isinstance(failed.value, BackupDamagedError)
    assert str(strange) not in str(failed.value) + repr(wrong)
    with pytest.raises(TerminalError, match="CRYPTIQUE_BACKUP_IDENTITIES"):
        read(store, part)


def test_the_name_of_a_part_says_whether_it_is_encrypted(store: BackupStore) -> None:
    with pytest.raises(InputError, match=r"\.age"):
        store.write_part(ID, "store/things/00000.bson.zst.age", [b"x"])


def test_documents_that_fail_on_their_way_leave_nothing(store: BackupStore) -> None:
    def failing() -> Iterator[bytes]:
        yield from LARGE
        raise TransientError("the database went away")

    with pytest.raises(TransientError, match="went away"):
        store.write_part(ID, "store/things/00000.bson.zst", failing())
    assert names(store) == []
    assert store.place.unfinished_uploads() == []


def test_of_two_writers_of_a_manifest_one_wins_and_its_own_again_is_no_error(store: BackupStore) -> None:
    manifest = saved(store, written(store))
    store.save_manifest(manifest)
    with pytest.raises(TerminalError, match="already"):
        store.save_manifest(replace(manifest, code_version="another"))
    found = store.find(ID)
    assert found is not None
    assert found.manifest == manifest


def test_a_manifest_under_another_name_is_damage(store: BackupStore) -> None:
    saved(store, written(store))
    store.place.put(f"{OTHER}/manifest.json", store.place.get(f"{ID}/manifest.json") or b"")
    found = store.find(OTHER)
    assert found is not None
    assert (found.state, ID in found.why) == ("damaged", True)


_WRITER = """
import os, sys, time
from blocks.backups import BackupStore
store = BackupStore.model_validate_json(sys.stdin.readline())
def documents():
    for n in range(20):
        yield os.urandom(1 << 20)
    print("on its way", flush=True)
    time.sleep(120)
store.write_part(sys.argv[1], "store/things/00001.bson.zst", documents())
"""


def test_what_a_killed_writer_left_is_no_part_and_is_swept_when_it_is_old(store: BackupStore) -> None:
    saved(store, written(store))
    written(store, backup_id=OTHER)
    fields = store.model_dump(include={"folder"}, mode="json")
    if store.bucket is not None:
        told = store.bucket.model_dump(include=set(S3Bucket.model_fields), mode="json")
        for name in ("access_key", "secret_key"):
            told[name] = getattr(store.bucket, name).get_secret_value()
        fields["bucket"] = told
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(json.dumps(fields) + "\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "on its way\n"
        writer.send_signal(signal.SIGKILL)
    assert [name for name in names(store) if "00001" in name] == []
    assert len(store.place.unfinished_uploads()) == 1
    assert store.sweep_unfinished(timedelta(hours=6)) == []
    assert [one.state for one in store.list_backups()] == ["unfinished", "unverified"]
    time.sleep(1.1)  # S3's clock counts seconds
    assert store.sweep_unfinished(timedelta(0)) == [OTHER]
    assert store.place.unfinished_uploads() == []
    assert [(one.id, one.state) for one in store.list_backups()] == [(ID, "unverified")]


def test_a_storm_that_stays_is_for_the_retry_and_leaves_no_part(bucket: S3Bucket) -> None:
    with spoiled(bucket, 503) as (through, _), pytest.raises(TransientError, match="failed while writing"):
        written(BackupStore(bucket=through))
    assert list(bucket.list_objects()) == []


def test_a_locked_backup_is_neither_hidden_nor_half_deleted(bucket: S3Bucket) -> None:
    name = f"locked-{uuid4().hex[:8]}"
    client = bucket._open()
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    locked = changed(bucket, bucket=name)
    store = BackupStore(bucket=locked)
    part = written(store)
    saved(store, part)
    written(store, number=0)  # a retry: the part has two versions now
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    key = {"Bucket": name, "Key": f"{locked.prefix}/{ID}/{part.name}"}
    client.put_object_retention(**key, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until})
    before = names(store)
    for call in (store.remove, store.require_removable):
        with pytest.raises(ObjectsLockedError, match="locked until") as failed:
            call(ID)
        assert failed.value.until == until
    assert names(store) == before
    client.put_object_retention(
        **key,
        Retention={"Mode": "GOVERNANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(seconds=1)},
        BypassGovernanceRetention=True,
    )
    client.put_object_legal_hold(**key, LegalHold={"Status": "ON"})
    with pytest.raises(ObjectsLockedError, match="legal hold") as failed:
        store.remove(ID)
    assert failed.value.until is None
    client.put_object_legal_hold(**key, LegalHold={"Status": "OFF"})
    time.sleep(2.1)  # the lock ends
    store.remove(ID)
    left = client.list_object_versions(Bucket=name)
    assert (left.get("Versions", []), left.get("DeleteMarkers", [])) == ([], [])
    locked.close()
