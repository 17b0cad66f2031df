"""Log lines: a record of Python's logging as one line of JSON, without secrets, in the streams that it belongs to.

Which run, flow, task, source and team a line is about stands in it: by Prefect's run loggers, and by ``bound``.
"""

from __future__ import annotations

import logging
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, quote_plus, unquote, urlsplit

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

_NAMES = (
    "api[_-]?key|(?:secret[_-]?)?access[_-]?key|secret[_-]?key|private[_-]?key|subscription[_-]?key|pseudonym[_-]?key"
    "|token|password|passwd|pwd|passphrase|secret|credentials?|webhook(?:[_-]?urls?)?"
)
#: A field of such a name holds what gives access, whatever it looks like: the name may have more in front.
_SECRET_NAME = re.compile(rf"(?:.{{0,80}}[_.-])?(?:{_NAMES}|authorization)", re.IGNORECASE)
_STEMS = ("key", "token", "pass", "pwd", "secret", "credential", "webhook")
#: What gives access, wherever it stands: words of which a text has one, in small letters, where the pattern can match;
#: the pattern; what to put there. Each pattern takes bounded classes of characters: none can run away.
CREDENTIALS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("@",), re.compile(r"://[^\s/?#:@\"'<>]{0,200}(?::[^\s\"'<>]{0,500})?@"), "://***@"),
    (("hooks.slack",), re.compile(r"(?:https?://)?hooks\.slack(?:-gov)?\.com/[^\s\"'<>)]+", re.IGNORECASE), _MASK),
    (
        ("webhooks/",),
        re.compile(
            r"(?:https?://)?(?:\w{1,20}\.)?discord(?:app)?\.com/api/(?:v\d+/)?webhooks/[^\s\"'<>)]+", re.IGNORECASE
        ),
        _MASK,
    ),
    # As urllib3 has them: without the host.
    (
        ("/services/", "/workflows/", "/triggers/", "/webhooks/"),
        re.compile(r"/(?:services|workflows|triggers)/[TE][A-Z0-9]{2,}/[^\s\"'<>)]+|/webhooks/\d{3,}/[^\s\"'<>)]+"),
        _MASK,
    ),
    (
        ("?", "&"),
        re.compile(rf"([?&](?:key|sig|signature|x-amz-signature|{_NAMES})=)[^&\s\"'<>]+", re.IGNORECASE),
        r"\1***",
    ),
    (("key=",), re.compile(r"(\bkey=[\"']?)[\w+~/-]{16,}", re.IGNORECASE), r"\1***"),
    (
        ("authorization",),
        re.compile(r"(\bauthorization[\"']?\s?[=:]\s?b?[\"']?)(?:\w{1,20}\s+)?[^\s\"',;}]{4,}", re.IGNORECASE),
        r"\1***",
    ),
    (
        _STEMS,
        re.compile(
            # After a colon that is prose as often as not, only what has a digit.
            rf"((?:{_NAMES})[\"']?\s?(?:=\s?b?|:\s?b?(?=[\"']|[^\s\"']{{0,60}}\d)))"
            r"""(?:"[^"]{4,}|'[^']{4,}|(?!\*\*\*)[^\s"',;&})\]]{4,})""",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (("bearer",), re.compile(r"(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1***"),
    # Base64 has a digit, a capital that follows a small letter, or an equals sign: words have none.
    (
        ("basic",),
        re.compile(r"((?i:\bbasic)\s+)(?=[A-Za-z+/]{0,200}(?:[0-9=]|[a-z][A-Z]))[A-Za-z0-9+/]{8,}={0,2}"),
        r"\1***",
    ),
    (
        ("private key-----",),
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,40}-----)?", re.IGNORECASE),
        _MASK,
    ),
    (
        ("aiza", "aq.", "age-s", "akia", "asia", "xox", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "pnu_", "pnb_", "eyj"),
        re.compile(
            r"\bAIza[\w-]{30,}|\bAQ\.[\w-]{30,}|(?i:AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]{20,})|\b(?:AKIA|ASIA)[0-9A-Z]{16}"
            r"|\bxox[a-z]-[\w-]{10,}|\bgh[pousr]_\w{30,}|\bpn[ub]_\w{20,}|\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"
        ),
        _MASK,
    ),
)

_bound: ContextVar[Mapping[str, str]] = ContextVar("bound", default={})  # noqa: B039
_secrets: tuple[str, ...] = ()
_secrets_lock = threading.Lock()

#: What every record has; what else stands in one was given with it.
_OF_EVERY_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
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
    words = {secret, *secret.split()}
    for word in tuple(words):
        # A message may have the password alone, or a webhook's path without its host.
        with suppress(ValueError):
            parts = urlsplit(word)
            words |= {parts.password or "", unquote(parts.password or "")}
            if parts.scheme in ("http", "https") and parts.path.count("/") > 1:
                words.add(word[word.index(parts.netloc) + len(parts.netloc) :])
    spelled = {
        form
        for word in words
        for form in (
            word,
            quote(word, safe=""),
            quote_plus(word),
            repr(word)[1:-1],
            orjson.dumps(_utf8(word)).decode()[1:-1],
        )
    }
    with _secrets_lock:
        found = {*_secrets, *(form for form in spelled if len(form) >= _SHORTEST_SECRET)}
        # The longest first: one may be a part of another.
        _secrets = tuple(sorted(found, key=len, reverse=True))


def redacted(text: str, secrets: Iterable[str] | None = None) -> str:
    """Return a text without credentials, and without the secrets: those that are concealed, unless others are given."""
    for secret in _secrets if secrets is None else secrets:
        if secret in text:
            text = text.replace(secret, _MASK)
    small = text.lower()
    for words, pattern, instead in CREDENTIALS:
        for word in words:
            if word in small:
                text = pattern.sub(instead, text)
                break
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


def line_of(record: logging.LogRecord, *, ui_url: str | None = None, facts: Mapping[str, str] | None = None) -> bytes:
    """Return a record as one line of JSON with its end; the same record always as the same line. Never raises.

    ``ui_url`` is where the Prefect UI is: a line of a run links to it there. ``facts`` are what the process is at, for
    records that don't say: the run.
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
            values[name] = _text(_spelled(given[name]))
    for about in (_bound.get(), facts or {}):
        for name, value in about.items():
            if name not in values:
                values[name] = _text(value)
    run_id = values.get("flow_run_id")
    if run_id is not None and ui_url:
        values["link"] = f"{ui_url}/runs/flow-run/{run_id}"
    for name, value in given.items():
        if name not in _OF_EVERY_RECORD and name not in values and isinstance(name, str) and name[:1] != "_":
            hidden = isinstance(value, str | bytes) and _SECRET_NAME.fullmatch(name)
            values[_utf8(name)] = _MASK if hidden else _plain(value)
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        values["error"] = type(error).__name__
        values["stack"] = _text(_stack(error))
    elif record.exc_text:
        values["stack"] = _text(record.exc_text)
    elif record.stack_info:
        values["stack"] = _text(record.stack_info)
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
        return f"{_spelled(record.msg)} {_spelled(record.args)}"


def _stack(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - as above
        return f"{type(error).__name__}, whose stack can't be told"


def _spelled(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__}>"


def _text(text: str) -> str:
    # A secret that this cuts in two stands far behind what is kept.
    text = redacted(text[: 10 * MAX_TEXT_CHARS])
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + "…"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _text(_spelled(value))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class JsonFormatter(logging.Formatter):
    """Lines of JSON for a console that a machine reads."""

    def __init__(
        self, *, ui_url: Callable[[], str | None] | None = None, facts: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        super().__init__()
        self._ui_url, self._facts = ui_url or (lambda: None), facts or dict

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        return line_of(record, ui_url=self._ui_url(), facts=self._facts()).decode().rstrip("\n")


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
