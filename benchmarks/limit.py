"""The limit: ready-made documents into an empty collection, as fast as the driver and mongod can; then the indexes.

``python -m benchmarks.limit URI DATABASE FILE OPTIONS RESULT.json``. The file holds the documents as concatenated
BSON. What reading it costs is not counted; mongod takes no part in that.
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.write_concern import WriteConcern

from benchmarks.targets import build_indexes, flush
from tasks.domain.batches import batched
from tasks.domain.collections import VECTORS

_BATCH = 1_000
_THREADS = 2
#: Held in memory at once: 150 MB of documents.
_SEGMENT = 20_000


def dump(source: Collection[Any], path: Path) -> int:
    """Write all documents to a file, in the order of their ids, and return how many."""
    raw: Collection[RawBSONDocument] = source.with_options(
        codec_options=source.codec_options.with_options(document_class=RawBSONDocument)
    )
    number = 0
    with path.open("wb") as file:
        for document in raw.find().sort("_id", 1):
            file.write(document.raw)
            number += 1
    return number


def main() -> None:
    """Load the file and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("database")
    parser.add_argument("file", type=Path)
    parser.add_argument("options", type=json.loads, help="of the collection, as JSON: its compression")
    parser.add_argument("result", type=Path)
    chosen = parser.parse_args()
    client: MongoClient[Any] = MongoClient(chosen.uri)
    durable = WriteConcern(w="majority", j=True)
    vectors = client[chosen.database].create_collection(VECTORS, **chosen.options).with_options(write_concern=durable)
    cpu_s = wall_s = 0.0
    documents = 0
    with chosen.file.open("rb") as file, ThreadPoolExecutor(_THREADS) as pool:
        while segment := list(islice(_read(file), _SEGMENT)):
            used, began = time.process_time(), time.monotonic()
            for _ in pool.map(lambda some: vectors.insert_many(some, ordered=False), batched(segment, _BATCH)):
                pass
            cpu_s, wall_s = cpu_s + time.process_time() - used, wall_s + time.monotonic() - began
            documents += len(segment)
    used, began = time.process_time(), time.monotonic()
    build_indexes(vectors)
    indexes_s = time.monotonic() - began
    flush(client)
    cpu_s, wall_s = cpu_s + time.process_time() - used, wall_s + time.monotonic() - began
    figures = {
        "documents": documents,
        "client_cpu_s": round(cpu_s, 3),
        "wall_s": round(wall_s, 3),
        "indexes_wall_s": round(indexes_s, 3),
    }
    chosen.result.write_text(json.dumps(figures))


def _read(file: BinaryIO) -> Iterator[RawBSONDocument]:
    while head := file.read(4):
        yield RawBSONDocument(head + file.read(struct.unpack("<i", head)[0] - 4))


if __name__ == "__main__":
    main()
