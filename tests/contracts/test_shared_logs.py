"""Log files under who keeps them open too long: late lines, forks, sweeps cut off, a standard error that is gone."""

from __future__ import annotations

import gzip
import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks.log_files import DatedLogHandler, sweep_logs

DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = datetime(2026, 3, 5, tzinfo=UTC)


def emit(handler: DatedLogHandler, message: str, at: datetime = DAY) -> None:
    record = logging.LogRecord("cryptique.test", logging.INFO, "", 0, message, (), None)
    record.created = at.timestamp()
    handler.handle(record)


def messages(folder: Path) -> list[str]:
    lines: list[bytes] = []
    for path in sorted(folder.glob("combined-*")):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines += raw.splitlines()
    return sorted(json.loads(one)["message"] for one in lines)


def test_a_line_of_a_day_that_was_compressed_long_ago_is_kept_beside_what_was_compressed(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    asleep = DatedLogHandler(folder)
    emit(asleep, "1 in time")
    assert sweep_logs(folder, now=LATER).compressed == ("combined-2026-03-01.log",)
    emit(asleep, "2 by who held the file open")
    assert sweep_logs(folder, now=LATER).compressed == ("combined-2026-03-01.log",)
    emit(asleep, "3 later still")
    sweep_logs(folder, now=LATER)
    asleep.close()
    assert messages(folder) == ["1 in time", "2 by who held the file open", "3 later still"]
    assert sorted(path.name for path in folder.glob("combined-*")) == [
        "combined-2026-03-01.1.log.gz",
        "combined-2026-03-01.2.log.gz",
        "combined-2026-03-01.log.gz",
    ]


def test_a_sweep_that_was_killed_before_it_took_the_plain_file_away_doubles_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    handler = DatedLogHandler(folder)
    emit(handler, "1 compressed")
    path = folder / "combined-2026-03-01.log"
    path.with_suffix(".log.gz").write_bytes(gzip.compress(path.read_bytes()))
    emit(handler, "2 written after the kill")
    handler.close()
    sweep_logs(folder, now=LATER)
    assert messages(folder) == ["1 compressed", "2 written after the kill"]


def test_a_child_that_inherited_open_files_writes_beside_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    script = (
        "import logging, os\n"
        "from pathlib import Path\n"
        "from blocks.log_files import DatedLogHandler\n"
        "log = logging.getLogger('x'); log.setLevel('INFO'); log.propagate = False\n"
        f"log.addHandler(DatedLogHandler(Path({str(folder)!r})))\n"
        "log.info('before')\n"
        "children = []\n"
        "for child in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        for number in range(200): log.info('child %d %d', child, number)\n"
        "        os._exit(0)\n"
        "    children.append(pid)\n"
        "for number in range(200): log.info('parent %d', number)\n"
        "assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    expected = ["before", *(f"parent {number}" for number in range(200))]
    expected += [f"child {child} {number}" for child in range(3) for number in range(200)]
    assert messages(folder) == sorted(expected)


def test_neither_a_broken_value_nor_a_closed_standard_error_reaches_who_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("never a word")

        __repr__ = __str__

    handler = DatedLogHandler(tmp_path / "logs")
    record = logging.LogRecord("x", logging.INFO, "", 0, "a %s", (Broken(),), None)
    record.value = Broken()
    handler.handle(record)
    handler.close()
    (line,) = (tmp_path / "logs").glob("combined-*.log").__next__().read_text().splitlines()
    assert json.loads(line)["value"] == "<Broken>"
    # A file stands where the folder should: every line fails, and standard error is a full disk or is gone.
    (tmp_path / "file").write_text("")
    failing = DatedLogHandler(tmp_path / "file")
    with open(os.devnull) as read_only:
        for stream in (read_only, None):
            monkeypatch.setattr(sys, "stderr", stream)
            emit(failing, "nobody hears it")
    failing.close()
