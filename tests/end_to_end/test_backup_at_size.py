"""50,000 vectors of 1536 numbers in S3 and back, with writers at work: every document, every index, every answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import bson
import numpy as np
import pytest
from bson import Binary, ObjectId
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

from blocks.backups import BackupStore
from blocks.s3 import S3Bucket
from deployments.register_blocks import make_blocks
from flows.backup import backup
from flows.restore import restore
from tasks.domain.retrieval.tenants import Tenant
from tasks.retrieve import search
from tests.end_to_end.pipeline import Pipeline, SourceData
from tests.loopback.gemini import LoopbackGemini

DOCUMENTS, DIMENSIONS, ROWS = 50_000, 1_536, 200
QUESTIONS = ["who claimed rewards from staking", "large transfers of stablecoins on Polygon", "failed transactions"]
_RAW: bson.CodecOptions[RawBSONDocument] = bson.CodecOptions(document_class=RawBSONDocument)


@pytest.fixture
def filled(pipeline: Pipeline, source_data: SourceData) -> Iterator[Pipeline]:
    with LoopbackGemini() as server:
        pipeline.use_gemini(server, cryptique_gemini_dimensions=DIMENSIONS)
        pipeline.load(source_data, source_data.some(ROWS))
        pipeline.migrate()
        rows = pipeline.store.vectordocuments
        template = rows.find_one({})
        assert template is not None
        random = np.random.default_rng(11)
        for begin in range(0, DOCUMENTS, 2_000):
            rows.insert_many(
                {
                    **template,
                    "_id": ObjectId(),
                    "documentId": f"made-{number}",
                    "embedding": Binary(b"\x27\x00" + random.standard_normal(DIMENSIONS, dtype="<f4").tobytes(), 9),
                    "content": f"A made document, number {number}.",
                }
                for number in range(begin, begin + 2_000)
            )
        yield pipeline


def digests_at(pipeline: Pipeline, names: list[str], moment: Timestamp | None) -> dict[str, tuple[int, str]]:
    """Return how many documents each collection holds, and their SHA-256 in the order of their ids: now, or then."""
    found = {}
    for name in names:
        concern = {"readConcern": {"level": "snapshot", "atClusterTime": moment}} if moment is not None else {}
        command = {"find": name, "sort": {"_id": 1}, "batchSize": 1_000, **concern}
        documents, digest = 0, sha256()
        with pipeline.store.client.start_session() as session:
            cursor: Any = pipeline.store.command(command, codec_options=_RAW, session=session)["cursor"]
            batch = cursor["firstBatch"]
            while True:
                for row in batch:
                    documents += 1
                    digest.update(row.raw)
                if not cursor["id"]:
                    break
                more = {"getMore": cursor["id"], "collection": name, "batchSize": 1_000}
                cursor = pipeline.store.command(more, codec_options=_RAW, session=session)["cursor"]
                batch = cursor["nextBatch"]
        found[name] = (documents, digest.hexdigest())
    return found


def indexes(pipeline: Pipeline, names: list[str]) -> dict[str, Any]:
    return {name: sorted(map(str, pipeline.store[name].list_indexes())) for name in names}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_thousand_vectors_come_back_from_s3_as_they_were_while_writers_went_on(
    filled: Pipeline, bucket: S3Bucket
) -> None:
    blocks = make_blocks(filled.settings)
    assert blocks.embedder is not None
    team = str(filled.store.vectordocuments.distinct("teamId")[0])

    def answers() -> list[list[tuple[str, float]]]:
        found = search(QUESTIONS, Tenant(team), limit=20, vectors=blocks.vectors.at(), embedder=blocks.embedder)
        return [[(hit.document_id, hit.score) for hit in hits] for hits in found]

    told = answers()
    filled.register()
    BackupStore(bucket=bucket).save("backups", overwrite=True, _sync=True)  # type: ignore[call-arg]
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        rows = filled.store.vectordocuments
        template = rows.find_one({})
        assert template is not None
        while not stop.is_set():
            # Of another team: what is asked for above stays.
            made = {
                **template,
                "_id": ObjectId(),
                "documentId": f"writer-{written}",
                "teamId": ObjectId(),
                "siteId": "x",
            }
            rows.insert_one(made)
            rows.update_one({"_id": made["_id"]}, {"$set": {"content": "changed"}})
            if written % 3 == 0:
                rows.delete_one({"_id": made["_id"]})
            written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = filled.complete(backup, rotate=False)
        (found,) = BackupStore(bucket=bucket).list_backups()
        assert found.manifest is not None
        names = [one.name for one in found.manifest.store.collections]
        expected = digests_at(filled, names, found.manifest.store.moment)
    finally:
        stop.set()
        writer.join()
    assert found.state == "good"
    assert report["documents"] == sum(documents for documents, _ in expected.values()) >= DOCUMENTS
    assert written > 100
    assert digests_at(filled, ["vectordocuments"], None)["vectordocuments"] != expected["vectordocuments"]
    shape = indexes(filled, names)

    filled.store.client.drop_database(filled.store.name)
    done = filled.complete(restore, swap=True)
    assert done["documents"] == report["documents"]
    assert digests_at(filled, names, None) == expected
    assert indexes(filled, names) == shape
    assert answers() == told
