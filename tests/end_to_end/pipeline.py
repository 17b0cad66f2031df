"""A pipeline of a test's own: databases, a home, blocks registered for both, and the ways to run a flow on them."""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import UUID, uuid4

import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from deployments.register_blocks import register_blocks
from deployments.settings import Settings
from flows.initialise import initialise
from flows.migrate import migrate
from tasks.domain.rows import read_vector
from tests.conftest import read_extended_json
from tests.loopback.gemini import LoopbackGemini

Record = dict[str, Any]
Found = TypeVar("Found")

#: What a second run of the same work may change in a stored document: when it was written and by which run.
OF_THE_RUN = ("createdAt", "updatedAt", "runId")
_CODEC: CodecOptions[Record] = CodecOptions(tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class RunFailedError(Exception):
    """A flow run that did not complete, with the message of its state."""


class Pipeline:
    """Two databases and a home, with the blocks that lead to them.

    Block names belong to the Prefect server, so every run registers the blocks of its pipeline first, unless they
    are the registered ones already.
    """

    _registered: ClassVar[tuple[int, Settings] | None] = None

    def __init__(
        self, uri: str, client: MongoClient[Record], home: Path, *, source: str, vectors: str | None = None
    ) -> None:
        self.uri = uri
        self.home = home
        self.source: Database[Record] = client.get_database(source, codec_options=_CODEC)
        self.store: Database[Record] = client.get_database(vectors or source, codec_options=_CODEC)
        self.last_run_id: UUID | None = None
        self.settings = self.make_settings(cryptique_embedder="local")

    def make_settings(self, **chosen: Any) -> Settings:
        """Return settings for this pipeline's databases and home, from nowhere but here."""
        return Settings(
            _env_file=None,
            **{
                "cryptique_source_uri": self.uri,
                "cryptique_source_database": self.source.name,
                "cryptique_vectors_uri": None,
                "cryptique_vectors_database": self.store.name,
                "cryptique_vector_form": "float32",
                "gemini_api_key": None,
                "slack_webhook_url": None,
                "cryptique_home": self.home,
                **chosen,
            },
        )

    def use(self, **chosen: Any) -> None:
        """Run with these settings from now on, instead of the local embedder."""
        self.settings = self.make_settings(**chosen)

    def use_gemini(self, server: LoopbackGemini, **chosen: Any) -> None:
        """Run with Gemini's protocol on loopback from now on; vectors are small, so that tests are quick."""
        self.use(
            **{
                "cryptique_embedder": "gemini",
                "gemini_api_key": server.api_key,
                "gemini_base_url": server.url,
                "cryptique_gemini_dimensions": 64,
                # The server enforces none, and tests don't wait for one.
                "cryptique_gemini_texts_per_minute": 1_000_000,
                "cryptique_gemini_tokens_per_minute": 1_000_000_000,
                **chosen,
            }
        )

    def register(self) -> None:
        """Register this pipeline's blocks with the Prefect server."""
        if Pipeline._registered != (id(self), self.settings):
            register_blocks(self.settings)
            Pipeline._registered = (id(self), self.settings)

    def results_in_home(self) -> AbstractContextManager[Any]:
        """Keep the results that Prefect remembers under the pipeline's home."""
        return temporary_settings({PREFECT_LOCAL_STORAGE_PATH: self.home / "results"})

    # -- flows ------------------------------------------------------------------------------------------------

    def run(self, flow: Flow[..., Any] = migrate, **parameters: Any) -> State[Any]:
        """Return the final state of one run, whatever it is."""
        self.register()
        with self.results_in_home():
            state: State[Any] = flow(**parameters, return_state=True)
        self.last_run_id = state.state_details.flow_run_id
        return state

    def complete(self, flow: Flow[..., Any], **parameters: Any) -> Record:
        """Return the report of a run that must complete."""
        state = self.run(flow, **parameters)
        if not state.is_completed():
            raise RunFailedError(state.message)
        report: Record = state.result()
        return report

    def migrate(self, **parameters: Any) -> Record:
        """Return the report of a migration that must complete."""
        return self.complete(migrate, **parameters)

    def refusal(self, **parameters: Any) -> str:
        """Return the message of a run that must fail."""
        state = self.run(**parameters)
        assert state.is_failed(), f"expected a failure, but: {state.message}"
        return f"{state.message}"

    def initialise(self) -> Record:
        """Return what initialise made and found."""
        report: Record = self.run(initialise).result()
        return report

    # -- the source -------------------------------------------------------------------------------------------

    def load(self, data: SourceData, transactions: Iterable[Record]) -> None:
        """Fill the source with the real owners and these transactions."""
        for name, records in (
            ("teams", data.teams),
            ("websites", data.websites),
            ("smartcontracts", data.contracts),
            ("transactions", list(transactions)),
        ):
            # Unacknowledged by the disk: the tests' own loading need not survive a crash.
            fast = self.source.get_collection(name, write_concern=WriteConcern(w=1, j=False))
            if records:
                fast.insert_many(records, ordered=False)

    @property
    def transactions(self) -> Any:
        return self.source["transactions"]

    # -- the store --------------------------------------------------------------------------------------------

    def documents(self, *without: str) -> dict[str, Record]:
        """Return all vector documents by documentId, without the named fields."""
        rows = self.store["vectordocuments"].find({}, dict.fromkeys(without, 0) or None)
        return {row["documentId"]: row for row in rows}

    def stored_source_ids(self) -> set[Any]:
        return set(self.store["vectordocuments"].distinct("sourceId"))

    def empty_store(self) -> None:
        """Drop the store's database, which is not the source's."""
        assert self.store.name != self.source.name
        self.store.client.drop_database(self.store.name)

    def letters(self, **criteria: Any) -> list[Record]:
        return list(self.store["deadletters"].find(criteria))

    def jobs(self) -> list[Record]:
        return list(self.store["embeddingjobs"].find().sort("createdAt", 1))

    def position(self) -> Record | None:
        """Return where ingest goes on."""
        found: Record | None = self.store["ragstore"].find_one({"_id": "position:transaction"})
        return found

    def counts(self) -> dict[str, int]:
        """Return the number of documents of every collection of both databases."""
        return {
            f"{database.name}.{name}": database[name].count_documents({})
            for database in (self.source, self.store)
            for name in sorted(database.list_collection_names())
        }

    def fingerprint(self) -> dict[str, str]:
        """Return MongoDB's own hash of every collection of both databases."""
        return {
            f"{database.name}.{name}": digest
            for database in (self.source, self.store)
            for name, digest in database.command("dbHash")["collections"].items()
        }

    def begin_next_day(self) -> None:
        """Forget that the day's quota is spent, as its reset at midnight does."""
        change = {"$unset": {"spentUntil": "", "closedUntil": ""}}
        self.store["ragstore"].update_many({"_id": {"$regex": "^spending:"}}, change)

    # -- what Prefect knows -----------------------------------------------------------------------------------

    def flow_run(self) -> FlowRun:
        """Return the record of the last run."""
        assert self.last_run_id is not None
        with prefect_client() as client:
            return client.read_flow_run(self.last_run_id)


class SourceData:
    """The shared data, read once a session. Rows are never changed: copy one to spoil it."""

    def __init__(self, folder: Path) -> None:
        self.teams = read_extended_json(folder / "teams.jsonl")
        self.websites = read_extended_json(folder / "websites.jsonl")
        self.contracts = read_extended_json(folder / "smartcontracts.jsonl")
        self.transactions = read_extended_json(folder / "transactions.sample.jsonl.gz")
        self._by_contract = {contract["contractId"]: contract for contract in self.contracts}

    def some(self, rows: int, *, seed: int = 1) -> list[Record]:
        """Return that many real transactions, the same for the same seed, in the order of their ids."""
        chosen = random.Random(seed).sample(self.transactions, rows)
        return sorted(chosen, key=lambda record: record["_id"])

    def contract_of(self, record: Record) -> Record:
        return self._by_contract[record["contractId"]]


def repeated(source: Record, number: int, **changes: Any) -> Record:
    """Return another record like this one, of another transaction: ``number`` makes its id and its hash."""
    made = {**source, "_id": ObjectId(f"{number:024x}"), "tx_hash": f"0x{number:064x}", **changes}
    return {name: value for name, value in made.items() if value is not None}


class HeldRequest:
    """A fault plan that holds one request, of those counted from now on, until it is let go; all others pass.

    A plan may be armed again, for another request of the same server.
    """

    def __init__(self, *, faults: Callable[[int], str | None] = lambda _: None) -> None:
        self.faults = faults
        self._index = -1
        self._arrived, self._released = threading.Event(), threading.Event()

    def __call__(self, index: int) -> str | None:
        if index == self._index:
            self._arrived.set()
            if not self._released.wait(240):
                return "drop"
        return self.faults(index)

    def hold(self, index: int) -> None:
        """Hold the request of this index."""
        self._index = index
        self._arrived.clear()
        self._released.clear()

    def wait(self, beside: Future[Any] | None = None) -> None:
        """Return when the request is there; fail where what should make it ends without."""

        def look() -> bool | None:
            if not self._arrived.is_set() and beside is not None and beside.done():
                pytest.fail(f"it ended without the request: {beside.result()}")
            return True if self._arrived.is_set() else None

        wait_for(look, what="the held request", seconds=240)

    def release(self) -> None:
        """Let it go."""
        self._released.set()


@contextmanager
def beside(work: Callable[[], Found]) -> Iterator[Future[Found]]:
    """Do some work in another thread, which talks to the same Prefect server; it has ended when the block has."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool.submit(contextvars.copy_context().run, work)


def prefect_client() -> SyncPrefectClient:
    return get_client(sync_client=True)


def wait_for(look: Callable[[], Found | None], *, what: str, seconds: float = 60) -> Found:
    """Return what ``look`` finds, asked again until it does; fail when it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.02)
    pytest.fail(f"waited {seconds:g} s in vain for {what}")


def comparable(documents: dict[str, Record], *also_without: str) -> dict[str, Record]:
    """Return the documents without what every run writes anew."""
    left_out = {*OF_THE_RUN, *also_without}
    return {key: {k: v for k, v in row.items() if k not in left_out} for key, row in documents.items()}


def vector_of(document: Record) -> Any:
    return read_vector(document["embedding"])


@contextmanager
def open_pipeline(
    uri: str, client: MongoClient[Record], home: Path, *, separate_store: bool = False
) -> Iterator[Pipeline]:
    """Yield a pipeline on empty databases, which are dropped afterwards."""
    name = f"e2e_{uuid4().hex[:12]}"
    pipeline = Pipeline(uri, client, home, source=name, vectors=f"{name}_vectors" if separate_store else None)
    try:
        yield pipeline
    finally:
        for database in (pipeline.source, pipeline.store):
            client.drop_database(database.name)
