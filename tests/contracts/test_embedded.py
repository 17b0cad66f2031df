"""The local servers, real ones: shared, outliving their users' deaths, stopped by the last one to leave."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from pymongo import MongoClient

from deployments import embedded
from deployments.embedded import (
    embedded_mongod,
    local_prefect_server,
    running_prefect_server,
    stop_local_servers,
)
from deployments.local_services import talking_to
from tasks.domain.errors import TerminalError
from tests.end_to_end.pipeline import wait_for

PROJECT = Path(embedded.__file__).parents[1]
SERVERS = ("mongod", "prefect")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose servers end with the test, whatever became of it."""
    home = tmp_path.resolve()
    yield home
    for name in SERVERS:
        state = read_state(home, name)
        if state.get("pid") and command_of(state["pid"]) and str(home) in settings_of(state["pid"]):
            os.kill(state["pid"], signal.SIGKILL)


@pytest.fixture
def start_user(home: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts commands that use the home's mongod until their standard input is closed."""
    users: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        program = (
            "import sys; from pathlib import Path; from deployments.embedded import embedded_mongod\n"
            "with embedded_mongod(Path(sys.argv[1]), cache_gb=0.25) as uri:\n"
            "    print(uri, flush=True)\n"
            "    sys.stdin.read()\n"
        )
        user = subprocess.Popen(
            [sys.executable, "-c", program, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        users.append(user)
        return user

    yield start
    for user in users:
        user.kill()
        user.communicate(timeout=30)


class HangsUp(socketserver.TCPServer):
    allow_reuse_address = True


def read_state(home: Path, name: str) -> dict[str, Any]:
    try:
        state = json.loads((home / name / "server.json").read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def running_pid(home: Path, name: str = "mongod") -> int:
    pid = read_state(home, name)["pid"]
    assert isinstance(pid, int)
    return pid


def command_of(pid: int) -> str:
    """The command line of a live process; empty for one that is gone or only waits to be collected."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "stat=,command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    status, _, command = listed.stdout.strip().partition(" ")
    return "" if status.startswith("Z") else command.strip()


def settings_of(pid: int) -> str:
    """The command line and the environment of a process of ours."""
    listed = subprocess.run(
        ["ps", "eww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while command_of(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not command_of(pid)


def connect(uri: str) -> MongoClient[dict[str, Any]]:
    return MongoClient(uri, serverSelectionTimeoutMS=20_000)


def leave(user: subprocess.Popen[str]) -> None:
    user.communicate(timeout=60)
    assert user.returncode == 0


def uri_of(user: subprocess.Popen[str]) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


# --- mongod -----------------------------------------------------------------------------------------------


def test_mongod_is_a_primary_with_transactions_and_change_streams(home: Path) -> None:
    with embedded_mongod(home, cache_gb=0.25) as uri, connect(uri) as client:
        assert client.admin.command("hello")["isWritablePrimary"]
        assert client.admin.command("hello")["hosts"] == [uri.split("/")[2]]
        records = client["shop"]["records"]
        with records.watch(max_await_time_ms=10_000) as changes:
            with client.start_session() as session, session.start_transaction():
                records.insert_one({"_id": 1}, session=session)
            assert changes.next()["documentKey"] == {"_id": 1}
        pid = running_pid(home)
    assert is_gone(pid)


def test_mongod_listens_on_the_loopback_address_alone(home: Path) -> None:
    with embedded_mongod(home, cache_gb=0.25) as uri, connect(uri) as client:
        options = client.admin.command("getCmdLineOpts")["parsed"]
        assert options["net"]["bindIp"] == "127.0.0.1"


def test_data_and_port_outlive_a_restart_and_a_larger_oplog_is_granted(home: Path) -> None:
    with embedded_mongod(home, cache_gb=0.25) as first_uri, connect(first_uri) as client:
        client["shop"]["records"].insert_one({"_id": "kept"})
    with (
        embedded_mongod(home, cache_gb=0.25, oplog_mb=1_200) as second_uri,
        connect(second_uri) as client,
    ):
        assert second_uri == first_uri
        assert client["shop"]["records"].find_one() == {"_id": "kept"}
        assert client["local"].command("collStats", "oplog.rs")["maxSize"] == 1_200 * 1024 * 1024


def test_data_outlive_the_loss_of_the_port_to_a_stranger(home: Path) -> None:
    with embedded_mongod(home, cache_gb=0.25) as first_uri, connect(first_uri) as client:
        client["shop"]["records"].insert_one({"_id": "kept"})
    # It hangs up on all who call.
    saved_port = read_state(home, "mongod")["port"]
    with HangsUp(("127.0.0.1", saved_port), socketserver.BaseRequestHandler) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        with embedded_mongod(home, cache_gb=0.25) as second_uri, connect(second_uri) as client:
            assert second_uri != first_uri
            assert client["shop"]["records"].find_one() == {"_id": "kept"}
            with client["shop"]["records"].watch() as changes:
                client["shop"]["records"].insert_one({"_id": "new"})
                assert changes.next()["documentKey"] == {"_id": "new"}
        stranger.shutdown()


@pytest.mark.long
def test_a_second_user_shares_the_server_and_the_last_to_leave_stops_it(
    home: Path, start_user: Callable[[], subprocess.Popen[str]]
) -> None:
    # Both come at once: one of them starts it.
    first, second = start_user(), start_user()
    assert uri_of(first) == uri_of(second) != ""
    pid = running_pid(home)
    with embedded_mongod(home) as uri:
        assert running_pid(home) == pid
        leave(first)
        leave(second)
        with connect(uri) as client:
            assert client.admin.command("ping")["ok"]
    assert is_gone(pid)


def test_users_in_one_process_count_too(home: Path) -> None:
    with embedded_mongod(home, cache_gb=0.25) as outer:
        pid = running_pid(home)
        with embedded_mongod(home) as inner:
            assert inner == outer
        assert command_of(pid)
    assert is_gone(pid)


def test_a_killed_user_leaves_a_server_that_the_next_one_uses_and_stops(
    home: Path, start_user: Callable[[], subprocess.Popen[str]]
) -> None:
    user = start_user()
    first_uri = uri_of(user)
    pid = running_pid(home)
    user.kill()
    user.wait(timeout=30)
    assert command_of(pid)
    with embedded_mongod(home) as uri:
        assert uri == first_uri
        assert running_pid(home) == pid
    assert is_gone(pid)


def test_a_server_left_behind_is_stopped_on_demand_but_not_under_its_users(
    home: Path, start_user: Callable[[], subprocess.Popen[str]]
) -> None:
    user = start_user()
    assert uri_of(user)
    pid = running_pid(home)
    with pytest.raises(TerminalError, match="still uses the local mongod"):
        stop_local_servers(home)
    assert command_of(pid)
    user.kill()
    user.wait(timeout=30)
    assert stop_local_servers(home) == ["local mongod"]
    assert is_gone(pid)
    assert stop_local_servers(home) == []


def test_a_server_to_be_kept_outlives_its_users_and_later_ones(home: Path) -> None:
    with embedded_mongod(home, keep=True, cache_gb=0.25):
        pid = running_pid(home)
    with embedded_mongod(home):
        assert running_pid(home) == pid
    assert command_of(pid)
    assert stop_local_servers(home) == ["local mongod"]
    assert is_gone(pid)


def test_a_crashed_server_is_started_again_with_its_data(home: Path) -> None:
    with embedded_mongod(home, cache_gb=0.25) as uri, connect(uri) as client:
        client["shop"]["records"].insert_one({"_id": "kept"})
        crashed = running_pid(home)
        os.kill(crashed, signal.SIGKILL)
        assert is_gone(crashed)
        with embedded_mongod(home, cache_gb=0.25) as again, connect(again) as second:
            assert second["shop"]["records"].find_one() == {"_id": "kept"}
            assert running_pid(home) != crashed
        pid = running_pid(home)
    assert is_gone(pid)


@pytest.mark.parametrize("started", ["", "some other time", None])
def test_a_stranger_with_the_noted_process_id_is_neither_used_nor_killed(home: Path, started: str | None) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    try:
        (home / "mongod").mkdir()
        stale = {"pid": stranger.pid, "port": 27_999, "started": started}
        (home / "mongod" / "server.json").write_text(json.dumps(stale))
        assert stop_local_servers(home) == []
        with embedded_mongod(home, cache_gb=0.25) as uri, connect(uri) as client:
            assert client.admin.command("ping")["ok"]
            assert running_pid(home) != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(timeout=30)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": -1, "port": 1}', '{"port": "x"}'])
def test_a_damaged_state_file_stands_for_no_server(home: Path, text: str) -> None:
    (home / "mongod").mkdir()
    (home / "mongod" / "server.json").write_text(text)
    assert stop_local_servers(home) == []


def test_a_server_does_not_hold_the_locks_of_the_command_that_started_it(home: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to look at a process's open files")
    with embedded_mongod(home, cache_gb=0.25):
        open_files = {
            os.readlink(link) for link in Path(f"/proc/{running_pid(home)}/fd").iterdir() if link.is_symlink()
        }
    assert str(home / "mongod" / "data" / "mongod.lock") in open_files
    assert not [name for name in open_files if name.endswith(("users.lock", "start.lock"))]


def test_a_large_log_is_set_aside_at_the_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LARGEST_LOG_BYTES", 10)
    log = home / "mongod" / "mongod.log"
    log.parent.mkdir()
    log.write_text("words of an earlier run\n")
    with embedded_mongod(home, cache_gb=0.25):
        pass
    assert log.with_suffix(".log.1").read_text() == "words of an earlier run\n"
    assert "words of an earlier run" not in log.read_text()


# --- what is missing is said in words ---------------------------------------------------------------------


def test_a_missing_wheel_is_said_with_the_way_to_get_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(TerminalError, match=r"make setup.*CRYPTIQUE_SOURCE_URI"), embedded_mongod(home):
        pass


def test_a_platform_without_a_wheel_is_told_to_bring_a_mongodb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(TerminalError, match="Linux on aarch64: set CRYPTIQUE_SOURCE_URI"):
        embedded.find_mongod()


@pytest.mark.parametrize(
    ("last_words", "advice"),
    [
        (
            "mongod: error while loading shared libraries: libcurl.so.4: cannot open shared object file",
            "apt-get install libcurl4",
        ),
        ("mongod: error while loading shared libraries: libssl.so.3: cannot open", "library libssl.so.3 is"),
        ("write error: No space left on device", "The disk is full"),
        ("DBPathInUse: Unable to lock the lock file", "Another mongod uses the same data folder"),
        ("something never seen before", "code 3 while starting"),
    ],
)
def test_a_mongod_that_ends_at_once_is_explained_with_its_last_words(
    home: Path, monkeypatch: pytest.MonkeyPatch, last_words: str, advice: str
) -> None:
    broken = home / "broken-mongod"
    broken.write_text(f"#!/bin/sh\necho '{last_words}' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded, "find_mongod", lambda: broken)
    with pytest.raises(TerminalError) as caught, embedded_mongod(home):
        pass
    assert advice in str(caught.value)
    assert last_words in str(caught.value)
    assert read_state(home, "mongod")["pid"] is None


def test_a_program_of_another_kind_of_machine_is_said_to_be_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = home / "foreign-mongod"
    foreign.write_bytes(b"\x7fELF but not for here")
    foreign.chmod(0o755)
    monkeypatch.setattr(embedded, "find_mongod", lambda: foreign)
    with pytest.raises(TerminalError, match=r"can't be started.*CRYPTIQUE_SOURCE_URI"), embedded_mongod(home):
        pass


def test_a_full_disk_is_said_before_anything_is_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(TerminalError, match="disk is full: 1 MB are free"), embedded_mongod(home):
        pass
    assert not (home / "mongod" / "mongod.log").exists()


def test_a_home_that_is_a_file_is_said_in_words(home: Path) -> None:
    (home / "occupied").write_text("")
    with pytest.raises(TerminalError, match="can't be made"), embedded_mongod(home / "occupied"):
        pass


def test_a_server_that_never_answers_is_ended_and_said(home: Path) -> None:
    server = embedded.LocalServer(
        label="deaf server",
        folder=home / "mongod",
        log_name="deaf.log",
        # It ignores SIGTERM too.
        command=lambda port: ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"],
        environment=lambda port: os.environ,
        is_ready=lambda port: False,
        instead="bring your own",
        start_timeout_seconds=1.0,
        stop_timeout_seconds=0.5,
    )
    pids: list[int] = []
    write_state = embedded.LocalServer._write_state

    def note(self: embedded.LocalServer, state: embedded.ServerState) -> None:
        pids.extend([state.pid] if state.pid else [])
        write_state(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded.LocalServer, "_write_state", note)
        with (
            pytest.raises(TerminalError, match=r"deaf server did not answer within 1 seconds"),
            server.used(),
        ):
            pass
    assert len(pids) == 1
    assert is_gone(pids[0])


# --- Prefect ----------------------------------------------------------------------------------------------


TASK_RUNS = 400  # two of the server's batches: what is left in its queue at the end is more than it flushes


@task
def number(value: int) -> int:
    return value


@flow
def numbers() -> int:
    return sum(future.result() for future in [number.submit(value) for value in range(TASK_RUNS)])


@pytest.mark.long
def test_the_prefect_server_keeps_its_records_over_a_restart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The caller's own settings must not lead the server to another database or port.
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/else.db")
    assert running_prefect_server(home) is None
    with local_prefect_server(home, keep=True) as url:
        pid = running_pid(home, "prefect")
        assert httpx.get(f"{url}/health", trust_env=False).json() is True
        ui_settings = httpx.get(url.replace("/api", "/ui-settings"), trust_env=False).json()
        assert ui_settings["api_url"] == url
        # Another test's server may be gone, and what sends events in the background would still look for it.
        EventsWorker.drain_all(timeout=10)
        with talking_to(url):
            run_id = numbers(return_state=True).state_details.flow_run_id
        finished = {
            "flow_runs": {"id": {"any_": [str(run_id)]}},
            "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }

        def recorded() -> bool | None:
            # The client tells of task runs in the background, and the server writes them in batches.
            answer = httpx.post(f"{url}/task_runs/count", json=finished, trust_env=False)
            return True if answer.json() == TASK_RUNS else None

        wait_for(recorded, what="the records of all task runs", seconds=120)
    assert running_prefect_server(home) == url
    assert stop_local_servers(home) == ["local Prefect server"]
    assert is_gone(pid)
    assert running_prefect_server(home) is None

    with local_prefect_server(home) as again:
        pid = running_pid(home, "prefect")
        with temporary_settings({PREFECT_API_URL: again}), get_client(sync_client=True) as client:
            assert run_id is not None
            kept = client.read_flow_run(run_id)
        assert kept.state is not None
        assert kept.state.is_completed()
        answer = httpx.post(f"{again}/task_runs/count", json=finished, trust_env=False)
        assert answer.json() == TASK_RUNS
        assert (home / "prefect" / "prefect.db").exists()
    assert is_gone(pid)


def test_a_prefect_server_that_dies_is_explained_with_its_last_words(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = home / "broken-python"
    broken.write_text("#!/bin/sh\necho 'no module named prefect' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    expected = r"ended with code 1 while starting.*\n.*PREFECT_API_URL(.*\n)+no module named prefect"
    with pytest.raises(TerminalError, match=expected), local_prefect_server(home):
        pass
