"""Telling: an answer with figures as a sentence for each subject and time, with the numbers of what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tasks.domain.aggregates.periods import WEEKDAYS
from tasks.domain.answers.model import Figure, FigureAnswer, Refusal

#: Of a list that is longer, the rest stands in the figure alone.
_MOST_TOLD = 24
#: A sentence names so many of the records that were counted.
_MOST_MARKS = 3
#: Words that a figure's name stands before, and not behind: "median visit 304 s".
_UNSAID = frozenset({".unit", ".currency", "subject", "chain"})


def tell(answer: FigureAnswer) -> str:
    """Return the answer in words; ``[n]`` is the n-th of what it cites. Figures stand as exactly as they are."""
    number_of = {row["documentId"]: number for number, row in enumerate(answer.cited, 1)}
    told: dict[tuple[str, str], tuple[list[str], dict[int, None]]] = {}
    for figure, words in zip(answer.figures, _with_units(answer.figures), strict=True):
        said, marks = told.setdefault((figure.subject, figure.window), ([], {}))
        said += [words] if words else []
        marks |= dict.fromkeys(number_of[one] for one in figure.document_ids[:_MOST_MARKS])
    sentences = [
        f"{subject}, {window}: {', '.join(said)} {''.join(f'[{mark}]' for mark in marks)}."
        for (subject, window), (said, marks) in told.items()
    ]
    if answer.counted is not None:
        sentences.append(f"Counted from {answer.counted:,} record{'s' if answer.counted != 1 else ''}.")
    sentences += [f"{note[0].upper()}{note[1:]}." for note in answer.notes]
    return " ".join(sentences)


def tell_refusal(refusal: Refusal) -> str:
    """Return why there is no answer, and what would be needed, in a sentence each."""
    return f"{refusal.reason[0].upper()}{refusal.reason[1:]}. Needed: {refusal.needed}."


def figures_of(answer: FigureAnswer) -> list[dict[str, Any]]:
    """Return figures as an answer holds them; ``value`` is exact, and ``path`` is where a cited document has it."""
    numbers = {row["documentId"]: number for number, row in enumerate(answer.cited, 1)}
    return [
        {
            "name": one.name,
            "value": one.value,
            "unit": one.unit,
            "path": one.path,
            "subject": one.subject,
            "window": one.window,
            "citations": [numbers[document_id] for document_id in one.document_ids],
        }
        for one in answer.figures
    ]


def _with_units(figures: Sequence[Figure]) -> list[str]:
    """Return each figure in words; amounts of several units stand beside their units, and the units not alone."""
    units: list[str] = []
    told = []
    for figure in figures:
        if figure.path.endswith("[*].unit"):
            units = [str(unit) or "of an unknown unit" for unit in figure.value]
            told.append("")
        elif "[*]." in figure.path and units and isinstance(figure.value, list):
            pairs = [f"{_value(value)} {unit}" for value, unit in zip(figure.value, units, strict=False)]
            told.append(f"{figure.name} {'; '.join(pairs) or 'none'}")
        elif figure.path.endswith(tuple(_UNSAID)):
            told.append("")
        else:
            told.append(_words(figure))
    return told


def _words(figure: Figure) -> str:
    value = figure.value
    if figure.path == "figures.weekdays":
        return ", ".join(f"{day} {number:,}" for day, number in zip(WEEKDAYS, value, strict=True))
    if figure.path.startswith("change.") and isinstance(value, Mapping) and "absolute" in value:
        return _change(figure.name, value)
    if isinstance(value, list | Mapping):
        unit = "" if figure.unit is None else f" in {figure.unit}"
        return f"{figure.name}{unit}: {_value(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and figure.unit is None:
        name = figure.name.removesuffix("s") if value == 1 and " " not in figure.name else figure.name
        return f"{value:,} {name}"
    unit = "" if figure.unit is None else f" {figure.unit}"
    return f"{figure.name} {_value(value)}{unit}"


def _change(name: str, value: Mapping[str, Any]) -> str:
    if value["before"] is None:
        return f"{name}: nothing is known of the period before"
    percent = "" if value["percent"] is None else f", {value['percent']} %"
    return f"{name} changed by {value['absolute']} (from {value['before']} in the period before{percent})"


def _value(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d}"
    if isinstance(value, Mapping):
        return _entry(value)
    if isinstance(value, list):
        more = f" and {len(value) - _MOST_TOLD:,} more" if len(value) > _MOST_TOLD else ""
        return ", ".join(_value(each) for each in value[:_MOST_TOLD]) + more if value else "none"
    return str(value)


def _entry(entry: Mapping[str, Any]) -> str:
    """Return an entry of a ranking as its name with its number, and anything else as its names with its values."""
    values = list(entry.values())
    if len(values) > 1 and isinstance(values[0], str):
        more = ", ".join(f"{name} {_value(value)}" for name, value in list(entry.items())[2:])
        return f"{values[0]} {_value(values[1])}{f' ({more})' if more else ''}"
    return " ".join(f"{name} {_value(value)}" for name, value in entry.items())
