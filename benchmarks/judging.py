"""What judging the data costs within a run: the CPU of each place where it is done, in the process of the run."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

#: Functions and methods that a run without a gate would not call; the forecast's sample is larger for the gate's sake.
_PLACES = (
    ("tasks.extract", "observe"),
    ("tasks.extract", "_write_observed"),
    ("tasks.extract", "_profile"),
    ("tasks.validate", "_withhold"),
    ("tasks.domain.profiles.Profile", "merge"),
    ("flows.load", "forecast_load"),
    ("flows.judging.Judging", "judge_plan"),
    ("flows.judging.Judging", "judge_so_far"),
    ("flows.judging.Judging", "judge_end"),
)


class Judging:
    """CPU seconds of judging so far, those of Great Expectations' own process included."""

    def __init__(self) -> None:
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._own_s = 0.0
        self._children_s = _children_s()

    @property
    def cpu_s(self) -> float:
        """Return the seconds of all threads and of the processes that were started and are over."""
        return self._own_s + _children_s() - self._children_s

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, the CPU of its calls counted; of a call within another only the outer one."""

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            if getattr(self._thread, "inside", False):
                return function(*given, **named)
            self._thread.inside, began = True, time.thread_time()
            try:
                return function(*given, **named)
            finally:
                self._thread.inside = False
                with self._lock:
                    self._own_s += time.thread_time() - began

        return call


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def counting_judging() -> Iterator[Judging]:
    """Count what judging takes in this process while the block lasts."""
    judging = Judging()
    found = [(_owner(path), name) for path, name in _PLACES]
    before = [(owner, name, getattr(owner, name)) for owner, name in found]
    for owner, name, function in before:
        # A task is called through its ``with_options``: what is counted is the function that it runs.
        if hasattr(function, "with_options"):
            setattr(owner, name, function.with_options())
            getattr(owner, name).fn = judging.counted(function.fn)
        else:
            setattr(owner, name, judging.counted(function))
    try:
        yield judging
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _owner(path: str) -> Any:
    """Return a module, or a class of one."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name) if name[0].isupper() else import_module(path)
