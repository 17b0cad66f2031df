"""A migration whose clock is wrong: ``python -m tests.chaos.clock FILE PARAMETERS [MACHINE]``.

``FILE`` holds by how many seconds it is ahead, or behind where that is negative. It is read at every look at the clock,
so whoever changes the file sets the clock while the migration runs. ``PARAMETERS`` of the flow are JSON. With a
``MACHINE`` others take it for one of another machine, whose processes they can't see.
"""

from __future__ import annotations

import datetime as dates
import json
import sys
import time
from pathlib import Path
from typing import Any

_OURS = ("flows.", "tasks.", "blocks.", "deployments.")


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, dates.datetime)


def set_clock(file: Path) -> None:
    """Let this process read the time of day from a clock that is off by what the file says.

    What measures durations goes on as it is, as on a machine whose clock is set.
    """
    real_time = time.time

    def shifted_time() -> float:
        return real_time() + float(file.read_text())

    class ShiftedDatetime(dates.datetime, metaclass=_AnyDatetime):
        @classmethod
        def now(cls, tz: dates.tzinfo | None = None) -> Any:
            return dates.datetime.fromtimestamp(shifted_time(), tz)

    time.time = shifted_time
    for name, module in list(sys.modules.items()):
        if name.startswith(_OURS) and getattr(module, "datetime", None) is dates.datetime:
            module.datetime = ShiftedDatetime  # type: ignore[attr-defined]


def main() -> None:
    """Migrate by that clock."""
    from flows import jobs
    from flows.migrate import migrate

    file, parameters, *machine = sys.argv[1:]
    set_clock(Path(file))
    if machine:
        jobs._place = lambda: machine[0]
    migrate(**json.loads(parameters))


if __name__ == "__main__":
    main()
