"""Text from outside, made safe to store and to search: names of tokens and contracts are written by strangers."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_PLAIN = re.compile(r"[ -~]*")
_JOINERS = "\u200c\u200d"
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)


def clean_text(text: str) -> str:
    """Return the text without control characters, direction overrides and hidden characters, spaces folded.

    What shows nothing but changes what a reader or a search sees goes: NUL and the other controls, bidirectional
    overrides (U+202E turns the shown order round), zero-width characters inside a word of another spelling.
    Joiners stay where they carry meaning: between emoji and inside scripts that use them. Line breaks stay.
    """
    if _PLAIN.fullmatch(text):
        return " ".join(text.split()) if "  " in text or text[:1] == " " or text[-1:] == " " else text
    kept: list[str] = []
    for index, char in enumerate(text):
        if char in "\n\t":
            kept.append(char)
            continue
        category = unicodedata.category(char)
        if category in ("Cc", "Cs", "Co", "Cn"):
            kept.append(" " if category == "Cc" else "")
        elif category == "Cf":
            before, after = text[index - 1 : index], text[index + 1 : index + 2]
            if char in _JOINERS and before and after and not before.isascii() and not after.isascii():
                kept.append(char)
        else:
            kept.append(char)
    lines = (" ".join(line.split()) for line in "".join(kept).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


@lru_cache(maxsize=65_536)
def _clean_short(text: str) -> str | None:
    return clean_text(text) or None


def clean_name(raw: object) -> str | None:
    """Return a name or symbol cleaned, or None where there is nothing to show or it is not text."""
    if not isinstance(raw, str) or not raw:
        return None
    return _clean_short(raw) if len(raw) <= 200 else (clean_text(raw) or None)


def split_words(identifier: str) -> str:
    """Return the words of a method name in lower case: ``swapExactETHForTokens`` -> ``swap exact eth for tokens``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\W]+", " ", identifier)
    return " ".join(spaced.split()).lower()
