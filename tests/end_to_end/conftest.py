"""Real parts for a test: the shared data, and a pipeline on databases and a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo import MongoClient

from tests.end_to_end.pipeline import Pipeline, Record, SourceData, open_pipeline


@pytest.fixture(scope="session")
def source_data(shared_data: Path) -> SourceData:
    return SourceData(shared_data)


@pytest.fixture
def pipeline(prefect_api: str, mongo_uri: str, mongo_client: MongoClient[Record], tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline whose store is another database than its source."""
    with open_pipeline(mongo_uri, mongo_client, tmp_path / "home", separate_store=True) as opened:
        yield opened
