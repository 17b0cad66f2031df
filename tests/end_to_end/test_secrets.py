"""Secrets planted where a user has them, and looked for everywhere that anything is written or shown."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import uuid4

import pytest
from prefect.logging.handlers import APILogHandler
from pymongo import MongoClient

from blocks.mongo import MongoDatabase
from deployments.register_blocks import make_blocks
from flows.backup import backup
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, prefect_client, wait_for
from tests.loopback.gemini import LoopbackGemini

#: Both need quoting in a URI, so that a quoted copy is another string than the secret itself.
KEY = f"planted-key/{uuid4().hex}+x"
PASSWORD = f"planted:pass/{uuid4().hex}@x"
WRONG_PASSWORD = f"planted:wrong/{uuid4().hex}@x"


def forms(secret: str) -> set[str]:
    """Return the secret as it may be spelled: itself, quoted for a URI, in JSON, in base64 at any offset."""
    spelled = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    # Base64 of a text that holds it: the first and last characters depend on the neighbours.
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode()
        spelled.add(encoded[4:-4])
    return spelled


SECRETS = {form for secret in (KEY, PASSWORD, WRONG_PASSWORD) for form in forms(secret)}


def found_in(text: str | bytes) -> set[str]:
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return {secret for secret in SECRETS if secret.encode() in raw}


@pytest.fixture
def user(mongo_client: MongoClient[Record]) -> Iterator[str]:
    name = f"planted-{uuid4().hex[:8]}"
    mongo_client.admin.command("createUser", name, pwd=PASSWORD, roles=["readWriteAnyDatabase", "dbAdminAnyDatabase"])
    yield name
    mongo_client.admin.command("dropUser", name)


def with_user(uri: str, user: str, password: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{user}:{quote_plus(password)}@{rest}&authSource=admin"


def everything_prefect_tells(endpoint_names: list[str]) -> dict[str, str]:
    """Return all that the server's API gives of its lists, page by page, as text."""
    told: dict[str, str] = {}
    with prefect_client() as client:
        for name in endpoint_names:
            pages: list[str] = []
            offset = 0
            while True:
                body: dict[str, Any] = {"limit": 200, "offset": offset}
                if name == "block_documents":
                    body["include_secrets"] = False
                page = client.request("POST", f"/{name}/filter", json=body)
                page.raise_for_status()
                pages.append(page.text)
                if len(page.json()) < 200:
                    break
                offset += 200
            told[name] = "".join(pages)
        for run in json.loads(told["flow_runs"]):
            states = client.request("GET", "/flow_run_states/", params={"flow_run_id": run["id"]})
            told[f"states of {run['id']}"] = states.text
            graph = client.request("GET", f"/flow_runs/{run['id']}/graph-v2")
            told[f"graph of {run['id']}"] = graph.text
    return told


def test_no_secret_shows_anywhere_after_runs_that_succeed_and_runs_that_fail(
    pipeline: Pipeline,
    source_data: SourceData,
    mongo_uri: str,
    session_home: Path,
    user: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    rows = source_data.some(60)
    pipeline.load(source_data, [*rows[1:], {**rows[0], "value_eth": "NaN"}])
    shown: list[str] = []
    states: list[Any] = []

    with LoopbackGemini(api_key=KEY) as server:
        right = {"cryptique_source_uri": with_user(mongo_uri, user, PASSWORD)}
        pipeline.use_gemini(server, **right)
        states.append(pipeline.run())
        assert states[-1].is_completed()
        # Its manifest tells how everything was set.
        states.append(pipeline.run(backup, source_collections=True))
        assert states[-1].is_completed(), states[-1].message

        # The service answers with the key in its message, first to the check, then to the stage.
        for first_spoiled in (0, 1):
            before = server.request_count
            server.faults = lambda index, at=before + first_spoiled: "500-key-echoed" if index >= at else None  # type: ignore[misc]
            pipeline.transactions.update_one({"_id": rows[3]["_id"]}, {"$set": {"method_name": f"x{first_spoiled}"}})
            states.append(pipeline.run(retries=0))
            assert states[-1].is_failed()
            assert "Gemini can't answer now" in states[-1].message
        server.faults = ()
        # Another key than the server's: it is refused.
        server.api_key = "the-key-was-changed"
        states.append(pipeline.run(retries=0))
        assert "Gemini refuses GEMINI_API_KEY" in states[-1].message
        server.api_key = KEY
        # The wrong password, and a URI that is broken where the password stands.
        for uri, words in (
            (with_user(mongo_uri, user, WRONG_PASSWORD), "MongoDB refuses the user of CRYPTIQUE_SOURCE_URI"),
            (f"mongodb://{user}:{WRONG_PASSWORD}@127.0.0.1/", "CRYPTIQUE_SOURCE_URI is not a MongoDB URI"),
        ):
            pipeline.use_gemini(server, cryptique_source_uri=uri)
            states.append(pipeline.run(retries=0))
            assert states[-1].is_failed()
            assert words in states[-1].message
            shown += [repr(pipeline.settings), str(pipeline.settings), pipeline.settings.model_dump_json()]
        pipeline.use_gemini(server, **right)
        pipeline.register()
        for block in make_blocks(pipeline.settings).by_name().values():
            shown += [repr(block), str(block), block.model_dump_json(), repr(vars(block))]
            if isinstance(block, MongoDatabase):
                block.check()
                shown += [repr(block), repr(block._client)]
                block.close()
    shown += [repr(state) for state in states]
    shown += [f"{state.result(raise_on_failure=False)!r}" for state in states]

    APILogHandler().flush()
    last_id = str(pipeline.last_run_id)
    lists = ["flow_runs", "task_runs", "logs", "artifacts", "block_documents", "flows"]

    def told_all() -> dict[str, str] | None:
        told = everything_prefect_tells(lists)
        return told if last_id in told["logs"] and last_id in told["flow_runs"] else None

    told = wait_for(told_all, what="the logs of the last run")
    # It is told of all that was done: an empty list would hold no secret either.
    assert "CRYPTIQUE_SOURCE_URI" in told["logs"]
    assert "60 of 60 records" in told["logs"]
    assert "migrate-summary" in told["artifacts"]
    assert "********" in told["block_documents"]
    assert "embed 0" in told["task_runs"]

    out, err = capfd.readouterr()
    shown += [out, err, caplog.text, *(repr(record.__dict__) for record in caplog.records)]
    for database in (pipeline.source, pipeline.store):
        for name in database.list_collection_names():
            told[f"{database.name}.{name}"] = repr(list(database[name].find()))
    assert {"embeddingjobs", "deadletters"} <= set(pipeline.store.list_collection_names())

    assert {name: found_in(text) for name, text in told.items() if found_in(text)} == {}
    assert [found_in(text) for text in shown if found_in(text)] == []
    # Blocks lie in the server's database encrypted; the files of the pipeline and of the server hold nothing.
    files = [path for folder in (pipeline.home, session_home / "prefect") for path in folder.rglob("*")]
    files += list((session_home / "mongod").glob("*.log"))
    read = {path: path.read_bytes() for path in files if path.is_file()}
    assert any(path.name.endswith(".db") for path in read)
    assert any(path.name == "manifest.json" and b'"settings"' in content for path, content in read.items())
    assert any("results" in path.parts for path in read)
    assert {str(path): found_in(content) for path, content in read.items() if found_in(content)} == {}


def test_the_search_for_secrets_finds_one_in_each_of_its_forms() -> None:
    for form in (KEY, quote(KEY, safe=""), json.dumps({"key": KEY}), base64.b64encode(f"a:{KEY}b".encode()).decode()):
        assert found_in(f"before {form} after")
    assert not found_in("a sentence without any")
