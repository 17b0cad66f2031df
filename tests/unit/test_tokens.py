"""Tokens: counting word by word gives what the tokenizer gives for the whole text, whatever the text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks import tokens
from blocks.tokens import count_tokens
from tasks.domain.owners import Owners
from tasks.domain.transaction_documents import describe_transaction
from tasks.domain.transactions import parse_transaction
from tests.builders import NOW_MS
from tests.conftest import read_extended_json

AWKWARD = [
    "",
    " ",
    "  ",
    "a",
    " a",
    "a ",
    "a b",
    "a  b",
    "a   b",
    "a\nb",
    "a \n b",
    "\ta\u00a0b\u3000c",
    "<s>",
    "a <s> b",
    "a<s>b </s> <unk>",
    "a<b",
    "\u2581",
    "a\u2581b",
    "\u2581a \u2581 b",
    "a \u2581b",
    "\u2581 \u2581",
    "a\u2581 \u2581\u2581 b",
    "swapExactETHForTokens(uint256,address[])",
    "🍣 👨\u200d👩\u200d👧 🇩🇪",
    "مرحبا بالعالم",
    "你好 世界",
    "นี่คือ ข้อความ",
    "\x00 \x00",
    "\u0301 e\u0301",
]
pieces = st.sampled_from(
    [" ", "  ", "\n", "\t", "<", "<s>", "</s>", "<unk>", "\u2581", "\u00a0", "\u3000", "\u200d", "🍣"]
)
words = st.text(max_size=12) | st.sampled_from(["transfer", "0xdeadbeef", "USDT,", "12.5", "مرحبا", "世界", "é", "("])
texts = st.lists(pieces | words, max_size=25).map("".join) | st.lists(words, max_size=25).map(" ".join)


def whole(text: str) -> int:
    """Return the tokenizer's own count of a text."""
    return len(tokens._tokenizer().encode(text).ids)


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_an_awkward_text_has_the_tokenizers_own_count(text: str) -> None:
    assert count_tokens([text]) == [whole(text)]


@given(texts)
def test_any_text_has_the_tokenizers_own_count(text: str) -> None:
    assert count_tokens([text]) == [whole(text)]


@given(st.lists(texts, max_size=8))
def test_texts_counted_together_have_the_counts_that_they_have_alone(some: list[str]) -> None:
    assert count_tokens(some) == [whole(text) for text in some]


def test_counts_are_right_when_more_words_come_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_WORDS", 20)
    monkeypatch.setattr(tokens, "_words", {})
    some = [" ".join(f"word{number * 7 + at} again" for at in range(7)) for number in range(30)]
    expected = [whole(text) for text in some]
    assert [count for text in some for count in count_tokens([text])] == expected
    assert count_tokens(some) == count_tokens(some) == expected
    # Some hundred new words came: what is remembered was thrown away in between.
    assert len(tokens._words) < 2 * len({word for text in some for word in text.split(" ")})
    for text in some:
        count_tokens([text])
    assert len(tokens._words) <= 20 + max(len(text.split(" ")) for text in some)


def test_a_word_too_long_to_be_remembered_is_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_words", {})
    long = "abc123" * 50
    assert count_tokens([f"a {long}", long]) == [whole(f"a {long}"), whole(long)]
    assert long not in tokens._words
    assert "a" in tokens._words


def test_threads_that_count_at_once_count_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_WORDS", 50)
    monkeypatch.setattr(tokens, "_words", {})
    some = [[f"token{number % 83} of thread{thread} at {number}" for number in range(300)] for thread in range(4)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(lambda own: [count_tokens([text])[0] for text in own], some))
    assert found == [[whole(text) for text in own] for own in some]


def test_every_real_document_has_the_tokenizers_own_count(shared_data: Path) -> None:
    names = ("smartcontracts", "teams", "websites")
    owners = Owners.from_records(*(read_extended_json(shared_data / f"{name}.jsonl") for name in names))
    records = read_extended_json(shared_data / "transactions.sample.jsonl.gz")
    contents = [describe_transaction(parse_transaction(record, owners, now_ms=NOW_MS)).content for record in records]
    assert len(contents) == 7_845
    own = [len(encoding.ids) for encoding in tokens._tokenizer().encode_batch_fast(contents)]
    assert count_tokens(contents) == own
