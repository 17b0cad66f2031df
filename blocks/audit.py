"""Audit: who did what that matters, in the stream ``security`` of the logs. Names and counts, never a secret."""

from __future__ import annotations

import getpass
import logging
import socket

from prefect.logging.configuration import ensure_logging_setup

from tasks.domain.log_lines import SECURITY

_LOGGER = logging.getLogger(SECURITY)


def audit(event: str, says: str, **facts: object) -> None:
    """Write down what somebody did; ``event`` is a stable name in snake case."""
    # A command that asks Prefect for nothing would have no handler.
    ensure_logging_setup()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may know its user by number alone
        user = "unknown"
    _LOGGER.info("%s", says, extra={"event": event, "user": user, "host": socket.gethostname(), **facts})
