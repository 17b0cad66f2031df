"""Log files that several processes write at once: no line is lost or torn, across midnights, full files and sweeps."""

from __future__ import annotations

import gzip
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from blocks.log_files import DatedLogHandler, sweep_logs
from deployments.logs import CONFIGURATION
from tasks.domain.log_lines import SECURITY

PROCESSES = 4


#: Writes so many lines, the second half of them after a midnight, as many seconds on either side for every process.
WRITER = """
import logging
from pathlib import Path
from blocks.log_files import DatedLogHandler
folder, process, lines, max_bytes, midnight = {!r}, {}, {}, {}, 1772409600.0
handler = DatedLogHandler(Path(folder), max_bytes=max_bytes)
for number in range(lines):
    words = f"{{process}}:{{number}} " + "x" * (number % 400)
    record = logging.LogRecord("cryptique.test", logging.INFO, "", 0, words, (), None)
    record.created = midnight + (number - lines / 2) * 60 / lines
    handler.emit(record)
"""


def read_lines(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("combined-*")):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert raw.endswith(b"\n")
        found += [json.loads(one) for one in raw.splitlines()]
    return found


@pytest.mark.parametrize(
    "lines", [pytest.param(1_250, id="5,000"), pytest.param(50_000, id="200,000", marks=pytest.mark.long)]
)
def test_four_processes_lose_no_line_and_tear_none_across_midnight_and_full_files(tmp_path: Path, lines: int) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    max_bytes = lines * 4 * 350 // 12
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER.format(str(folder), number, lines, max_bytes)])
        for number in range(PROCESSES)
    ]
    over, swept = threading.Event(), []

    def sweep() -> None:
        while not over.wait(0.05):
            # By this clock both days have been over for long: worse than any sweeper will be.
            swept.append(sweep_logs(folder, now=datetime(2026, 3, 3, 2, tzinfo=UTC)))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    for writer in writers:
        assert writer.wait() == 0
    over.set()
    sweeper.join()
    later = sweep_logs(folder, now=datetime(2026, 3, 3, 2, tzinfo=UTC))
    assert not list(folder.glob("combined-*.log")), later
    # It took files away from under the writers, and they went on in others.
    assert sum(len(one.compressed) for one in swept) >= 4
    found = Counter(one["message"].split(" ")[0] for one in read_lines(folder))
    assert found == Counter({f"{process}:{number}": 1 for process in range(PROCESSES) for number in range(lines)})
    assert {path.name[:19] for path in folder.glob("combined-*")} == {"combined-2026-03-01", "combined-2026-03-02"}


def write(folder: Path, message: str, *, at: datetime, name: str = "x", level: int = logging.INFO) -> None:
    handler = DatedLogHandler(folder)
    record = logging.LogRecord(name, level, "", 0, message, (), None)
    record.created = at.timestamp()
    handler.emit(record)
    handler.close()


def test_a_sweep_compresses_what_is_over_and_removes_what_was_kept_long_enough(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    now = datetime(2026, 3, 31, 12, tzinfo=UTC)
    for days in (0, 1, 30, 31):
        write(folder, f"{days} days ago", at=now - timedelta(days=days), name=SECURITY, level=logging.ERROR)
    swept = sweep_logs(folder, now=now)
    assert set(swept.removed) == {"combined-2026-02-28.log", "error-2026-02-28.log"}
    names = {path.name for path in folder.glob("*-2026-*")}
    assert names == {
        *(f"{stream}-2026-03-31.log" for stream in ("combined", "error", "security")),
        *(f"{stream}-2026-03-{day}.log.gz" for stream in ("combined", "error", "security") for day in ("30", "01")),
        "security-2026-02-28.log.gz",
    }
    assert sweep_logs(folder, now=now) == type(swept)()
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*-2026-*"))


def test_a_sweep_that_was_killed_half_way_is_done_again_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    write(folder, "kept", at=datetime(2026, 3, 1, tzinfo=UTC))
    path = folder / "combined-2026-03-01.log"
    (folder / "combined-2026-03-01.log.partial").write_bytes(b"half")
    (folder / "combined-2026-03-01.log.gz").write_bytes(gzip.compress(path.read_bytes()))
    sweep_logs(folder, now=datetime(2026, 3, 3, tzinfo=UTC))
    assert [one["message"] for one in read_lines(folder)] == ["kept"]
    assert not list(folder.glob("*.partial"))


def test_a_disk_that_is_full_stops_nobody_and_is_told_once(tmp_path: Path) -> None:
    script = (
        "import logging, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from blocks.log_files import DatedLogHandler\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "log = logging.getLogger('x'); log.setLevel('INFO'); log.propagate = False\n"
        f"log.addHandler(DatedLogHandler(Path({str(tmp_path / 'logs')!r})))\n"
        "for number in range(200):\n"
        "    log.info('line %d', number)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
    assert done.stderr.count("can't be written") == 1
    lines = (tmp_path / "logs").glob("combined-*.log").__next__().read_bytes().splitlines()
    whole = [one for one in lines if one.endswith(b"}")]
    assert len(whole) >= 20
    assert lines == whole  # the half line for which there was room is taken back
    assert f"{200 - len(whole)} log lines could not be written" in done.stderr


def test_without_a_home_nothing_is_made(tmp_path: Path) -> None:
    write(tmp_path / "nowhere" / "logs", "lost", at=datetime(2026, 3, 1, tzinfo=UTC))
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_is_prefects_own_with_files_beside() -> None:
    import prefect.logging

    theirs = yaml.safe_load(Path(prefect.logging.__file__).with_name("logging.yml").read_text())
    ours = yaml.safe_load(CONFIGURATION.read_text())
    assert ours["handlers"].pop("files") == {"()": "deployments.logs.make_files"}
    for name in ("cryptique", "cryptique.performance", "cryptique.security"):
        del ours["loggers"][name]
    for name in ("uvicorn", "fastapi"):
        ours["loggers"][name]["handlers"].remove("files")
    ours["root"]["handlers"].remove("files")
    ours["loggers"]["prefect.extra"]["handlers"].remove("files")
    # What Prefect's database keeps of a run has no secrets either.
    assert ours["formatters"].pop("redacted") == {"()": "deployments.logs.RedactingFormatter"}
    for name in ("api", "worker_api"):
        assert ours["handlers"][name].pop("formatter") == "redacted"
    theirs["formatters"]["standard"]["()"] = "deployments.logs.make_console_formatter"
    assert ours == theirs


@pytest.mark.parametrize("environment", ["development", "production"])
def test_a_process_that_logs_by_it_writes_runs_errors_and_audits_and_a_console_that_fits(
    tmp_path: Path, environment: str
) -> None:
    script = (
        "import logging\n"
        "from prefect.logging.configuration import ensure_logging_setup\n"
        "ensure_logging_setup()\n"
        "run = {'flow_run_id': 'r1', 'flow_run_name': 'n'}\n"
        "logging.getLogger('prefect.flow_runs').warning('a run says', extra=run)\n"
        "logging.getLogger('some.library').error('broken at mongodb://u:hunter2secret@h/')\n"
        "logging.getLogger('cryptique.security').info('who did', extra={'event': 'x_done'})\n"
        "logging.getLogger('cryptique.performance').info('fast')\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CRYPTIQUE_"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **kept,
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "PREFECT_LOGGING_SETTINGS_PATH": str(CONFIGURATION),
            "CRYPTIQUE_LOGS": str(tmp_path / "logs"),
            "CRYPTIQUE_ENVIRONMENT": environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    found = {
        path.name.partition("-")[0]: [json.loads(one) for one in path.read_text().splitlines()]
        for path in (tmp_path / "logs").glob("*.log")
    }
    assert [one["message"] for one in found["combined"]] == ["a run says", "broken at mongodb://***@h/", "who did"]
    assert found["combined"][0]["link"] == "http://127.0.0.1:9/runs/flow-run/r1"
    assert [one["message"] for one in found["error"]] == ["broken at mongodb://***@h/"]
    assert [one["event"] for one in found["security"]] == ["x_done"]
    assert [one["message"] for one in found["performance"]] == ["fast"]
    console = done.stderr.splitlines()
    if environment == "production":
        assert next(json.loads(one)["message"] for one in console if one.startswith("{")) == "a run says"
    else:
        assert any("Flow run 'n' - a run says" in one for one in console)
    assert "hunter2secret" not in done.stderr
