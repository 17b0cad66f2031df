"""What a command needs around it: the servers that the environment names, or local ones for its duration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from deployments.embedded import embedded_mongod, local_prefect_server
from deployments.settings import Settings

_FLUSH_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Services:
    """Where the servers answer; ``mongo_uri`` is None where the user's own MongoDB serves."""

    mongo_uri: str | None
    prefect_url: str | None


@contextmanager
def running_services(
    settings: Settings, *, prefect: bool = True, oplog_mb: int = 990, keep: bool = False
) -> Iterator[Services]:
    """Yield the servers that the settings mean, started where none is named, and stop what was started.

    Within the context Prefect's client talks to that server. What was logged is sent before the server stops.
    ``keep`` leaves what was started running until ``stop_local_servers``.
    """
    with ExitStack() as stack:
        mongo_uri = None
        if settings.embedded:
            mongo_uri = stack.enter_context(embedded_mongod(settings.home, keep=keep, oplog_mb=oplog_mb))
        prefect_url = None
        if prefect:
            prefect_url = settings.prefect_api_url
            if prefect_url is None:
                prefect_url = stack.enter_context(local_prefect_server(settings.home, keep=keep))
            stack.enter_context(talking_to(prefect_url))
        yield Services(mongo_uri, prefect_url)


@contextmanager
def talking_to(url: str) -> Iterator[None]:
    """Let Prefect's client in this process talk to that server; what was logged is sent before it ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            # Both send in the background; a server that stops first would lose the end of the story.
            APILogWorker.drain_all(timeout=_FLUSH_SECONDS)
            EventsWorker.drain_all(timeout=_FLUSH_SECONDS)
