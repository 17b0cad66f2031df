"""Alert: tell a person what failed, as often as the cooldown allows, and that it is well again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from blocks.slack import Delivery, SlackNotifier
from tasks.domain.errors import PipelineError, TransientError
from tasks.domain.incidents import (
    Decision,
    Incident,
    Kind,
    Memory,
    Message,
    after_sending,
    format_discord,
    format_generic,
    format_slack,
    on_failure,
    on_success,
    on_time,
)

_FORMATS: Mapping[str, Callable[[Message], dict[str, Any]]] = {
    "slack": format_slack,
    "discord": format_discord,
    "generic": format_generic,
}
#: Every lost race is another's success, so this many in a row are a storm that ends by itself.
_MAX_RACES = 200
_LONGEST_PAUSE_S = 0.05

Record = dict[str, Any]
Rule = Callable[[Memory | None], Decision | None]


class IncidentBook(Protocol):
    """Where the memory of causes lies; ``VectorStore`` has these verbs."""

    def find_incident(self, cause: str) -> Record | None:
        """Return what is remembered of a cause."""

    def find_incidents(self) -> list[Record]:
        """Return what is remembered of every cause that something may still be said of."""

    def save_incident(self, row: Mapping[str, Any], *, instead_of: Mapping[str, Any] | None) -> bool:
        """Write what is remembered in the place of what was read; False if another was quicker."""


class ProcessBook:
    """The memory of this process alone: for when the store itself is what failed."""

    def __init__(self) -> None:
        self._rows: dict[str, Record] = {}
        self._lock = threading.Lock()

    def find_incident(self, cause: str) -> Record | None:
        """Return what is remembered of a cause."""
        with self._lock:
            return self._rows.get(cause)

    def find_incidents(self) -> list[Record]:
        """Return everything that is remembered."""
        with self._lock:
            return list(self._rows.values())

    def save_incident(self, row: Mapping[str, Any], *, instead_of: Mapping[str, Any] | None) -> bool:
        """Write what is remembered in the place of what was read; False if another was quicker."""
        with self._lock:
            if self._rows.get(row["_id"]) is not instead_of:
                return False
            self._rows[row["_id"]] = dict(row)
            return True


_without_store = ProcessBook()


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one cause: nothing to say (``kind`` is None), or a message and whether it arrived."""

    cause: str
    kind: Kind | None
    delivered: bool
    says: str

    def __str__(self) -> str:
        """Return it as a line for a log."""
        return f"{self.cause}: {self.says}"


def send_alert(incident: Incident, *, notifier: SlackNotifier, book: IncidentBook | None, now: datetime) -> Told:
    """Tell of a failure, or hold it back and count it while its cause is in its cooldown.

    Of any number of processes that call it at once for one cause, one sends. A webhook that is down raises nothing:
    the result says so, and the failure is told with the next message. Without a ``book``, or when it can't be
    reached, the cooldown holds in this process alone.
    """
    if book is not None:
        try:
            return _tell(incident.cause, lambda memory: on_failure(memory, incident, now=now), notifier, book, now)
        except PipelineError:
            incident = replace(incident, what=f"{incident.what} (The store can't be reached: this may be told again.)")
    told = _tell(incident.cause, lambda memory: on_failure(memory, incident, now=now), notifier, _without_store, now)
    assert told is not None
    return told


def tell_resolved(
    flow: str,
    *,
    link: str | None,
    scope: str,
    notifier: SlackNotifier,
    book: IncidentBook,
    now: datetime,
    cause: str | None = None,
) -> list[Told]:
    """Tell that a flow completed again, once for each of its causes that was told of, or for one ``cause`` alone.

    Raises what the book raises.
    """

    def rule(memory: Memory | None) -> Decision | None:
        if memory is None or not (memory.failing or memory.told_failing):
            return None
        before = memory.incident
        memory, message = on_success(memory, now=now)
        if message is not None:
            message = replace(message, incident=replace(before, link=link, scope=scope))
        return memory, message

    return _tell_each(
        lambda memory: memory.incident.flow == flow and cause in (None, memory.cause), rule, notifier, book, now
    )


def tell_due(*, notifier: SlackNotifier, book: IncidentBook, now: datetime) -> list[Told]:
    """Send the summaries of cooldowns that have ended. Safe to call at any time; raises what the book raises.

    Every run of every flow calls it at its end, so the flow that runs most often bounds how late a summary is.
    """

    def rule(memory: Memory | None) -> Decision | None:
        if memory is None:
            return None
        after, message = on_time(memory, now=now)
        return None if message is None else (after, message)

    return _tell_each(lambda memory: memory.untold > 0 or memory.told_failing, rule, notifier, book, now)


def _tell_each(
    concerned: Callable[[Memory], bool], rule: Rule, notifier: SlackNotifier, book: IncidentBook, now: datetime
) -> list[Told]:
    memories = [Memory.from_record(row) for row in book.find_incidents()]
    causes = [memory.cause for memory in memories if concerned(memory)]
    told = [_tell(cause, rule, notifier, book, now) for cause in causes]
    return [one for one in told if one.kind is not None]


def _tell(cause: str, rule: Rule, notifier: SlackNotifier, book: IncidentBook, now: datetime) -> Told:
    """Put down what the rule decides, then say what it says, then put down whether that arrived."""
    message = _remember(cause, rule, book)
    if message is None:
        return Told(cause, None, False, "held back until its cooldown ends, and counted")
    delivery = notifier.send(_FORMATS[notifier.kind](message))

    def confirm(memory: Memory | None) -> Decision | None:
        if memory is None:
            return None
        return after_sending(memory, message, delivered=delivery.delivered, now=now), None

    try:
        _remember(cause, confirm, book)
    except PipelineError:
        # It stays unconfirmed, and is told again when the cooldown ends.
        return Told(cause, message.kind, delivery.delivered, f"{_says(message, delivery)}; the store can't be reached")
    return Told(cause, message.kind, delivery.delivered, _says(message, delivery))


def _says(message: Message, delivery: Delivery) -> str:
    if delivery.delivered:
        return f"told ({message.kind})" + (f", with {message.held_back:,} held back" if message.held_back else "")
    return f"not told: {delivery.says}; it will be with the next message"


def _remember(cause: str, rule: Rule, book: IncidentBook) -> Message | None:
    """Apply a rule to what is remembered and write the result, again when another was quicker."""
    pause = threading.Event()
    for _ in range(_MAX_RACES):
        found = book.find_incident(cause)
        decision = rule(None if found is None else Memory.from_record(found))
        if decision is None:
            return None
        memory, message = decision
        if book.save_incident(memory.to_record(), instead_of=found):
            return message
        pause.wait(random.uniform(0, _LONGEST_PAUSE_S))
    raise TransientError(f"too many writers at once for the incident {cause}")
