"""Filter: what must hold of a document before anything is ranked; the same for every index that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

#: What a document is compared by as a number: its time frame in seconds since 1970, and figures of a transaction.
NumberField = Literal["start", "end", "amount", "gasUsed", "blockNumber", "callDataBytes", "importance"]
NUMBER_FIELDS: tuple[NumberField, ...] = (
    "start",
    "end",
    "amount",
    "gasUsed",
    "blockNumber",
    "callDataBytes",
    "importance",
)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The document has one of these values of a field (``terms_of`` in ``entries.py`` says which fields there are).

    Case does not count. With ``negated`` it has none of them.
    """

    field: str
    values: tuple[str, ...]
    negated: bool = False

    def terms(self) -> tuple[str, ...]:
        """Return the terms of which the document has one."""
        return tuple(make_term(self.field, value) for value in self.values)


@dataclass(frozen=True, slots=True)
class Between:
    """The document has the number, and it lies between the two; ``above`` and ``below`` leave the bound itself out."""

    field: NumberField
    low: float = -inf
    high: float = inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a number fits; NaN, which stands for none, never does."""
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that all hold. Without any, every document fits."""

    any_of: tuple[AnyOf, ...] = ()
    between: tuple[Between, ...] = ()

    def __and__(self, other: Filter) -> Filter:
        """Return what both ask for."""
        return Filter((*self.any_of, *other.any_of), (*self.between, *other.between))

    def holds(self, terms: frozenset[str], numbers: Mapping[NumberField, float]) -> bool:
        """Return whether a document with these terms and numbers fits: the definition that every index answers to."""
        return all(one.negated != any(term in terms for term in one.terms()) for one in self.any_of) and all(
            one.field in numbers and one.holds(numbers[one.field]) for one in self.between
        )


def overlapping(start: float, end: float) -> Filter:
    """Return the filter of documents whose time frame has a moment in common with ``[start, end)``, in seconds."""
    return Filter(between=(Between("start", high=end, below=True), Between("end", low=start)))


def make_term(field: str, value: str) -> str:
    """Return what an index holds for a value of a field."""
    return f"{field}={value.casefold()}"
