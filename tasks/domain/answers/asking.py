"""Asking: what a question for figures names, and over which time; the words that are left say which figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from tasks.domain.aggregates.periods import ALL_TIME, Calendar, Period
from tasks.domain.answers.places import find_countries, find_country, find_zone
from tasks.domain.answers.subjects import Kind, Named, Subject, find_named
from tasks.domain.chains import CHAIN_NAMES, find_chain
from tasks.domain.retrieval.timeframes import TimeFrame, find_time_frames

_OF_CLOCKS = re.compile(r"\bhours?\b|\bclocks?\b|\btime of (?:the )?day\b|\bbusiest\b|\b\d\d?:\d\d\b|\blocal time\b")
_NUMBERS = {
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
_HOW_MANY = re.compile(
    r"\b(?:which|what|top|the|these|of the)(?: most| top| main| biggest| largest| busiest)? "
    rf"(?P<n>\d{{1,2}}|{'|'.join(_NUMBERS)})\b(?! (?:in|of) )"
)
_PLURAL = re.compile(
    r"\b(?:countries|sources|channels|pages|wallets|methods|recipients|referrers|nations|hours|campaigns|websites|contracts|chains)\b"
)
_MOST_LISTED = 5
_CHAIN = re.compile(
    "|".join(rf"\b{re.escape(name)}\b" for name in sorted(CHAIN_NAMES, key=len, reverse=True)), re.IGNORECASE
)
#: Chains whose names are words, too, and that must be written as names; what else is a coin's name.
_ALSO_WORDS = frozenset({"base", "optimism", "op", "arb", "eth", "bnb", "matic", "mainnet", "binance"})
_COINS = {"ether": "ETH", "ethers": "ETH", "bnbs": "BNB", "matics": "MATIC"}
_WORD = re.compile(r"[^\W_]+(?:[.$+-][^\W_]+)*")
_THRESHOLD = re.compile(
    r"\b(?P<sign>above|over|more than|greater than|larger than|exceeding|at least|below|under|less than|smaller than|"
    r"at most|up to|between|from) (?P<low>\d[\d,]*(?:\.\d+)?)(?: (?:and|to) (?P<high>\d[\d,]*(?:\.\d+)?))?"
)


@dataclass(frozen=True, slots=True)
class Span:
    """A time that a question is about. ``period`` is None where it is no day, week, month or all time.

    ``start`` and ``end`` are moments; None is unbounded. ``words`` is what people call it.
    """

    period: Period | None
    start: datetime | None
    end: datetime | None
    words: str
    assumed: str = ""


ALL_TIME_SPAN = Span(ALL_TIME, None, None, ALL_TIME.words)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question names. ``said`` is the rest of it in lower case: which figures it asks for.

    ``left`` is the same with its capitals, ``number`` how many of a ranking are asked for, and ``later`` the later of
    two times of which one follows the other: what changed between them stands there.
    """

    question: str
    said: str
    left: str
    named: tuple[Named, ...]
    spans: tuple[Span, ...]
    zone: str
    countries: tuple[str, ...]
    chain: str | None
    number: int
    later: Span | None

    def subjects(self, kind: Kind) -> tuple[Subject, ...]:
        """Return the named subjects of a kind; on the chain that is named, where some are."""
        return tuple(one for named in self.named for one in self.on_chain(named.of(kind)))

    def on_chain(self, subjects: Sequence[Subject]) -> Sequence[Subject]:
        """Return the subjects of one name that are on the chain that is named; all of them where none is."""
        return [one for one in subjects if one.chain == self.chain] or subjects


def read_question(question: str, subjects: Sequence[Subject], *, now: datetime) -> Asked:
    """Return what a question names. Pure, and the same for the same question, subjects and moment."""
    named = tuple(find_named(question, subjects))
    left = _blank(question, [one.span for one in named])
    frames = find_time_frames(left, now=now)
    left = _blank(left, [frame.span for frame in frames])
    zone, left = _find_zone(left)
    places = find_countries(left)
    left = _blank(left, [place for _, place in places])
    chain, left = _find_chain(left)
    spans = tuple(_span(frame, zone) for frame in frames)
    later = _later(frames, spans, zone)
    said = " ".join(left.lower().split())
    return Asked(
        question=question,
        said=said if later is None else f"{said} (of the month before)",
        left=left,
        named=named,
        spans=spans,
        zone=zone,
        countries=tuple(dict.fromkeys(code for code, _ in places)),
        chain=chain,
        number=_number(said),
        later=later,
    )


def find_units(left: str, units: Sequence[str]) -> list[str]:
    """Return the units that a text names, of those that there are; a symbol is written as one, a coin may be a word."""
    words = [match.group() for match in _WORD.finditer(left)]
    written = {*words, *(_COINS[word.lower()] for word in words if word.lower() in _COINS)}
    return [unit for unit in units if unit and unit in written]


@dataclass(frozen=True, slots=True)
class Threshold:
    """Bounds of an amount; None is unbounded. ``inclusive`` says whether the bounds themselves count."""

    low: str | None
    high: str | None
    inclusive: bool


def find_thresholds(said: str) -> list[Threshold]:
    """Return the bounds that a text sets for amounts, in their order."""
    found = []
    for match in _THRESHOLD.finditer(said):
        low, high = match["low"].replace(",", ""), (match["high"] or "").replace(",", "") or None
        sign = match["sign"]
        if sign in ("between", "from"):
            if high is not None:
                found.append(Threshold(low, high, inclusive=True))
        elif sign in ("below", "under", "less than", "smaller than", "at most", "up to"):
            found.append(Threshold(None, low, inclusive=sign in ("at most", "up to")))
        else:
            found.append(Threshold(low, None, inclusive=sign == "at least"))
    return found


def _find_zone(left: str) -> tuple[str, str]:
    found = find_zone(left)
    if found is None:
        return "UTC", left
    zone, (start, end) = found
    country = find_country(left)
    of_a_country = country is not None and country[1] == (start, end)
    came_from = re.search(r"\bfrom\s+$", left[:start]) is not None
    if of_a_country and (came_from or not _OF_CLOCKS.search(left.lower())):
        return "UTC", left
    return zone, _blank(left, [(start, end)])


def _find_chain(left: str) -> tuple[str | None, str]:
    for match in _CHAIN.finditer(left):
        said = match.group()
        if said.lower() in _ALSO_WORDS and not (said[0].isupper() or left[: match.start()].endswith("on ")):
            continue
        if said.isupper() and said.lower() in ("eth", "bnb", "matic"):
            continue  # the coin
        chain = find_chain(said)
        if chain is not None and chain.chain_id is not None:
            return chain.name, _blank(left, [match.span()])
    return None, left


def _later(frames: Sequence[TimeFrame], spans: Sequence[Span], zone: str) -> Span | None:
    if len(spans) == 1:
        return _second_half(frames[0], zone)
    if len(spans) == 2 and spans[0].period is not None and spans[1].period is not None:
        if spans[1].period.previous() == spans[0].period:
            return spans[1]
        if spans[0].period.previous() == spans[1].period:
            return spans[0]
    return None


def _span(frame: TimeFrame, zone: str) -> Span:
    if frame.label is not None:
        period = Period.from_label(frame.label)
        if period == ALL_TIME:
            return Span(period, None, None, period.words, frame.assumed)
        start, end = Calendar(zone).window(period.first, period.end)
        return Span(period, start, end, period.words, frame.assumed)
    whole = None if frame.start is None or frame.end is None else _whole_month(frame.start.date(), frame.end.date())
    if whole is not None:
        start, end = Calendar(zone).window(whole.first, whole.end)
        return Span(whole, start, end, whole.words, frame.assumed)
    return Span(None, _moved(frame.start, zone), _moved(frame.end, zone), str(frame), frame.assumed)


def _whole_month(first: date, end: date) -> Period | None:
    period = Period.of("month", first)
    return period if (period.first, period.end) == (first, end) else None


def _second_half(frame: TimeFrame, zone: str) -> Span | None:
    """Return the later of the two periods that a window holds exactly: "from April to May"."""
    if frame.label is not None or frame.start is None or frame.end is None:
        return None
    last = Period.of("month", (frame.end - timedelta(days=1)).date())
    before = last.previous()
    if before is None or (before.first, last.end) != (frame.start.date(), frame.end.date()):
        return None
    start, end = Calendar(zone).window(last.first, last.end)
    return Span(last, start, end, last.words, frame.assumed)


def _moved(moment: datetime | None, zone: str) -> datetime | None:
    """Return the moment at which the clocks of a zone show what the question says; trailing times stay as they are."""
    if moment is None or zone == "UTC" or moment.second or moment.microsecond:
        return moment
    start, _ = Calendar(zone).window(moment.date(), moment.date())
    return start + timedelta(hours=moment.hour, minutes=moment.minute)


def _number(said: str) -> int:
    """Return how many of a ranking are asked for."""
    match = _HOW_MANY.search(said)
    if match is not None:
        return _NUMBERS.get(match["n"]) or max(1, int(match["n"]))
    return _MOST_LISTED if _PLURAL.search(said) else 1


def _blank(text: str, spans: Sequence[tuple[int, int]]) -> str:
    for start, end in spans:
        text = text[:start] + " " * (end - start) + text[end:]
    return text
