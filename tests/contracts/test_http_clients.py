"""The clients against the service as it listens on a port: Python's, and JavaScript's where node is installed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pymongo import MongoClient

from deployments.client import RagClient, RagError
from tests.builders import SITE_ID
from tests.rag import RagService, Row, put_owners, rows_of, running_rag, transfers

EXAMPLE = Path(__file__).parents[2] / "docs" / "retrieval.mjs"


@pytest.fixture(scope="module")
def served(
    mongo_uri: str, mongo_client: MongoClient[Row], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RagService]]:
    database = mongo_client["test_http_clients"]
    put_owners(database)
    try:
        with (
            running_rag(mongo_uri, database, tmp_path_factory.mktemp("rag"), rows_of(transfers(5))) as service,
            socket.socket() as port,
        ):
            port.bind(("127.0.0.1", 0))
            app: Any = service.client.app
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", proxy_headers=False))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [port]}, daemon=True)
            thread.start()
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port.getsockname()[1]}", service
            server.should_exit = True
            thread.join(10)
    finally:
        mongo_client.drop_database("test_http_clients")


def test_pythons_client_retrieves_answers_and_rates(served: tuple[str, RagService]) -> None:
    url, service = served
    with RagClient(url, service.token()) as rag:
        found = rag.retrieve("USDT transfers of more than 25", site_id=SITE_ID, limit=2)
        assert len(found["sources"]) == found["metadata"]["matchCount"] == 2
        answer = rag.generate("USDT transfers of more than 25", site_id=SITE_ID)
        assert answer is not None
        assert answer["content"].endswith("]")
        rag.rate(answer["requestId"], site_id=SITE_ID, rating=5)
        added = rag.add_document("Refunds are paid within 14 days.", site_id=SITE_ID, type="policy")
        assert (added["metadata"]["status"], added["metadata"]["type"]) == ("searchable", "policy")
        told = rag.generate("How many visitors did Nimbus have?", site_id=SITE_ID)
        assert told is not None
        assert told["refused"]["needed"]
        shown = rag.overview("How many transactions were there?", site_id=SITE_ID, timeframe="all")
        assert shown is not None
        assert shown["metrics"][0]["title"] == "Transactions"
        assert rag.overview("How was the traffic?", site_id=SITE_ID, timeframe="2019") is None
        assert rag.generate(f"transaction 0x{999:064x}", site_id=SITE_ID) is None
        with pytest.raises(RagError, match="no such site") as refused:
            rag.retrieve("swaps", site_id="site-a")
        assert (refused.value.status, bool(refused.value.request_id)) == (404, True)
    with RagClient(url, "no-token") as stranger, pytest.raises(RagError) as closed:
        stranger.retrieve("swaps", site_id=SITE_ID)
    assert closed.value.status == 401


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_javascript_example_retrieves_and_answers(served: tuple[str, RagService]) -> None:
    url, service = served
    environment = {**os.environ, "RAG_URL": url, "RAG_TOKEN": service.token()}

    def run(site: str, *words: str) -> subprocess.CompletedProcess[str]:
        arguments = ["node", str(EXAMPLE), site, *(words or ["USDT transfers of more than 25"])]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)

    printed = json.loads(run(SITE_ID).stdout)
    assert len(printed["found"]["sources"]) == 3
    assert printed["answer"]["metadata"]["model"] == "extractive"
    added = json.loads(run(SITE_ID, "--add", "Added from JavaScript.").stdout)
    assert (added["metadata"]["status"], added["metadata"]["type"]) == ("searchable", "note")
    refused = run("site-a")
    assert (refused.returncode, refused.stderr.strip()) == (1, "404 this team has no such site")


def test_a_client_comes_again_when_it_is_told_to_and_no_more_often_than_it_may() -> None:
    waited: list[float] = []
    answers = [429, 503, 200]

    def answer(_: httpx.Request) -> httpx.Response:
        status = answers.pop(0)
        return httpx.Response(
            status,
            json={"success": status < 300, "data": {"context": ""}, "error": "later"},
            headers={"Retry-After": "7"},
        )

    def client(retries: int) -> RagClient:
        return RagClient("http://x", "t", retries=retries, transport=httpx.MockTransport(answer), sleep=waited.append)

    assert client(2).retrieve("q", site_id="s")["context"] == ""
    assert waited == [7.0, 7.0]
    answers[:] = [202]
    assert client(0).add_document("kept, and found later", site_id="s")["context"] == ""
    answers[:] = [429, 429, 200]
    with pytest.raises(RagError, match="later") as refused:
        client(1).retrieve("q", site_id="s")
    assert (refused.value.status, answers) == (429, [200])
