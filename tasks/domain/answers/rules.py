"""Rules: which of the lexicon's fit a question, and their paths in the facts that were found."""

from __future__ import annotations

import re
from decimal import Decimal

from tasks.domain.answers.asking import Asked, find_units
from tasks.domain.answers.lexicon import RULES, FigureRule, Topic
from tasks.domain.answers.model import Found, RefusedError

_ADDED = re.compile(
    r"\badd(?:ed)? (?:\w+ )*(?:up|together)\b|\badd up\b|\bone (?:number|figure|sum|total)\b|\bcombined\b|\bsum of\b"
)


def fitting(topic: Topic, said: str) -> list[FigureRule]:
    """Return the rules of a topic that fit what is said."""
    found: list[FigureRule] = []
    for rule in RULES:
        if rule.topic == topic and rule.fits(said):
            if rule.alone:
                return [rule] if not found else [*found, rule]
            found.append(rule)
    return found


def paths_of(asked: Asked, rule: FigureRule, found: Found) -> list[str]:
    """Return a rule's paths with the number and the unit that are asked for.

    Without a unit that is named it is the contract's own, or the only one that moved, or each.
    """
    volumes = found.facts.get("figures", {}).get("volumes") or []
    units = [volume["unit"] for volume in volumes]
    named = find_units(asked.left, units)
    if len(named) > 1 and _ADDED.search(asked.said):
        raise RefusedError("amounts of different units are never added up", "one unit, or a price of each")
    one = named[0] if named else None
    if one is None and found.scope.symbol in units:
        one = found.scope.symbol
    if one is None:
        moved = [volume["unit"] for volume in volumes if volume["unit"] and Decimal(volume["amount"])]
        one = moved[0] if len(moved) == 1 else None
    each = f"unit={named[0]}" if len(named) == 1 else "*"
    return [
        path.replace("{n}", str(asked.number))
        .replace("{units}", each)
        .replace("{unit}", "*" if one is None else f"unit={one}")
        for path in rule.reads
    ]
