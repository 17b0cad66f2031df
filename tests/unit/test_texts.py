"""Names are written by strangers: what hides in them goes, what they say stays."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.texts import clean_name, clean_text, split_words

HIDDEN = "\u200b\u200e\u202a\u202e\u2066\u2069\ufeff\u00ad\u2060\U000e0041"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Safe\x00Moon\x00", "Safe Moon"),
        ("USDC\u202eCTDU", "USDCCTDU"),
        ("\u2066USD\u2069", "USD"),
        ("BT\u200dC", "BTC"),
        ("Te\u200bther", "Tether"),
        ("Doge \ud83d Inu", "Doge Inu"),
        ("  two   spaces ", "two spaces"),
        ("a\r\nb", "a\nb"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("tab\there", "tab here"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("é\u200d\u202ea", "éa"),
        ("é\u200d\u200da", "éa"),
        ("\u200dé", "é"),
        ("é\u2003\u200dé", "é é"),
        ("♥️CHINUちび", "♥️CHINUちび"),
    ],
)
def test_hidden_characters_go_and_meant_ones_stay(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@pytest.mark.parametrize("young", ["\U0001fae9", "\U0001fadf", "\U0001f6d8"])
def test_an_emoji_younger_than_these_tables_stays(young: str) -> None:
    assert clean_text(f"Moon {young}") == f"Moon {young}"


@pytest.mark.parametrize("code", [0xFFFE, 0x1FFFF, 0x10FFFF, 0xFDD0, 0x2065, 0xFFF0, 0xE0FFF])
def test_codes_that_will_never_show_go(code: int) -> None:
    assert clean_text(f"a{chr(code)}é") == "aé"


@given(st.text(max_size=60) | st.text("aé \n\t\u200c\u200d😀" + HIDDEN, max_size=30))
def test_cleaning_a_clean_text_changes_nothing(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once


@given(st.text(max_size=60))
def test_nothing_that_hides_or_turns_the_order_is_left(text: str) -> None:
    clean = clean_text(text)
    assert not set(clean) & set(HIDDEN)
    assert all(unicodedata.category(char) not in ("Cc", "Cs", "Co") or char == "\n" for char in clean)
    clean.encode()


@given(st.text(max_size=60))
def test_every_letter_and_digit_stays_in_its_order(text: str) -> None:
    def letters(text: str) -> list[str]:
        return [char for char in text if unicodedata.category(char)[0] in "LNS"]

    assert letters(clean_text(text)) == letters(text)


@pytest.mark.parametrize("raw", [None, "", " ", "\u200b", 17, 1.5, True, ["a"], {"a": 1}, b"name"])
def test_what_shows_nothing_is_no_name(raw: object) -> None:
    assert clean_name(raw) is None


def test_a_long_name_is_cleaned_like_a_short_one() -> None:
    assert clean_name("a\u202e" * 10_000) == "a" * 10_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swapExactETHForTokens", "swap exact eth for tokens"),
        ("create_lock", "create lock"),
        ("atomicMatch_", "atomic match"),
        ("ERC20Transfer", "erc20 transfer"),
        ("_", ""),
        ("$", ""),
    ],
)
def test_a_method_name_is_read_as_words(name: str, words: str) -> None:
    assert split_words(name) == words
