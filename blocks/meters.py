"""The meter of this process: what its requests did, until it is written down."""

from __future__ import annotations

from tasks.domain.meters import Meter

#: One for the process: requests of all its runs and threads add up in it.
METER = Meter()
