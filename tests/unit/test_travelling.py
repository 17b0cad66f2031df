"""What a stage is given can go to another process: task runners such as a process pool, Dask or Ray need that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from pydantic import SecretStr

from blocks.gemini import GeminiEmbedder
from blocks.mongo import MongoSource
from blocks.quota import EmbeddingGate
from blocks.s3 import S3Bucket
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from flows.blocks import Stopping
from tasks.domain.quotas import Quota
from tasks.embed import Slots

URI = SecretStr("mongodb://127.0.0.1:9")
STORE = VectorStore(uri=URI, database="somewhere", embedder="gemini")
BUCKET = S3Bucket(bucket="bucket", access_key=SecretStr("key"), secret_key=SecretStr("secret"))
#: Without a limit a minute: a gate that has one talks to a Prefect server, and this module must not start one.
QUOTA = Quota(texts_per_day=1_000)

GIVEN: dict[str, Any] = {
    "source": MongoSource(uri=URI, database="somewhere"),
    "store": STORE,
    "gemini": GeminiEmbedder(api_key=SecretStr("planted")),
    "local": LocalEmbedder(),
    "folder": ShardStore(folder=Path("shards")),
    "shared": ShardStore(folder=Path("shards"), shared=Path("mounted")),
    "bucket": ShardStore(folder=Path("shards"), bucket=BUCKET),
    "stopping": Stopping(),
    "gate": EmbeddingGate(STORE, QUOTA, 0.15, run_key="run", keep_back=0.05, budget_usd=2.0),
}


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_it_arrives_as_it_was(name: str) -> None:
    given = GIVEN[name]
    if isinstance(given, MongoSource):
        given.open_database()  # a connection stays where it is
    arrived = cloudpickle.loads(cloudpickle.dumps(given))
    assert type(arrived) is type(given)
    if isinstance(given, EmbeddingGate):
        assert (arrived.max_texts, arrived.max_tokens) == (given.max_texts, given.max_tokens)
    elif not isinstance(given, Stopping):
        assert arrived.model_dump() == given.model_dump()


def test_slots_arrive_as_many_and_free_in_another_process() -> None:
    slots = Slots(2)
    with slots.taken(slots.join()), slots.taken(slots.join()):
        arrived = cloudpickle.loads(cloudpickle.dumps(slots))
        assert arrived.number == 2
        with arrived.taken(arrived.join()), arrived.taken(arrived.join()):  # these are its own: two of them are free
            pass
