"""Audit: no secret in what is tracked, and no known hole in what is locked: ``python -m deployments.audit secrets``.

Exit codes: 0 nothing found, 1 something found, 3 nobody could be asked. Whether a package has a hole is known to an
advisory service alone; where none can be reached, that is said, and is no audit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / ".secrets.baseline"
CLEAN, FOUND, NOT_ASKED = 0, 1, 3
#: Digests of packages, drawings, and test data that holds hashes of transactions by the thousand.
_NOT_LOOKED_AT = re.compile(r"\.lock$|\.svg$|\.png$|^bench/results\.json$|^tests/.*/data/|^\.secrets\.baseline$")
_PATIENCE_S = 45


def scan(files: Sequence[str], *, baseline: Path = BASELINE) -> tuple[int, str]:
    """Return whether files hold a secret that the baseline doesn't list as an example, and what was said."""
    kept = baseline.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "detect_secrets.pre_commit_hook", "--baseline", str(baseline), *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # It brings line numbers up to date by itself; looking must change nothing.
    baseline.write_bytes(kept)
    said = done.stdout + done.stderr
    return (FOUND if "Secret Type" in said else CLEAN if done.returncode in (0, 3) else done.returncode), said


def audit_secrets() -> int:
    """Look through what git tracks."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        sys.stdout.write("secrets: not looked for, this is no git checkout\n")
        return CLEAN
    files = [name for name in listed.stdout.splitlines() if not _NOT_LOOKED_AT.search(name)]
    code, said = scan(files)
    sys.stdout.write(said if code else f"secrets: none in {len(files):,} files\n")
    return code


def audit_dependencies(lock: Path = ROOT / "requirements-server.lock") -> int:
    """Ask an advisory service about every locked package that a server installs."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--disable-pip", "--require-hashes"]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off", "--timeout", "10"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        sys.stdout.write("dependencies: NOT AUDITED, no advisory service can be reached from here\n")
        return NOT_ASKED
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}"
        + (f", mended in {hole['fix_versions'][0]}" if hole["fix_versions"] else "")
        for one in found["dependencies"]
        for hole in one.get("vulns", ())
    ]
    skipped = sum("skip_reason" in one for one in found["dependencies"])
    if len(found["dependencies"]) == skipped:
        sys.stdout.write("dependencies: NOT AUDITED, no advisory service can be reached from here\n")
        return NOT_ASKED
    sys.stdout.write("".join(f"{line}\n" for line in holes))
    sys.stdout.write(f"dependencies: {len(holes)} holes in {len(found['dependencies']) - skipped} packages\n")
    return FOUND if holes else NOT_ASKED if skipped else CLEAN


AUDITS: dict[str, Callable[[], int]] = {"secrets": audit_secrets, "dependencies": audit_dependencies}


def main(arguments: list[str]) -> int:
    """Run the audit that is named and return the exit code."""
    if len(arguments) != 1 or arguments[0] not in AUDITS:
        sys.stderr.write(f"say what to audit: {', '.join(AUDITS)}\n")
        return 2
    return AUDITS[arguments[0]]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
