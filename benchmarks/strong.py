"""The strong script: the afternoon script by someone who has measured. A content hash, binary vectors, plain inserts.

``python -m benchmarks.strong URI SOURCE TARGET RESULT.json``. What exists unchanged is neither embedded nor written.
"""

import json
import sys
from hashlib import blake2b

from bson.binary import Binary
from pymongo import MongoClient, ReplaceOne

from benchmarks.afternoon import describe, load_owners, make_document
from benchmarks.zero_latency import Embedder
from tasks.domain.collections import LOOKUP_INDEX

EMBED_BATCH = 100
WRITE_BATCH = 1_000
FLOAT32 = b"\x27\x00"


def batches(cursor, size):
    """Yield lists of that many documents."""
    batch = []
    for document in cursor:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def main():
    """Fill the target with what it lacks or holds differently."""
    uri, source, target, result = sys.argv[1:]
    client = MongoClient(uri)
    db, vectors = client[source], client[target].vectordocuments
    embedder = Embedder()
    owners = load_owners(db)
    rows = 0
    for some in batches(db.transactions.find(batch_size=WRITE_BATCH), WRITE_BATCH):
        rows += len(some)
        work = {}
        for tx in some:
            if tx["contractId"] in owners:
                text = describe(tx)
                document_id = f"transaction:{tx['contractId']}:{tx['tx_hash']}:0"
                work[document_id] = (tx, text, blake2b(text.encode(), digest_size=16).digest())
        stored = {
            row["documentId"]: row.get("contentHash")
            for row in vectors.find(
                {"documentId": {"$in": list(work)}}, {"_id": 0, "documentId": 1, "contentHash": 1}
            ).hint(LOOKUP_INDEX)
        }
        todo = [(key, *one) for key, one in work.items() if stored.get(key) != one[2]]
        inserts, replaces = [], []
        for first in range(0, len(todo), EMBED_BATCH):
            part = todo[first : first + EMBED_BATCH]
            for (key, tx, text, digest), vector in zip(part, embedder.embed([one[2] for one in part]), strict=True):
                document = make_document(tx, text, Binary(FLOAT32 + vector.tobytes(), 9), owners)
                document["contentHash"] = Binary(digest)
                if key in stored:
                    replaces.append(ReplaceOne({"documentId": key}, document))
                else:
                    inserts.append(document)
        if inserts:
            vectors.insert_many(inserts, ordered=False)
        if replaces:
            vectors.bulk_write(replaces, ordered=False)
    with open(result, "w") as file:
        json.dump({"rows": rows, "texts": embedder.texts, "embedder_cpu_s": embedder.cpu_s}, file)


if __name__ == "__main__":
    main()
