"""Text from outside, made safe to store and to search: names of tokens and contracts are written by strangers."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_PLAIN = re.compile(r"[ -~]*")
_JOINER_RUN = re.compile("[\u200c\u200d]+")


def clean_text(text: str) -> str:
    """Return the text without control characters, direction overrides and hidden characters, spaces folded.

    What shows nothing but changes what a reader or a search sees goes: NUL and the other controls, bidirectional
    overrides (U+202E turns the shown order round), zero-width characters inside a word of another spelling.
    Joiners stay where they carry meaning: between emoji and inside scripts that use them. Line breaks stay.
    """
    if _PLAIN.fullmatch(text):
        return " ".join(text.split()) if "  " in text or text[:1] == " " or text[-1:] == " " else text
    shown = "".join(map(_shown, text))
    # Only now does each joiner stand beside the characters that it will be read with.
    joined = _JOINER_RUN.sub(_kept_joiner, shown)
    lines = (" ".join(line.split()) for line in joined.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _shown(char: str) -> str:
    if char in "\n\t\u200c\u200d":
        return char
    category = unicodedata.category(char)
    if category == "Cc":
        return " "
    if category in ("Cs", "Co", "Cf") or (category == "Cn" and _never_shown(ord(char))):
        return ""
    return char


def _never_shown(code: int) -> bool:
    """Return whether a code without a character will never have one that shows.

    The rest may be an emoji that is younger than this Python's tables: the text must not depend on those.
    """
    return (
        code & 0xFFFE == 0xFFFE
        or 0xFDD0 <= code <= 0xFDEF
        or code == 0x2065
        or 0xFFF0 <= code <= 0xFFF8
        or 0xE0000 <= code <= 0xE0FFF
    )


def _kept_joiner(run: re.Match[str]) -> str:
    before, after = run.string[: run.start()][-1:], run.string[run.end() : run.end() + 1]
    beside = before + after
    meant = bool(before and after) and not any(char.isascii() or char.isspace() for char in beside)
    return run.group()[0] if meant else ""


@lru_cache(maxsize=65_536)
def _clean_short(text: str) -> str | None:
    return clean_text(text) or None


def clean_name(raw: object) -> str | None:
    """Return a name or symbol cleaned, or None where there is nothing to show or it is not text."""
    if not isinstance(raw, str) or not raw:
        return None
    return _clean_short(raw) if len(raw) <= 200 else (clean_text(raw) or None)


@lru_cache(maxsize=65_536)
def split_words(identifier: str) -> str:
    """Return the words of a method name in lower case: ``swapExactETHForTokens`` -> ``swap exact eth for tokens``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\W]+", " ", identifier)
    return " ".join(spaced.split()).lower()
