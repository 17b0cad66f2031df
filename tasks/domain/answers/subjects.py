"""Subjects: which website, contract or campaign of the tenant's a question names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.domain.owners import ESCROW

Kind = Literal["site", "contract", "campaign"]
_WORD = re.compile(r"[^\W_]+")
#: Words of a name that alone name nothing.
_WEAK = frozenset(
    [
        "the",
        "of",
        "and",
        "a",
        "an",
        "in",
        "on",
        "for",
        "token",
        "contract",
        "website",
        "site",
        "app",
        "page",
        "labs",
        "com",
        "io",
        "xyz",
        "net",
        "org",
        "example",
        "all",
        "new",
    ]
)


@dataclass(frozen=True, slots=True)
class Subject:
    """``key`` is its id in documents: a site's, a contract's or a campaign's.

    A website is called by its domain as well as by its name, which it may share with others of the team: then
    ``shared`` holds, and the name stands for all of them. ``staked``: it is a contract that holds stakes.
    """

    kind: Kind
    key: str
    name: str
    words: tuple[str, ...]
    chain: str | None = None
    symbol: str | None = None
    shared: bool = False
    staked: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """Subjects that a question names by the words at ``span``; ``whole`` where all of the name stands there."""

    subjects: tuple[Subject, ...]
    span: tuple[int, int]
    whole: bool

    def of(self, kind: Kind) -> tuple[Subject, ...]:
        """Return those of one kind."""
        return tuple(one for one in self.subjects if one.kind == kind)


def read_subjects(rows: Iterable[Mapping[str, Any]]) -> list[Subject]:
    """Return what may be asked about: from the stored documents of websites, contracts and campaigns."""
    found: list[Subject] = []
    for row in rows:
        facts = row["metadata"].get("facts") or {}
        if facts.get("aggregate"):
            continue
        name = facts.get("name") if isinstance(facts.get("name"), str) else None
        if row["sourceType"] == "website":
            domain = facts.get("domain") if isinstance(facts.get("domain"), str) else None
            called = {_words(each) for each in (name, domain, domain.rpartition(".")[0] if domain else None) if each}
            said = f"{name} ({domain})" if name and domain else name or domain or ""
            found += [Subject("site", row["siteId"], said, words) for words in sorted(called) if words]
        elif row["sourceType"] == "smart_contract" and name and _words(name):
            chain, symbol = facts.get("chain"), facts.get("tokenSymbol")
            said = f"{name} on {chain}" if chain else name
            staked = facts.get("contractType") == ESCROW
            found.append(Subject("contract", facts["contractId"], said, _words(name), chain, symbol, staked=staked))
        elif row["sourceType"] == "campaign" and name and _words(name):
            found.append(Subject("campaign", str(row["sourceId"]), name, _words(name)))
    return _with_shared(found)


def find_named(text: str, subjects: Sequence[Subject]) -> list[Named]:
    """Return what a text names, in its order; of names that lie within each other the longest.

    A whole name counts, its words one after the other; and of a contract's longer name its first word with another of
    its own behind it ("Aurora's router" for "Aurora Swap: Router").
    """
    words = [(found.group().lower(), found.span()) for found in _WORD.finditer(text)]
    words = [(word, span) for word, span in words if word != "s"]
    places: dict[str, list[int]] = {}
    for place, (word, _) in enumerate(words):
        places.setdefault(word, []).append(place)
    spans: dict[tuple[int, int, bool], list[Subject]] = {}
    for subject in subjects:
        size = len(subject.words)
        for first in places.get(subject.words[0], ()):
            here = tuple(word for word, _ in words[first : first + size])
            if _is_part(text, words[first][1][0], words[min(first + size, len(words)) - 1][1][1]):
                continue
            if here == subject.words and not set(here) <= _WEAK:
                spans.setdefault((words[first][1][0], words[first + size - 1][1][1], True), []).append(subject)
            elif subject.kind == "contract" and size > 1 and here[1:2] and here[1] in subject.words[1:]:
                spans.setdefault((words[first][1][0], words[first + 1][1][1], False), []).append(subject)
    found: list[Named] = []
    for (start, end, whole), some in sorted(spans.items(), key=lambda item: (item[0][0] - item[0][1], not item[0][2])):
        if all(end <= one.span[0] or one.span[1] <= start for one in found):
            found.append(Named(tuple(some), (start, end), whole))
    return sorted(found, key=lambda one: one.span)


def _is_part(text: str, start: int, end: int) -> bool:
    """Return whether a name is only part of a longer one, such as another website's domain."""
    return (start > 1 and text[start - 1] in "-." and text[start - 2].isalnum()) or (
        text[end : end + 1] in ("-", ".") and text[end + 1 : end + 2].isalnum()
    )


def _with_shared(subjects: list[Subject]) -> list[Subject]:
    sites: dict[tuple[str, ...], set[str]] = {}
    for one in subjects:
        if one.kind == "site":
            sites.setdefault(one.words, set()).add(one.key)
    return [
        Subject(one.kind, one.key, one.name, one.words, one.chain, one.symbol, shared=True)
        if one.kind == "site" and len(sites[one.words]) > 1
        else one
        for one in subjects
    ]


def _words(name: str) -> tuple[str, ...]:
    return tuple(found.group().lower() for found in _WORD.finditer(name))
