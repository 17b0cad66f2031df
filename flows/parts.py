"""Parts: tasks over the parts of a backup, a few at work at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, TypeVar

from prefect.futures import PrefectFuture, as_completed
from pydantic import Field

MAX_PARTS_IN_FLIGHT = 8
DEFAULT_PARTS_IN_FLIGHT = 3
PartsInFlight = Annotated[
    int, Field(ge=1, le=MAX_PARTS_IN_FLIGHT, description="Parts at work at once; each holds some tens of megabytes.")
]
Item = TypeVar("Item")


def each(
    items: Iterable[Item], submit: Callable[[Item], PrefectFuture[Any]], *, in_flight: int
) -> Iterator[tuple[Item, Any]]:
    """Yield each item with what became of it, in the order in which they end.

    The first failure is raised when those at work have ended; no other is begun after it.
    """
    waiting = iter(items)
    pending: dict[PrefectFuture[Any], Item] = {}
    failed: BaseException | None = None
    exhausted = False
    while True:
        while not exhausted and failed is None and len(pending) < in_flight:
            try:
                item = next(waiting)
            except StopIteration:
                exhausted = True
            else:
                pending[submit(item)] = item
        if not pending:
            break
        done = next(as_completed(list(pending)))
        item = pending.pop(done)
        try:
            result = done.result()
        except Exception as error:  # noqa: BLE001 - whatever a task raised is raised again below
            failed = failed or error
        else:
            yield item, result
    if failed is not None:
        raise failed
