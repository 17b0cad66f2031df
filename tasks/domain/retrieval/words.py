"""Words: what a text is searched by. The same for documents and questions, and the same on every machine."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from tasks.domain.texts import split_words

_WORD = re.compile(r"[^\W_]+")
_SAYING_NOTHING = """
a an and any are as at be been being by did do does for from had has have how i in into is it its me
much many my of on or our s show tell that the their them there these they this those to us was we
were what when where which who whom whose why will with you your all every each please list find
give about
"""
#: Words that say nothing about a document, and those by which a question asks.
_STOP = frozenset(_SAYING_NOTHING.split())


def words_of(text: str) -> list[str]:
    """Return the stems of a text's words in their order, without those that say nothing.

    ``swapExactETHForTokens`` counts as its parts; what holds a hexadecimal number counts whole.
    """
    return [stem for word in _WORD.findall(_parted(text)) if word not in _STOP and (stem := stem_of(word))]


def _parted(text: str) -> str:
    return " ".join(
        f"{split_words(part)} {part.lower()}" if _is_joined(part) and "0x" not in part[:3] else part.lower()
        for part in text.split()
    )


def _is_joined(word: str) -> bool:
    return any(first.islower() and second.isupper() for first, second in pairwise(word))


@lru_cache(maxsize=262_144)
def stem_of(word: str) -> str:
    """Return the stem of a lower-case word: plurals, -ed and -ing fall together, and nothing else does."""
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and any(vowel in rest for vowel in "aeiouy"):
            if rest[-1] == rest[-2] and rest[-1] not in "lsz":
                return rest[:-1]
            word = rest
            break
    return word.removesuffix("e") if len(word) > 4 else word
