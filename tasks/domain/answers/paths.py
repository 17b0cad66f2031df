"""Paths: where a figure stands in a document's facts, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: A dot that parts two steps of a path, and not one in the value that an entry is chosen by.
_DOT = re.compile(r"\.(?![^\[]*\])")
_STEP = re.compile(r"(\w*)(?:\[(?:(\w+)=([^\]]*)|(:?)(\d+)|(\*))\])?")


class NoFigureError(Exception):
    """The document has nothing at that path."""


def read_path(facts: Mapping[str, Any], path: str) -> Any:
    """Return the value that a path leads to. Raises ``NoFigureError`` where there is none.

    ``figures.topPages[:3]`` takes the first three of a list, ``[0]`` the first, ``[unit=ETH]`` the entry with that
    value, ``[*].unit`` a value of each entry.
    """
    value: Any = facts
    steps = _DOT.split(path)
    for position, step in enumerate(steps):
        match = _STEP.fullmatch(step)
        if match is None:
            raise NoFigureError(f"{path} is no path")
        name, key, wanted, sliced, number, each = match.groups()
        try:
            value = value[name] if name else value
            if each:
                rest = ".".join(steps[position + 1 :])
                return [read_path(entry, rest) for entry in value]
            if key:
                (value,) = (entry for entry in value if str(entry[key]) == wanted)
            elif number is not None:
                value = value[: int(number)] if sliced else value[int(number)]
        except (KeyError, IndexError, TypeError, ValueError):
            raise NoFigureError(f"the document has no {path}") from None
    return value
