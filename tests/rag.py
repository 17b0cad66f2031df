"""A service that answers questions over real rows: two teams of the shared data in a store, and tokens of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson import ObjectId
from bson.binary import Binary, BinaryVectorDtype
from fastapi.testclient import TestClient
from pymongo.database import Database

from blocks.wordllama import LocalEmbedder
from deployments.http.app import make_app
from deployments.http.parts import HttpParts
from deployments.http.serving import make_parts
from deployments.http.tokens import make_token
from deployments.register_blocks import make_blocks
from deployments.settings import Settings
from tests.builders import OTHER_TEAM_ID, SITE_ID, TEAM_ID

Row = dict[str, Any]
SECRET = "a-secret-of-the-tests-0123456789-abcdef"


def embedded(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the vectors of their texts."""
    embedder = LocalEmbedder()
    found = []
    for start in range(0, len(rows), 500):
        some = rows[start : start + 500]
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
    """Return settings of a service of its own."""
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
            "cryptique_admin_token": "a-token-of-the-test-0123456789",
            "cryptique_jwt_secret": SECRET,
            "cryptique_api_rate_limit": 100_000,
            **chosen,
        },
    )


@contextmanager
def running_rag(
    uri: str, database: Database[Row], home: Path, rows: Sequence[Row], **chosen: Any
) -> Iterator[RagService]:
    """Run the service over these rows, which get their vectors here."""
    settings = make_settings(uri, database.name, home, **chosen)
    blocks = make_blocks(settings)
    blocks.vectors.require_model(LocalEmbedder().facts, replace=False, write=True)
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
