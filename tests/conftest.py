"""Real parts for the tests: one mongod, Prefect server and S3 server a session, a database and a home a test."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from bson.codec_options import DatetimeConversion
from bson.json_util import JSONMode, JSONOptions, loads
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database

if TYPE_CHECKING:
    from blocks.s3 import S3Bucket
    from deployments.embedded import S3Server

os.environ.setdefault("DO_NOT_TRACK", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_EXTENDED_JSON = JSONOptions(
    json_mode=JSONMode.RELAXED, tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)


#: The files that take longest, begun first: begun last, one of them would run on alone. Those with workers and servers
#: of their own stand apart: side by side they would take the cores from each other.
_FIRST = (
    "end_to_end/test_up.py",
    "end_to_end/worker/test_ends.py",
    "end_to_end/test_sources.py",
    "end_to_end/test_figures.py",
    "end_to_end/test_unchanged.py",
    "end_to_end/test_quality.py",
    "end_to_end/worker/test_sharing.py",
    "end_to_end/test_crashes.py",
    "end_to_end/test_chaos.py",
    "end_to_end/test_alerts.py",
    "end_to_end/test_batch.py",
    "contracts/test_embedded.py",
    "contracts/test_great_expectations.py",
    "end_to_end/test_generations.py",
    "end_to_end/test_reconcile.py",
    "contracts/test_real_aggregates.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that all processes have work until the end."""
    folder = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(folder).as_posix()
        return _FIRST.index(name) if name in _FIRST else len(_FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def mongo_uri(session_home: Path) -> Iterator[str]:
    """A real mongod, a replica set of one, which lets nothing expire.

    A test's clock may stand on any day. The server goes by its own: once a minute it would delete what is older than an
    index allows, in the middle of a test.
    """
    from deployments.embedded import embedded_mongod

    with embedded_mongod(session_home, cache_gb=0.5) as uri:
        with MongoClient(uri) as client:
            client.admin.command({"setParameter": 1, "ttlMonitorEnabled": False})
        yield uri


@pytest.fixture(scope="session")
def mongo_client(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient(mongo_uri, tz_aware=True) as client:
        yield client


@pytest.fixture
def database(mongo_client: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    """An empty database of the test's own."""
    name = f"test_{uuid4().hex[:12]}"
    yield mongo_client[name]
    mongo_client.drop_database(name)


@pytest.fixture(scope="session")
def prefect_api(session_home: Path) -> Iterator[str]:
    """A real Prefect server of this session, which everything in this process uses."""
    from deployments.embedded import local_prefect_server
    from deployments.local_services import talking_to

    with local_prefect_server(session_home) as url, talking_to(url):
        yield url


@pytest.fixture(scope="session")
def s3(session_home: Path) -> Iterator[S3Server]:
    """A real S3 server with one bucket."""
    from deployments.embedded import embedded_s3

    with embedded_s3(session_home) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[S3Bucket]:
    """The bucket of the S3 server, below a prefix of the test's own."""
    from blocks.s3 import S3Bucket

    bucket = S3Bucket(
        endpoint=s3.endpoint,
        bucket=s3.bucket,
        prefix=f"test-{uuid4().hex[:12]}",
        access_key=SecretStr(s3.access_key),
        secret_key=SecretStr(s3.secret_key),
    )
    yield bucket
    bucket.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real transactions. Where CI runs it must be there; elsewhere its tests are skipped."""
    if not SHARED_DATA.is_dir():
        message = f"the shared test data is not beside the project ({SHARED_DATA.parent.name}/{SHARED_DATA.name})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED_DATA


def read_extended_json(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a file of relaxed Extended JSON, one a line, gzipped or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [loads(line, json_options=_EXTENDED_JSON) for line in text.split("\n") if line.strip()]
