"""The meter of this process: what its requests did, until it is written down."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol
from uuid import uuid4

from tasks.domain.meters import Measure, Meter

#: One for the process: requests of all its runs and threads add up in it.
METER = Meter()


class MeasureStore(Protocol):
    """Where measures are written down; ``VectorStore`` has this verb."""

    def add_measures(self, measures: Mapping[str, Measure]) -> None:
        """Write measures down by their ids; one whose id is known is written already."""


class Writer:
    """Takes what a meter counted to a store. What could not be written is tried again with the next, under its id.

    So a write whose answer was lost is not counted twice.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._waiting: dict[str, Measure] = {}
        self._lock = threading.Lock()

    def flush(self, store: MeasureStore) -> None:
        """Write all that was counted until now. Raises what the store raises; nothing is lost then."""
        with self._lock:
            self._waiting |= {uuid4().hex: measure for measure in self._meter.take()}
            if self._waiting:
                store.add_measures(self._waiting)
                self._waiting = {}


_writer = Writer(METER)


def write_measures(store: MeasureStore) -> None:
    """Write down what this process counted. Raises what the store raises; then the next call writes it."""
    _writer.flush(store)
