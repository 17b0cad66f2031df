"""Personal data: what counts as it, and what is stored instead. Everything about visitors is read through here.

**The rule.** Vector documents, their facts and their warnings say what visitors did, never who they are:

- ``users`` is never read. User ids (``userId``, ``web3UserId``) become pseudonyms: a keyed hash of the website and the
  id, so that one visitor has one name on one website, and nobody without the key gets from an id to the name.
- What people wrote, or a page showed to them, is left out as a whole (``innerText``); so are user agents and versions
  of browsers, which together tell one visitor from all others.
- Of a page's address only the path and the route behind ``#/`` stay: queries and other fragments hold tokens, names
  and e-mails. Of any other address (where a visit came from, where a link leads) only the host stays.
- Within what stays (paths, campaign parameters, ids of elements) the record's own user id, whatever has an ``@`` and
  phone numbers are replaced by ``…``. In paths and ids so are tokens, long numbers and the names behind ``/user/``
  and its like; hexadecimal numbers keep their first digits.
- Wallet addresses are public data of a chain: facts hold them in full, texts their beginning. An id that is itself an
  address is a pseudonym as ``visitor`` and in full as ``wallet``.
- Country, language, device, system, name of the browser and size of the screen are those of many people, and stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from urllib.parse import unquote

from bson import ObjectId

from tasks.domain.errors import RecordError, TerminalError
from tasks.domain.figures import read_count, read_moment_ms, read_number
from tasks.domain.texts import clean_text

#: What stands where something personal stood.
HIDDEN = "…"
#: Fields whose value is personal as a whole, wherever they stand.
PERSONAL_FIELDS = frozenset(
    {
        "userId",
        "web3UserId",
        "innerText",
        "userAgent",
        "userAgents",
        "uniqueVisitors",
        "uniqueWeb3Users",
        "sessionDurations",
    }
)
#: A path or a label in facts. What is longer says nothing more, and carries who knows what.
MAX_LABEL_CHARS = 200
#: No client's clock is more than a day ahead; and nobody tracked visits to web3 sites before 2015.
FUTURE_TOLERANCE_MS = 86_400_000
EARLIEST_MS = 1_420_070_400_000
#: Ten years: a longer duration is a wrong unit.
MAX_SECONDS = 315_360_000

_PSEUDONYM_BYTES = 8  # among a million visitors, two share a name with a chance of one in thirty million
_LONGEST_KEY = 64  # what BLAKE2b takes
_READ_CHARS = 1_000
_MOST_DECODINGS = 8
_LONGEST_ID = 200
#: An id that is shorter stands in other words by chance: it is hidden only where it stands by itself.
_TELLING_ID_CHARS = 8

#: What producers write where they know nothing.
_UNSAID = frozenset(
    {"", "unknown", "undefined", "null", "none", "nan", "(none)", "(not set)", "n/a", "[object object]"}
)
_NOBODY = _UNSAID | {"anonymous", "guest"}
_NO_REFERRER = _UNSAID | {"direct", "(direct)"}
_YES, _NO = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})

_EDGE = r"\s/,;=<>()\[\]{}\"'|&?#"
_AT = re.compile(rf"(?<![^{_EDGE}])[^{_EDGE}@]*+@[^{_EDGE}]*")
_PHONE = re.compile(r"\+[0-9](?:[ ().-]{0,2}[0-9]){6,}")
_HEX_NUMBER = re.compile(r"0x[0-9a-fA-F]{9,}")
_TOKENS = re.compile(
    r"eyJ[\w-]{8,}(?:\.[\w-]+)*"  # a signed token (JWT)
    r"|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    r"|(?<![A-Za-z0-9])(?=[A-Za-z]*+[0-9])(?=[0-9]*+[A-Za-z])[A-Za-z0-9]{16,}"
    r"|[0-9]{9,}"
)
_PERSON_SEGMENT = re.compile(
    r"(?<=/)(u|users?|members?|invites?|invitations?|referrals?|reset|reset-password|verify|unsubscribe|magic-link)/[^/]+",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(r"=[^/]*")
_QUERY = re.compile(r"[?;&]")
_QUERY_OR_FRAGMENT = re.compile(r"[?;&#]")
_QUERY_IN_TEXT = re.compile(r"\?\S*")
#: An address that neither decoding nor cleaning changes.
_PLAIN_PATH = re.compile("[!-$&-~]{1,200}")
_ORIGIN = re.compile(r"^https?://[^/]*", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_HOST = re.compile(
    r"(?:(?:[a-z][a-z0-9+.-]*:)?//(?:[^/?#\s]*@)?)?([^/?#\s:@]+)(?::[0-9]*)?(?=[/?#\s]|$)", re.IGNORECASE
)


def check_key(key: bytes) -> None:
    """Raise ``TerminalError`` where the key of the pseudonyms is empty: then anybody could compute them."""
    if not key:
        raise TerminalError(
            "the key of the pseudonyms is empty, so anybody could compute whose they are: set one, and keep it, since "
            "another key gives every visitor another name"
        )


def pseudonym(value: str, key: bytes) -> str:
    """Return a name such as ``visitor-3f9a1c…`` (16 digits) that only the value and the key have together.

    Raises ``TerminalError`` where the key is empty.
    """
    return f"visitor-{_keyed_digest(value, key)}"


def _keyed_digest(value: str, key: bytes) -> str:
    check_key(key)
    secret = key if len(key) <= _LONGEST_KEY else blake2b(key).digest()
    return blake2b(value.encode("utf-8", "surrogatepass"), key=secret, digest_size=_PSEUDONYM_BYTES).hexdigest()


def name_visitor(site_id: str, user_id: str, key: bytes) -> str:
    """Return the pseudonym of a user of one website: the same id elsewhere may be somebody else's."""
    return pseudonym(f"{site_id}\0{user_id}", key)


def read_user_id(raw: object) -> str | None:
    """Return a user id as text, or None where there is none. It is for hashing and hiding, never for storing."""
    if isinstance(raw, ObjectId) or (isinstance(raw, int) and not isinstance(raw, bool)):
        return str(raw)
    if not isinstance(raw, str):
        return None
    text = raw.strip()
    return None if text.lower() in _NOBODY else text


def hide_people(text: str, user_ids: Iterable[str] = ()) -> str:
    """Return the text with ``…`` for these user ids, for words with an ``@`` and for phone numbers.

    An id is found in any case, and as it is written in addresses. One of under eight characters is only hidden where no
    letter or digit stands beside it.
    """
    for user_id in _spellings(tuple(user_ids)):
        if user_id.lower() in text.lower():
            pattern = re.escape(user_id)
            if len(user_id) < _TELLING_ID_CHARS:
                pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
            text = re.sub(pattern, HIDDEN, text, flags=re.IGNORECASE)
    if "@" in text:
        text = _AT.sub(HIDDEN, text)
    return _PHONE.sub(HIDDEN, text) if "+" in text else text


def hide_tokens(text: str) -> str:
    """Return the text without what is no word: signed tokens, UUIDs, long runs of letters and digits, long numbers.

    Of a hexadecimal number (an address, a hash) the first six digits stay.
    """
    text = _HEX_NUMBER.sub(lambda found: found.group()[:8] + HIDDEN, text)
    return _TOKENS.sub(HIDDEN, text)


def clean_path(raw: object, user_ids: Iterable[str] = ()) -> str | None:
    """Return the path of a page as it may be stored, or None where nothing can be told.

    A whole address is taken for its path, percent-encoding is decoded, and what may be personal is replaced by ``…``
    (see the module). A path begins with ``/`` and has at most ``MAX_LABEL_CHARS`` characters.
    """
    if not isinstance(raw, str) or not raw.strip():
        return None
    user_ids = tuple(user_ids)
    if _PLAIN_PATH.fullmatch(raw) and not any(form.lower() in raw.lower() for form in _spellings(user_ids)):
        return _plain_path(raw)
    return _path(raw, user_ids)


@lru_cache(maxsize=65_536)
def _plain_path(raw: str) -> str | None:
    """Return the path of an address that holds no id of the record's user: the same ones come again and again."""
    return _path(raw, ())


def _path(raw: str, user_ids: tuple[str, ...]) -> str | None:
    start = clean_text(_decoded(raw[:_READ_CHARS]))
    if _SCHEME.match(start) and not _ORIGIN.match(start):
        return None  # mailto:, javascript:, file: and such are no pages
    address, _, fragment = raw.partition("#")
    path = _ORIGIN.sub("", _shown_part(address, user_ids), count=1)
    route = _shown_part(fragment, user_ids).removeprefix("!") if fragment.startswith(("/", "!/")) else ""
    if route:
        path = f"{path.rstrip('/')}/#{route}"
    path = _ASSIGNED.sub(f"={HIDDEN}", hide_tokens(path))
    path = _PERSON_SEGMENT.sub(rf"\1/{HIDDEN}", "/" + path.lstrip("/"))
    return path if len(path) <= MAX_LABEL_CHARS else path[: MAX_LABEL_CHARS - 1] + HIDDEN


def find_host(raw: object, user_ids: Iterable[str] = ()) -> str | None:
    """Return the host of an address in lower case, without ``www.`` and port; None where there is none.

    Addresses without a scheme count (``t.co/x``); a bare word doesn't.
    """
    if not isinstance(raw, str):
        return None
    text = clean_text(_decoded(raw[:_READ_CHARS]))
    found = _HOST.match(text)
    if found is None:
        return None
    host = found.group(1).lower().removeprefix("www.").strip(".")
    if "." not in host and host != "localhost":
        return None
    return hide_tokens(hide_people(host, user_ids))[:MAX_LABEL_CHARS]


def without_personal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record as an excerpt of it may be kept and shown: without personal fields, people and queries."""
    user_ids = tuple(_user_ids_of(record))
    return {name: _redacted(name, value, user_ids) for name, value in record.items()}


def _redacted(name: str, value: Any, user_ids: Sequence[str]) -> Any:
    if name in PERSONAL_FIELDS and value is not None:
        return "(personal, left out)"
    if isinstance(value, str):
        return hide_people(_QUERY_IN_TEXT.sub("?" + HIDDEN, value), user_ids)
    if isinstance(value, Mapping):
        return {inner: _redacted(inner, held, user_ids) for inner, held in value.items()}
    if isinstance(value, list):
        return [_redacted("", held, user_ids) for held in value]
    return value


def _user_ids_of(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for name in ("userId", "web3UserId"):
            raw = value.get(name)
            yield from filter(None, map(read_user_id, raw if isinstance(raw, list) else [raw]))
        for held in value.values():
            yield from _user_ids_of(held)
    elif isinstance(value, list):
        for held in value:
            yield from _user_ids_of(held)


@lru_cache(maxsize=1_024)
def _spellings(user_ids: tuple[str, ...]) -> list[str]:
    """Return each id as it is and as decoding and cleaning leave it, the longest first."""
    found = {form for user_id in user_ids for form in (user_id, clean_text(user_id), clean_text(_decoded(user_id)))}
    return sorted(filter(None, found), key=lambda form: (-len(form), form))


def _shown_part(part: str, user_ids: Sequence[str]) -> str:
    """Return a part of an address, decoded and cleaned, without people and without what follows the path."""
    text = " ".join(clean_text(_decoded(_bounded(_QUERY.split(part, maxsplit=1)[0]))).split())
    return _QUERY_OR_FRAGMENT.split(hide_people(text, user_ids), maxsplit=1)[0]


def _bounded(text: str) -> str:
    """Return as much of a long text as is read: half a word may be half an id, which nobody would find."""
    if len(text) <= _READ_CHARS:
        return text
    start = text[:_READ_CHARS]
    return start[: max(start.rfind("/"), start.rfind(" ")) + 1] + HIDDEN


def _decoded(text: str) -> str:
    """Return the text without percent-encoding, however often it was encoded."""
    for _ in range(_MOST_DECODINGS):
        if "%" not in text:
            return text
        decoded = unquote(text, errors="replace")
        if decoded == text:
            return text
        text = decoded
    return text.partition("%")[0]


@dataclass(slots=True)
class VisitorFields:
    """Reads the fields of a record about a visitor: neither what it returns nor what it warns of is personal.

    ``visitor`` is the pseudonym of the record's ``userId``, None where it has none. Missing is never bad; what can't be
    read is left out and named in ``warnings``, which fields of an inner document (``inside``) share.
    """

    record: Mapping[str, Any] = field(repr=False)
    visitor: str | None
    user_ids: tuple[str, ...] = field(repr=False)
    key: bytes = field(repr=False)
    warnings: list[str]
    prefix: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any], site_id: str, key: bytes) -> VisitorFields:
        """Return the fields of a record of that website."""
        raw = record.get("userId")
        user_id = read_user_id(raw)
        visitor = None if user_id is None else name_visitor(site_id, user_id, key)
        fields = cls(record, visitor, () if user_id is None else (user_id,), key, [])
        if user_id is None and raw is not None and not isinstance(raw, str):
            fields.warn("userId")
        return fields

    def warn(self, name: str) -> None:
        """Add that the field was left out: what stood there may be personal, so only its type is told."""
        self.warnings.append(f"{self.prefix}{name} of type {type(self.record.get(name)).__name__} left out")

    def inside(self, name: str) -> VisitorFields:
        """Return the fields of an inner document; where there is none, it is one without fields."""
        inner = self.record.get(name)
        if inner is not None and inner != "" and not isinstance(inner, Mapping):
            self.warn(name)
        held = inner if isinstance(inner, Mapping) else {}
        return VisitorFields(held, self.visitor, self.user_ids, self.key, self.warnings, f"{self.prefix}{name}.")

    def record_id(self) -> str:
        """Return the record's ``_id``. Raises ``RecordError`` where it is no ObjectId."""
        raw = self.record.get("_id")
        if not isinstance(raw, ObjectId):
            raise RecordError(
                "id_not_objectid", f"_id is of type {type(raw).__name__}: a vector document refers to an ObjectId"
            )
        return str(raw)

    def required_moment(self, name: str, code: str, *, now_ms: int) -> int:
        """Return a time without which the record says nothing, in epoch milliseconds.

        Raises ``RecordError``, its code beginning with ``code``, where it is missing, unreadable or impossible.
        """
        raw = self.record.get(name)
        if raw is None or raw == "":
            raise RecordError(f"{code}_missing", f"the record has no {name}, so nobody can tell when it happened")
        moment = read_moment_ms(raw)
        if moment is None:
            shown = repr(hide_people(raw, self.user_ids)[:60]) if isinstance(raw, str) else f"of {type(raw).__name__}"
            raise RecordError(f"{code}_unreadable", f"{name} {shown} is not a date between the years 1 and 9999")
        if moment < EARLIEST_MS:
            raise RecordError(f"{code}_too_early", f"{name} lies before 2015, when nobody tracked such visits")
        if moment > now_ms + FUTURE_TOLERANCE_MS:
            raise RecordError(f"{code}_in_future", f"{name} lies in the future")
        return moment

    def moment_after(self, name: str, start_ms: int, *, now_ms: int) -> int | None:
        """Return a time that can't lie before ``start_ms`` or in the future, in epoch milliseconds."""
        raw = self.record.get(name)
        if raw is None or raw == "":
            return None
        moment = read_moment_ms(raw)
        if moment is None:
            self.warn(name)
        elif moment < start_ms:
            self.warnings.append(f"{self.prefix}{name} lies before the start and is left out")
        elif moment > now_ms + FUTURE_TOLERANCE_MS:
            self.warnings.append(f"{self.prefix}{name} lies in the future and is left out")
        else:
            return moment
        return None

    def count(self, name: str) -> int | None:
        """Return a whole number that is not negative."""
        return read_count(self._figure(name), f"{self.prefix}{name}", self.warnings)

    def amount(self, name: str, *, most: float = MAX_SECONDS) -> float | None:
        """Return a number from 0 to ``most``, seconds where nothing else is said."""
        found = read_number(self._figure(name), f"{self.prefix}{name}", self.warnings)
        if found is not None and not 0 <= found <= most:
            self.warnings.append(f"{self.prefix}{name} {found:g} left out")
            return None
        return found

    def flag(self, name: str) -> bool | None:
        """Return yes or no, however it is spelled."""
        raw = self.record.get(name)
        if isinstance(raw, bool):
            return raw
        text = f"{raw:g}" if isinstance(raw, int | float) else raw.strip().lower() if isinstance(raw, str) else None
        if raw is None or text in _UNSAID:
            return None
        if text in _YES or text in _NO:
            return text in _YES
        self.warn(name)
        return None

    def label(self, name: str, *, most_chars: int = MAX_LABEL_CHARS) -> str | None:
        """Return words from outside on one line, without people."""
        raw = self.record.get(name)
        if raw is None:
            return None
        if not isinstance(raw, str):
            self.warn(name)
            return None
        text = " ".join(clean_text(_bounded(raw)).split())
        if text.lower() in _UNSAID:
            return None
        text = hide_people(text, self.user_ids)
        return text[:most_chars].strip() if text.strip(HIDDEN + " ") else None

    def code(self, name: str, *, most_chars: int = MAX_LABEL_CHARS) -> str | None:
        """Return the id or the name that a developer gave to something, without people and tokens."""
        text = self.label(name, most_chars=_READ_CHARS)
        text = None if text is None else hide_tokens(text)
        return text[:most_chars].strip() if text and text.strip(HIDDEN + " -_.:") else None

    def product(self, name: str) -> str | None:
        """Return the name of a browser, a system or a device; a whole user agent is left out."""
        text = self.label(name)
        if text is not None and (len(text) > 60 or text.startswith("Mozilla/") or "(" in text):
            self.warnings.append(f"{self.prefix}{name} looks like a whole user agent and is left out")
            return None
        return text

    def country(self, name: str) -> str | None:
        """Return a country as two capital letters (ISO 3166)."""
        text = self.label(name)
        if text is None or text.upper() in ("XX", "ZZ"):
            return None
        if not re.fullmatch("[A-Za-z]{2}", text):
            self.warnings.append(f"{self.prefix}{name} is no code of two letters and is left out")
            return None
        return text.upper()

    def path(self, name: str) -> str | None:
        """Return the path of a page."""
        raw = self.record.get(name)
        found = clean_path(raw, self.user_ids)
        if found is None and raw is not None and not (isinstance(raw, str) and not raw.strip()):
            self.warn(name)
        return found

    def referrer(self, name: str) -> str | None:
        """Return the host where a visit came from; None where it came directly."""
        raw = self.record.get(name)
        if raw is None or (isinstance(raw, str) and raw.strip().lower() in _NO_REFERRER):
            return None
        host = find_host(raw, self.user_ids)
        if host is None:
            self.warn(name)
        return host

    def identifier(self, name: str) -> str | None:
        """Return the id that ties records together, exactly as it is; None where there is none, or it is too long.

        One that holds the user's id has the pseudonym there, and one that holds another person is hashed as a whole:
        two ids never become one.
        """
        raw = self.record.get(name)
        if raw is None or (isinstance(raw, str) and raw.strip().lower() in _UNSAID):
            return None
        if isinstance(raw, ObjectId):
            return str(raw)
        if not isinstance(raw, str) or len(raw) > _LONGEST_ID:
            self.warn(name)
            return None
        text = raw.strip()
        for user_id in self.user_ids:
            if len(user_id) >= _TELLING_ID_CHARS:
                text = text.replace(user_id, self.visitor or HIDDEN)
        return text if hide_people(text, self.user_ids) == text else f"hidden-{_keyed_digest(raw, self.key)}"

    def _figure(self, name: str) -> object:
        """Return the raw value, such that a warning may show its beginning."""
        raw = self.record.get(name)
        return hide_people(_bounded(raw), self.user_ids) if isinstance(raw, str) else raw
