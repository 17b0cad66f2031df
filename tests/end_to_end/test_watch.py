"""The watch: what dies is told within a minute, the page says so, and all heals without a hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.embedded import LocalServer, _free_port, _mongod
from tests.end_to_end.pipeline import wait_for
from tests.loopback.slack import LoopbackSlack

TOKEN = "a-token-of-the-test-0123456789"
A_MINUTE_S = 60


class Served:
    """``cryptique-rag serve`` as a process, on a mongod of its own."""

    def __init__(self, home: Path, uri: str, slack: LoopbackSlack) -> None:
        self.port = _free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CRYPTIQUE_", "PREFECT_"))}
        self.environment = {
            **kept,
            "CRYPTIQUE_HOME": str(home / "served"),
            "CRYPTIQUE_SOURCE_URI": uri,
            "CRYPTIQUE_SOURCE_DATABASE": "watched",
            "CRYPTIQUE_EMBEDDER": "local",
            "CRYPTIQUE_ADMIN_TOKEN": TOKEN,
            "CRYPTIQUE_HTTP_RATE_LIMIT": "100000",
            "SLACK_WEBHOOK_URL": slack.url,
            "CRYPTIQUE_ALERT_WEBHOOK_KIND": "generic",
        }
        self.log = home / "serve.log"
        command = [
            sys.executable,
            "-P",
            "-c",
            "from deployments.cli import main; main()",
            "serve",
            "--port",
            str(self.port),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=self.environment | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
                cwd=home,
                stdout=log,
                stderr=log,
            )

    def get(self, path: str) -> httpx.Response | None:
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=30, trust_env=False)
        except httpx.TransportError:
            return None

    def status(self) -> str | None:
        answer = self.get("/health/details")
        return None if answer is None else answer.json()["status"]


@pytest.fixture
def slack() -> Iterator[LoopbackSlack]:
    with LoopbackSlack() as server:
        yield server


def said(slack: LoopbackSlack, name: str) -> list[Any]:
    return [one.payload["event"] for one in slack.taken if one.payload["cause"] == f"monitor:{name}:look"]


@contextmanager
def closing_mongod(server: LocalServer) -> Iterator[int]:
    """Yield the port of a mongod that may be killed and started again meanwhile."""
    with server.used(keep=True) as port:
        pass
    try:
        yield port
    finally:
        server.stop()


@pytest.mark.long  # a minute or two of waiting for what is stopped to be noticed
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_mongod_that_dies_or_hangs_is_told_within_a_minute_and_all_heals_when_it_is_back(
    tmp_path: Path, slack: LoopbackSlack, how: signal.Signals
) -> None:
    server = _mongod(tmp_path, cache_gb=0.25)
    with closing_mongod(server) as port:
        state = server._read_state()
        assert state is not None
        served = Served(tmp_path, f"mongodb://127.0.0.1:{port}/?directConnection=true", slack)
        try:
            assert wait_for(lambda: served.status() == "ok" or None, what="the service", seconds=60)
            os.kill(state.pid, how)
            stopped = time.monotonic()
            assert wait_for(lambda: said(slack, "vectors-unreachable") or None, what="the alert", seconds=A_MINUTE_S)
            assert time.monotonic() - stopped < A_MINUTE_S
            page = served.get("/admin/monitoring")
            assert page is not None
            assert page.status_code == 200
            assert "The vector store&#39;s MongoDB can&#39;t be reached" in page.text
            ready = served.get("/health/ready")
            assert ready is not None
            assert ready.status_code == 503
            assert served.status() == "critical"
            if how is signal.SIGSTOP:
                os.kill(state.pid, signal.SIGCONT)
            else:
                with server.used(keep=True) as again:
                    assert again == port
            assert wait_for(
                lambda: said(slack, "vectors-unreachable")[-1] == "resolved" or None,
                what="the end of the alert",
                seconds=90,
            )
            assert wait_for(lambda: served.status() == "ok" or None, what="all to be well", seconds=30)
            ready = served.get("/health/ready")
            assert ready is not None
            assert ready.status_code == 200
            assert said(slack, "vectors-unreachable") == ["failed", "resolved"]
        finally:
            served.process.terminate()
            assert served.process.wait(timeout=40) in (0, -signal.SIGTERM)
