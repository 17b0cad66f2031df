"""Log lines: a record of Python's logging as one line of JSON, without secrets, in the streams that it belongs to.

Which run, flow, task, source and team a line is about stands in it: by Prefect's run loggers, and by ``bound``.
"""

from __future__ import annotations

import logging
import re
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, quote_plus

import orjson

Stream = Literal["combined", "error", "performance", "security"]
STREAMS: tuple[Stream, ...] = ("combined", "error", "performance", "security")
PERFORMANCE, SECURITY = "cryptique.performance", "cryptique.security"
#: Days that a stream's files are kept, the day itself not counted.
RETENTION_DAYS: Mapping[Stream, int] = {"error": 30, "combined": 30, "performance": 7, "security": 90}
#: Longer messages are cut: a line is one write, and a reader's buffer is finite.
MAX_TEXT_CHARS = 20_000
_FILE = re.compile(r"(combined|error|performance|security)-(\d{4}-\d{2}-\d{2})(?:\.\d+)?\.log(?:\.gz)?")
#: Shorter ones would black out words.
_SHORTEST_SECRET = 6
_MASK = "***"

_NAMES = "api[_-]?key|access[_-]?token|token|password|passwd|secret|x-goog-api-key"
#: What gives access, wherever it stands. Each pattern takes bounded classes of characters: none can run away.
CREDENTIALS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(\w[\w+.-]{0,30}://)[^/\s@]{0,500}:[^\s@]{0,500}@"), r"\1***@"),
    (re.compile(rf"([?&](?:key|{_NAMES})=)[^&\s]+", re.IGNORECASE), r"\1***"),
    (re.compile(rf"(\b(?:\w{{0,40}}_)?(?:{_NAMES})=[\"']?)[^&\s\"',;}}]{{4,}}", re.IGNORECASE), r"\1***"),
    (
        re.compile(rf"([\"'](?:{_NAMES}|authorization)[\"']\s{{0,3}}:\s{{0,3}}[\"'])[^\"']{{4,}}", re.IGNORECASE),
        r"\1***",
    ),
    (re.compile(r"((?:bearer|basic)\s)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1***"),
    (re.compile(r"https?://hooks\.slack\.com/\S+|https?://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/\S+"), _MASK),
    (re.compile(r"AIza[\w-]{30,}|AGE-SECRET-KEY-1[0-9A-Z]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}"), _MASK),
)
#: A text without one of these has no credential that a pattern knows, and most have none.
_HINTS = re.compile(r"://|[=?&]|[\"']\s{0,3}:|bearer|basic|AIza|AGE-S|AKIA|ASIA", re.IGNORECASE)

_bound: ContextVar[Mapping[str, str]] = ContextVar("bound", default={})  # noqa: B039
_secrets: tuple[str, ...] = ()
_secrets_lock = threading.Lock()

#: What every record has; what else stands in one was given with it.
_OF_EVERY_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_OF_RUNS = ("flow_run_id", "flow_run_name", "flow_name", "task_run_id", "task_run_name", "task_name")


@contextmanager
def bound(**facts: str | None) -> Iterator[None]:
    """Say in every line from here on, in this context, which team, source and the like it is about."""
    token = _bound.set({**_bound.get(), **{name: value for name, value in facts.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


def conceal(secret: str) -> None:
    """Let no line of this process hold a secret, or its forms in a URL."""
    global _secrets
    spelled = {form for word in (secret, *secret.split()) for form in (word, quote(word, safe=""), quote_plus(word))}
    with _secrets_lock:
        found = {*_secrets, *(form for form in spelled if len(form) >= _SHORTEST_SECRET)}
        # The longest first: one may be a part of another.
        _secrets = tuple(sorted(found, key=len, reverse=True))


def redacted(text: str, secrets: Iterable[str] | None = None) -> str:
    """Return a text without credentials, and without the secrets: those that are concealed, unless others are given."""
    for secret in _secrets if secrets is None else secrets:
        if secret in text:
            text = text.replace(secret, _MASK)
    if _HINTS.search(text):
        for pattern, instead in CREDENTIALS:
            text = pattern.sub(instead, text)
    return text


def streams_of(record: logging.LogRecord) -> tuple[Stream, ...]:
    """Return the streams in which a record stands. What is measured and audited has a stream of its own beside."""
    found: list[Stream] = ["combined"]
    if record.levelno >= logging.ERROR:
        found.append("error")
    if record.name == PERFORMANCE:
        found = ["performance"]
    elif record.name == SECURITY:
        found.append("security")
    return tuple(found)


def line_of(record: logging.LogRecord, *, ui_url: str | None = None) -> bytes:
    """Return a record as one line of JSON with its end; the same record always as the same line. Never raises.

    ``ui_url`` is where the Prefect UI is: a line of a run links to it there.
    """
    values: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": _text(_message(record)),
    }
    given = record.__dict__
    for name in _OF_RUNS:
        if given.get(name) is not None:
            values[name] = str(given[name])
    run_id = values.get("flow_run_id")
    if run_id is not None and ui_url:
        values["link"] = f"{ui_url}/runs/flow-run/{run_id}"
    for name, value in _bound.get().items():
        values.setdefault(name, _text(value))
    for name, value in given.items():
        if name not in _OF_EVERY_RECORD and name not in values and not name.startswith("_"):
            values[name] = _plain(value)
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        values["error"] = type(error).__name__
        values["stack"] = _text("".join(traceback.format_exception(error)))
    elif record.exc_text:
        values["stack"] = _text(record.exc_text)
    values["process"] = record.process
    try:
        return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)
    except (TypeError, ValueError):
        safe = {name: _utf8(str(value)) for name, value in values.items()}
        return orjson.dumps(safe, option=orjson.OPT_APPEND_NEWLINE)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a wrong format is no reason to lose the line
        return f"{record.msg} {record.args!r}"


def _text(text: str) -> str:
    text = redacted(text)
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + "…"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _text(value if isinstance(value, str) else str(value))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class JsonFormatter(logging.Formatter):
    """Lines of JSON for a console that a machine reads."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        return line_of(record).decode().rstrip("\n")


def file_name(stream: Stream, day: date) -> str:
    """Return the file in which a stream's lines of a day stand; the day is in UTC."""
    return f"{stream}-{day:%Y-%m-%d}.log"


def read_file_name(name: str) -> tuple[Stream, date] | None:
    """Return which lines stand in a file, or None where it is none of ours."""
    found = _FILE.fullmatch(name)
    if found is None:
        return None
    try:
        return found[1], date.fromisoformat(found[2])  # type: ignore[return-value]
    except ValueError:
        return None


def is_over(day: date, *, now: datetime, for_s: float) -> bool:
    """Return whether a day has been over for so long: who was about to write in it has done so."""
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    return (now - end).total_seconds() >= for_s


def may_go(stream: Stream, day: date, *, now: datetime) -> bool:
    """Return whether a stream's file of a day has been kept for as long as it should be."""
    return (now.astimezone(UTC).date() - day).days > RETENTION_DAYS[stream]
