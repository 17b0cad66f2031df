"""A migration on a small disk of its own that fills up: ``python -m tests.chaos.disk FOLDER SIGNS PARAMETERS``.

``FOLDER`` is the shard folder. Run it under ``UNSHARE``, which lets anybody mount a disk that nobody else sees. The
migration runs three times: on a full disk, on one that fills up when the file ``fill`` lies in the folder ``SIGNS``
(``filled`` tells that it is full), and on one with room. Says of each, on a line of JSON, how it ended.
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

#: What lets a process mount disks of its own.
UNSHARE = ("unshare", "--map-root-user", "--mount")
_SIZE, _BLOCK = "16m", bytes(4_096)
_LOOK_S = 0.02


def may_mount(folder: Path) -> bool:
    """Return whether this machine lets a user mount a disk that nobody else sees."""
    command = [*UNSHARE, "mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def main() -> None:
    """Migrate three times."""
    from flows.migrate import migrate

    folder, signs, parameters = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)], check=True)
    filler = folder / "filler"
    for disk in ("full", "filling", "with room"):
        filler.unlink(missing_ok=True)
        if disk == "full":
            _fill(filler)
        elif disk == "filling":
            threading.Thread(target=_fill_when_asked, args=(filler, signs), daemon=True).start()
        state = migrate(**parameters, return_state=True)
        left = [path.name for path in folder.rglob("*") if path.is_file() and path != filler]
        said = {"completed": state.is_completed(), "message": state.message, "left": left}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def _fill_when_asked(filler: Path, signs: Path) -> None:
    pause = threading.Event()
    while not (signs / "fill").exists():
        pause.wait(_LOOK_S)
    _fill(filler)
    (signs / "filled").touch()


def _fill(filler: Path) -> None:
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(_BLOCK)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


if __name__ == "__main__":
    main()
