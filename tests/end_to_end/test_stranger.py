"""A stranger's checklist: each command of the README is run from a fresh clone, or says what of theirs it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.embedded import _free_port

ROOT = Path(__file__).resolve().parents[2]
_HEADS = ("make ", "cp ", ".venv/bin/", "cryptique-rag ", "PREFECT_API_URL=")
#: What a clone alone can't do, and where it is run instead.
NEEDS = {
    "make test": "it is what runs this",
    "cp .env.example .env": "its lines are of their databases; every setting is tested in tests/unit/test_settings.py",
    "restore --backup 2026": "a backup of that day: tests/end_to_end/test_restore_swaps.py",
    "restore --team": "a team of theirs: tests/end_to_end/test_restore.py",
    "migrate --accept": "a load that was stopped: tests/end_to_end/test_quality.py",
}
#: Run in this order; what has to stand before it, stands before it.
RUN = (
    "make demo",
    "make up",
    ".venv/bin/cryptique-rag config check",
    ".venv/bin/cryptique-rag migrate --dry-run",
    ".venv/bin/cryptique-rag initialise",
    ".venv/bin/cryptique-rag migrate",
    '.venv/bin/cryptique-rag search "who claimed staking rewards" --team 67dcac002fd1a03439b29e1d',
    "cryptique-rag migrate --dry-run",
    "cryptique-rag migrate --data-docs",
    ".venv/bin/prefect deployment run backfill/backfill "
    """-p start='"2025-06-01"' -p end='"2025-07-01"' -p dry_run=true""",
    "cryptique-rag restore --backup latest",
    "make down",
)
#: Not in the README, and needed for a command that is.
BEFORE = {"cryptique-rag restore --backup latest": "cryptique-rag backup"}


def commands() -> list[str]:
    """Return the commands that stand in the README's blocks, without what is said of them."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(_HEADS)]
    return [re.split(r"\s+#\s", line)[0].strip() for line in lines]


def test_every_command_of_the_readme_is_run_or_says_what_it_needs() -> None:
    found = dict.fromkeys(commands())
    unknown = [one for one in found if one not in RUN and not any(needs in one for needs in NEEDS)]
    assert unknown == []
    assert [one for one in RUN if one not in found] == []
    assert [needs for needs in NEEDS if not any(needs in one for one in found)] == []


@pytest.mark.long  # set-up, servers and loads: some minutes
def test_a_stranger_gets_what_the_readme_says(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CRYPTIQUE_", "PREFECT_", "GEMINI_", "PYTEST_", "PYTHONPATH", "VIRTUAL_ENV"))
    }
    environment = {
        **kept,
        "ROWS": "300",
        "CRYPTIQUE_HTTP_PORT": str(_free_port()),
        "PREFECT_API_URL": "",
        "PATH": f"{clone / '.venv' / 'bin'}:{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}",
    }
    try:
        for command in RUN:
            for one in (BEFORE.get(command), command):
                if one is None:
                    continue
                if one.startswith(".venv/bin/prefect"):
                    started = (clone / ".cryptique/worker/started_with.json").read_text(encoding="utf-8")
                    api = re.search(r'"(http://127[^"]*/api)"', started)
                    assert api is not None
                    environment["PREFECT_API_URL"] = api[1]
                done = subprocess.run(
                    ["bash", "-euc", one],
                    cwd=clone,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=600,
                )
                environment["PREFECT_API_URL"] = ""
                assert done.returncode == 0, f"{one}\n{done.stdout[-3_000:]}\n{done.stderr[-3_000:]}"
                assert "Traceback" not in done.stderr, one
    finally:
        subprocess.run(["make", "down"], cwd=clone, env=environment, capture_output=True, check=False)
