"""Backups against a bare loop that reads raw BSON, packs it with zstd and writes it to the same place.

``python -m benchmarks.backups --documents 50000 --rounds 3 --place s3`` prints one line of JSON. All servers are of
this run alone: a mongod, a Prefect server and an S3 server (or a folder). Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

_VECTORS = "vectordocuments"
_DIMENSIONS = 1536
_INSERTED = 2_000
_PIECE_BYTES = 8 << 20
_VECTOR_SUBTYPE, _FLOAT32 = 9, b"\x27\x00"


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", choices=("s3", "folder"), default="s3")
    parser.add_argument("--home", type=Path, help="where the servers' files lie; else a temporary folder")
    parser.add_argument("--one", choices=("bare", "backup", "restore", "bare-restore"), help=argparse.SUPPRESS)
    parser.add_argument("--given", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        sys.stdout.write(json.dumps(_ONE[chosen.one](chosen.given)) + "\n")
        return
    with tempfile.TemporaryDirectory(dir=chosen.home) as folder:
        sys.stdout.write(json.dumps(measure(Path(folder), chosen.documents, chosen.rounds, chosen.place)) + "\n")


def measure(home: Path, documents: int, rounds: int, place: str) -> dict[str, Any]:
    """Return the seconds and peaks of each contestant in each round, and their ratios.

    A ratio above 1 says that ours is faster than the bare loop. ``backup`` is the run of the flow until its manifest is
    written; ``proved`` is the whole of it, with reading back and a sample restore.
    """
    with _servers(home, place) as given:
        _fill(given, documents)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in _ONE}
        for _ in range(rounds):
            for name in ("bare", "backup"):
                found[name].append(_run(name, given))
        for _ in range(max(1, rounds - 1)):
            for name in ("bare-restore", "restore"):
                found[name].append(_run(name, given))
    best = {name: min(one["seconds"] for one in runs) for name, runs in found.items()}
    return {
        "documents": documents,
        "place": place,
        "raw_mb": round(found["backup"][0]["raw_bytes"] / 1e6, 1),
        "seconds": {name: [round(one["seconds"], 2) for one in runs] for name, runs in found.items()},
        "proved_seconds": [round(one["whole_seconds"], 2) for one in found["backup"]],
        "backup_against_bare": round(best["bare"] / best["backup"], 3),
        "restore_against_bare": round(best["bare-restore"] / best["restore"], 3),
        "backup_mb_per_second": round(found["backup"][0]["raw_bytes"] / 1e6 / best["backup"], 1),
        "restore_mb_per_second": round(found["backup"][0]["raw_bytes"] / 1e6 / best["restore"], 1),
        "peaks_mb": {name: max(one["peak_mb"] for one in runs) for name, runs in found.items()},
        "cpu_seconds": {name: [one["cpu_s"] for one in runs] for name, runs in found.items()},
    }


@contextmanager
def _servers(home: Path, place: str) -> Iterator[dict[str, Any]]:
    from deployments.embedded import embedded_mongod, embedded_s3, local_prefect_server

    with embedded_mongod(home, cache_gb=2) as uri, local_prefect_server(home) as url:
        given = {"uri": uri, "prefect": url, "folder": str(home / "backups"), "bare": str(home / "bare")}
        Path(given["bare"]).mkdir()
        if place == "folder":
            yield given
            return
        with embedded_s3(home) as server:
            bucket = {name: getattr(server, name) for name in ("endpoint", "bucket", "access_key", "secret_key")}
            yield {**given, "s3": bucket}


def _fill(given: dict[str, Any], documents: int) -> None:
    """Store vector documents as the pipeline does: vectors of random floats, which nothing packs."""
    import numpy as np
    from bson import Binary, ObjectId
    from pymongo import MongoClient

    from blocks.vector_store import VectorStore

    VectorStore(uri=SecretStr(given["uri"]), database="bench", embedder="local").initialise(_DIMENSIONS, loading=True)
    random = np.random.default_rng(7)
    team, rows = ObjectId(), []
    with MongoClient(given["uri"]) as client:
        target = client["bench"][_VECTORS]
        for number in range(documents):
            vector = random.standard_normal(_DIMENSIONS, dtype="<f4")
            source = ObjectId()
            rows.append(
                {
                    "documentId": f"transaction_{source}_0",
                    "sourceType": "transaction",
                    "sourceId": source,
                    "teamId": team,
                    "siteId": f"site-{number % 7}",
                    "embedding": Binary(_FLOAT32 + vector.tobytes(), _VECTOR_SUBTYPE),
                    "content": f"A transfer of {number}.5 USDT on Polygon by a wallet, {number % 90} days later.",
                    "source": "transactions",
                    "metadata": {"dataType": "transaction", "tags": ["polygon", "usdt"], "chainId": "137"},
                    "status": "active",
                    "contentHash": f"{number:064x}",
                }
            )
            if len(rows) == _INSERTED:
                target.insert_many(rows, ordered=False, bypass_document_validation=True)
                rows = []
        if rows:
            target.insert_many(rows, ordered=False, bypass_document_validation=True)


def _run(name: str, given: dict[str, Any]) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.backups", "--one", name, "--given", json.dumps(given)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PREFECT_API_URL": given["prefect"], "PREFECT_LOGGING_LEVEL": "WARNING"},
    )
    if answer.returncode:
        raise SystemExit(f"{name} failed:\n{answer.stderr[-4_000:]}")
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def _used(**figures: Any) -> dict[str, Any]:
    from benchmarks.processes import peak_mb

    return {**figures, "peak_mb": round(peak_mb(os.getpid()), 1), "cpu_s": round(time.process_time(), 2)}


# -- the contestants ------------------------------------------------------------------------------------------


def _bare(given: dict[str, Any]) -> dict[str, Any]:
    """Read raw batches, pack them, write them: one object, no digest, no check, one thread."""
    import zstandard
    from pymongo import MongoClient

    began, size = time.monotonic(), 0
    with MongoClient(given["uri"]) as client:
        packer = zstandard.ZstdCompressor(level=1).compressobj()
        pieces = bytearray()
        with _bare_target(given) as send:
            for batch in client["bench"][_VECTORS].find_raw_batches({}, batch_size=_INSERTED):
                size += len(batch)
                pieces += packer.compress(batch)
                while len(pieces) >= _PIECE_BYTES:
                    send(bytes(pieces[:_PIECE_BYTES]))
                    del pieces[:_PIECE_BYTES]
            send(bytes(pieces) + packer.flush())
    return _used(seconds=time.monotonic() - began, raw_bytes=size)


@contextmanager
def _bare_target(given: dict[str, Any]) -> Iterator[Any]:
    if "s3" not in given:
        with (Path(given["bare"]) / "dump").open("wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        return
    import boto3
    from botocore.config import Config

    place = given["s3"]
    client = boto3.client(
        "s3",
        endpoint_url=place["endpoint"],
        region_name="us-east-1",
        aws_access_key_id=place["access_key"],
        aws_secret_access_key=place["secret_key"],
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )
    upload = client.create_multipart_upload(Bucket=place["bucket"], Key="bare/dump")["UploadId"]
    parts: list[dict[str, Any]] = []
    where = {"Bucket": place["bucket"], "Key": "bare/dump", "UploadId": upload}

    def send(piece: bytes) -> None:
        answer = client.upload_part(**where, PartNumber=len(parts) + 1, Body=piece)
        parts.append({"PartNumber": len(parts) + 1, "ETag": answer["ETag"]})

    yield send
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


def _blocks(given: dict[str, Any]) -> None:
    from blocks.backups import BackupStore
    from blocks.s3 import S3Bucket
    from blocks.vector_store import VectorStore

    store = VectorStore(uri=SecretStr(given["uri"]), database="bench", embedder="local")
    bucket = None
    if "s3" in given:
        place = given["s3"]
        bucket = S3Bucket(
            endpoint=place["endpoint"],
            bucket=place["bucket"],
            prefix="backups",
            access_key=SecretStr(place["access_key"]),
            secret_key=SecretStr(place["secret_key"]),
        )
    backups = BackupStore(bucket=bucket) if bucket else BackupStore(folder=Path(given["folder"]))
    store.save("vectors", overwrite=True, _sync=True)  # type: ignore[call-arg]
    backups.save("backups", overwrite=True, _sync=True)  # type: ignore[call-arg]


def _backup(given: dict[str, Any]) -> dict[str, Any]:
    from flows.backup import backup

    _blocks(given)
    report: Any = backup()
    return _used(
        seconds=report["reading_seconds"],
        whole_seconds=report["seconds"],
        raw_bytes=report["raw_bytes"],
        stored_bytes=report["stored_bytes"],
    )


def _restore(given: dict[str, Any]) -> dict[str, Any]:
    from pymongo import MongoClient

    from flows.restore import restore

    _blocks(given)
    report: Any = restore()
    with MongoClient(given["uri"]) as client:
        client.drop_database(report["database"])
    return _used(seconds=report["seconds"])


def _bare_restore(given: dict[str, Any]) -> dict[str, Any]:
    """Read the newest backup with what nobody checks: unpack, insert raw documents, build the indexes."""
    from bson.raw_bson import RawBSONDocument
    from pymongo import MongoClient
    from pymongo.write_concern import WriteConcern

    from benchmarks.targets import build_indexes
    from tasks.domain.bson_documents import DocumentSplitter

    began = time.monotonic()
    with MongoClient(given["uri"]) as client:
        database = client["bare_restore"]
        target = database.get_collection(_VECTORS, write_concern=WriteConcern(w="majority", j=True))
        splitter, batch = DocumentSplitter(), []
        for block in _unpacked(given):
            batch += [RawBSONDocument(one) for one in splitter.split(block)]
            if len(batch) >= _INSERTED // 2:
                target.insert_many(batch, ordered=False)
                batch = []
        if batch:
            target.insert_many(batch, ordered=False)
        build_indexes(database[_VECTORS])
        seconds = time.monotonic() - began
        client.drop_database("bare_restore")
    return _used(seconds=seconds)


def _unpacked(given: dict[str, Any]) -> Iterator[bytes]:
    import zstandard

    from blocks.backups import BackupStore

    _blocks(given)
    backups = BackupStore.load("backups", _sync=True)  # type: ignore[call-arg]
    assert isinstance(backups, BackupStore)
    (newest, *_) = backups.list_backups()
    assert newest.manifest is not None
    for part in newest.manifest.parts:
        if part.collection == _VECTORS:
            unpacker = zstandard.ZstdDecompressor().decompressobj()
            for piece in backups.place.stream(f"{newest.id}/{part.name}") or ():
                yield unpacker.decompress(piece)


_ONE = {"bare": _bare, "backup": _backup, "bare-restore": _bare_restore, "restore": _restore}

if __name__ == "__main__":
    main()
