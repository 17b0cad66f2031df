"""Values: which of the sources, devices, pages and methods a question names, and which records have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from tasks.domain.answers.asking import Threshold
from tasks.domain.answers.lexicon import Dimension
from tasks.domain.answers.model import Stored
from tasks.domain.retrieval.words import stem_of
from tasks.domain.texts import split_words
from tasks.domain.transactions import FAILED, PENDING

_METHOD_WORDS = re.compile(r"\b(?:methods?|functions?|calls? (?:of|to)|called|calling)\b")
_ENDINGS = frozenset(("com", "org", "net", "io", "www", "co", "html", "xyz"))
_SYNONYMS = {
    "cpc": ("paid", "ads", "ad", "adverts", "advertising", "ppc", "cpc", "sponsored"),
    "organic": ("organic", "search"),
    "email": ("email", "mail", "e-mail", "mailing"),
    "referral": ("referral", "referrals", "referred", "links", "link"),
    "social": ("social",),
    "docs": ("documentation", "docs", "doc"),
    "app": ("app", "application"),
}
_IMPLIED = frozenset(("social", "email", "community", "referral"))


def said_values(words: set[str], values: Sequence[str]) -> tuple[str, ...]:
    """Return the values that are said whole; else those whose first word is."""
    stems = {stem_of(word) for word in words}
    whole, begun = [], []
    for value in values:
        parts = [part for part in re.findall(r"[^\W_]+", value.lower()) if part not in _ENDINGS]
        said = [part for part in parts if stems & {stem_of(each) for each in _SYNONYMS.get(part, (part,))}]
        if parts and len(said) == len(parts):
            whole.append((len(parts), value))
        elif parts and said and (said[0] == parts[0] or parts[0] == "referral") and _names_something(said):
            begun.append(value)
    if whole:
        most = max(size for size, _ in whole)
        return tuple(value for size, value in whole if size == most)
    return tuple(begun)


def _names_something(said: Sequence[str]) -> bool:
    return any(part not in _IMPLIED and part not in ("wallet", "search", "app", "android") for part in said)


def said_pages(text: str, words: set[str], values: Sequence[str]) -> tuple[str, ...]:
    """Return the pages that a text names by their path, or by the words of it."""
    written = re.findall(r"(?<![\w/])/[\w./-]*", text)
    exact = [value for value in values if value in {one.rstrip(".?,") or "/" for one in written}]
    if exact:
        return tuple(exact)
    if not words & {"page", "pages", "post"}:
        return ()
    if "home" in words or "homepage" in words:
        return tuple(value for value in values if value == "/")
    found: list[tuple[int, str]] = []
    for value in values:
        parts = [part for part in re.findall(r"[a-z]+", value.lower()) if len(part) > 1 and part not in _ENDINGS]
        if parts and all(words & {part, *_SYNONYMS.get(part, ())} for part in parts):
            found.append((len(parts), value))
    most = max((size for size, _ in found), default=0)
    return tuple(value for size, value in found if size == most)


def said_method(methods: set[str], stems: set[str], said: str) -> str | None:
    """Return the method whose every word is said; one of a single word only where a method is spoken of."""
    named = []
    for method in sorted(methods):
        if method.startswith("0x"):
            continue
        parts = {stem_of(part) for part in split_words(method).lower().split()}
        spoken = parts <= stems or method.lower() in said.split()
        if spoken and (len(parts) > 1 or _METHOD_WORDS.search(said)):
            named.append((len(parts), method))
    return max(named, default=(0, None))[1]


def keeping(chosen: Sequence[tuple[Dimension, Sequence[str]]]) -> Callable[[Stored], bool]:
    """Return what tells whether a session has one of the values of each dimension."""

    def keep(row: Stored) -> bool:
        facts = row["metadata"]["facts"]
        for dimension, values in chosen:
            if dimension.name == "page":
                if not any(page["path"] in values for page in facts.get("pages") or ()):
                    return False
            elif facts.get(dimension.fact) not in values:
                return False
        return True

    return keep


def within(bounds: Threshold, unit: str) -> Callable[[Stored], bool]:
    """Return what tells whether a transaction moved an amount of a unit within bounds."""
    low = None if bounds.low is None else Decimal(bounds.low)
    high = None if bounds.high is None else Decimal(bounds.high)

    def keep(row: Stored) -> bool:
        facts = row["metadata"]["facts"]
        if facts.get("unit") != unit or facts.get("status") in (FAILED, PENDING) or "amount" not in facts:
            return False
        if facts.get("amountBelow") or facts.get("amountUnlimited"):
            return False
        amount = Decimal(facts["amount"])
        above = low is None or amount > low or (bounds.inclusive and amount == low)
        return above and (high is None or amount < high or (bounds.inclusive and amount == high))

    return keep


def told(values: Sequence[str]) -> list[str]:
    """Return the words that a text may use for values."""
    parts = [part for value in values for part in re.findall(r"[^\W_]+", value.lower())]
    return [*parts, *(word for part in parts for word in _SYNONYMS.get(part, ()))]
