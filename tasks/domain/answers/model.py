"""What an answer with figures is made of, and whose documents it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tasks.domain.answers.lexicon import NAMES
from tasks.domain.answers.paths import NoFigureError, read_path
from tasks.domain.retrieval.filters import AnyOf, Filter
from tasks.domain.texts import split_words

Stored = Mapping[str, Any]
_UNITS = {
    "averageSeconds": "s",
    "bounceRate": "%",
    "durationSeconds": "s",
    "medianSeconds": "s",
    "percent": "%",
    "rate": "%",
    "roi": "%",
    "visitorToWalletRate": "%",
    "walletToTransactionRate": "%",
}


class Library(Protocol):
    """The stored documents that the asker may see. ``site_id`` is the website that the asker is bound to, if one."""

    @property
    def site_id(self) -> str | None:
        """Return the id of that website."""
        ...

    def count(self, where: Filter) -> int:
        """Return how many documents fit."""
        ...

    def find(self, where: Filter, limit: int) -> Sequence[Stored]:
        """Return documents that fit, by their ids, without their vectors; at most so many."""
        ...


@dataclass(frozen=True, slots=True)
class Figure:
    """``value`` is exact: a number, the text of a decimal, or a list of such under their names.

    ``path`` says where it stands in the facts of the cited document, or in those that were counted.
    """

    name: str
    value: Any
    path: str
    subject: str
    window: str
    unit: str | None = None
    document_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FigureAnswer:
    """``cited`` are the stored documents that it rests on; of records that were counted, the first ten of each count.

    ``counted`` is how many were, and None where documents of figures say it all. ``notes`` say what was assumed.
    """

    figures: tuple[Figure, ...]
    cited: tuple[Stored, ...]
    counted: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a question can't be answered with figures, and what would be needed.

    ``about`` is a name that nothing of the tenant's has: a text that says it may answer all the same.
    """

    reason: str
    needed: str
    about: str | None = None


class RefusedError(Exception):
    """A question can't be answered; ``refusal`` says why."""

    def __init__(self, reason: str, needed: str, *, about: str | None = None) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, needed, about)


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose figures: ``chosen`` are conditions of its documents of figures, ``records`` those of its records."""

    kind: str
    name: str
    chosen: tuple[AnyOf, ...] = ()
    records: tuple[AnyOf, ...] = ()
    symbol: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Facts of one scope and time: of a document, or counted from records."""

    scope: Scope
    facts: Mapping[str, Any]
    cited: tuple[Stored, ...]
    window: str
    counted: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Collector:
    """Gathers figures with what they rest on, each once."""

    figures: list[Figure] = field(default_factory=list)
    cited: dict[str, Stored] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    counted: int | None = None

    def take(self, found: Found, paths: Sequence[str]) -> None:
        """Take the figures at these paths, those that there are."""
        for path in paths:
            try:
                value = read_path(found.facts, path)
            except NoFigureError:
                continue
            self.say(found, name_of(path), value, path, unit_of(path, found.facts))

    def say(self, found: Found, name: str, value: Any, path: str, unit: str | None = None) -> None:
        """Take one figure."""
        rests_on = tuple(row["documentId"] for row in found.cited)
        figure = Figure(name, value, path, found.scope.name, found.window, unit, rests_on)
        if figure not in self.figures:
            self.figures.append(figure)
        self.cited |= {row["documentId"]: row for row in found.cited}
        self.notes |= dict.fromkeys(found.notes)
        if found.counted is not None:
            self.counted = max(found.counted, self.counted or 0)

    def finish(self) -> FigureAnswer:
        """Return the answer."""
        return FigureAnswer(tuple(self.figures), tuple(self.cited.values()), self.counted, tuple(self.notes))


def name_of(path: str) -> str:
    """Return what people call the figure at a path."""
    plain = re.sub(r"\[.*?\]", "", path)
    return NAMES.get(plain) or split_words(plain.rpartition(".")[2]).lower()


def unit_of(path: str, facts: Mapping[str, Any]) -> str | None:
    """Return the unit of the figure at a path, where it has one."""
    last = path.split(".")[-1]
    if last in _UNITS:
        return _UNITS[last]
    if path.startswith("figures.secondsToTransaction"):
        return "s"
    if ".lockDays" in path and last in ("average", "median", "longest", "shortest"):
        return "days"
    if path.startswith("figures.cost") and last not in ("currency", "roi"):
        return str(facts.get("figures", {}).get("cost", {}).get("currency") or "") or None
    match = re.search(r"\[unit=([^\]]*)\]", path)
    if match is not None and last in ("amount", "largest"):
        return match[1]
    return None
