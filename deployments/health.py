"""Whether a part of the production set-up does its work: ``python -m deployments.health api|services|worker|http``.

For health checks of containers: exit code 0 when it does, 1 with a line of why when it doesn't.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

_TIMEOUT_SECONDS = 10
# The services' own tasks come every few seconds; a busy consumer is away for as long as it writes a batch.
_SILENT_MS = 60_000
_TASKS, _WORKERS = "prefect:stream", "docket-workers"
_EVENTS = "events"
_CONSUMERS = ("event-persister", "reactive-triggers", "task-run-recorder")


def check_api() -> str | None:
    """Return None when the API answers and reaches its database, or what is wrong."""
    return _get(f"http://127.0.0.1:{os.environ.get('PREFECT_SERVER_API_PORT', '4200')}/api/ready")


def check_worker() -> str | None:
    """Return None when the worker of this machine asked its server for work lately, or what is wrong."""
    return _get(f"http://127.0.0.1:{os.environ.get('PREFECT_WORKER_WEBSERVER_PORT', '8080')}/health")


def check_http() -> str | None:
    """Return None when the HTTP service of this machine lives, or what is wrong."""
    return _get(f"http://127.0.0.1:{os.environ.get('CRYPTIQUE_HTTP_PORT', '8600')}/health/live")


def check_services() -> str | None:
    """Return None when the services of this machine do their work, or which of it lies about.

    Prefect's services answer nobody; what they leave in Redis is when each of them last took something.
    """
    import redis

    try:
        with redis.Redis.from_url(
            os.environ["PREFECT_REDIS_MESSAGING_URL"],
            decode_responses=True,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
        ) as client:
            if not _took_lately(client, _TASKS, _WORKERS, f"{socket.gethostname()}#"):
                return "no task of the services was taken for a minute"
            waiting = {group["name"]: group["lag"] or 0 for group in client.xinfo_groups(_EVENTS)}
            stuck = [
                name
                for name in _CONSUMERS
                if waiting[name] and not _took_lately(client, _EVENTS, name, f"{name}-{socket.gethostname()}-")
            ]
    except (redis.RedisError, KeyError) as error:
        return f"Redis: {error}"
    return f"events wait, and nobody takes them: {', '.join(stuck)}" if stuck else None


def _took_lately(client: Any, stream: str, group: str, whose: str) -> bool:
    return any(
        consumer["name"].startswith(whose) and consumer["idle"] < _SILENT_MS
        for consumer in client.xinfo_consumers(stream, group)
    )


def _get(url: str) -> str | None:
    try:
        # A proxy of the environment has no business here.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=_TIMEOUT_SECONDS):
            return None
    except (urllib.error.URLError, OSError) as error:
        return f"{url}: {error}"


CHECKS: dict[str, Callable[[], str | None]] = {
    "api": check_api,
    "services": check_services,
    "worker": check_worker,
    "http": check_http,
}


def main(arguments: list[str]) -> int:
    """Run the check that is named and return the exit code."""
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        sys.stderr.write(f"say what to check: {', '.join(CHECKS)}\n")
        return 2
    wrong = CHECKS[arguments[0]]()
    if wrong is not None:
        sys.stderr.write(wrong + "\n")
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
