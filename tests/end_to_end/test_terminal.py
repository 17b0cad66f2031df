"""The command on a terminal, which shows none of a run's log: what a person is told all the same."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pymongo import MongoClient

from deployments.sample import load_sample
from tests.end_to_end.pipeline import Record
from tests.end_to_end.test_cli import _COMMAND, FAILED
from tests.loopback.gemini import LoopbackGemini


@pytest.fixture
def place(
    tmp_path: Path, mongo_client: MongoClient[Record], mongo_uri: str, prefect_api: str
) -> Iterator[tuple[LoopbackGemini, dict[str, str]]]:
    """Gemini's protocol on loopback, and the environment of a command that uses it."""
    database = f"terminal_{uuid4().hex[:12]}"
    load_sample(mongo_client[database], rows=60)
    with LoopbackGemini() as gemini:
        yield (
            gemini,
            {
                "PATH": os.environ["PATH"],
                "COLUMNS": "500",
                "CRYPTIQUE_HOME": str(tmp_path / "work"),
                "CRYPTIQUE_SOURCE_URI": mongo_uri,
                "CRYPTIQUE_SOURCE_DATABASE": database,
                "CRYPTIQUE_EMBEDDER": "gemini",
                "CRYPTIQUE_GEMINI_DIMENSIONS": "64",
                "CRYPTIQUE_GEMINI_TEXTS_PER_MINUTE": "1000000",
                "CRYPTIQUE_GEMINI_TOKENS_PER_MINUTE": "1000000000",
                "GEMINI_API_KEY": gemini.api_key,
                "GEMINI_BASE_URL": gemini.url,
                "PREFECT_API_URL": prefect_api,
                "PREFECT_HOME": str(tmp_path / "prefect"),
            },
        )
    mongo_client.drop_database(database)


def on_a_terminal(folder: Path, environment: dict[str, str], *arguments: str, until: str = "") -> tuple[int, str]:
    """Return exit code and what the terminal showed; Ctrl-C comes when it shows ``until``."""
    screen, terminal = pty.openpty()
    with subprocess.Popen(
        [_COMMAND, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=terminal
    ) as process:
        os.close(terminal)
        shown, pressed = "", False
        try:
            while part := _read(screen):
                shown += part
                if until and until in shown and not pressed:
                    process.send_signal(signal.SIGINT)
                    pressed = True
        except BaseException:
            process.kill()
            raise
        finally:
            os.close(screen)
    return process.returncode, shown


def _read(screen: int) -> str:
    try:
        return os.read(screen, 65_536).decode(errors="replace")
    except OSError:
        return ""  # the other end is closed


@pytest.mark.long
def test_a_run_at_its_budget_says_what_to_do_and_one_at_the_days_quota_that_it_waits(
    tmp_path: Path, place: tuple[LoopbackGemini, dict[str, str]]
) -> None:
    gemini, environment = place
    code, shown = on_a_terminal(tmp_path, environment, "migrate", "--budget-usd", "0.000001")
    assert code == FAILED, shown
    assert "error: $0.0000 of the run's budget of $0.0000 is spent. Give the same command again to allow the" in shown

    # The first request is the check that the key works.
    first = gemini.request_count
    gemini.faults = lambda index: "429-day" if index > first else None
    code, shown = on_a_terminal(tmp_path, environment, "migrate", until="goes on by itself")
    assert code == FAILED, shown
    assert "waiting: Gemini's daily quota" in shown
    assert "stopped; the same command goes on where it stopped" in shown
