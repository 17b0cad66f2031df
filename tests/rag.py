"""A service that answers questions over real rows: two teams of the shared data in a store, and tokens of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson import ObjectId
from bson.binary import Binary, BinaryVectorDtype
from fastapi.testclient import TestClient
from pymongo.database import Database

from benchmarks.evaluation import stored
from blocks.wordllama import MAX_TEXTS_PER_REQUEST, LocalEmbedder
from deployments.http.app import make_app
from deployments.http.parts import HttpParts
from deployments.http.serving import make_parts
from deployments.http.tokens import make_token
from deployments.register_blocks import make_blocks
from deployments.settings import Settings
from tasks.domain.batches import batched
from tasks.domain.transaction_documents import describe_transaction
from tasks.domain.transactions import parse_transaction
from tests.builders import NOW_MS, OTHER_TEAM_ID, SITE_ID, TEAM_ID, make_call, make_owners, make_record

Row = dict[str, Any]
ADMIN_TOKEN = "a-token-of-the-test-0123456789"
SECRET = "a-secret-of-the-tests-0123456789-abcdef"


def hash_of(number: int) -> str:
    """Return the hash of a transaction by its number."""
    return f"0x{number:064x}"


def rows_of(records: Iterable[Row]) -> list[Row]:
    """Return transactions of ``builders.make_owners()`` as they are stored, without vectors."""
    owners = make_owners()
    return list(stored(describe_transaction(parse_transaction(record, owners, now_ms=NOW_MS)) for record in records))


def transfers(count: int) -> list[Row]:
    """Return so many transfers of the first team, numbered from 1, of ten USDT times the number."""
    return [
        make_record(_id=ObjectId(f"{number:024x}"), tx_hash=hash_of(number), value_eth=str(number * 10))
        for number in range(1, count + 1)
    ]


def swaps(count: int) -> list[Row]:
    """Return so many swaps of the second team, numbered from 101; every other one failed."""
    return [
        make_call(
            "swapExactTokensForETH",
            "0x18cbafe5",
            _id=ObjectId(f"{number:024x}"),
            tx_hash=hash_of(number),
            status="Failed" if number % 2 else "Success",
        )
        for number in range(101, 101 + count)
    ]


def embedded(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the vectors of their texts."""
    embedder = LocalEmbedder()
    found = []
    for some in batched(rows, MAX_TEXTS_PER_REQUEST):
        vectors = embedder.embed_documents([row["content"] for row in some])
        found += [
            {
                **row,
                "embedding": Binary.from_vector(vector.tolist(), BinaryVectorDtype.FLOAT32),
                "lineage": {"model": embedder.facts.model, "dimensions": embedder.facts.dimensions, "task": "none"},
            }
            for row, vector in zip(some, vectors, strict=True)
        ]
    return found


@dataclass
class RagService:
    """The application in this process, a client of it, and whoever asks."""

    parts: HttpParts
    client: TestClient
    settings: Settings

    def token(self, team: ObjectId | str = TEAM_ID, *, role: str = "editor", hours: float = 1) -> str:
        """Return a user's token."""
        return make_token(SECRET, team_id=str(team), user="user-1", role=role, hours=hours, settings=self.settings)

    def post(
        self, path: str, body: Any, *, team: ObjectId | str = TEAM_ID, token: str | None = None, role: str = "editor"
    ) -> Any:
        """Return the response to one request of a team."""
        headers = {"Authorization": f"Bearer {token or self.token(team, role=role)}"}
        return self.client.post(path, json=body, headers=headers)


def make_settings(uri: str, database: str, home: Path, **chosen: Any) -> Settings:
    """Return settings of a service of its own, which takes no tokens of the application."""
    return Settings(
        _env_file=None,
        **{
            "cryptique_source_uri": uri,
            "cryptique_source_database": database,
            "cryptique_vectors_uri": None,
            "cryptique_vectors_database": database,
            "cryptique_embedder": "local",
            "gemini_api_key": None,
            "slack_webhook_url": None,
            "prefect_api_url": None,
            "cryptique_home": home,
            "cryptique_admin_token": ADMIN_TOKEN,
            "cryptique_http_rate_limit": 100_000,
            "cryptique_api_rate_limit": 100_000,
            **chosen,
        },
    )


@contextmanager
def running_rag(
    uri: str, database: Database[Row], home: Path, rows: Sequence[Row], **chosen: Any
) -> Iterator[RagService]:
    """Run the service over these rows, which get their vectors here."""
    settings = make_settings(uri, database.name, home, **{"cryptique_jwt_secret": SECRET, **chosen})
    blocks = make_blocks(settings)
    assert blocks.embedder is not None
    blocks.vectors.require_model(blocks.embedder.facts, replace=False, write=True)
    if rows:
        database["vectordocuments"].insert_many(embedded(rows))
    parts = make_parts(settings, blocks)
    parts.indexes.start()
    try:
        assert parts.indexes.wait(60)
        with TestClient(make_app(parts), raise_server_exceptions=False) as client:
            yield RagService(parts, client, settings)
    finally:
        parts.indexes.stop()
        blocks.vectors.close()
        blocks.source.close()


def put_owners(database: Database[Row]) -> None:
    """Put the two teams, their websites and contracts of ``builders.make_owners`` into the source."""
    database["teams"].insert_many([{"_id": TEAM_ID, "name": "One"}, {"_id": OTHER_TEAM_ID, "name": "Two"}])
    database["websites"].insert_many(
        [
            {"_id": ObjectId(), "siteId": SITE_ID, "team": TEAM_ID, "Domain": "one.example", "Name": "One"},
            {"_id": ObjectId(), "siteId": "site-a", "team": OTHER_TEAM_ID, "Domain": "a.example", "Name": "A"},
            {"_id": ObjectId(), "siteId": "site-b", "team": OTHER_TEAM_ID, "Domain": "b.example", "Name": "B"},
        ]
    )
