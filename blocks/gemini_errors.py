"""What Gemini and its clients say went wrong, in the errors of this project, without the key and without the texts."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from tasks.domain.errors import (
    NotSentError,
    PipelineError,
    QuotaSpentError,
    RecordError,
    TerminalError,
    ThrottledError,
    TransientError,
)
from tasks.domain.quotas import quota_day

#: A message of the service is quoted up to here; what it means stands before the quotation.
MAX_QUOTED_CHARS = 300


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, and with what.

    ``job`` says what is meant where no vectors were asked for, such as "the job batches/abc": then no refusal is
    one of a text.
    """

    api_key: SecretStr
    model: str
    timeout_seconds: float
    texts: Sequence[str] = ()
    job: str | None = None


class RefusedError(Exception):
    """The service answered our own HTTP client with no success. It never leaves the blocks."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(str(status))
        self.status = status
        self.body = body


def usable_key(api_key: SecretStr) -> str:
    """Return the key, or raise ``TerminalError`` if no client could send it: it would be quoted in an error."""
    key = api_key.get_secret_value().strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise TerminalError(
            "GEMINI_API_KEY is empty or holds characters that no key has. Set it to the key as Google AI "
            "Studio shows it, and register the blocks again."
        )
    return key


def in_our_words(error: Exception, asked: Asked) -> PipelineError:
    """Return the error of this project that says what the client's error means, without the key."""
    answer = _status_and_body(error)
    if answer is not None:
        return for_status(*answer, asked)
    kind = type(error).__name__
    reason = quoted(str(error), asked)
    # Names, not classes: google-genai raises httpx2's errors (or httpx's, by an environment variable),
    # google-generativeai those of requests and google.auth, and none of these need be imported here.
    family = {f"{ancestor.__module__.split('.')[0]}.{ancestor.__name__}" for ancestor in type(error).__mro__}
    if _never_sent(error):
        return NotSentError(f"the connection to Gemini failed before anything was sent ({kind}: {reason})")
    if family & {"httpx.TimeoutException", "httpx2.TimeoutException", "requests.Timeout"}:
        return TransientError(f"Gemini gave no answer within {asked.timeout_seconds:g} s ({kind})")
    network = {"httpx.TransportError", "httpx2.TransportError", "google.TransportError", "builtins.OSError"}
    if family & network:
        return TransientError(f"the connection to Gemini failed or was dropped ({kind}: {reason})")
    return TransientError(f"Gemini's answer can't be read ({kind}: {reason})")


def for_status(status: int, body: Any, asked: Asked) -> PipelineError:
    """Return the error for a refusal of the service: who reacts is decided here, and only here."""
    error = _error_object(body)
    name = str(error.get("status") or "")
    message = str(error.get("message") or "no reason given")
    said = quoted(message, asked)
    details = [detail for detail in error.get("details") or [] if isinstance(detail, dict)]
    answer = f"{status} {name}".strip()
    reasons = {str(detail.get("reason")) for detail in details}
    key_refused = "API_KEY_INVALID" in reasons or (status == 400 and message.startswith("API key"))

    if status == 429:
        return _for_quota(details, message=message, said=said)
    if status in (401, 403) or key_refused:
        return TerminalError(
            f"Gemini refuses GEMINI_API_KEY ({answer}: {said}). Set GEMINI_API_KEY to a key that may call "
            f"the Gemini API (Google AI Studio shows and makes keys), and register the blocks again."
        )
    if status in (408, 499) or status >= 500:
        return TransientError(
            f"Gemini can't answer now ({answer}: {said})", retry_after_seconds=_retry_after_seconds(details)
        )
    if asked.job is not None:
        return TerminalError(f"Gemini refuses {asked.job}, and would again ({answer}: {said}).")
    if status == 404:
        return TerminalError(
            f"Gemini has no model '{asked.model}' that embeds ({answer}: {said}). Choose another model "
            f"in the block's settings; vectors of the old one stay what they are."
        )
    if status == 413 or (status == 400 and name != "FAILED_PRECONDITION"):
        # Too large a body is refused like a text: half of the batch is smaller.
        return RecordError("embedding_refused", f"Gemini refuses the text ({answer}: {said})")
    return TerminalError(
        f"Gemini refuses the request, and would again ({answer}: {said}). Check the block's settings and "
        f"the Google project's billing and region."
    )


def quoted(message: str, asked: Asked) -> str:
    """Return a client's or the service's message, short, on one line, without the key and without the texts.

    What follows the beginning of a text is cut off: the service may quote it in full or in part, and a
    message ends in logs and alerts.
    """
    line = redacted(message, asked.api_key)
    for text in asked.texts:
        beginning = text.strip()[:24]
        if len(beginning) >= 4 and beginning in line:
            line = line[: line.index(beginning)] + "..."
    line = " ".join(line.split())
    return line if len(line) <= MAX_QUOTED_CHARS else line[:MAX_QUOTED_CHARS] + "..."


def redacted(message: str, api_key: SecretStr) -> str:
    """Return the message with every form of the key, and anything else that looks like one, masked."""
    key = api_key.get_secret_value().strip()
    for form in {key, urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key)} - {""}:
        message = message.replace(form, "[key]")
    return re.sub(r"AIza[0-9A-Za-z_\-]{10,}|(?<=[?&]key=)[^&\s'\"]+", "[key]", message)


def _never_sent(error: BaseException) -> bool:
    """Return whether no connection was made. The clients wrap the error that says so in several of their own."""
    names = {"ConnectError", "ConnectTimeout", "NewConnectionError", "ConnectTimeoutError", "NameResolutionError"}
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            return False
        if names.intersection(ancestor.__name__ for ancestor in type(one).__mro__):
            return True
        inner = next((part for part in one.args if isinstance(part, BaseException)), None)
        one = one.__cause__ or one.__context__ or inner
    return False


def _status_and_body(error: Exception) -> tuple[int, Any] | None:
    """Return the HTTP status and the JSON body of an error that the service sent, or None for any other.

    google-genai keeps the body in ``details``; google-generativeai keeps the reply in ``response``.
    """
    if isinstance(error, RefusedError):
        return error.status, error.body
    status = getattr(error, "code", None)
    response = getattr(error, "response", None)
    if not isinstance(status, int) or response is None:
        return None
    details = getattr(error, "details", None)
    if isinstance(details, dict):
        return int(status), details
    try:
        return int(status), response.json()
    except ValueError:
        return int(status), {"error": {"message": str(getattr(response, "text", ""))}}


def _for_quota(details: Sequence[Mapping[str, Any]], *, message: str, said: str) -> PipelineError:
    """Return the error for a 429: wait a little, wait until midnight, or have the quota raised."""
    violations = [
        violation for detail in details for violation in detail.get("violations") or [] if isinstance(violation, dict)
    ]
    for violation in violations:
        quota, limit = str(violation.get("quotaId") or ""), violation.get("quotaValue")
        if str(limit) == "0":
            return TerminalError(
                f"Gemini's quota {quota} is zero for this project: no wait helps. Enable billing or have the "
                f"quota raised."
            )
        if "PerDay" in quota:
            size = f" of {limit}" if limit else ""
            until = quota_day(datetime.now(UTC)).ends
            return QuotaSpentError(
                f"Gemini's daily quota {quota}{size} is used up. It resets at midnight Pacific time "
                f"({until:%Y-%m-%d %H:%M} UTC).",
                until,
            )
    if re.search(r"\blimit: 0\b(?!\.)", message):
        return TerminalError(
            f"Gemini's quota is zero for this project: no wait helps. Enable billing or have the quota raised. ({said})"
        )
    quotas = ", ".join(str(violation.get("quotaId")) for violation in violations) or "not named"
    return ThrottledError(
        f"Gemini's quota is used up for the moment (429, quota: {quotas}; {said})",
        retry_after_seconds=_retry_after_seconds(details),
    )


def _retry_after_seconds(details: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the wait that the service asks for in its ``RetryInfo``, such as ``"37s"`` or ``"0.5s"``."""
    for detail in details:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(detail.get("retryDelay") or ""))
        if match:
            return float(match[1])
    return None


def _error_object(body: Any) -> Mapping[str, Any]:
    """Return the ``error`` object of a reply; a body of another shape becomes its message."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            return error
    return {"message": str(body)}
